"""The Trainer: the API of the Hugging Face Trainer on torch and accelerate.

Names are imported on first use, so that neither ``import trainwright`` nor the arguments import torch. Other names that
users of the Hugging Face Trainer import are here too; some come from transformers.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from trainwright import extras

__version__ = "0.1.0"
"""The version of the release. It is only defined here in Python, because an image may only have this folder."""

# The modules under Hugging Face's names, and those in checkpoints and pods of earlier versions.
__path__ = [*__path__, str(Path(__file__).parent / "compat" / "aliases")]

_HOMES = {
    "transformers": (
        "DataCollatorForLanguageModeling",
        "DataCollatorForSeq2Seq",
        "DataCollatorForTokenClassification",
        "DataCollatorWithFlattening",
        "HfArgumentParser",
    ),
    "trainwright.arguments": ("AcceleratorConfig", "Seq2SeqTrainingArguments", "TrainingArguments"),
    "trainwright.callbacks.callback": ("CallbackHandler", "TrainerCallback"),
    "trainwright.callbacks.flow": ("DefaultFlowCallback", "EarlyStoppingCallback"),
    "trainwright.integrations.progress": ("PrinterCallback", "ProgressCallback"),
    "trainwright.checkpoint.deferred": ("deferred_weights",),
    "trainwright.checkpoint.store": ("get_last_checkpoint",),
    "trainwright.data.collators": ("DataCollatorWithPadding", "DefaultDataCollator", "default_data_collator"),
    "trainwright.contract": ("DataError", "UserError"),
    "trainwright.data.samplers": ("LengthGroupedSampler",),
    "trainwright.arguments.enums": (
        "HPSearchBackend",
        "HubStrategy",
        "IntervalStrategy",
        "OptimizerNames",
        "ParallelMode",
        "SaveStrategy",
        "SchedulerType",
    ),
    "trainwright.compat.helpers": (
        "denumpify_detensorize",
        "find_executable_batch_size",
        "get_dataloader_sampler",
        "get_model_param_count",
        "get_parameter_names",
        "has_length",
        "is_main_process",
        "number_of_arguments",
        "torch_distributed_zero_first",
        "total_processes_number",
    ),
    "trainwright.training.metrics": ("speed_metrics",),
    "trainwright.compat.nested": (
        "EvalLoopContainer",
        "atleast_1d",
        "distributed_broadcast_scalars",
        "distributed_concat",
        "expand_like",
        "find_batch_size",
        "nested_concat",
        "nested_detach",
        "nested_gather",
        "nested_new_like",
        "nested_numpify",
        "nested_truncate",
        "numpy_pad_and_concatenate",
        "torch_pad_and_concatenate",
    ),
    "trainwright.training.losses": ("LabelSmoother",),
    "trainwright.training.memory": ("TrainerMemoryTracker",),
    "trainwright.training.optimizers.factory": ("Adafactor",),
    "trainwright.outputs": ("BestRun", "EvalLoopOutput", "EvalPrediction", "PredictionOutput", "TrainOutput"),
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
    "trainwright.devices.seeding": ("enable_full_determinism", "set_seed"),
    "trainwright.search.spaces": (
        "default_compute_objective",
        "default_hp_space_optuna",
        "default_hp_space_ray",
        "default_hp_space_wandb",
    ),
    "trainwright.callbacks.state": ("ExportableState", "TrainerControl", "TrainerState"),
    "trainwright.trainer.seq2seq": ("Seq2SeqTrainer",),
    "trainwright.trainer.trainer": ("Trainer",),
}
_EXPORTS = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    home = _EXPORTS.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(__name__) or extras.of(error.name) is None:
            raise
        line = f"trainwright.{name}: {extras.line(error.name)}"
        raise ModuleNotFoundError(line, name=error.name, path=error.path) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
