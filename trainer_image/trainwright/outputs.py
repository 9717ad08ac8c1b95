"""The results of the Trainer: named tuples with the field names of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple


class TrainOutput(NamedTuple):
    """The result of ``Trainer.train``: number of optimizer steps, mean training loss, and speed metrics."""

    global_step: int
    training_loss: float
    metrics: dict[str, float]


class EvalLoopOutput(NamedTuple):
    """The result of one pass over an evaluation set; arrays have one row per sample."""

    predictions: Any
    label_ids: Any
    metrics: dict[str, float]
    num_samples: int


class PredictionOutput(NamedTuple):
    """The result of ``Trainer.predict``."""

    predictions: Any
    label_ids: Any
    metrics: dict[str, float] | None


class BestRun(NamedTuple):
    """The best trial of a hyperparameter search: its number, its objective or objectives, its hyperparameters."""

    run_id: str
    objective: float | list[float]
    hyperparameters: dict[str, Any]
    run_summary: Any = None


class EvalPrediction:
    """What ``compute_metrics`` receives: numpy arrays (or nested tuples of them), one row per sample.

    ``inputs`` and ``losses`` are set if ``include_for_metrics`` names them. It unpacks as a tuple of the fields that
    are set: ``predictions, labels = eval_prediction``.
    """

    def __init__(self, predictions: Any, label_ids: Any, inputs: Any = None, losses: Any = None) -> None:
        self.predictions = predictions
        self.label_ids = label_ids
        self.inputs = inputs
        self.losses = losses
        self.elements = (predictions, label_ids, *(extra for extra in (inputs, losses) if extra is not None))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.elements)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self.elements):
            raise IndexError("tuple index out of range")
        return self.elements[index]
