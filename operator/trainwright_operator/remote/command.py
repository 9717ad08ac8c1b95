"""What the commands that talk to a cluster share: options as kubectl's, and errors in one line."""

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
    """``run`` with the cluster that the options mean; what goes wrong between is told, never raised."""

    @wraps(run)
    def main(options: argparse.Namespace) -> int:
        try:
            return run(connect(options.kubeconfig, options.context, options.namespace), options)
        except RemoteError as error:
            print(f"error: {error}", file=sys.stderr)
            return INVALID

    return main


def show(what: RenderableType) -> None:
    """Print; in a pipe wide enough for `grep`, and with no blanks at the ends of lines."""
    console = Terminal(highlight=False)
    if console.is_terminal:
        console.print(what)
        return
    console = Terminal(highlight=False, width=PIPE_WIDTH)
    with console.capture() as captured:
        console.print(what)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))
