"""Replaces the Trainer of transformers by ours, for unchanged scripts and libraries that import it.

To use it, put ``import trainwright.overlay`` on the first line of a script, run ``python -m trainwright.overlay
script.py``, or set ``spec.script.overlay: true`` in a TrainingJob. Nothing is imported before the script asks for a
Trainer, so environment variables that the script sets before its imports still have an effect.
"""

from __future__ import annotations

import sys

from trainwright.contract import UserError
from trainwright.overlay.arrival import install

try:
    install()
except UserError as error:
    if sys.argv[0] != "-m":  # argv[0] is "-m" only while Python resolves the module of `python -m`
        raise
    print(f"error: {error}", file=sys.stderr)
    sys.exit(int(error.exit_code))
