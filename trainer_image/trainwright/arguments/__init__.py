"""``TrainingArguments`` and ``Seq2SeqTrainingArguments``: what a run is asked to do, checked when it is said.

Names, types, defaults and methods are those of ``transformers``, so that scripts and saved arguments move over.
Importing this package costs neither torch nor transformers: the operator's side reads the same arguments.
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
