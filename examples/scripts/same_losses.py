"""Runs the four scripts with either import and prints how far the logged losses are apart.

    python examples/scripts/same_losses.py [text_classification ...]     # or: make same-losses

One process, fp32, equal seeds. Exits 1 if any loss differs by more than 1e-5.
"""

import contextlib
import importlib
import io
import sys
import tempfile
from pathlib import Path

SCRIPTS = ("text_classification", "language_modelling", "token_classification", "summarisation")
TOLERANCE = 1e-5
LOSSES = ("loss", "eval_loss", "train_loss")


def losses(history):
    """(step, name, value) of every loss that was logged."""
    return [(entry["step"], name, entry[name]) for entry in history for name in LOSSES if name in entry]


def run(script, library):
    """The losses of one script with one import, without what it prints."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        return losses(importlib.import_module(script).main(library, Path(folder)))


def compare(script):
    """Losses logged, the last one of each, and the largest difference; infinite where other things are logged."""
    ours, theirs = run(script, "trainwright"), run(script, "transformers")
    alike = [entry[:2] for entry in ours] == [entry[:2] for entry in theirs]
    apart = max(abs(a - b) for (*_, a), (*_, b) in zip(ours, theirs, strict=True)) if alike else float("inf")
    return len(ours), ours[-1][2], theirs[-1][2], apart


def main(scripts):
    print(f"{'script':<24}{'losses':>8}{'trainwright':>14}{'transformers':>14}{'max |difference|':>18}")
    worst = 0.0
    for script in scripts:
        count, ours, theirs, apart = compare(script)
        print(f"{script:<24}{count:>8}{ours:>14.6f}{theirs:>14.6f}{apart:>18.1e}", flush=True)
        worst = max(worst, apart)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or SCRIPTS) > TOLERANCE)
