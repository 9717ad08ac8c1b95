"""Where each argument has its effect, and the test that fails without it: what the manual tells, and ``prove`` proves.

``where`` is a module of ``trainwright``, or :data:`SCRIPTS` for what the Trainer only carries.
"""

from __future__ import annotations

from typing import NamedTuple

SCRIPTS = "the script that reads it"


class Effect(NamedTuple):
    """One argument's: the module that reads it, and the test (of pytest) that shows what comes of it."""

    where: str
    test: str


_SEQ2SEQ = "tests/trainer/test_seq2seq.py::"
_DEVICES = "tests/trainer/test_arguments_devices.py::"
_OURS_AS_THEIRS = "tests/trainer/test_arguments_parity.py::test_derived_values_are_the_same"
_VALUES = "tests/unit/test_arguments_values.py::"
_LOG = "tests/trainer/test_parity.py::test_the_log_is_that_of_transformers"
_ORDER = "tests/trainer/test_data_order.py::test_three_epochs_are_those_of_transformers"
_LOADER = "tests/trainer/test_data_workers.py::test_settings_reach_torchs_loader"
_LOOP, _HOOKS = "tests/trainer/test_loop.py::", "tests/trainer/test_loop_hooks.py::"
_CALLBACKS, _RANKS = "tests/trainer/test_callbacks.py::", "tests/trainer/test_distributed.py::"
_SHARDS = "tests/trainer/test_fsdp_features.py::"
_MISTAKES = "tests/trainer/test_bad_sharding.py::test_a_mistake_is_one_line_on_every_rank_and_the_checkpoint_stays"
_EFFECTS = "tests/trainer/test_arguments_effects.py::"
_EVALUATION = "tests/trainer/test_evaluation.py::test_one_process_agrees_with_transformers"
_PRECISION = "tests/trainer/test_precision.py::"
_PACKAGES = "tests/trainer/test_optimizer_packages.py::"
_DEBUGGING = "tests/trainer/test_arguments_debugging.py::"
_TRACKERS = "tests/trainer/test_trackers.py::"
_HUB = "tests/trainer/test_hub.py::"


EFFECTS: dict[str, Effect] = {
    "output_dir": Effect(
        "training/session.py", _HOOKS + "TestContract::test_an_output_folder_that_is_a_file_is_refused"
    ),
    "per_device_train_batch_size": Effect(
        "arguments/devices.py", _LOOP + "TestAccumulation::test_a_loss_without_count_is_averaged_over_the_micro_batches"
    ),
    "num_train_epochs": Effect("training/train_length.py", _LOG + "[plain]"),
    "max_steps": Effect("training/train_length.py", _LOG + "[plain, max steps across epochs]"),
    "learning_rate": Effect("training/optimizers/factory.py", _LOG + "[plain]"),
    "lr_scheduler_type": Effect("trainer/trainer.py", _LOG + "[plain, cosine and warm-up]"),
    "lr_scheduler_kwargs": Effect("trainer/trainer.py", _LOG + "[plain, plateau]"),
    "warmup_steps": Effect("arguments/devices.py", _LOG + "[plain, warm-up as a share]"),
    "optim": Effect("training/optimizers/factory.py", _LOG + "[plain, rmsprop]"),
    "optim_args": Effect("training/optimizers/factory.py", _LOG + "[plain, sgd]"),
    "optim_target_modules": Effect(
        "training/optimizers/factory.py",
        _PACKAGES + "test_what_the_arguments_say_reaches_the_optimizers_that_transformers_gives_none",
    ),
    "weight_decay": Effect("training/optimizers/factory.py", _LOG + "[plain, weight decay]"),
    "adam_beta1": Effect("training/optimizers/factory.py", _EFFECTS + "test_adam_is_set_up_as_the_arguments_say"),
    "adam_beta2": Effect("training/optimizers/factory.py", _EFFECTS + "test_adam_is_set_up_as_the_arguments_say"),
    "adam_epsilon": Effect("training/optimizers/factory.py", _EFFECTS + "test_adam_is_set_up_as_the_arguments_say"),
    "gradient_accumulation_steps": Effect("training/loop.py", _LOG + "[gpt2, accumulated]"),
    "average_tokens_across_devices": Effect(
        "trainer/trainer.py", _RANKS + "test_each_rank_takes_its_own_mean_when_asked"
    ),
    "max_grad_norm": Effect("training/loop.py", _LOG + "[plain, hard clipping]"),
    "label_smoothing_factor": Effect("trainer/trainer.py", _LOG + "[bert, smoothed labels]"),
    "bf16": Effect("training/precision.py", _LOG + "[plain, bf16]"),
    "fp16": Effect("training/precision.py", _PRECISION + "test_only_fp16_has_a_scaler"),
    "bf16_full_eval": Effect(
        "evaluation/passes.py", _PRECISION + "test_full_evaluation_casts_the_model_outside_of_training"
    ),
    "fp16_full_eval": Effect(
        "evaluation/passes.py", _PRECISION + "test_full_evaluation_casts_the_model_outside_of_training"
    ),
    "tf32": Effect("trainer/trainer.py", _PRECISION + "test_tf32_is_refused_without_the_gpu_for_it"),
    "activation_checkpointing": Effect(
        "training/session.py", _PRECISION + "test_activations_of_a_plain_module_are_computed_again"
    ),
    "activation_checkpointing_kwargs": Effect(
        "training/session.py", _PRECISION + "test_activations_of_a_plain_module_are_computed_again"
    ),
    "gradient_checkpointing": Effect(
        "arguments/derive.py", _VALUES + "test_old_name_of_activation_checkpointing_warns_and_mirrors"
    ),
    "gradient_checkpointing_kwargs": Effect(
        "arguments/derive.py", _VALUES + "test_old_name_of_activation_checkpointing_warns_and_mirrors"
    ),
    "torch_compile": Effect("training/prepare.py", _EFFECTS + "test_torch_compile_compiles"),
    "torch_compile_backend": Effect("training/prepare.py", _EFFECTS + "test_torch_compile_compiles"),
    "torch_compile_mode": Effect("training/prepare.py", _EFFECTS + "test_torch_compile_compiles"),
    "use_liger_kernel": Effect(
        "training/session.py", _DEBUGGING + "TestLiger::test_parts_of_the_model_are_replaced_as_asked"
    ),
    "liger_kernel_config": Effect(
        "training/session.py", _DEBUGGING + "TestLiger::test_parts_of_the_model_are_replaced_as_asked"
    ),
    "use_cache": Effect("trainer/trainer.py", _HOOKS + "TestConstruction::test_use_cache_goes_into_the_configuration"),
    "neftune_noise_alpha": Effect("trainer/trainer.py", _LOG + "[gpt2, noise on the embeddings]"),
    "torch_empty_cache_steps": Effect(
        "training/loop.py", _HOOKS + "TestMemory::test_caches_are_emptied_every_few_steps"
    ),
    "auto_find_batch_size": Effect(
        "training/session.py", _HOOKS + "TestMemory::test_a_batch_that_does_not_fit_is_made_smaller"
    ),
    "logging_strategy": Effect("callbacks/flow.py", _LOG + "[plain, logged by epoch]"),
    "logging_steps": Effect("callbacks/state.py", _LOG + "[plain]"),
    "logging_first_step": Effect("callbacks/flow.py", _LOG + "[plain, first step logged]"),
    "log_on_each_node": Effect(
        "arguments/devices.py", _DEVICES + "test_two_nodes_save_and_log_as_the_arguments_of_each_node_say"
    ),
    "logging_nan_inf_filter": Effect(
        "training/loop.py", _LOOP + "TestLogging::test_nan_is_kept_out_of_the_mean_unless_it_is_wanted"
    ),
    "include_num_input_tokens_seen": Effect("training/throughput.py", _LOG + "[gpt2, tokens counted]"),
    "log_level": Effect(
        "arguments/devices.py", _DEVICES + "test_two_nodes_save_and_log_as_the_arguments_of_each_node_say"
    ),
    "log_level_replica": Effect(
        "arguments/devices.py", _DEVICES + "test_two_nodes_save_and_log_as_the_arguments_of_each_node_say"
    ),
    "disable_tqdm": Effect("trainer/trainer.py", _EFFECTS + "test_without_a_bar_the_log_is_printed"),
    "push_to_hub": Effect("trainer/trainer.py", _HUB + "test_each_strategy_uploads_what_it_says[end]"),
    "hub_token": Effect("trainer/hub_pushes.py", _HUB + "test_each_strategy_uploads_what_it_says[end]"),
    "hub_private_repo": Effect("trainer/hub_pushes.py", _HUB + "test_each_strategy_uploads_what_it_says[end]"),
    "hub_model_id": Effect("trainer/hub_pushes.py", _HUB + "test_the_revision_and_the_name_are_those_of_the_arguments"),
    "hub_strategy": Effect("trainer/trainer.py", _HUB + "test_each_strategy_uploads_what_it_says[checkpoint]"),
    "hub_always_push": Effect("trainer/hub_pushes.py", _HUB + "test_a_save_is_skipped_while_an_upload_is_under_way"),
    "hub_revision": Effect("trainer/hub_pushes.py", _HUB + "test_the_revision_and_the_name_are_those_of_the_arguments"),
    "report_to": Effect("integrations/trackers/__init__.py", _TRACKERS + "test_report_to_adds_the_trackers_it_names"),
    "run_name": Effect("integrations/trackers/trackio.py", _TRACKERS + "test_trackio_gets_its_arguments"),
    "project": Effect("integrations/trackers/trackio.py", _TRACKERS + "test_trackio_gets_its_arguments"),
    "trackio_space_id": Effect("integrations/trackers/trackio.py", _TRACKERS + "test_trackio_gets_its_arguments"),
    "trackio_bucket_id": Effect("integrations/trackers/trackio.py", _TRACKERS + "test_trackio_gets_its_arguments"),
    "trackio_static_space_id": Effect(
        "integrations/trackers/trackio.py", _TRACKERS + "test_trackio_gets_its_arguments"
    ),
    "eval_strategy": Effect("callbacks/flow.py", _LOG + "[plain, evaluated]"),
    "eval_steps": Effect("callbacks/state.py", _LOG + "[plain, evaluated]"),
    "eval_delay": Effect("callbacks/flow.py", _LOG + "[plain, evaluated late]"),
    "per_device_eval_batch_size": Effect(
        "arguments/devices.py", _EFFECTS + "test_evaluation_has_a_batch_size_of_its_own"
    ),
    "prediction_loss_only": Effect("evaluation/passes.py", _EVALUATION + "[lists]"),
    "eval_on_start": Effect("training/session.py", _LOG + "[plain, evaluated on start]"),
    "eval_do_concat_batches": Effect(
        "evaluation/passes.py", _EFFECTS + "test_predictions_of_batches_are_joined_unless_they_are_wanted_apart"
    ),
    "eval_use_gather_object": Effect("evaluation/passes.py", _EFFECTS + "test_objects_are_gathered_when_asked"),
    "eval_accumulation_steps": Effect(
        "evaluation/passes.py", _EFFECTS + "test_predictions_leave_the_device_as_often_as_the_arguments_say"
    ),
    "include_for_metrics": Effect("evaluation/passes.py", _EVALUATION + "[inputs and losses, 11]"),
    "batch_eval_metrics": Effect("evaluation/passes.py", _EVALUATION + "[batch by batch, 11]"),
    "save_only_model": Effect(
        "checkpoint/snapshot.py", _LOOP + "TestSaving::test_save_only_model_leaves_the_optimizer_out"
    ),
    "save_strategy": Effect(
        "callbacks/flow.py", _LOOP + "TestSaving::test_only_better_models_are_saved_by_the_strategy_best"
    ),
    "save_steps": Effect("callbacks/state.py", _LOOP + "TestSaving::test_checkpoints_come_by_steps_and_at_the_end"),
    "save_on_each_node": Effect(
        "arguments/devices.py", _DEVICES + "test_two_nodes_save_and_log_as_the_arguments_of_each_node_say"
    ),
    "save_total_limit": Effect(
        "training/session.py", _LOOP + "TestSaving::test_checkpoints_come_by_epoch_and_the_oldest_go"
    ),
    "enable_jit_checkpoint": Effect(
        "training/loop.py", _DEBUGGING + "test_sigterm_without_a_launcher_saves_only_when_asked[True]"
    ),
    "load_best_model_at_end": Effect(
        "training/session.py", _LOOP + "TestSaving::test_the_best_model_is_loaded_at_the_end"
    ),
    "metric_for_best_model": Effect("training/best.py", _CALLBACKS + "test_early_stopping_stops_a_run"),
    "greater_is_better": Effect(
        "training/best.py", _LOOP + "TestSaving::test_greater_is_better_decides_which_metric_is_the_best"
    ),
    "ignore_data_skip": Effect("training/session.py", _LOOP + "TestResuming::test_data_is_not_skipped_when_told_so"),
    "restore_callback_states_from_checkpoint": Effect(
        "trainer/trainer.py", _CALLBACKS + "test_states_go_into_the_checkpoint_and_come_back"
    ),
    "full_determinism": Effect(
        "trainer/trainer.py",
        _HOOKS + "TestConstruction::test_full_determinism_refuses_what_has_no_deterministic_kernel",
    ),
    "seed": Effect("trainer/trainer.py", _LOG + "[plain, another seed]"),
    "data_seed": Effect("data/loaders.py", _ORDER + "[data_seed]"),
    "use_cpu": Effect("arguments/devices.py", _OURS_AS_THEIRS + "[cpu]"),
    "accelerator_config": Effect("data/samplers.py", _ORDER + "[not seedable]"),
    "dataloader_drop_last": Effect("data/loaders.py", _ORDER + "[drop_last]"),
    "dataloader_num_workers": Effect("data/loaders.py", _LOADER),
    "dataloader_pin_memory": Effect(
        "data/loaders.py", _EFFECTS + "test_batches_are_pinned_where_an_accelerator_takes_them"
    ),
    "dataloader_persistent_workers": Effect("data/loaders.py", _LOADER),
    "dataloader_prefetch_factor": Effect("data/loaders.py", _LOADER),
    "dataloader_multiprocessing_context": Effect("data/loaders.py", _LOADER),
    "dataloader_in_order": Effect("data/loaders.py", _LOADER),
    "remove_unused_columns": Effect(
        "trainer/trainer.py",
        _HOOKS + "TestContract::test_a_model_that_breaks_the_contract_is_refused_at_the_first_step",
    ),
    "label_names": Effect("trainer/trainer.py", _HOOKS + "TestContract::test_label_names_are_the_users_to_say"),
    "train_sampling_strategy": Effect("data/samplers.py", _ORDER + "[sequential]"),
    "length_column_name": Effect("data/samplers.py", _EFFECTS + "test_lengths_are_read_from_the_column_that_is_named"),
    "ddp_find_unused_parameters": Effect("distributed/ddp.py", _RANKS + "test_ddp_is_set_up_as_the_arguments_say"),
    "ddp_bucket_cap_mb": Effect("distributed/ddp.py", _RANKS + "test_ddp_is_set_up_as_the_arguments_say"),
    "ddp_broadcast_buffers": Effect("distributed/ddp.py", _RANKS + "test_ddp_is_set_up_as_the_arguments_say"),
    "ddp_static_graph": Effect("distributed/ddp.py", _RANKS + "test_ddp_is_set_up_as_the_arguments_say"),
    "ddp_backend": Effect("arguments/devices.py", _DEVICES + "test_a_backend_that_is_not_available_is_refused"),
    "ddp_timeout": Effect(
        "arguments/devices.py", _DEVICES + "test_two_nodes_save_and_log_as_the_arguments_of_each_node_say"
    ),
    "deepspeed": Effect("distributed/choice.py", "tests/zero/test_zero.py::test_gradients_are_exchanged_once_a_step"),
    "fsdp": Effect("distributed/choice.py", _SHARDS + "test_gradients_are_reduced_once_a_step"),
    "fsdp_config": Effect("distributed/choice.py", _MISTAKES + "[a layer that is not there]"),
    "parallelism_config": Effect("distributed/choice.py", _MISTAKES + "[sizes that do not multiply]"),
    "debug": Effect("training/session.py", _DEBUGGING + "TestOverflow::test_the_module_that_overflows_is_named"),
    "skip_memory_metrics": Effect(
        "trainer/trainer.py", _LOOP + "TestLogging::test_memory_is_measured_when_it_is_asked_for"
    ),
    "do_train": Effect(SCRIPTS, _VALUES + "test_what_scripts_read_is_set_and_carried"),
    "do_eval": Effect("arguments/derive.py", _VALUES + "test_what_scripts_read_is_set_and_carried"),
    "do_predict": Effect(SCRIPTS, _VALUES + "test_what_scripts_read_is_set_and_carried"),
    "resume_from_checkpoint": Effect(SCRIPTS, _VALUES + "test_what_scripts_read_is_set_and_carried"),
    "local_rank": Effect(SCRIPTS, _VALUES + "test_what_scripts_read_is_set_and_carried"),
    "sortish_sampler": Effect(
        "trainer/trainer.py", _SEQ2SEQ + "test_samples_of_like_length_are_trained_together_when_asked"
    ),
    "predict_with_generate": Effect("trainer/seq2seq.py", _SEQ2SEQ + "test_tokens_are_those_of_transformers"),
    "generation_max_length": Effect(
        "trainer/seq2seq.py", _SEQ2SEQ + "test_generate_gets_the_settings_of_arguments_and_call[a length]"
    ),
    "generation_num_beams": Effect(
        "trainer/seq2seq.py", _SEQ2SEQ + "test_generate_gets_the_settings_of_arguments_and_call[beams]"
    ),
    "generation_config": Effect(
        "trainer/seq2seq.py", _SEQ2SEQ + "test_generation_settings_may_be_an_object_a_mapping_a_file_or_a_folder"
    ),
}

if __name__ == "__main__":
    from trainwright.arguments.manual import manual

    print(manual(EFFECTS))
