"""Hints for unknown names: the closest valid one, and the replacement of names of older versions."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from trainwright.nearest import did_you_mean

from .errors import Problem
from .fields import FIELDS

FORMER = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps, where a value below 1 is a share of all steps",
    "no_cuda": "use_cpu",
    "use_mps_device": "nothing: MPS is used where it is",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "adafactor": 'optim="adafactor"',
    "group_by_length": 'train_sampling_strategy="group_by_length"',
    "include_inputs_for_metrics": 'include_for_metrics=["inputs"]',
    "include_tokens_per_second": "nothing: it is always measured",
    "logging_dir": "nothing: the log is in the output folder",
    "overwrite_output_dir": "nothing: an output folder is never overwritten",
    "save_safetensors": "nothing: weights are always saved as safetensors",
    "fp16_backend": "nothing: PyTorch's own autocast is used",
    "half_precision_backend": "nothing: PyTorch's own autocast is used",
    "fp16_opt_level": "nothing: PyTorch's own autocast is used",
    "torchdynamo": "torch_compile_backend",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "evaluate_during_training": "eval_strategy",
    "eval_batch_size": "per_device_eval_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "n_epochs": "num_train_epochs",
    "max_epochs": "num_train_epochs",
    "gradient_clipping": "max_grad_norm",
    "mixed_precision": "bf16 or fp16",
    "device": "nothing: the accelerator of the machine is used, and use_cpu leaves it alone",
    "dispatch_batches": 'accelerator_config={"dispatch_batches": ...}',
    "split_batches": 'accelerator_config={"split_batches": ...}',
    "sharded_ddp": "fsdp",
    "fsdp_min_num_params": 'fsdp_config={"min_num_params": ...}',
    "fsdp_transformer_layer_cls_to_wrap": 'fsdp_config={"transformer_layer_cls_to_wrap": ...}',
    "xpu_backend": "ddp_backend",
    "use_ipex": "nothing: PyTorch's own kernels are used",
    "jit_mode_eval": "torch_compile",
    "tpu_num_cores": "nothing: the launcher starts a process for each core",
    "tpu_metrics_debug": 'debug="tpu_metrics_debug"',
    "past_index": "nothing: what a model keeps of a batch is never carried to the next",
    "ray_scope": "nothing: there is no search by Ray",
    "mp_parameters": "nothing: SageMaker's model parallelism is not there",
    "use_legacy_prediction_loop": "nothing: there is one way to evaluate",
    "logdir": "nothing: the log is in the output folder",
}
"""Names of older versions of transformers, and frequent errors -> what to use instead."""

ELSEWHERE = {
    "early_stopping": "callbacks=[EarlyStoppingCallback(...)] of the Trainer",
    "early_stopping_patience": "callbacks=[EarlyStoppingCallback(...)] of the Trainer",
    "torch_dtype": "bf16 or fp16, or load the model in another number format",
    "checkpoint": "resume_from_checkpoint",
    "tokenizer": "processing_class of the Trainer",
    "processing_class": "processing_class of the Trainer",
    "compute_metrics": "compute_metrics of the Trainer",
    "callbacks": "callbacks of the Trainer",
    "max_seq_length": "the tokenizer's max_length where the data is prepared",
}
"""The same for settings that are elsewhere in Python, and in yet another place in a manifest."""

MOST_LISTED = 8


def unknown(names: Iterable[str], known: Collection[str]) -> list[Problem]:
    """A problem for each of ``names`` that is not ``known``."""
    return [Problem(name, _hint(name, known)) for name in names if name not in known]


def _hint(name: str, known: Collection[str]) -> str:
    if name in FORMER:
        return _former(FORMER[name])
    if name in ELSEWHERE:
        return _former(ELSEWHERE[name])
    if name in FIELDS and FIELDS[name].seq2seq:
        return "is an argument of Seq2SeqTrainingArguments"
    return f"is not an argument{did_you_mean(name, known)}"


def _former(now: str) -> str:
    gone = now.removeprefix("nothing: ")
    return f"is not an argument; use {now}" if gone == now else f"is not needed: {gone}; remove it"


def not_one_of(word: Any, choices: Collection[str]) -> str:
    """The message for a wrong ``word``: the choices, or the closest one if there are many."""
    near = did_you_mean(word, choices)
    if near and len(choices) > MOST_LISTED:
        return f"is not a choice{near}"
    return f"is not one of {', '.join(choices)}{near}"
