"""The arguments by subject: one dataclass for each group, in the order of transformers' positional arguments."""

from __future__ import annotations

from .compute import Determinism, DistributedDataParallel, Memory, Precision, Sharding
from .data import DataLoading
from .learning import Duration, LearningRate, Optimization, Stability
from .results import BestModel, Checkpoints, Hub
from .scripts import Diagnosis, Generation
from .watching import Evaluation, Logging

__all__ = [
    "GROUPS",
    "BestModel",
    "Checkpoints",
    "DataLoading",
    "Determinism",
    "Diagnosis",
    "DistributedDataParallel",
    "Duration",
    "Evaluation",
    "Generation",
    "Hub",
    "LearningRate",
    "Logging",
    "Memory",
    "Optimization",
    "Precision",
    "Sharding",
    "Stability",
]

GROUPS: tuple[type, ...] = (
    Duration,
    LearningRate,
    Optimization,
    Stability,
    Precision,
    Memory,
    Logging,
    Evaluation,
    Checkpoints,
    Hub,
    BestModel,
    Determinism,
    DataLoading,
    DistributedDataParallel,
    Sharding,
    Diagnosis,
    Generation,
)
"""In positional order; the last one belongs to ``Seq2SeqTrainingArguments`` alone."""
