"""Names that are no arguments: the nearest right one, and what became of those that older versions had."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

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
}
"""Names of older versions of transformers, and what people write by habit -> what to write instead."""


def unknown(names: Iterable[str], known: Collection[str]) -> list[Problem]:
    """A problem for each of ``names`` that is not ``known``."""
    return [Problem(name, _hint(name, known)) for name in names if name not in known]


def _hint(name: str, known: Collection[str]) -> str:
    if name in FORMER:
        return f"is not an argument; use {FORMER[name]}"
    if name in FIELDS and FIELDS[name].seq2seq:
        return "is an argument of Seq2SeqTrainingArguments"
    return f"is not an argument{nearest(name, known)}"


def nearest(word: Any, choices: Collection[str]) -> str:
    """``; did you mean ...?`` when one of ``choices`` is near, otherwise nothing."""
    from difflib import get_close_matches  # only where something is wrong already

    near = get_close_matches(word, choices, n=1) if isinstance(word, str) else []
    return f"; did you mean {near[0]}?" if near else ""
