"""The Trainer: the methods that Hugging Face users call and override, over the rooms that do the work.

Its names and signatures are those of ``transformers.Trainer``; nothing of it is used. What a subclass overrides is
called; what it does not costs nothing.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from trainwright.callbacks.callback import CallbackHandler, DefaultFlowCallback, PrinterCallback, ProgressCallback
from trainwright.callbacks.state import TrainerControl, TrainerState, exports_state
from trainwright.checkpoint.snapshot import OPTIMIZER, SCALER, SCHEDULER, TRAINER_STATE
from trainwright.data import diagnosis
from trainwright.devices.seeding import enable_full_determinism, set_seed
from trainwright.integrations.device_metrics import callbacks_for
from trainwright.job import in_output
from trainwright.outputs import TrainOutput
from trainwright.trainer import checks
from trainwright.trainer.checks import known_names
from trainwright.trainer.evaluating import Evaluating
from trainwright.trainer.feeding import Feeding
from trainwright.trainer.given import checked_arguments
from trainwright.trainer.hooks import WITHOUT, Hooks
from trainwright.trainer.introspection import Introspection, NotCallableError, TrainerError
from trainwright.training import losses, normalisation, prepare, session
from trainwright.training.memory import MemoryTracker, TrainerMemoryTracker
from trainwright.training.metrics import speed_metrics
from trainwright.training.modes import TrainingMode
from trainwright.training.normalisation import Normalisation
from trainwright.training.optimizers import factory
from trainwright.training.optimizers.averaging import averaged_weights
from trainwright.training.precision import apply_tf32, make_scaler, map_nested
from trainwright.training.schedulers import get_scheduler
from trainwright.training.throughput import sum_over_ranks
from trainwright.training.train_length import Horizon, length_of

# What scripts import from here by the names that transformers.trainer gives them.
TRAINING_ARGS_NAME, TRAINER_STATE_NAME = "training_args.bin", TRAINER_STATE
OPTIMIZER_NAME, SCHEDULER_NAME, SCALER_NAME = OPTIMIZER, SCHEDULER, SCALER
DEFAULT_CALLBACKS, DEFAULT_PROGRESS_CALLBACK = [DefaultFlowCallback], ProgressCallback


class Trainer(Feeding, Evaluating, Hooks, Introspection):
    """Trains, evaluates and predicts with a PyTorch model.

    Args:
        model: A module whose forward takes the keys of a batch and, given labels, returns the loss first (in a tuple)
            or as ``loss`` (in a dict or ModelOutput).
        args: The training arguments; transformers' own are read as well.
        data_collator: Makes a batch, a mapping of tensors, from a list of samples.
        train_dataset: Map-style or iterable; one without length needs ``max_steps``.
        eval_dataset: One set, or a dict of them whose keys prefix the metrics.
        processing_class: Tokenizer or processor; saved beside the model, and pads batches if there is no collator.
        model_init: Makes the model anew for every ``train``, instead of ``model``.
        compute_loss_func: ``(outputs, labels, num_items_in_batch) -> loss`` instead of the model's own loss.
        compute_metrics: ``EvalPrediction -> dict`` of numbers.
        callbacks: Further callbacks, classes or instances.
        optimizers: (optimizer, scheduler) instead of those of ``args``; either may be None.
        optimizer_cls_and_kwargs: Class and keyword arguments instead of ``args.optim``.
        preprocess_logits_for_metrics: ``(logits, labels) -> what is gathered`` in evaluations.

    Raises:
        UserError: what was given does not go together; one line that says what to change.
    """

    loss_is_scaled_for_ga: bool | None = None
    """Whether ``compute_loss`` already divides by the items of the whole accumulated batch; None finds out."""
    async_save: bool | None = None
    """Whether checkpoints are written while training goes on, from a copy in the host's memory; None asks the
    environment (``TRAINWRIGHT_ASYNC_SAVE=1``) and the TrainingJob (``spec.output.asyncSave``)."""
    _background: Any = None
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
        args.output_dir = in_output(str(args.output_dir))  # those of transformers do not know of the job
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.processing_class, self.model_init = processing_class, model_init
        self.compute_loss_func, self.compute_metrics = compute_loss_func, compute_metrics
        self.preprocess_logits_for_metrics = preprocess_logits_for_metrics
        self.optimizer_cls_and_kwargs, self.neftune_noise_alpha = optimizer_cls_and_kwargs, args.neftune_noise_alpha
        checks.check(self, model, callbacks or [], optimizers)
        self.optimizer, self.lr_scheduler = optimizers
        self.data_collator = data_collator if data_collator is not None else self._default_collator()
        self._validate_args()
        vars(self).update(WITHOUT)
        self._memory = MemoryTracker(args.skip_memory_metrics)
        self._memory_tracker = TrainerMemoryTracker(args.skip_memory_metrics, self._memory)
        with self._memory.stage("init"):
            self._seed()
            logging.getLogger("trainwright").setLevel(args.get_process_log_level())
            apply_tf32(args.tf32)
            self.create_accelerator_and_postprocess()
            self._take_model(model if model is not None else self.call_model_init())
            self._start_callbacks(callbacks or [])

    def create_accelerator_and_postprocess(self) -> None:
        """Make accelerate's view of the device and the ranks; override it to change that view."""
        self.accelerator = prepare.make_accelerator(self._build_accelerator_args())
        self.gather_function = self.accelerator.gather_for_metrics

    def _seed(self) -> None:
        (enable_full_determinism if self.args.full_determinism else set_seed)(self.args.seed)

    def _take_model(self, model: nn.Module) -> None:
        """Place a model, and find out once what its forward takes and returns."""
        args = self.args
        self.model = self.model_wrapped = model
        self.is_model_parallel, self.place_model_on_device = prepare.spread(model), prepare.placed(model, args)
        if self.place_model_on_device:
            self._move_model_to_device(model, args.device)
        self._signature_columns: list[str] | None = None
        self._feed = prepare.feed(args.device)
        self._moves_inputs = args.device.type != "cpu" or self._overrides("_prepare_input")
        self._sums_items_over_ranks = args.average_tokens_across_devices and args.world_size > 1
        self.label_names = losses.find_labels(model) if args.label_names is None else list(args.label_names)
        self.can_return_loss = losses.can_return_loss(model)
        self._into_training_mode, self._normalisation = TrainingMode(), None
        self.label_smoother = losses.label_smoother(model, args.label_smoothing_factor)
        self._smoother_shifts = self.label_smoother is not None and losses.is_causal_lm(model)
        if getattr(model, "config", None) is not None:
            model.config.use_cache = args.use_cache
        self.scaler = self.accelerator.scaler = make_scaler(args, args.device)
        self._created_lr_scheduler = False

    def _start_callbacks(self, callbacks: list[Any]) -> None:
        args = self.args
        self.callback_handler = CallbackHandler(
            [DefaultFlowCallback, *callbacks_for(args), *callbacks],
            self.model,
            self.processing_class,
            self.optimizer,
            self.lr_scheduler,
        )
        self.add_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
        self._add_reporter()
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
            self.add_callback(reporter)

    def _validate_args(self) -> None:
        """Raises :class:`UserError` where arguments and data do not go together."""
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
        """Whether a subclass, or someone on this instance, replaced the method ``name``."""
        return name in vars(self) or getattr(type(self), name) is not getattr(Trainer, name)

    # -- optimizer and schedule

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """Both, for ``num_training_steps`` optimizer steps."""
        self.create_optimizer()
        self.create_scheduler(num_training_steps=num_training_steps)

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """The optimizer of the arguments over the parameters of ``model``, unless there is one already."""
        return factory.create_optimizer(self, model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of the arguments, unless there is one already."""
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
        """The optimizer class that ``args`` names, and its keyword arguments."""
        return factory.get_optimizer_cls_and_kwargs(args, model)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that ``weight_decay`` applies to: no biases, no normalisation."""
        return factory.get_decay_parameter_names(model)

    # -- training

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train from the start, or go on from a checkpoint.

        Args:
            resume_from_checkpoint: A checkpoint's path; True for the newest in the output folder.
            trial: Hyperparameter search, which is not built yet.
            ignore_keys_for_eval: Outputs of the model that evaluations in between shall not gather.

        Raises:
            UserError: what was given cannot be trained; one line that says what to change.
            SystemExit: the run was asked to stop early; a checkpoint is saved.
        """
        if trial is not None:
            raise NotImplementedError("Trainer.train(trial=...): hyperparameter search is not built yet")
        if self.model_init is not None:
            self._seed()
            self._take_model(self.call_model_init())
            self.optimizer = self.lr_scheduler = None
        self.is_in_train = self._unproven = True
        try:
            return session.train(self, resume_from_checkpoint, ignore_keys_for_eval)
        finally:
            self.is_in_train = False

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """A new model from ``model_init``, which takes no argument or the trial."""
        takes = len(inspect.signature(self.model_init).parameters)
        if takes > 1:
            raise TrainerError("model_init: it must take no argument, or one, the trial of a search")
        model = self.model_init(trial) if takes else self.model_init()
        if model is None:
            raise TrainerError("model_init: it returned None; return the model")
        return model

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The next micro-batches, at most ``num_batches``, and the number of items that their loss is averaged over."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        items = self._get_num_items_in_batch(batches, device)
        if items is not None and self._sums_items_over_ranks:
            torch.distributed.all_reduce(items)
        return batches, items

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> torch.Tensor | None:
        """The targets in this rank's batches; None where no loss is averaged over them."""
        if self.label_smoother is not None and not self._others_loss():
            shifted = self._smoother_shifts
        elif self._loss_normalisation(batch_samples).counts or self._hands_count_to_others():
            shifted = self._loss_shifts_labels
        else:
            return None
        items = losses.count_items(batch_samples, shifted)
        return None if items is None else items.to(device)

    def _loss_normalisation(self, batch_samples: list[Any]) -> Normalisation:
        """What the model divides its loss by; the first call finds it out, all ranks together."""
        if self._normalisation is None:
            self._normalisation = normalisation.find(self, batch_samples)
        return self._normalisation

    def _others_loss(self) -> bool:
        """Whether the loss is not that of the model alone."""
        return self.compute_loss_func is not None or self._overrides("compute_loss")

    def _hands_count_to_others(self) -> bool:
        """Whether the count is for someone who computes the loss: as in Hugging Face's Trainer, by the signature."""
        return self.compute_loss_func is not None or (self._others_loss() and self.model_accepts_loss_kwargs)

    @property
    def model_accepts_loss_kwargs(self) -> bool:
        """Whether the model is given ``num_items_in_batch``; a value that is set wins.

        That it divides its loss by it is found out at the first step of training; before that it is what the source of
        ``forward`` says, and where someone else computes the loss, what its signature says.
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
        """Whether the first label of a row is no target of the model's loss."""
        found = self._normalisation
        return found.shifts if found is not None and found.counts else normalisation.shifts_labels(self.model)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one micro-batch; returns its loss, detached.

        ``inputs`` is a mapping of tensors; ``num_items_in_batch`` counts the targets of the whole accumulated batch.
        """
        self._into_training_mode(model)
        inputs = self._prepare_inputs(inputs)
        if self._unproven and not self._overrides("compute_loss"):
            losses.check_batch(self.model, inputs)
        try:
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        except Exception as error:
            diagnosis.raise_explained(error, self.model, inputs, self.label_names)
            raise
        if self._unproven:
            losses.check_loss(loss, self.model, inputs, self.label_names)
            self._unproven = False
        if self.current_gradient_accumulation_steps > 1 and not self._is_scaled(num_items_in_batch):
            loss = loss / self.current_gradient_accumulation_steps
        if (steps_too := getattr(self.optimizer, "backward_and_step", None)) is not None:
            steps_too(loss)
        else:
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return loss.detach()

    def _is_scaled(self, num_items: Any) -> bool:
        """Whether the loss is already averaged over the whole accumulated batch."""
        if self.loss_is_scaled_for_ga is not None:
            return self.loss_is_scaled_for_ga
        return num_items is not None or self.compute_loss_func is not None

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one micro-batch, and what the model returned if ``return_outputs``.

        An override that returns the mean over its micro-batch sets ``loss_is_scaled_for_ga = False``.
        """
        labels, share = None, None
        counted, trains = num_items_in_batch is not None, model.training
        if (self.label_smoother is not None or self.compute_loss_func is not None) and "labels" in inputs:
            labels = inputs["labels"]
            inputs = {name: value for name, value in inputs.items() if name != "labels"}
        elif counted and trains and self._is_own_mean():
            ranks = self.args.world_size if self._sums_items_over_ranks else 1
            parts = self.current_gradient_accumulation_steps * ranks
            inputs, share = normalisation.weighed(self._loss_normalisation([]), inputs, num_items_in_batch, parts)
        if counted and self.model_accepts_loss_kwargs:
            outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        else:
            outputs = model(**inputs)
        if self.compute_loss_func is not None:
            loss = self.compute_loss_func(outputs, labels, num_items_in_batch=num_items_in_batch)
        elif labels is not None:
            loss = self.label_smoother(outputs, labels, self._smoother_shifts, num_items_in_batch)
        else:
            loss = losses.loss_of(outputs, inputs)
            loss = loss if share is None else loss * share
        if counted and self._sums_items_over_ranks and trains:
            loss = loss * self.args.world_size  # the ranks' gradients are averaged, but their items were summed
        return (loss, outputs) if return_outputs else loss

    def _is_own_mean(self) -> bool:
        """Whether the model will not divide by the count that it is given, and nobody else sees to it."""
        found = self._loss_normalisation([])
        return not found.takes_count and self.loss_is_scaled_for_ga is not False

    def compute_loss_context_manager(self) -> contextlib.AbstractContextManager[Any]:
        """What ``compute_loss`` runs in."""
        return self.autocast_smart_context_manager()

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """Nothing to enter: autocast is in the model's forward already."""
        return contextlib.nullcontext()

    def _prepare_inputs(self, inputs: Any) -> Any:
        return self._prepare_input(inputs) if self._moves_inputs else inputs

    def _prepare_input(self, data: Any) -> Any:
        """Tensors in any nest of mappings, lists and tuples on the device of this process."""
        if isinstance(data, torch.Tensor):
            return self._feed(data)
        return map_nested(self._prepare_input, data)

    def floating_point_ops(self, inputs: Any) -> int:
        """Of forward and backward on one micro-batch: six for each parameter and element of the main input."""
        main = getattr(self.model, "main_input_name", "input_ids")
        if main not in inputs or not hasattr(self.model, "num_parameters"):
            return 0
        return 6 * inputs[main].numel() * self.model.num_parameters(exclude_embeddings=True)

    def store_flos(self) -> None:
        """Add the operations since the last call, over all ranks, to the state."""
        flos, self.current_flos = self.current_flos, 0.0
        self.state.total_flos += sum_over_ranks(flos, self.args.device)

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple[Any, ...]:
        """Epochs, steps an epoch, samples, samples trained on, samples a step, batches an epoch, and steps in all."""
        horizon = Horizon.of(args, dataloader, self.get_total_train_batch_size(args), self.num_examples)
        return (
            horizon.epochs, horizon.steps_per_epoch, horizon.num_examples, horizon.num_train_samples,
            horizon.total_batch_size, horizon.batches_per_epoch, horizon.max_steps,
        )  # fmt: skip

    def get_total_train_batch_size(self, args: Any) -> int:
        """Samples of one optimizer step over all ranks."""
        return self._train_batch_size * args.gradient_accumulation_steps * args.world_size

    # -- saving, logging, callbacks

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what ``from_pretrained`` (or ``load_state_dict``) reads, on the process that writes."""
        self._save(output_dir or self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with averaged_weights(self.optimizer):
            session.save_checkpoint(self)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add ``logs`` to the history, with the epoch, and let the callbacks know."""
        if self.state.epoch is not None:
            logs["epoch"] = self.state.epoch
        if self.args.include_num_input_tokens_seen != "no":
            seen = logs["num_input_tokens_seen"] = self.state.num_input_tokens_seen
            if start_time is not None:
                logs.update(speed_metrics("train", start_time, num_tokens=seen - self._tokens_before))
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def add_callback(self, callback: Any) -> None:
        """Append a callback, or an instance of a callback class."""
        self.callback_handler.add_callback(callback)

    def pop_callback(self, callback: Any) -> Any:
        """Remove and return the first that is, or is an instance of, ``callback``; None without one."""
        return self.callback_handler.pop_callback(callback)

    def remove_callback(self, callback: Any) -> None:
        """Remove the first that is, or is an instance of, ``callback``."""
        self.callback_handler.remove_callback(callback)

    def is_local_process_zero(self) -> bool:
        """Whether this is the first process of its node."""
        return self.args.local_process_index == 0

    def is_world_process_zero(self) -> bool:
        """Whether this is the first process of all."""
        return self.args.process_index == 0

    def end(self) -> None:
        """Leave the process group; the last call of a script."""
        self.accelerator.end_training()
