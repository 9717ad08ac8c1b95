"""Our Trainer under whatever says ``from transformers import Trainer``, for scripts and libraries left as they are.

``import trainwright.overlay`` as a script's first line, ``python -m trainwright.overlay script.py`` in front of it, or
``spec.script.overlay: true`` in a TrainingJob. Nothing is imported before the script itself asks for a Trainer, so
that what it sets in the environment before it imports a library still counts.
"""

from __future__ import annotations

import sys

from trainwright.contract import UserError
from trainwright.overlay.arrival import install

try:
    install()
except UserError as error:
    if (
        sys.argv[0] != "-m"
    ):  # which is there while Python looks for what `python -m` shall run: nothing else can tell it
        raise
    print(f"error: {error}", file=sys.stderr)
    sys.exit(int(error.exit_code))
