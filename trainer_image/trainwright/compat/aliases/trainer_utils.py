"""``transformers.trainer_utils`` for scripts that change the name of the library alone: a view of the package."""

from trainwright import __getattr__ as __getattr__  # type: ignore[attr-defined]

PREFIX_CHECKPOINT_DIR = "checkpoint"
"""The folder of a checkpoint is named ``checkpoint-<step>``."""
