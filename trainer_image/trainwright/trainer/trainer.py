"""The Trainer: the methods that Hugging Face users call and override. Other packages do the work.

Names and signatures are those of ``transformers.Trainer``, but the code does not depend on it. Methods that a subclass
overrides are called; methods that it does not override add no cost.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import IterableDataset, RandomSampler, SequentialSampler

from trainwright.arguments.errors import NotCallableError, TrainerError
from trainwright.arguments.sharding import is_on
from trainwright.callbacks.callback import CallbackHandler, restore_states
from trainwright.callbacks.flow import DefaultFlowCallback
from trainwright.callbacks.state import TrainerControl, TrainerState, exports_state
from trainwright.checkpoint.deferred import fill
from trainwright.checkpoint.snapshot import (
    OPTIMIZER,
    SAVERS,
    SCALER,
    SCHEDULER,
    TRAINER_STATE,
    WRITING,
    has_optimizer,
    load_rng_state,
    load_training_state,
    save_training_state,
)
from trainwright.checkpoint.weights import load_weights
from trainwright.data import diagnosis
from trainwright.data.collators import DataCollatorWithPadding, KeepColumns, default_data_collator
from trainwright.data.epochs import Epochs
from trainwright.data.loaders import eval_loader, has_length, keep_used_columns, signature_columns, train_loader
from trainwright.data.samplers import LengthGroupedSampler, column_lengths
from trainwright.devices.seeding import enable_full_determinism, set_seed
from trainwright.distributed.choice import choose
from trainwright.distributed.collectives import gather_rows, pad_across_ranks, sum_over_ranks
from trainwright.evaluation import passes
from trainwright.evaluation.sets import set_name
from trainwright.integrations.clock import EVALUATING, SAVING, of_process
from trainwright.integrations.device_metrics import callbacks_for
from trainwright.integrations.hub import PATIENCE_SECONDS, HubCallback
from trainwright.integrations.model_card import write_card
from trainwright.integrations.progress import PrinterCallback, ProgressCallback
from trainwright.integrations.trackers import tracker_callbacks
from trainwright.job import in_output
from trainwright.outputs import BestRun, EvalLoopOutput, PredictionOutput, TrainOutput
from trainwright.trainer import checks, hub_pushes
from trainwright.trainer.checks import checked_arguments, known_names
from trainwright.training import best, losses, metrics, normalisation, prepare, session
from trainwright.training.debugging import tell_tpu_metrics
from trainwright.training.loop import Loop
from trainwright.training.memory import MemoryTracker, TrainerMemoryTracker
from trainwright.training.metrics import log_metrics, metrics_format, save_metrics, save_state, speed_metrics
from trainwright.training.modes import TrainingMode
from trainwright.training.normalisation import Normalisation
from trainwright.training.optimizers import factory
from trainwright.training.optimizers.averaging import averaged_weights
from trainwright.training.precision import apply_tf32, map_nested
from trainwright.training.schedulers import follows_metric, get_scheduler
from trainwright.training.train_length import Horizon, length_of, num_examples

# Scripts import these names from transformers.trainer.
TRAINING_ARGS_NAME, TRAINER_STATE_NAME = "training_args.bin", TRAINER_STATE
OPTIMIZER_NAME, SCHEDULER_NAME, SCALER_NAME = OPTIMIZER, SCHEDULER, SCALER
DEFAULT_CALLBACKS, DEFAULT_PROGRESS_CALLBACK = [DefaultFlowCallback], ProgressCallback

WITHOUT = {
    "deepspeed": None, "is_deepspeed_enabled": False, "is_fsdp_enabled": False, "is_fsdp_xla_enabled": False,
    "is_fsdp_xla_v1_enabled": False, "is_fsdp_xla_v2_enabled": False, "is_distributed_loading_by_transformers": False,
    "hp_name": None, "hp_search_backend": None, "_trial": None, "hub_model_id": None,
}  # fmt: skip
"""Attributes that subclasses read, with the Trainer's answer for features that are not built."""


_NO_CONTEXT: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


class Trainer:
    """Trains, evaluates and predicts with a PyTorch model.

    Args:
        model: A module whose forward takes the keys of a batch and, given labels, returns the loss first (in a tuple)
            or as ``loss`` (in a dict or ModelOutput).
        args: The training arguments; those of transformers are accepted too.
        data_collator: Makes a batch, a mapping of tensors, from a list of samples.
        train_dataset: Map-style or iterable; a dataset without length needs ``max_steps``.
        eval_dataset: One dataset, or a dict of datasets whose keys prefix the metrics.
        processing_class: Tokenizer or processor; saved with the model, and pads batches if there is no collator.
        model_init: Makes a new model for every ``train``, instead of ``model``.
        compute_loss_func: ``(outputs, labels, num_items_in_batch) -> loss`` instead of the model's own loss.
        compute_metrics: ``EvalPrediction -> dict`` of numbers.
        callbacks: Additional callbacks, classes or instances.
        optimizers: (optimizer, scheduler) instead of those of ``args``; either may be None.
        optimizer_cls_and_kwargs: Class and keyword arguments instead of ``args.optim``.
        preprocess_logits_for_metrics: ``(logits, labels) -> predictions``, called before evaluation gathers them.

    Raises:
        UserError: The arguments conflict; one line says what to change.
    """

    loss_is_scaled_for_ga: bool | None = None

    """Whether ``compute_loss`` already divides by the items of the whole accumulated batch; None detects it."""

    async_save: bool | None = None

    """Whether checkpoints are written in the background, from a copy in host memory. None follows the environment
    (``TRAINWRIGHT_ASYNC_SAVE=1``), then the TrainingJob (``spec.output.asyncSave``)."""

    on_anomaly: str | None = None

    """What becomes of a step whose loss or gradient norm, on any rank, is not finite or too large: ``"Ignore"``,
    ``"Skip"`` or ``"Rollback"``. None follows the TrainingJob (``spec.onAnomaly``)."""

    anomaly_factor: float | None = None

    """From how many times its running median on a value is too large; 0 for only what is not finite. None follows the
    TrainingJob (``spec.anomalyFactor``), which has 10 by default."""

    callback_handler: Any
    """A :class:`~trainwright.CallbackHandler`, or the replacement that a subclass sets."""
    control: TrainerControl
    hp_search_backend: Any
    _background: Any = None
    _own_time: Any = None
    _hub: Any = None
    hub_model_id: str | None
    _loop: Any

    _epochs: Epochs | None = None

    _says_accepts_loss_kwargs: bool | None = None

    @known_names
    def __init__(
        self,
        model: nn.Module | None = None,
        args: Any = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., nn.Module] | None = None,
        compute_loss_func: Callable[..., Any] | None = None,
        compute_metrics: Callable[..., dict[str, Any]] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[..., Any] | None = None,
    ) -> None:
        self.args = args = checked_arguments(args)
        args.output_dir = in_output(str(args.output_dir))  # transformers' arguments ignore the TrainingJob
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.processing_class, self.model_init = processing_class, model_init
        self.compute_loss_func, self.compute_metrics = compute_loss_func, compute_metrics
        self.preprocess_logits_for_metrics = preprocess_logits_for_metrics
        self.optimizer_cls_and_kwargs, self.neftune_noise_alpha = optimizer_cls_and_kwargs, args.neftune_noise_alpha
        checks.check(self, model, callbacks or [], optimizers)
        self.optimizer, self.lr_scheduler = optimizers
        self.data_collator = data_collator if data_collator is not None else self._default_collator()
        self._validate_args()
        enabled = {"is_fsdp_enabled": is_on(args.fsdp), "is_deepspeed_enabled": bool(args.deepspeed)}
        vars(self).update(WITHOUT | enabled)
        self._memory = MemoryTracker(args.skip_memory_metrics)
        self._memory_tracker = TrainerMemoryTracker(args.skip_memory_metrics, self._memory)
        with self._memory.stage("init"):
            self._seed()
            logging.getLogger("trainwright").setLevel(args.get_process_log_level())
            apply_tf32(args.tf32)
            self.create_accelerator_and_postprocess()
            self._strategy = choose(args)
            self._take_model(model if model is not None else self.call_model_init())
            self._start_callbacks(callbacks or [])

    def create_accelerator_and_postprocess(self) -> None:
        """Create the Accelerator; override this to change its settings."""
        self.accelerator = prepare.make_accelerator(self._build_accelerator_args())
        self.gather_function = self.accelerator.gather_for_metrics

    def _seed(self) -> None:
        (enable_full_determinism if self.args.full_determinism else set_seed)(self.args.seed)

    def _take_model(self, model: nn.Module) -> None:
        """Place a model on its device, and inspect once what its forward takes and returns."""
        args = self.args
        self.model = self.model_wrapped = model
        if not self._strategy.sharded:
            fill(model)
        self.is_model_parallel, self.place_model_on_device = prepare.spread(model), prepare.placed(model, args)
        if self.place_model_on_device:
            self._move_model_to_device(model, args.device)
        self._signature_columns: list[str] | None = None
        self._feed = self._strategy.place()
        self._moves_inputs = args.device.type != "cpu" or self._overrides("_prepare_input")
        self._sums_items_over_ranks = args.average_tokens_across_devices and self._strategy.data_size > 1
        self.label_names = losses.find_labels(model) if args.label_names is None else list(args.label_names)
        self.can_return_loss = losses.can_return_loss(model)
        self._into_training_mode = TrainingMode()
        self._normalisation: Normalisation | None = None
        self.label_smoother = losses.label_smoother(model, args.label_smoothing_factor)
        self._smoother_shifts = self.label_smoother is not None and losses.is_causal_lm(model)
        if (config := getattr(model, "config", None)) is not None:
            config.use_cache = args.use_cache
        self.scaler = self.accelerator.scaler = self._strategy.new_scaler()
        self._created_lr_scheduler = False
        self._has_context = self._overrides_context()

    def _start_callbacks(self, callbacks: list[Any]) -> None:
        args = self.args
        trackers = tracker_callbacks(args)
        for tracker in trackers:
            tracker.save_model = functools.partial(self.save_model, _internal_call=True)
        self.callback_handler = CallbackHandler(
            [DefaultFlowCallback, *callbacks_for(args), *trackers, *callbacks],
            self.model,
            self.processing_class,
            self.optimizer,
            self.lr_scheduler,
        )
        self.add_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
        self._add_reporter()
        if args.push_to_hub:
            self.add_callback(HubCallback(self))
            self.init_hf_repo()
        self.checkpoints = session.open_store(self._get_output_dir(trial=None))
        if args.should_save:
            prepare.check_output_folder(args)
        self.control = TrainerControl()
        self.state = TrainerState(
            is_local_process_zero=self.is_local_process_zero(),
            is_world_process_zero=self.is_world_process_zero(),
            stateful_callbacks=[c for c in [*self.callback_handler.callbacks, self.control] if exports_state(c)],
        )
        self.is_in_train = self.is_prepared = False
        self.current_flos, self._tokens_before = 0.0, 0
        self.current_gradient_accumulation_steps = args.gradient_accumulation_steps
        self._train_batch_size = args.train_batch_size
        self._unproven = False
        self.control = self.callback_handler.on_init_end(args, self.state, self.control)

    def _add_reporter(self) -> None:
        from trainwright.integrations.reporter import Reporter

        reporter = Reporter.from_environment()
        if reporter is not None:
            reporter.data_size = self._strategy.data_size
            self.add_callback(reporter)

    def _validate_args(self) -> None:
        """Raises :class:`UserError` when arguments and data conflict."""
        args = self.args
        if args.eval_strategy != "no" and self.eval_dataset is None and not self._overrides("get_eval_dataloader"):
            raise TrainerError("eval_dataset: eval_strategy asks for evaluations; give a set, or set it to 'no'")
        if not callable(self.data_collator):
            raise NotCallableError("data_collator: it must be callable, from a list of samples to a batch")
        if self.train_dataset is not None and length_of(self.train_dataset) is None and args.max_steps <= 0:
            raise TrainerError(
                "max_steps: the train_dataset has no length, so set max_steps to say where training ends"
            )
        if args.batch_eval_metrics and self.compute_metrics is not None:
            parameters = inspect.signature(self.compute_metrics).parameters
            if "compute_result" not in parameters and not losses.takes_any_keyword(parameters):
                raise TrainerError(
                    "compute_metrics: batch_eval_metrics calls it after each batch, after the last one with "
                    "compute_result=True; let it take that argument"
                )

    def _overrides(self, name: str) -> bool:
        """Whether the method ``name`` is replaced, by a subclass or on this instance."""
        return name in vars(self) or getattr(type(self), name) is not getattr(Trainer, name)

    # -- the data

    def _default_collator(self) -> Callable[[list[Any]], Any]:
        """Return a collator that pads with the tokenizer or feature extractor; multimodal processors cannot pad."""
        pads = hasattr(self.processing_class, "pad") and not hasattr(self.processing_class, "tokenizer")
        return DataCollatorWithPadding(self.processing_class) if pads else default_data_collator

    def get_train_dataloader(self) -> Any:
        """Return this rank's training batches. Override it to use your own loader."""
        if self.train_dataset is None:
            raise TrainerError("train_dataset: the Trainer was made without one; give it the data to train on")
        ordered = self._overrides("_get_train_sampler") or getattr(self.args, "sortish_sampler", False)
        return self._get_dataloader(
            dataset=self.train_dataset,
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=self._get_train_sampler if ordered else None,
            is_training=True,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return this rank's batches of ``eval_dataset``: a dataset, a key of the Trainer's dict, or None (its own)."""
        key = eval_dataset if isinstance(eval_dataset, str) else "eval"
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        dataset = self.eval_dataset[key] if isinstance(dataset, str) else dataset
        if dataset is None:
            raise TrainerError("eval_dataset: the Trainer was made without one; give it here, or to the Trainer")
        if not self.args.dataloader_persistent_workers:
            return self._evaluation_loader(dataset, "Evaluation", key)
        return self._kept_loader(key, dataset)

    def _kept_loader(self, key: str, dataset: Any) -> Any:
        """Cache the loader if its workers persist; otherwise every evaluation would leave workers behind."""
        kept = self.__dict__.setdefault("_eval_dataloaders", {})
        of = self.__dict__.setdefault("_eval_dataloaders_of", {})
        if key not in kept or of.get(key) is not dataset:
            kept[key], of[key] = self._evaluation_loader(dataset, "Evaluation", key), dataset
        return kept[key]

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Return this rank's batches of ``test_dataset``."""
        return self._evaluation_loader(test_dataset, "test")

    def _evaluation_loader(self, dataset: Any, description: str, key: str | None = None) -> Any:
        return self._get_dataloader(
            dataset=dataset,
            description=description,
            batch_size=self.args.eval_batch_size,
            sampler_fn=self._get_eval_sampler if self._overrides("_get_eval_sampler") else None,
            dataloader_key=key,
        )

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Any], Any] | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> Any:
        """Make a loader. ``sampler_fn`` makes a torch sampler that replaces the sampling strategy."""
        collate, lengths = self.data_collator, column_lengths(dataset, self.args)
        if _has_columns(dataset):
            dataset = self._remove_unused_columns(dataset, description=description)
        else:
            collate = self._get_collator_with_removed_columns(collate, description=description)
        return (train_loader if is_training else eval_loader)(
            dataset,
            args=self.args,
            batch_size=batch_size,
            collate_fn=collate,
            rank=self._strategy.data_rank,
            world_size=self._strategy.data_size,
            copies=self._strategy.replica_size,
            lengths=lengths,
            sampler=None if sampler_fn is None or isinstance(dataset, IterableDataset) else sampler_fn(dataset),
            input_name=self._input_name(),
            name="train_dataset" if is_training else set_name(dataloader_key),
        )

    def _input_name(self) -> str:
        names: list[str] = getattr(self.processing_class, "model_input_names", None) or ["input_ids"]
        return names[0]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Override it to return a torch sampler for training; None follows ``train_sampling_strategy``."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        strategy = self.args.train_sampling_strategy
        if not has_length(dataset) or strategy == "batch_rebalance":
            return None
        if strategy == "group_by_length" or getattr(self.args, "sortish_sampler", False):
            return self._by_length(dataset, self._train_batch_size * self.args.gradient_accumulation_steps)
        return SequentialSampler(dataset) if strategy == "sequential" else RandomSampler(dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Override it to return a torch sampler for evaluation."""
        if not has_length(eval_dataset):
            return None
        if self.args.train_sampling_strategy == "group_by_length":
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            generator = torch.Generator().manual_seed(seed)
            return self._by_length(eval_dataset, self.args.eval_batch_size, generator)
        return SequentialSampler(eval_dataset) if self._strategy.data_size <= 1 else None

    def _by_length(self, dataset: Any, batch_size: int, generator: torch.Generator | None = None) -> Any:
        column = self.args.length_column_name
        lengths = dataset[column] if column in (getattr(dataset, "column_names", None) or ()) else None
        return LengthGroupedSampler(batch_size, dataset, lengths, self._input_name(), generator)

    def _set_signature_columns_if_needed(self) -> None:
        """Find the columns that the model takes; override it, or set ``_signature_columns``, to keep others."""
        if self._signature_columns is None:
            self._signature_columns = signature_columns(self.model, self.label_names)

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        """Remove the columns that the model does not take from a ``datasets.Dataset``."""
        if not self.args.remove_unused_columns:
            return dataset
        self._set_signature_columns_if_needed()
        name = type(self.model).__name__
        kept, _ = keep_used_columns(
            dataset,
            self.data_collator,
            self._signature_columns or (),
            description=description or "data",
            model_name=name,
        )
        return kept

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        """Wrap ``data_collator`` so that it drops the columns that the model does not take."""
        if not self.args.remove_unused_columns:
            return data_collator
        self._set_signature_columns_if_needed()
        return KeepColumns(data_collator, self._signature_columns or (), type(self.model).__name__)

    def num_examples(self, dataloader: Any) -> int:
        """Return the number of samples in one pass over ``dataloader``."""
        return num_examples(dataloader, self.args.per_device_train_batch_size)

    # -- the model

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Return a new model from ``model_init``, which takes no argument or the trial."""
        assert self.model_init is not None
        takes = len(inspect.signature(self.model_init).parameters)
        if takes > 1:
            raise TrainerError("model_init: it must take no argument, or one, the trial of a search")
        model: nn.Module | None = self.model_init(trial) if takes else self.model_init()
        if model is None:
            raise TrainerError("model_init: it returned None; return the model")
        return model

    def _move_model_to_device(self, model: nn.Module, device: Any) -> None:
        """Move a model that has no device map."""
        if getattr(model, "hf_device_map", None) is None:
            prepare.move(model, device)

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        """Return the wrapped module to call; a module that is wrapped already is returned unchanged."""
        if model is not self.model:
            return model
        if not training:
            return prepare.wrap_for_evaluation(model, self.args, self._strategy)
        return prepare.wrap_model(model, self.args, self._strategy)

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """Return the keyword arguments of accelerate's Accelerator."""
        return {**prepare.accelerator_kwargs(self.args), **kwargs}

    # -- optimizer and schedule

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """Create both, for ``num_training_steps`` optimizer steps."""
        self.create_optimizer()
        self.create_scheduler(num_training_steps=num_training_steps)

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """Create the optimizer that the arguments name for ``model``, unless there is one already."""
        return factory.create_optimizer(self, model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the schedule that the arguments name, unless there is one already."""
        if self.lr_scheduler is None:
            self._created_lr_scheduler = True
            self.lr_scheduler = get_scheduler(
                self.args.lr_scheduler_type,
                optimizer if optimizer is not None else self.optimizer,
                num_warmup_steps=self.args.get_warmup_steps(num_training_steps),
                num_training_steps=num_training_steps,
                scheduler_specific_kwargs=self.args.lr_scheduler_kwargs,
            )
        return self.lr_scheduler

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: nn.Module | None = None) -> tuple[Any, dict[str, Any]]:
        """Return the optimizer class that ``args`` names, and its keyword arguments."""
        return factory.get_optimizer_cls_and_kwargs(args, model)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of the parameters that ``weight_decay`` applies to: no biases, no normalisation."""
        return factory.get_decay_parameter_names(model)

    def _get_learning_rate(self) -> float:
        """Return the learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    # -- training

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train from the start, or resume from a checkpoint.

        Args:
            resume_from_checkpoint: A checkpoint's path; True for the latest in the output folder.
            trial: A trial of a hyperparameter search; ``model_init`` may take it.
            ignore_keys_for_eval: Model outputs that evaluations during training do not gather.

        Raises:
            UserError: The model or data cannot be trained; one line says what to change.
            SystemExit: The run was preempted; a checkpoint is saved.
        """
        self._hp_search_setup(trial)
        if self.model_init is not None:
            self._renew_model(trial)
        self.is_in_train = self._unproven = True
        self._has_context = self._overrides_context()
        try:
            return session.train(self, resume_from_checkpoint, ignore_keys_for_eval)
        finally:
            self.is_in_train = False

    def _renew_model(self, trial: Any = None) -> None:
        """Replace the model by a new one of ``model_init``, without optimizer and schedule."""
        self._seed()
        self._take_model(self.call_model_init(trial))
        self.optimizer = self.lr_scheduler = None

    def _inner_training_loop(
        self,
        batch_size: int | None = None,
        args: Any = None,
        resume_from_checkpoint: str | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Run training; retry with a smaller batch after an out-of-memory error."""
        checkpoint = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        return session.train_from(self, checkpoint, ignore_keys_for_eval)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Return at most ``num_batches`` micro-batches, and the number of items that their loss is averaged over."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        items = self._get_num_items_in_batch(batches, device)
        if items is not None and self._sums_items_over_ranks:
            self._strategy.data.sum(items)
        return batches, items

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> torch.Tensor | None:
        """Count the targets in this rank's batches; None if no loss is averaged over them."""
        if self.label_smoother is not None and not self._others_loss():
            shifted = self._smoother_shifts
        elif self._loss_normalisation(batch_samples).counts or self._hands_count_to_others():
            shifted = self._loss_shifts_labels
        else:
            return None
        items = losses.count_items(batch_samples, shifted)
        return None if items is None else items.to(device)

    def _loss_normalisation(self, batch_samples: list[Any]) -> Normalisation:
        """Return what the model divides its loss by; the first call detects it on all ranks together."""
        if self._normalisation is None:
            self._normalisation = normalisation.find(self, batch_samples)
        return self._normalisation

    def _overrides_context(self) -> bool:
        """Whether ``compute_loss`` needs a context manager; evaluated once a run."""
        return any(map(self._overrides, ("compute_loss_context_manager", "autocast_smart_context_manager")))

    def _others_loss(self) -> bool:
        """Whether user code (``compute_loss_func`` or an overridden ``compute_loss``) computes the loss."""
        return self.compute_loss_func is not None or self._overrides("compute_loss")

    def _hands_count_to_others(self) -> bool:
        """Whether user code that computes the loss gets the count; decided as in Hugging Face's Trainer."""
        return self.compute_loss_func is not None or (self._others_loss() and self.model_accepts_loss_kwargs)

    @property
    def model_accepts_loss_kwargs(self) -> bool:
        """Whether the model gets ``num_items_in_batch``; a value that the user sets wins.

        The first training step measures whether the model divides its loss by it. Before that, the source of
        ``forward`` decides; if user code computes the loss, the signature of ``forward`` decides.
        """
        if self._says_accepts_loss_kwargs is not None:
            return self._says_accepts_loss_kwargs
        if self._others_loss():
            return normalisation.signature_takes_count(self.model)
        return (self._normalisation or normalisation.read(self.model)).takes_count

    @model_accepts_loss_kwargs.setter
    def model_accepts_loss_kwargs(self, takes: bool) -> None:
        self._says_accepts_loss_kwargs, self._normalisation = bool(takes), None

    @property
    def _loss_shifts_labels(self) -> bool:
        """Whether the model's loss shifts labels, so that the first label of a row is not a target."""
        found = self._normalisation
        return found.shifts if found is not None and found.counts else normalisation.shifts_labels(self.model)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Run forward and backward on one micro-batch; return its detached loss.

        ``inputs`` is a mapping of tensors; ``num_items_in_batch`` counts the targets of the whole accumulated batch.
        """
        self._into_training_mode(model)
        inputs = self._prepare_inputs(inputs)
        if self._unproven and not self._overrides("compute_loss"):
            losses.check_batch(self.model, inputs)
        began = time.perf_counter() if self._own_time is not None else 0.0
        try:
            with self.compute_loss_context_manager() if self._has_context else _NO_CONTEXT:
                loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
            if self._own_time is not None:
                self._own_time.seconds += time.perf_counter() - began
        except Exception as error:
            diagnosis.raise_explained(error, self.model, inputs, self.label_names)
            raise
        if self._unproven:
            losses.check_loss(loss, self.model, inputs, self.label_names)
            self._unproven = False
        if self.current_gradient_accumulation_steps > 1 and not self._is_scaled(num_items_in_batch):
            loss = loss / self.current_gradient_accumulation_steps
        self._strategy.backward(loss)
        detached: torch.Tensor = loss.detach()
        return detached

    def _is_scaled(self, num_items: Any) -> bool:
        """Whether the loss is already averaged over the whole accumulated batch."""
        if self.loss_is_scaled_for_ga is not None:
            return self.loss_is_scaled_for_ga
        return num_items is not None or self.compute_loss_func is not None

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of one micro-batch, and the model's outputs if ``return_outputs``.

        An override that returns the mean over its micro-batch must set ``loss_is_scaled_for_ga = False``.
        """
        labels, share = None, None
        counted, trains = num_items_in_batch is not None, model.training
        if (self.label_smoother is not None or self.compute_loss_func is not None) and "labels" in inputs:
            labels = inputs["labels"]
            inputs = {name: value for name, value in inputs.items() if name != "labels"}
        elif counted and trains and self._is_own_mean():
            ranks = self._strategy.data_size if self._sums_items_over_ranks else 1
            parts = self.current_gradient_accumulation_steps * ranks
            inputs, share = normalisation.weighed(self._loss_normalisation([]), inputs, num_items_in_batch, parts)
        if counted and self.model_accepts_loss_kwargs:
            outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        else:
            outputs = model(**inputs)
        if self.compute_loss_func is not None:
            loss = self.compute_loss_func(outputs, labels, num_items_in_batch=num_items_in_batch)
        elif labels is not None and self.label_smoother is not None:
            loss = self.label_smoother(outputs, labels, self._smoother_shifts, num_items_in_batch)
        else:
            loss = losses.loss_of(outputs, inputs)
            loss = loss if share is None else loss * share
        if counted and self._sums_items_over_ranks and trains:
            loss = loss * self._strategy.data_size  # the ranks' gradients are averaged, but their items were summed
        return (loss, outputs) if return_outputs else loss

    def _is_own_mean(self) -> bool:
        """Whether the loss is the mean of its micro-batch, and user code does not rescale it."""
        found = self._loss_normalisation([])
        return not found.takes_count and self.loss_is_scaled_for_ga is not False

    def compute_loss_context_manager(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context manager that ``compute_loss`` runs in."""
        context: contextlib.AbstractContextManager[Any] = self.autocast_smart_context_manager()
        return context

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """Return a null context, because the model's forward already uses autocast."""
        return contextlib.nullcontext()

    def _prepare_inputs(self, inputs: Any) -> Any:
        return self._prepare_input(inputs) if self._moves_inputs else inputs

    def _prepare_input(self, data: Any) -> Any:
        """Move all tensors in nested mappings, lists and tuples to the device of this process."""
        if isinstance(data, torch.Tensor):
            return self._feed(data)
        return map_nested(self._prepare_input, data)

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        """Clip the gradients to ``max_grad_norm``; return their norm before clipping."""
        return self._strategy.clip(model.parameters(), self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return ``grad_norm`` if given, else the norm of all gradients."""
        if grad_norm is not None:
            return grad_norm
        return self._strategy.norm(model.parameters())

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Count the input tokens of one micro-batch."""
        self._loop.work.see(inputs)

    def _maybe_log_save_evaluate(
        self,
        tr_loss: Any,
        grad_norm: Any,
        model: nn.Module,
        trial: Any,
        epoch: float,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        """Log, evaluate and save as ``control`` requests, after a step or an epoch.

        ``tr_loss`` is the sum of the losses since the last log. An override must set it to zero in place after logging.
        """
        Loop.obey(self._loop)

    @property
    def _globalstep_last_logged(self) -> int:
        """The last step that logged losses."""
        step: int = self._loop.logged_step
        return step

    @_globalstep_last_logged.setter
    def _globalstep_last_logged(self, step: int) -> None:
        self._loop.logged_step = step

    @property
    def _total_loss_scalar(self) -> float:
        """The sum of all logged losses."""
        loss: float = self._loop.total_loss
        return loss

    @_total_loss_scalar.setter
    def _total_loss_scalar(self, loss: float) -> None:
        self._loop.total_loss = loss

    def floating_point_ops(self, inputs: Any) -> int:
        """Estimate forward and backward on one micro-batch: 6 x parameters x elements of the main input."""
        main = getattr(self.model, "main_input_name", "input_ids")
        count: Callable[..., int] | None = getattr(self.model, "num_parameters", None)
        if main not in inputs or count is None:
            return 0
        return 6 * int(inputs[main].numel()) * count(exclude_embeddings=True)

    def store_flos(self) -> None:
        """Add the operations of all ranks since the last call to the state."""
        flos, self.current_flos = self.current_flos, 0.0
        self.state.total_flos += sum_over_ranks(flos, self._strategy.data, self.args.device)

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple[Any, ...]:
        """Return epochs, steps per epoch, samples, samples trained, samples per step, batches per epoch, max steps."""
        horizon = Horizon.of(args, dataloader, self.get_total_train_batch_size(args), self.num_examples)
        return (
            horizon.epochs, horizon.steps_per_epoch, horizon.num_examples, horizon.num_train_samples,
            horizon.total_batch_size, horizon.batches_per_epoch, horizon.max_steps,
        )  # fmt: skip

    def get_total_train_batch_size(self, args: Any) -> int:
        """Return the number of samples of one optimizer step over all ranks."""
        return int(self._train_batch_size * args.gradient_accumulation_steps * self._strategy.data_size)

    # -- evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return metrics over ``eval_dataset``, by default the Trainer's; for a dict, names start with each key.

        Args:
            eval_dataset: A dataset, a dict of datasets, or a key of the Trainer's dict.
            ignore_keys: Model outputs that are not gathered.
            metric_key_prefix: Prefix of the metrics' names.
        """
        given = eval_dataset is not None
        chosen = eval_dataset if given else self.eval_dataset
        if isinstance(chosen, dict):
            return self._evaluate_each(chosen, given, ignore_keys, metric_key_prefix)
        with self._memory.stage("eval") as measured, of_process().spending(EVALUATING):
            loader, start = self.get_eval_dataloader(eval_dataset), time.time()
            output = self.evaluation_loop(
                loader,
                description="Evaluation",
                prediction_loss_only=True if self.compute_metrics is None else None,
                ignore_keys=ignore_keys,
                metric_key_prefix=metric_key_prefix,
            )
            self._add_speed(output, metric_key_prefix, start)
            self.log(output.metrics)
            tell_tpu_metrics(self.args.debug)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, output.metrics)
        output.metrics.update(measured)
        return output.metrics

    def _evaluate_each(
        self, sets: dict[str, Any], given: bool, ignore_keys: list[str] | None, prefix: str, **more: Any
    ) -> dict[str, float]:
        """Evaluate several datasets; those of the Trainer are passed by key, so that their loaders can be cached."""
        results: dict[str, float] = {}
        for name, dataset in sets.items():
            results |= self.evaluate(
                eval_dataset=dataset if given else name,
                ignore_keys=ignore_keys,
                metric_key_prefix=f"{prefix}_{name}",
                **more,
            )
        return results

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Return the model's outputs for ``test_dataset``, one row per sample, with metrics if it has labels."""
        with self._memory.stage("test") as measured, of_process().spending(EVALUATING):
            loader, start = self.get_test_dataloader(test_dataset), time.time()
            output = self.evaluation_loop(
                loader, description="Prediction", ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix
            )
            self._add_speed(output, metric_key_prefix, start)
            self.control = self.callback_handler.on_predict(self.args, self.state, self.control, output.metrics)
        output.metrics.update(measured)
        return PredictionOutput(output.predictions, output.label_ids, output.metrics)

    def _add_speed(self, output: EvalLoopOutput, prefix: str, start: float) -> None:
        start += output.metrics.get(f"{prefix}_model_preparation_time", 0.0)
        steps = math.ceil(output.num_samples / (self.args.eval_batch_size * self._strategy.data_size))
        output.metrics.update(metrics.speed_metrics(prefix, start, num_samples=output.num_samples, num_steps=steps))

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Run one pass over ``dataloader``, for ``evaluate`` and ``predict``."""
        with averaged_weights(self.optimizer):
            return passes.evaluation_loop(
                self, dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """Return loss, logits and labels of one batch; None where missing or omitted by ``prediction_loss_only``."""
        return passes.prediction_step(self, model, inputs, prediction_loss_only, ignore_keys)

    def _evaluate(
        self, trial: Any, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False
    ) -> dict[str, float]:
        """Evaluate during training, and step a schedule that follows the metric."""
        try:
            metrics: dict[str, float] = self.evaluate(ignore_keys=ignore_keys_for_eval)
        except torch.OutOfMemoryError as error:
            raise TrainerError("per_device_eval_batch_size: an evaluation did not fit into memory; lower it") from error
        self._report_to_hp_search(trial, self.state.global_step, metrics)
        if follows_metric(self.lr_scheduler) and not skip_scheduler:
            self.lr_scheduler.step(best.value_of(self.args, metrics))
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Record this evaluation in the state if it is the best so far; return whether it is."""
        return best.record(self.args, self.state, metrics)

    def _nested_gather(self, tensors: Any, name: str | None = None) -> Any:
        """Gather the rows of all ranks from nested tensors; shorter rows are padded with -100."""
        ranks = self._strategy.data
        return gather_rows(pad_across_ranks(tensors, ranks), ranks, self.args.device)

    # -- saving and loading

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model for ``from_pretrained`` (or ``load_state_dict``), on the process that writes.

        A sharded model is written by all processes, so all of them must call this.
        """
        with of_process().spending(SAVING):
            self._save(output_dir or self.args.output_dir)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with averaged_weights(self.optimizer):
            session.save_checkpoint(self)

    def _may_write(self) -> bool:
        """Whether this process writes: the store decides for checkpoints, the arguments for everything else."""
        return bool(getattr(WRITING, "keeps", self.args.should_save))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the model, or ``state_dict``, with configuration and tokenizer, if this process writes.

        All processes write a part of a sharded model.
        """
        if self._may_write() or (self._strategy.sharded and state_dict is None):
            session.save_model(self, output_dir or self.args.output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        save_training_state(self, Path(output_dir), SAVERS["_save_optimizer_and_scheduler"], self._may_write())

    def _save_scaler(self, output_dir: str) -> None:
        save_training_state(self, Path(output_dir), SAVERS["_save_scaler"], self._may_write())

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random state; every rank writes one file."""
        save_training_state(self, Path(output_dir), SAVERS["_save_rng_state"], leader=False)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_training_state(self, Path(checkpoint), (OPTIMIZER, SCHEDULER))

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_training_state(self, Path(checkpoint), (SCALER,))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_rng_state(self, checkpoint)

    def _load_callback_state(self) -> None:
        """Restore the callbacks from ``state``, if the arguments request it."""
        if self.args.restore_callback_states_from_checkpoint:
            self.control = restore_states(self.callback_handler, self.control, self.state.stateful_callbacks)

    def _get_output_dir(self, trial: Any) -> str:
        """Return the folder of the checkpoints; that of a trial is ``run-<number>``, or ``hp_name(trial)``, in it."""
        folder = str(self.args.output_dir)
        if self.hp_search_backend is None or trial is None:
            return folder
        return os.path.join(folder, str(self.hp_name(trial)) if self.hp_name is not None else f"run-{trial.number}")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the weights of a checkpoint, in place; DeepSpeed's engine also loads its optimizer."""
        folder = Path(resume_from_checkpoint)
        if model is None and self._strategy.owns_checkpoints and has_optimizer(folder):
            session.load_into_engine(self, folder)
        else:
            load_weights(self.model if model is None else model, folder)
            self._strategy.take_weights(self.model)

    def _load_best_model(self) -> None:
        """Load the weights of the best checkpoint."""
        Trainer._load_from_checkpoint(self, str(self.state.best_model_checkpoint))

    # -- logging and callbacks

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add ``logs`` and the epoch to the history, and call the callbacks."""
        if self.state.epoch is not None:
            logs["epoch"] = self.state.epoch
        if self.args.include_num_input_tokens_seen != "no":
            seen = logs["num_input_tokens_seen"] = self.state.num_input_tokens_seen
            if start_time is not None:
                logs.update(speed_metrics("train", start_time, num_tokens=seen - self._tokens_before))
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    log_metrics, save_metrics, save_state = log_metrics, save_metrics, save_state

    @staticmethod
    def metrics_format(metrics: dict[str, float]) -> dict[str, Any]:
        """See :func:`trainwright.training.metrics.metrics_format`."""
        return metrics_format(metrics)

    def add_callback(self, callback: Any) -> None:
        """Append a callback, or an instance of a callback class."""
        self.callback_handler.add_callback(callback)

    def pop_callback(self, callback: Any) -> Any:
        """Remove and return the first match of ``callback``, an instance or a class; None if there is none."""
        return self.callback_handler.pop_callback(callback)

    def remove_callback(self, callback: Any) -> None:
        """Remove the first match of ``callback``, an instance or a class."""
        self.callback_handler.remove_callback(callback)

    # -- processes

    def is_local_process_zero(self) -> bool:
        """Whether this is the first process of its node."""
        return bool(self.args.local_process_index == 0)

    def is_world_process_zero(self) -> bool:
        """Whether this is the first process of all."""
        return bool(self.args.process_index == 0)

    def end(self) -> None:
        """Leave the process group; the last call of a script."""
        self.accelerator.end_training()

    # -- facts about the run

    def get_tp_size(self) -> int:
        """Return the size of tensor parallelism, which is not built yet."""
        return 1

    def get_cp_size(self) -> int:
        """Return the size of context parallelism, which is not built yet."""
        return 1

    def get_sp_size(self) -> int:
        """Return the size of sequence parallelism, which is not built yet."""
        return 1

    def get_num_trainable_parameters(self) -> int:
        """Return the number of trainable parameters."""
        return sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters() if p.requires_grad)

    def get_learning_rates(self) -> list[float]:
        """Return the learning rate of each parameter group."""
        return [group["lr"] for group in self._optimizer_or_refuse().param_groups]

    def get_optimizer_group(self, param: Any = None) -> Any:
        """Return the parameter group that holds ``param``, or the parameters of all groups."""
        groups = self._optimizer_or_refuse().param_groups
        if param is not None:
            return next(group for group in groups if any(p is param for p in group["params"]))
        return [group["params"] for group in groups]

    def _optimizer_or_refuse(self) -> Any:
        if self.optimizer is None:
            raise TrainerError("optimizer: there is none yet; call create_optimizer or train first")
        return self.optimizer

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the model card ``README.md`` into the output folder, on world rank 0.

        Args:
            language: The Hub's code of the language, for example ``en``.
            license: The Hub's name of the license; by default that of the base model.
            tags: Additional tags.
            model_name: By default the name of the output folder.
            finetuned_from: The Hub's name of the base model; by default the name it was loaded from.
            tasks: The Hub's task names; by default the task of the model's class.
            dataset_tags: The Hub's names of the datasets; by default that of the dataset, if it is from the Hub.
            dataset: Names of the datasets as text for readers.
            dataset_args: Configurations of the datasets.
        """
        if self.is_world_process_zero():
            given = {name: value for name, value in locals().items() if name != "self"}
            write_card(self, given)

    # -- searching

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], Any] | None = None,
        n_trials: int = 20,
        direction: str | list[str] = "minimize",
        backend: Any = None,
        hp_name: Callable[[Any], str] | None = None,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """Train several times with different arguments, and return the best trial; the Trainer needs ``model_init``.

        Every trial starts from the arguments of the Trainer and a new model. With several ranks, all train each trial
        and get the result.

        Args:
            hp_space: Takes the trial and returns a dict of argument and value; by default learning rate, epochs, seed
                and batch size.
            compute_objective: Takes the metrics of an evaluation and returns a number, or a list with one number for
                each direction; by default the evaluation loss, or the sum of the other metrics.
            n_trials: The number of trials of the study, with those of an earlier search that it continues.
            direction: ``minimize`` or ``maximize``; a list for several objectives, where no trial is pruned.
            backend: ``optuna``, the only library that is supported.
            hp_name: Takes the trial and returns its name, which is also its folder instead of ``run-<number>``.
            kwargs: ``storage``, ``sampler``, ``pruner``, ``study_name`` and ``load_if_exists`` of
                ``optuna.create_study``; ``timeout``, ``gc_after_trial`` and ``catch`` of ``Study.optimize``.

        Returns:
            The best trial; for several directions, the list of trials that no other trial dominates.

        Raises:
            UserError: The search cannot start, its first trials fail, or no trial completes.
        """
        from trainwright.search import spaces, start

        self.hp_search_backend = start.backend_of(self, backend)
        self.hp_space = spaces.default_hp_space_optuna if hp_space is None else hp_space
        self.compute_objective = spaces.default_compute_objective if compute_objective is None else compute_objective
        self.hp_name = hp_name
        try:
            return start.search(self, n_trials, direction, kwargs)
        finally:
            self.hp_search_backend = self.hp_name = self._trial = None

    def _hp_search_setup(self, trial: Any) -> None:
        """Set the values of a trial on the arguments, and renew what was made from them."""
        self._trial = trial
        if self.hp_search_backend is None or trial is None:
            return
        from trainwright.search import spaces

        sees_trial = bool(inspect.signature(self.model_init).parameters) if self.model_init is not None else False
        spaces.apply(self.args, self.hp_space(trial), sees_trial)
        checked_arguments(self.args)
        self._follow_arguments()

    def _follow_arguments(self) -> None:
        """Renew what was made from the arguments, after they changed."""
        self.neftune_noise_alpha, self._train_batch_size = self.args.neftune_noise_alpha, self.args.train_batch_size
        self.create_accelerator_and_postprocess()
        self._strategy = choose(self.args)

    def _report_to_hp_search(self, trial: Any, step: int, metrics: dict[str, float]) -> None:
        """Report an evaluation to the search, which may end this trial early."""
        if self.hp_search_backend is None or trial is None:
            return
        from trainwright.search import start

        start.report(self, trial, step, metrics)

    # -- the Hub

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model and its card into the output folder, and upload that folder, without checkpoints.

        A Hub that refuses or cannot be reached never raises: one line says what was not uploaded, and how to do it.

        Args:
            commit_message: The message of the commit.
            blocking: Wait for the upload; otherwise return a ``Future`` of the ``CommitInfo``.
            token: Instead of ``hub_token``.
            revision: Instead of ``hub_revision``.
            private: Instead of ``hub_private_repo``, for a repository that does not exist yet.
            kwargs: The arguments of :meth:`create_model_card`.

        Returns:
            The ``CommitInfo`` on world rank 0, or None.
        """
        self.control = self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        return hub_pushes.push(self, commit_message or "End of training", blocking, token, revision, kwargs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository of ``hub_model_id`` (by default named after the output folder), unless it exists."""
        if self.is_world_process_zero():
            hub_pushes.create(self, token, private)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Upload the model of a checkpoint, and the checkpoint itself, as ``hub_strategy`` says."""
        if self.is_world_process_zero() and self.args.hub_strategy != "end":
            hub_pushes.push_checkpoint(self, Path(checkpoint_folder))

    def _finish_current_push(self) -> None:
        """Wait for the uploads that are under way."""
        if self._hub is not None:
            self._hub.finish(PATIENCE_SECONDS)


def _has_columns(dataset: Any) -> bool:
    """Whether a dataset can remove columns itself, like a ``datasets.Dataset``."""
    is_table = bool(getattr(dataset, "column_names", None)) and hasattr(dataset, "remove_columns")
    return is_table and not isinstance(dataset, IterableDataset)
