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

_DEVICES = "tests/trainer/test_arguments_devices.py::"
_OURS_AS_THEIRS = "tests/trainer/test_arguments_parity.py::test_derived_values_are_the_same"
_VALUES = "tests/unit/test_arguments_values.py::"
_LOG = "tests/trainer/test_parity.py::test_the_log_is_that_of_transformers"
_ORDER = "tests/trainer/test_data_order.py::test_three_epochs_are_those_of_transformers"
_LOADER = "tests/trainer/test_data_workers.py::test_settings_reach_torchs_loader"
_LOOP, _HOOKS = "tests/trainer/test_loop.py::", "tests/trainer/test_loop_hooks.py::"
_CALLBACKS, _RANKS = "tests/trainer/test_callbacks.py::", "tests/trainer/test_distributed.py::"
_PRECISION = "tests/trainer/test_precision.py::"

PROVED: dict[str, str] = {
    "do_train": _VALUES + "test_what_scripts_read_is_set_and_carried",
    "do_eval": _VALUES + "test_what_scripts_read_is_set_and_carried",
    "do_predict": _VALUES + "test_what_scripts_read_is_set_and_carried",
    "run_name": _VALUES + "test_what_scripts_read_is_set_and_carried",
    "resume_from_checkpoint": _VALUES + "test_what_scripts_read_is_set_and_carried",
    "local_rank": _VALUES + "test_what_scripts_read_is_set_and_carried",
    "gradient_checkpointing": _VALUES + "test_old_name_of_activation_checkpointing_warns_and_mirrors",
    "gradient_checkpointing_kwargs": _VALUES + "test_old_name_of_activation_checkpointing_warns_and_mirrors",
    "log_level": _DEVICES + "test_two_nodes",
    "log_level_replica": _DEVICES + "test_two_nodes",
    "log_on_each_node": _DEVICES + "test_two_nodes",
    "use_cpu": _OURS_AS_THEIRS + "[cpu]",
    "ddp_timeout": _DEVICES + "test_two_nodes",
    "ddp_backend": _DEVICES + "test_a_backend_that_is_not_there",
    # From here on the named case is run by both libraries, and its numbers must be equal.
    "num_train_epochs": _LOG + "[plain]",
    "learning_rate": _LOG + "[plain]",
    "logging_steps": _LOG + "[plain]",
    "max_steps": _LOG + "[plain, max steps across epochs]",
    "gradient_accumulation_steps": _LOG + "[gpt2, accumulated]",
    "lr_scheduler_type": _LOG + "[plain, cosine and warm-up]",
    "warmup_steps": _LOG + "[plain, warm-up as a share]",
    "lr_scheduler_kwargs": _LOG + "[plain, plateau]",
    "weight_decay": _LOG + "[plain, weight decay]",
    "max_grad_norm": _LOG + "[plain, hard clipping]",
    "optim": _LOG + "[plain, rmsprop]",
    "optim_args": _LOG + "[plain, sgd]",
    "adam_beta1": _LOG + "[plain, unfused adamw]",
    "adam_beta2": _LOG + "[plain, unfused adamw]",
    "adam_epsilon": _LOG + "[plain, unfused adamw]",
    "torch_compile": _PRECISION + "test_torch_compile_trains_through_the_backend_that_is_named",
    "torch_compile_backend": _PRECISION + "test_torch_compile_trains_through_the_backend_that_is_named",
    "torch_compile_mode": _PRECISION + "test_torch_compile_says_what_it_does_not_know",
    "use_cache": _HOOKS + "TestConstruction::test_use_cache_goes_into_the_configuration",
    "greater_is_better": _LOOP + "TestSaving::test_greater_is_better_says_which_way",
    "full_determinism": _HOOKS + "TestConstruction::test_full_determinism_refuses_what_has_no_deterministic_kernel",
    "seed": _LOG + "[plain, another seed]",
    "data_seed": _ORDER + "[data_seed]",
    "bf16": _LOG + "[plain, bf16]",
    "dataloader_drop_last": _ORDER + "[drop_last]",
    "train_sampling_strategy": _ORDER + "[sequential]",
    "accelerator_config": _ORDER + "[not seedable]",
    "logging_first_step": _LOG + "[plain, first step logged]",
    "logging_strategy": _LOG + "[plain, logged by epoch]",
    "eval_strategy": _LOG + "[plain, evaluated]",
    "eval_steps": _LOG + "[plain, evaluated]",
    "eval_delay": _LOG + "[plain, evaluated late]",
    "eval_on_start": _LOG + "[plain, evaluated on start]",
    "label_smoothing_factor": _LOG + "[bert, smoothed labels]",
    "neftune_noise_alpha": _LOG + "[gpt2, noise on the embeddings]",
    "include_num_input_tokens_seen": _LOG + "[gpt2, tokens counted]",
    "dataloader_num_workers": _LOADER,
    "dataloader_prefetch_factor": _LOADER,
    "dataloader_persistent_workers": _LOADER,
    "dataloader_multiprocessing_context": _LOADER,
    "dataloader_in_order": _LOADER,
    # Effects that only this Trainer is asked about.
    "disable_tqdm": _CALLBACKS + "test_the_progress_bar_moves_on_rank_zero",
    "metric_for_best_model": _CALLBACKS + "test_early_stopping_stops_a_run",
    "output_dir": _HOOKS + "TestContract::test_an_output_folder_that_is_a_file_is_refused",
    "per_device_train_batch_size": _LOOP
    + "TestAccumulation::test_a_loss_without_count_is_averaged_over_the_micro_batches",
    "average_tokens_across_devices": _RANKS + "test_each_rank_takes_its_own_mean_when_asked",
    "ddp_find_unused_parameters": _RANKS + "test_ddp_is_set_up_as_the_arguments_say",
    "ddp_bucket_cap_mb": _RANKS + "test_ddp_is_set_up_as_the_arguments_say",
    "ddp_broadcast_buffers": _RANKS + "test_ddp_is_set_up_as_the_arguments_say",
    "ddp_static_graph": _RANKS + "test_ddp_is_set_up_as_the_arguments_say",
    "fp16": _PRECISION + "test_only_fp16_has_a_scaler",
    "bf16_full_eval": _PRECISION + "test_full_evaluation_casts_the_model_outside_of_training",
    "fp16_full_eval": _PRECISION + "test_full_evaluation_casts_the_model_outside_of_training",
    "tf32": _PRECISION + "test_tf32_is_refused_without_the_gpu_for_it",
    "activation_checkpointing": _PRECISION + "test_activations_of_a_plain_module_are_computed_again",
    "activation_checkpointing_kwargs": _PRECISION + "test_activations_of_a_plain_module_are_computed_again",
    "logging_nan_inf_filter": _LOOP + "TestLogging::test_nan_is_kept_out_of_the_mean_unless_it_is_wanted",
    "skip_memory_metrics": _LOOP + "TestLogging::test_memory_is_measured_when_it_is_asked_for",
    "save_strategy": _LOOP + "TestSaving::test_only_better_models_are_saved_by_the_strategy_best",
    "save_steps": _LOOP + "TestSaving::test_checkpoints_come_by_steps_and_at_the_end",
    "save_total_limit": _LOOP + "TestSaving::test_checkpoints_come_by_epoch_and_the_oldest_go",
    "save_only_model": _LOOP + "TestSaving::test_the_model_alone_is_saved_when_asked",
    "load_best_model_at_end": _LOOP + "TestSaving::test_the_best_model_is_loaded_at_the_end",
    "save_on_each_node": _DEVICES + "test_two_nodes",
    "ignore_data_skip": _LOOP + "TestResuming::test_data_is_not_skipped_when_told_so",
    "auto_find_batch_size": _HOOKS + "TestMemory::test_a_batch_that_does_not_fit_is_made_smaller",
    "torch_empty_cache_steps": _HOOKS + "TestMemory::test_caches_are_emptied_every_few_steps",
    "label_names": _HOOKS + "TestContract::test_label_names_are_the_users_to_say",
    "remove_unused_columns": _HOOKS + "TestContract::test_a_model_that_breaks_it_is_refused_at_the_first_step",
    "restore_callback_states_from_checkpoint": _CALLBACKS + "test_states_go_into_the_checkpoint_and_come_back",
}
"""Field -> the test that fails when the field has no effect; ``python tests/prove.py`` shows that it does."""

PENDING: set[str] = {
    "batch_eval_metrics",
    "eval_use_gather_object",
    "per_device_eval_batch_size",
    "prediction_loss_only",
    "eval_do_concat_batches",
    "eval_accumulation_steps",
    "include_for_metrics",
    "dataloader_pin_memory",
    "length_column_name",
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
    assert test.partition("[")[0].split("::")[-1] in functions_of(path), f"{name} does not exist"
    assert re.search(rf"\b{field}\b", (ROOT / path).read_text(encoding="utf-8")), f"{path} never says {field}"


@cache
def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
