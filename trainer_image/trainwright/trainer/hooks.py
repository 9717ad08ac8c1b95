"""The Trainer's methods with an underscore that subclasses of Hugging Face's Trainer override, or call, all the same.

The run passes through each of them, so that what is overridden is called. The parts of a step are asked for only where
a subclass has one of its own (see :mod:`trainwright.training.hooked_loop`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from trainwright.callbacks.callback import restore_states
from trainwright.checkpoint.snapshot import (
    OPTIMIZER,
    SAVERS,
    SCALER,
    SCHEDULER,
    WRITING,
    load_rng_state,
    load_training_state,
    save_training_state,
)
from trainwright.checkpoint.weights import load_weights
from trainwright.distributed.collectives import gather_rows, pad_across_ranks
from trainwright.distributed.ranks import Ranks
from trainwright.trainer.introspection import TrainerError
from trainwright.training import best, prepare, session
from trainwright.training.loop import Loop
from trainwright.training.schedulers import follows_metric

WITHOUT = {
    "deepspeed": None, "is_deepspeed_enabled": False, "is_fsdp_enabled": False, "is_fsdp_xla_enabled": False,
    "is_fsdp_xla_v1_enabled": False, "is_fsdp_xla_v2_enabled": False, "is_distributed_loading_by_transformers": False,
    "hp_name": None, "hp_search_backend": None, "hub_model_id": None,
}  # fmt: skip
"""What subclasses ask a Trainer for, and what it says of things that are not built."""


class Hooks:
    """A part of :class:`trainwright.Trainer`."""

    args: Any
    state: Any
    control: Any
    model: Any
    model_wrapped: Any
    optimizer: Any
    lr_scheduler: Any
    callback_handler: Any
    evaluate: Any
    _loop: Any

    # -- the run

    def _inner_training_loop(
        self,
        batch_size: int | None = None,
        args: Any = None,
        resume_from_checkpoint: str | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """The run, once the model is there; anew with a smaller batch where memory did not suffice."""
        checkpoint = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        return session.train_from(self, checkpoint, ignore_keys_for_eval)

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
        """After a step or an epoch: log, evaluate and save as ``control`` says.

        ``tr_loss`` is the sum of the losses since the last time; who takes it over sets it to zero, in place.
        """
        Loop.obey(self._loop)

    @property
    def _globalstep_last_logged(self) -> int:
        """The step that the losses were last logged at."""
        step: int = self._loop.logged_step
        return step

    @_globalstep_last_logged.setter
    def _globalstep_last_logged(self, step: int) -> None:
        self._loop.logged_step = step

    @property
    def _total_loss_scalar(self) -> float:
        """The sum of all losses that were logged."""
        loss: float = self._loop.total_loss
        return loss

    @_total_loss_scalar.setter
    def _total_loss_scalar(self, loss: float) -> None:
        self._loop.total_loss = loss

    def _evaluate(
        self, trial: Any, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False
    ) -> dict[str, float]:
        """An evaluation within training; a schedule that follows the metric takes its step."""
        try:
            metrics: dict[str, float] = self.evaluate(ignore_keys=ignore_keys_for_eval)
        except torch.OutOfMemoryError as error:
            raise TrainerError("per_device_eval_batch_size: an evaluation did not fit into memory; lower it") from error
        if follows_metric(self.lr_scheduler) and not skip_scheduler:
            self.lr_scheduler.step(best.value_of(self.args, metrics))
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Note in the state whether this evaluation is the best so far, and say so."""
        return best.record(self.args, self.state, metrics)

    def _get_learning_rate(self) -> float:
        """The rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        """Scale the gradients down to ``max_grad_norm``; returns their norm before that."""
        return clip_grad_norm_(model.parameters(), self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """``grad_norm`` if it is known, else the norm of all gradients."""
        if grad_norm is not None:
            return grad_norm
        return get_total_norm([p.grad for p in model.parameters() if p.grad is not None])

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Count the input tokens of one micro-batch."""
        self._loop.work.see(inputs)

    # -- the model

    def _move_model_to_device(self, model: nn.Module, device: Any) -> None:
        """Move a model that has no places of its own."""
        if getattr(model, "hf_device_map", None) is None:
            prepare.move(model, device)

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        """The module that forward goes through; one that is wrapped already stays as it is."""
        if model is not self.model:
            return model
        return prepare.wrap_model(model, self.args) if training else prepare.wrap_for_evaluation(model, self.args)

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """Keyword arguments of accelerate's Accelerator."""
        return {**prepare.accelerator_kwargs(self.args), **kwargs}

    # -- checkpoints

    def _may_write(self) -> bool:
        """Whether this process writes: in a checkpoint as its store says, elsewhere as the arguments do."""
        return bool(getattr(WRITING, "keeps", self.args.should_save))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the model, or the weights in ``state_dict``, with all it takes to load it, if this process writes."""
        if self._may_write():
            session.save_model(self, output_dir or self.args.output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        save_training_state(self, Path(output_dir), SAVERS["_save_optimizer_and_scheduler"], self._may_write())

    def _save_scaler(self, output_dir: str) -> None:
        save_training_state(self, Path(output_dir), SAVERS["_save_scaler"], self._may_write())

    def _save_rng_state(self, output_dir: str) -> None:
        """On every rank, in a file of its own."""
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
        """Put the callbacks back into the states that ``state`` holds, if the arguments ask for it."""
        if self.args.restore_callback_states_from_checkpoint:
            self.control = restore_states(self.callback_handler, self.control, self.state.stateful_callbacks)

    def _get_output_dir(self, trial: Any) -> str:
        """The folder that checkpoints are written into."""
        return str(self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the weights of a checkpoint, in place."""
        load_weights(self.model if model is None else model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        """Load the weights of the best checkpoint."""
        load_weights(self.model, Path(self.state.best_model_checkpoint))

    # -- tensors

    def _nested_gather(self, tensors: Any, name: str | None = None) -> Any:
        """The rows of all ranks, in any nest of tensors; shorter ones are padded with -100."""
        ranks = Ranks.current()
        return gather_rows(pad_across_ranks(tensors, ranks), ranks, self.args.device)
