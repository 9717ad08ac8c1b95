"""Every public name, parameter and default of what surrounds the Trainer, against the installed transformers.

    python -m pytest tests/trainer/test_api_parity.py -rP -k counts     # prints how many

What differs stands below with its reason, and nowhere else: an entry that is no difference any more fails too.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import transformers
import transformers.trainer_callback
import transformers.trainer_pt_utils
import transformers.trainer_utils
import transformers.training_args

import trainwright
from trainer import tiny
from trainer.runs import make

LIBRARIES = (
    transformers, transformers.trainer_utils, transformers.trainer_pt_utils, transformers.trainer_callback,
    transformers.training_args,
)  # fmt: skip

CLASSES = (
    "AcceleratorConfig", "BestRun", "CallbackHandler", "DataCollatorWithPadding", "DefaultDataCollator",
    "DefaultFlowCallback", "EarlyStoppingCallback", "EvalLoopContainer", "EvalLoopOutput", "EvalPrediction",
    "ExportableState", "LabelSmoother", "LengthGroupedSampler", "PredictionOutput", "PrinterCallback",
    "ProgressCallback", "Seq2SeqTrainer", "Seq2SeqTrainingArguments", "TrainOutput", "Trainer", "TrainerCallback",
    "TrainerControl", "TrainerMemoryTracker", "TrainerState", "TrainingArguments",
)  # fmt: skip

FUNCTIONS = (
    "default_compute_objective", "default_hp_space_optuna", "default_hp_space_ray", "default_hp_space_wandb",
    "default_data_collator", "enable_full_determinism", "get_constant_schedule", "get_constant_schedule_with_warmup",
    "get_cosine_schedule_with_warmup", "get_cosine_with_hard_restarts_schedule_with_warmup",
    "get_cosine_with_min_lr_schedule_with_warmup", "get_cosine_with_min_lr_schedule_with_warmup_lr_rate",
    "get_inverse_sqrt_schedule", "get_last_checkpoint", "get_linear_schedule_with_warmup",
    "get_polynomial_decay_schedule_with_warmup", "get_reduce_on_plateau_schedule", "get_scheduler", "get_wsd_schedule",
    "set_seed", "speed_metrics", "denumpify_detensorize", "find_executable_batch_size", "get_dataloader_sampler",
    "get_model_param_count", "get_parameter_names", "has_length", "is_main_process", "number_of_arguments",
    "torch_distributed_zero_first", "total_processes_number", "atleast_1d", "distributed_broadcast_scalars",
    "distributed_concat", "expand_like", "find_batch_size", "nested_concat", "nested_detach", "nested_gather",
    "nested_new_like", "nested_numpify", "nested_truncate", "numpy_pad_and_concatenate", "torch_pad_and_concatenate",
)  # fmt: skip

MEASURED_BY_STAGES = "stages are measured by trainwright.training.memory; start and stop are what subclasses call"
SERIALISED = "reading and checking again, which Hugging Face's class has not"

MISSING = {
    "AcceleratorConfig.pop": "takes a setting out of the instance, on its way to accelerate",
    **{
        f"TrainerMemoryTracker.{name}": MEASURED_BY_STAGES
        for name in ("cpu_mem_used", "derive_stage", "peak_monitor_func", "stages", "stop", "update_metrics")
    },
}
"""Theirs and not ours."""

MORE = {
    "Trainer.model_accepts_loss_kwargs": "an attribute of theirs, set once; ours is found out at the first step",
    "Seq2SeqTrainer.model_accepts_loss_kwargs": "the same",
    "Trainer.async_save": "writing checkpoints while training goes on",
    "Seq2SeqTrainer.async_save": "the same",
    "Trainer.on_anomaly": "steps that go wrong are left out, or the run goes back from them",
    "Seq2SeqTrainer.on_anomaly": "the same",
    "Trainer.anomaly_factor": "from which size on a step goes wrong",
    "Seq2SeqTrainer.anomaly_factor": "the same",
    "TrainerState.local_tokens": "tokens of this rank for progress reports, never saved",
    "CallbackHandler.listeners": "only those are called who listen",
    "TrainerMemoryTracker.STAGES": MEASURED_BY_STAGES,
    "AcceleratorConfig.of": "takes a mapping, a file or an instance",
    **{
        f"{kind}.{name}": SERIALISED
        for kind in ("TrainingArguments", "Seq2SeqTrainingArguments")
        for name in ("check", "from_dict", "from_job", "from_json_file", "from_json_string")
    },
    **{
        f"{kind}.{name}": "an attribute of each instance of theirs"
        for kind in ("TrainingArguments", "Seq2SeqTrainingArguments")
        for name in ("deepspeed_plugin", "distributed_state", "fsdp_plugin_args")
    },
}
"""Ours and not theirs."""

OTHERWISE = {
    "TrainerMemoryTracker": "may share the tracker of a Trainer",
}
"""Constructors and functions with other parameters."""

UNTOUCHED = {
    "sharding": {"FSDPOption", "is_attention_mask_causal", "nested_xla_mesh_reduce", "get_tpu_sampler"},
    "the loaders deal the samples out themselves": {
        "BatchRebalanceSampler", "DistributedLengthGroupedSampler", "DistributedSamplerWithLoop",
        "IterableDatasetShard", "RemoveColumnsCollator", "ShardSampler", "get_length_grouped_indices", "seed_worker",
    },
    "the store keeps, finds and deletes checkpoints": {
        "load_sharded_checkpoint", "remove_dummy_checkpoint", "rotate_checkpoints", "safe_globals", "sort_checkpoints",
        "compare_trainer_and_checkpoint_args", "set_rng_state_for_device",
    },
    "inside of their optimizers": {
        "LayerWiseDummyOptimizer", "LayerWiseDummyScheduler", "check_target_module_exists",
        "get_module_class_from_name",
    },
    "inside of their Trainer": {
        "align_special_tokens", "reissue_pt_warnings", "suppress_progress_bars", "unwrap_peft_model",
        "validate_quantization_for_training",
    },
    "methods of the Trainer": {
        "get_learning_rates", "get_num_trainable_parameters", "get_optimizer_group", "log_metrics", "metrics_format",
        "save_metrics", "save_state",
    },
}  # fmt: skip
"""Reason -> what of their helper modules is not here by name."""

PRIVATE = {
    "steps of their loop; ours is trainwright.training.loop, and _inner_training_loop wraps it": {
        "_finalize_training", "_init_training_state", "_prepare_for_training", "_run_epoch", "_update_auto_batch_size",
        "_issue_warnings_after_load",
    },
    "sharding": {
        "_defer_fsdp_gradient_reduction", "_has_mixed_mesh_grads", "_mixed_mesh_grad_norm",
        "_prepare_context_parallel_inputs", "_sync_replicated_trainable_parameters", "_apply_legacy_fsdp_to_config",
        "_process_fsdp_args",
    },
    "a checkpoint for Ray Tune, which no search uses": {"_tune_save_checkpoint"},
}  # fmt: skip
"""Reason -> what of their classes has a name with an underscore and is not here."""


@dataclass
class Comparison:
    """What was compared, and every difference as ``where: what``."""

    names: int = 0
    parameters: int = 0
    differences: list[str] = field(default_factory=list)

    def of_signatures(self, where: str, theirs: Any, ours: Any) -> None:
        expected, got = parameters(theirs), parameters(ours)
        self.parameters += len(expected)
        if where not in OTHERWISE and expected != got:
            self.differences.append(f"{where}: {got} and not {expected}")

    def of_classes(self, name: str) -> None:
        theirs, ours = of_transformers(name), getattr(trainwright, name)
        expected, got = public(theirs), public(ours)
        self.differences += [
            f"{name}.{member}: missing" for member in expected - got if f"{name}.{member}" not in MISSING
        ]
        self.differences += [f"{name}.{member}: more" for member in got - expected if f"{name}.{member}" not in MORE]
        self.names += 1 + len(expected & got)
        self.of_signatures(name, theirs, ours)
        for member in sorted(expected & got):
            if callable(getattr(theirs, member)):
                self.of_signatures(f"{name}.{member}", getattr(theirs, member), getattr(ours, member))


def of_transformers(name: str) -> Any:
    return next(getattr(library, name) for library in LIBRARIES if hasattr(library, name))


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    """Name, kind and default of each; enums by their words, as ours are others."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # enums and builtins
        return []
    return [(p.name, p.kind, getattr(p.default, "value", p.default)) for p in signature.parameters.values()]


def compared() -> Comparison:
    comparison = Comparison()
    for name in CLASSES:
        comparison.of_classes(name)
    for name in FUNCTIONS:
        comparison.names += 1
        comparison.of_signatures(name, of_transformers(name), getattr(trainwright, name))
    return comparison


def test_names_parameters_and_defaults_are_those_of_transformers() -> None:
    assert compared().differences == []


def test_no_exception_is_out_of_date() -> None:
    for where in MISSING:
        kind, name = where.split(".")
        assert hasattr(of_transformers(kind), name), where
        assert not hasattr(getattr(trainwright, kind), name), where
    for where in MORE:
        kind, name = where.split(".")
        assert hasattr(getattr(trainwright, kind), name), where
        assert not hasattr(of_transformers(kind), name), where
    for name in OTHERWISE:
        assert parameters(of_transformers(name)) != parameters(getattr(trainwright, name)), name


def test_their_helper_modules_hold_nothing_else() -> None:
    helpers = (transformers.trainer_utils, transformers.trainer_pt_utils, transformers.trainer_callback)
    theirs = {
        name
        for module in helpers
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }
    assert theirs - set(trainwright.__all__) == set().union(*UNTOUCHED.values())


def private(cls: type) -> set[str]:
    """What has a name with one underscore."""
    return {name for name in dir(cls) if name.startswith("_") and name.strip("_") and not name.startswith("__")}


def of_both(name: str) -> list[str]:
    """The names with an underscore that a class has here and there."""
    return sorted(private(of_transformers(name)) & private(getattr(trainwright, name)))


def test_names_with_an_underscore_are_there_too() -> None:
    missing = {name: private(of_transformers(name)) - private(getattr(trainwright, name)) for name in CLASSES}
    assert set().union(*missing.values()) == set().union(*PRIVATE.values())
    for kind in CLASSES:
        for name in of_both(kind):
            theirs, ours = getattr(of_transformers(kind), name), getattr(getattr(trainwright, kind), name)
            if callable(theirs):
                assert parameters(ours) == parameters(theirs), f"{kind}.{name}"


def test_attributes_of_an_instance_are_there_too(tmp_path: Any) -> None:
    args = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    theirs = vars(transformers.Trainer(tiny.classifier(), args))
    ours = make(tmp_path)
    assert {name for name in theirs if not hasattr(ours, name)} == {"_loggers_initialized", "_mixed_mesh_grads"}
    assert [name for name in vars(args) if not hasattr(ours.args, name)] == []


def test_names_of_files_and_callbacks_are_importable_from_the_trainer() -> None:
    for file in ("OPTIMIZER", "SCHEDULER", "SCALER", "TRAINER_STATE", "TRAINING_ARGS"):
        assert getattr(trainwright.trainer.trainer, f"{file}_NAME") == getattr(transformers.trainer, f"{file}_NAME")
    for name in ("DEFAULT_CALLBACKS", "DEFAULT_PROGRESS_CALLBACK"):
        assert (
            str(getattr(trainwright.trainer.trainer, name)).split(".")[-1]
            == (str(getattr(transformers.trainer, name)).split(".")[-1])
        )


def test_the_comparison_covers_the_public_and_the_private_api() -> None:
    comparison = compared()
    reasons = len(MISSING) + len(MORE) + len(OTHERWISE) + sum(map(len, [*UNTOUCHED.values(), *PRIVATE.values()]))
    hidden = sum(len(of_both(name)) for name in CLASSES)
    names = f"{comparison.names} public names, {hidden} with an underscore"
    print(f"{names} and {comparison.parameters} parameters compared, {reasons} exceptions")
    assert comparison.names > 500
    assert comparison.parameters > 1000
    assert hidden > 90
