"""No argument is accepted and ignored: each is proved by a named test, or refused at construction.

A field whose effect is built moves from ``REFUSED`` or ``PENDING`` to ``PROVED``, with the test that fails without it.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from trainwright.arguments.fields import FIELDS
from trainwright.arguments.refused import REFUSED

ROOT = Path(__file__).parents[2]

_DEVICES = "tests/trainer/test_arguments_devices.py"
_VALUES = "tests/unit/test_arguments_values.py"

PROVED: dict[str, str] = {
    "do_train": f"{_VALUES}::test_what_scripts_read_is_set_and_carried",
    "do_eval": f"{_VALUES}::test_what_scripts_read_is_set_and_carried",
    "do_predict": f"{_VALUES}::test_what_scripts_read_is_set_and_carried",
    "run_name": f"{_VALUES}::test_what_scripts_read_is_set_and_carried",
    "resume_from_checkpoint": f"{_VALUES}::test_what_scripts_read_is_set_and_carried",
    "local_rank": f"{_VALUES}::test_what_scripts_read_is_set_and_carried",
    "gradient_checkpointing": f"{_VALUES}::test_old_name_of_activation_checkpointing_warns_and_mirrors",
    "gradient_checkpointing_kwargs": f"{_VALUES}::test_old_name_of_activation_checkpointing_warns_and_mirrors",
    "log_level": f"{_DEVICES}::test_two_nodes",
    "log_level_replica": f"{_DEVICES}::test_one_node",
    "log_on_each_node": f"{_DEVICES}::test_one_node",
    "use_cpu": f"{_DEVICES}::test_one_process",
    "ddp_timeout": f"{_DEVICES}::test_two_nodes",
    "ddp_backend": f"{_DEVICES}::test_one_node",
}
"""Field -> the test that fails when the field has no effect."""

PENDING: set[str] = {
    *("output_dir", "per_device_train_batch_size", "num_train_epochs", "max_steps"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("gradient_accumulation_steps", "average_tokens_across_devices", "max_grad_norm", "label_smoothing_factor"),
    *("bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "tf32"),
    *("activation_checkpointing", "activation_checkpointing_kwargs"),
    *("torch_compile", "torch_compile_backend", "torch_compile_mode", "use_cache"),
    *("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter"),
    *("disable_tqdm", "batch_eval_metrics", "eval_use_gather_object", "include_num_input_tokens_seen"),
    *("auto_find_batch_size", "neftune_noise_alpha", "torch_empty_cache_steps", "skip_memory_metrics"),
    "restore_callback_states_from_checkpoint",
    *("eval_strategy", "eval_steps", "eval_delay", "per_device_eval_batch_size", "prediction_loss_only"),
    *("eval_on_start", "eval_do_concat_batches", "eval_accumulation_steps", "include_for_metrics"),
    *("save_only_model", "save_strategy", "save_steps", "save_on_each_node", "save_total_limit"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    *("ignore_data_skip", "full_determinism", "seed", "data_seed", "accelerator_config"),
    *("dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order"),
    *("remove_unused_columns", "label_names", "train_sampling_strategy", "length_column_name"),
    *("skip_memory_metrics", "torch_empty_cache_steps", "neftune_noise_alpha", "include_num_input_tokens_seen"),
    *("restore_callback_states_from_checkpoint", "auto_find_batch_size"),
    *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"),
}
"""Fields that are accepted and whose test is not named yet."""


def wholly_refused() -> set[str]:
    """Fields that are refused at every value but the default; the others are built for some values."""
    partly = {name for name, refusal in REFUSED.items() if set(map(str, refusal.built)) - off_values(name)}
    return {name for name in REFUSED if name in FIELDS} - partly


def off_values(name: str) -> set[str]:
    """Spellings of the default and of nothing."""
    return {"", "[]", "False", str(FIELDS[name].default if name in FIELDS else None)}


def test_every_field_is_proved_or_refused() -> None:
    neither = set(FIELDS) - set(PROVED) - PENDING - wholly_refused()
    assert not neither, "prove the effect in PROVED, or refuse the field in trainwright.arguments.refused"


def test_no_field_is_in_two_tables() -> None:
    assert not set(PROVED) & PENDING, "take what is proved out of PENDING"
    assert not (set(PROVED) | PENDING) & wholly_refused(), "take what is built out of REFUSED"
    assert (set(PROVED) | PENDING) <= set(FIELDS)


@pytest.mark.xfail(reason="the tests of the training loop name theirs as they are written", strict=True)
def test_nothing_is_pending() -> None:
    assert not PENDING


@pytest.mark.parametrize(("field", "name"), PROVED.items(), ids=PROVED)
def test_the_named_test_is_there_and_speaks_of_the_field(field: str, name: str) -> None:
    path, _, test = name.partition("::")
    assert test.split("::")[-1] in functions_of(path), f"{name} does not exist"
    assert re.search(rf"\b{field}\b", (ROOT / path).read_text(encoding="utf-8")), f"{path} never says {field}"


@cache
def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
