"""``TrainingArguments`` and ``Seq2SeqTrainingArguments``: the settings of a run, checked at construction.

Names, types, defaults and methods are those of ``transformers``, so that scripts and saved arguments keep working.
Importing this package imports neither torch nor transformers, because the operator reads the same arguments.
"""

from __future__ import annotations

from .accelerator import AcceleratorConfig
from .errors import ArgumentError, NotBuiltError, Problem, UnknownArgumentError
from .training import Seq2SeqTrainingArguments, TrainingArguments

__all__ = [
    "AcceleratorConfig",
    "ArgumentError",
    "NotBuiltError",
    "Problem",
    "Seq2SeqTrainingArguments",
    "TrainingArguments",
    "UnknownArgumentError",
]
