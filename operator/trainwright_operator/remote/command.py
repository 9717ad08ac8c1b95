"""Shared by commands that talk to a cluster: connect, print, and report errors in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import wraps

from trainwright_operator.remote.cluster import Cluster, RemoteError, connect
from trainwright_operator.terminal import show

__all__ = ["DONE", "FAILED", "INVALID", "command", "show"]

DONE, FAILED, INVALID = 0, 1, 2

Command = Callable[[Cluster, argparse.Namespace], int]


def command(run: Command) -> Callable[[argparse.Namespace], int]:
    """Wraps ``run``: connects by the options, and prints a :class:`RemoteError` instead of raising it."""

    @wraps(run)
    def main(options: argparse.Namespace) -> int:
        try:
            return run(connect(options.kubeconfig, options.context, options.namespace), options)
        except RemoteError as error:
            print(f"error: {error}", file=sys.stderr)
            return INVALID

    return main
