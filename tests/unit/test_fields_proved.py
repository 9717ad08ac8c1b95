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
_EFFECTS = "tests/trainer/test_arguments_effects.py::"
_EVALUATION = "tests/trainer/test_evaluation.py::test_one_process_agrees_with_transformers"
_PRECISION = "tests/trainer/test_precision.py::"

PROVED: dict[str, str] = {
    "output_dir": _HOOKS + "TestContract::test_an_output_folder_that_is_a_file_is_refused",
    "per_device_train_batch_size": _LOOP
    + "TestAccumulation::test_a_loss_without_count_is_averaged_over_the_micro_batches",
    "num_train_epochs": _LOG + "[plain]",
    "max_steps": _LOG + "[plain, max steps across epochs]",
    "learning_rate": _LOG + "[plain]",
    "lr_scheduler_type": _LOG + "[plain, cosine and warm-up]",
    "lr_scheduler_kwargs": _LOG + "[plain, plateau]",
    "warmup_steps": _LOG + "[plain, warm-up as a share]",
    "optim": _LOG + "[plain, rmsprop]",
    "optim_args": _LOG + "[plain, sgd]",
    "weight_decay": _LOG + "[plain, weight decay]",
    "adam_beta1": _EFFECTS + "test_adam_is_set_up_as_the_arguments_say",
    "adam_beta2": _EFFECTS + "test_adam_is_set_up_as_the_arguments_say",
    "adam_epsilon": _EFFECTS + "test_adam_is_set_up_as_the_arguments_say",
    "gradient_accumulation_steps": _LOG + "[gpt2, accumulated]",
    "average_tokens_across_devices": _RANKS + "test_each_rank_takes_its_own_mean_when_asked",
    "max_grad_norm": _LOG + "[plain, hard clipping]",
    "label_smoothing_factor": _LOG + "[bert, smoothed labels]",
    "bf16": _LOG + "[plain, bf16]",
    "fp16": _PRECISION + "test_only_fp16_has_a_scaler",
    "bf16_full_eval": _PRECISION + "test_full_evaluation_casts_the_model_outside_of_training",
    "fp16_full_eval": _PRECISION + "test_full_evaluation_casts_the_model_outside_of_training",
    "tf32": _PRECISION + "test_tf32_is_refused_without_the_gpu_for_it",
    "activation_checkpointing": _PRECISION + "test_activations_of_a_plain_module_are_computed_again",
    "activation_checkpointing_kwargs": _PRECISION + "test_activations_of_a_plain_module_are_computed_again",
    "gradient_checkpointing": _VALUES + "test_old_name_of_activation_checkpointing_warns_and_mirrors",
    "gradient_checkpointing_kwargs": _VALUES + "test_old_name_of_activation_checkpointing_warns_and_mirrors",
    "torch_compile": _EFFECTS + "test_torch_compile_compiles",
    "torch_compile_backend": _EFFECTS + "test_torch_compile_compiles",
    "torch_compile_mode": _EFFECTS + "test_torch_compile_compiles",
    "use_cache": _HOOKS + "TestConstruction::test_use_cache_goes_into_the_configuration",
    "neftune_noise_alpha": _LOG + "[gpt2, noise on the embeddings]",
    "torch_empty_cache_steps": _HOOKS + "TestMemory::test_caches_are_emptied_every_few_steps",
    "auto_find_batch_size": _HOOKS + "TestMemory::test_a_batch_that_does_not_fit_is_made_smaller",
    "logging_strategy": _LOG + "[plain, logged by epoch]",
    "logging_steps": _LOG + "[plain]",
    "logging_first_step": _LOG + "[plain, first step logged]",
    "log_on_each_node": _DEVICES + "test_two_nodes",
    "logging_nan_inf_filter": _LOOP + "TestLogging::test_nan_is_kept_out_of_the_mean_unless_it_is_wanted",
    "include_num_input_tokens_seen": _LOG + "[gpt2, tokens counted]",
    "log_level": _DEVICES + "test_two_nodes",
    "log_level_replica": _DEVICES + "test_two_nodes",
    "disable_tqdm": _EFFECTS + "test_without_a_bar_the_log_is_printed",
    "run_name": _VALUES + "test_what_scripts_read_is_set_and_carried",
    "eval_strategy": _LOG + "[plain, evaluated]",
    "eval_steps": _LOG + "[plain, evaluated]",
    "eval_delay": _LOG + "[plain, evaluated late]",
    "per_device_eval_batch_size": _EFFECTS + "test_evaluation_has_a_batch_size_of_its_own",
    "prediction_loss_only": _EVALUATION + "[lists]",
    "eval_on_start": _LOG + "[plain, evaluated on start]",
    "eval_do_concat_batches": _EFFECTS + "test_predictions_of_batches_are_joined_unless_they_are_wanted_apart",
    "eval_use_gather_object": _EFFECTS + "test_objects_are_gathered_when_asked",
    "eval_accumulation_steps": _EFFECTS + "test_predictions_leave_the_device_as_often_as_the_arguments_say",
    "include_for_metrics": _EVALUATION + "[inputs and losses]",
    "batch_eval_metrics": _EVALUATION + "[batch by batch]",
    "save_only_model": _LOOP + "TestSaving::test_the_model_alone_is_saved_when_asked",
    "save_strategy": _LOOP + "TestSaving::test_only_better_models_are_saved_by_the_strategy_best",
    "save_steps": _LOOP + "TestSaving::test_checkpoints_come_by_steps_and_at_the_end",
    "save_on_each_node": _DEVICES + "test_two_nodes",
    "save_total_limit": _LOOP + "TestSaving::test_checkpoints_come_by_epoch_and_the_oldest_go",
    "load_best_model_at_end": _LOOP + "TestSaving::test_the_best_model_is_loaded_at_the_end",
    "metric_for_best_model": _CALLBACKS + "test_early_stopping_stops_a_run",
    "greater_is_better": _LOOP + "TestSaving::test_greater_is_better_says_which_way",
    "ignore_data_skip": _LOOP + "TestResuming::test_data_is_not_skipped_when_told_so",
    "restore_callback_states_from_checkpoint": _CALLBACKS + "test_states_go_into_the_checkpoint_and_come_back",
    "full_determinism": _HOOKS + "TestConstruction::test_full_determinism_refuses_what_has_no_deterministic_kernel",
    "seed": _LOG + "[plain, another seed]",
    "data_seed": _ORDER + "[data_seed]",
    "use_cpu": _OURS_AS_THEIRS + "[cpu]",
    "accelerator_config": _ORDER + "[not seedable]",
    "dataloader_drop_last": _ORDER + "[drop_last]",
    "dataloader_num_workers": _LOADER,
    "dataloader_pin_memory": _EFFECTS + "test_batches_are_pinned_where_an_accelerator_takes_them",
    "dataloader_persistent_workers": _LOADER,
    "dataloader_prefetch_factor": _LOADER,
    "dataloader_multiprocessing_context": _LOADER,
    "dataloader_in_order": _LOADER,
    "remove_unused_columns": _HOOKS + "TestContract::test_a_model_that_breaks_it_is_refused_at_the_first_step",
    "label_names": _HOOKS + "TestContract::test_label_names_are_the_users_to_say",
    "train_sampling_strategy": _ORDER + "[sequential]",
    "length_column_name": _EFFECTS + "test_lengths_are_read_from_the_column_that_is_named",
    "ddp_find_unused_parameters": _RANKS + "test_ddp_is_set_up_as_the_arguments_say",
    "ddp_bucket_cap_mb": _RANKS + "test_ddp_is_set_up_as_the_arguments_say",
    "ddp_broadcast_buffers": _RANKS + "test_ddp_is_set_up_as_the_arguments_say",
    "ddp_static_graph": _RANKS + "test_ddp_is_set_up_as_the_arguments_say",
    "ddp_backend": _DEVICES + "test_a_backend_that_is_not_there",
    "ddp_timeout": _DEVICES + "test_two_nodes",
    "skip_memory_metrics": _LOOP + "TestLogging::test_memory_is_measured_when_it_is_asked_for",
    "do_train": _VALUES + "test_what_scripts_read_is_set_and_carried",
    "do_eval": _VALUES + "test_what_scripts_read_is_set_and_carried",
    "do_predict": _VALUES + "test_what_scripts_read_is_set_and_carried",
    "resume_from_checkpoint": _VALUES + "test_what_scripts_read_is_set_and_carried",
    "local_rank": _VALUES + "test_what_scripts_read_is_set_and_carried",
}
"""Field -> the test that fails when the field has no effect; ``python tests/prove.py`` shows that it does."""

PENDING: set[str] = set()
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
