"""What is printed through rich, to a terminal or a pipe."""

from __future__ import annotations

from rich.console import Console


class Terminal(Console):
    """Raises what ``print`` raises when the reader of a pipe has gone, where rich ends the process with a failure."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        raise BrokenPipeError
