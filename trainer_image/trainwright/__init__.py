"""The Trainer: the API of the Hugging Face Trainer on torch and accelerate.

Names are looked up when they are first used, so that neither ``import trainwright`` nor the
arguments cost the import of torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "trainwright.arguments": ("Seq2SeqTrainingArguments", "TrainingArguments"),
    "trainwright.callbacks": (
        "CallbackHandler",
        "DefaultFlowCallback",
        "EarlyStoppingCallback",
        "PrinterCallback",
        "ProgressCallback",
        "TrainerCallback",
    ),
    "trainwright.checkpoint.store": ("get_last_checkpoint",),
    "trainwright.data.collators": ("DataCollatorWithPadding", "DefaultDataCollator", "default_data_collator"),
    "trainwright.contract": ("DataError", "UserError"),
    "trainwright.enums": (
        "HubStrategy",
        "IntervalStrategy",
        "OptimizerNames",
        "ParallelMode",
        "SaveStrategy",
        "SchedulerType",
    ),
    "trainwright.training.losses": ("LabelSmoother",),
    "trainwright.metrics": ("speed_metrics",),
    "trainwright.training.optim": ("Adafactor",),
    "trainwright.outputs": ("EvalLoopOutput", "EvalPrediction", "PredictionOutput", "TrainOutput"),
    "trainwright.training.schedulers": (
        "GreedyLR",
        "get_constant_schedule",
        "get_constant_schedule_with_warmup",
        "get_cosine_schedule_with_warmup",
        "get_cosine_with_hard_restarts_schedule_with_warmup",
        "get_cosine_with_min_lr_schedule_with_warmup",
        "get_cosine_with_min_lr_schedule_with_warmup_lr_rate",
        "get_inverse_sqrt_schedule",
        "get_linear_schedule_with_warmup",
        "get_polynomial_decay_schedule_with_warmup",
        "get_reduce_on_plateau_schedule",
        "get_scheduler",
        "get_wsd_schedule",
    ),
    "trainwright.seeding": ("enable_full_determinism", "set_seed"),
    "trainwright.state": ("ExportableState", "TrainerControl", "TrainerState"),
    "trainwright.trainer": ("Trainer",),
}
_EXPORTS = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    home = _EXPORTS.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
