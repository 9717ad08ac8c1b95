"""``python -m trainwright.overlay SCRIPT [ARGS]``, or ``-m MODULE [ARGS]``: runs it with our Trainer, as a rank."""

from __future__ import annotations

import sys

from trainwright.contract import UserError
from trainwright.launch import entry


def main() -> None:
    match sys.argv[1:]:
        case ["-m", module, *args]:
            entry.run_module(module, args)
        case [script, *args] if not script.startswith("-"):
            entry.run_script(script, args)
        case _:
            raise UserError("usage: python -m trainwright.overlay SCRIPT [ARGS], or -m MODULE [ARGS]")


if __name__ == "__main__":
    entry.run(main)
