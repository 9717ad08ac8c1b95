"""Shared by commands that talk to a cluster: connect, print, and report errors in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import wraps

from rich.console import RenderableType

from trainwright_operator.remote.cluster import Cluster, RemoteError, connect
from trainwright_operator.terminal import Terminal

DONE, FAILED, INVALID = 0, 1, 2
PIPE_WIDTH = 240

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


def show(what: RenderableType) -> None:
    """Print; in a pipe with wide lines for `grep`, and without trailing blanks."""
    console = Terminal(highlight=False)
    if console.is_terminal:
        console.print(what)
        return
    console = Terminal(highlight=False, width=PIPE_WIDTH)
    with console.capture() as captured:
        console.print(what)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))
