"""The training loop.

For each epoch, for each global batch: run forward and backward for each micro-batch, then update the weights once; then
log, evaluate and save if the control requests it. The strategy (:mod:`trainwright.distributed.strategy`) spreads the
model over processes and devices, and updates it.

The loop makes all decisions it can before the first step. A feature that is off (event listeners, a gradient scaler,
delayed gradient exchange, device transfer, a watch for anomalies) adds no cost to a step.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache

from trainwright.data.epochs import Epochs
from trainwright.distributed.collectives import sum_over_ranks
from trainwright.distributed.preemption import Preemption, under_launcher
from trainwright.distributed.strategy import Hooks
from trainwright.integrations.clock import DATA, EVALUATING, RESTORING, SAVING, of_process
from trainwright.training.anomalies import (
    ROLLBACK,
    SKIP,
    Anomaly,
    Watch,
    check_bounds,
    record,
    summary_of,
    watch_of,
)
from trainwright.training.losses import LossMeter
from trainwright.training.own_time import OwnTime
from trainwright.training.schedulers import follows_metric
from trainwright.training.throughput import Work
from trainwright.training.train_length import Horizon

logger = logging.getLogger(__name__)


class Loop:
    """One run of a Trainer whose model, data, optimizer and schedule are prepared.

    Args:
        model: The module to call: the model, or a wrapper that reduces gradients over the ranks.
        epochs: The training batches of this rank.
        ignore_keys: Model outputs that evaluations do not gather.
    """

    def __init__(
        self,
        trainer: Any,
        model: torch.nn.Module,
        epochs: Epochs,
        horizon: Horizon,
        ignore_keys: list[str] | None = None,
    ) -> None:
        args = trainer.args
        self.trainer, self.model, self.epochs, self.horizon = trainer, model, epochs, horizon
        self.device = args.device
        self.accumulation = args.gradient_accumulation_steps
        self.max_grad_norm = args.max_grad_norm
        self.optimizer, self.strategy = trainer.optimizer, trainer._strategy
        schedule = None if follows_metric(trainer.lr_scheduler) else trainer.lr_scheduler
        self.watch = watch_of(trainer, model, trainer.scaler)
        self.late_schedule = schedule if self.watch is not None and self.watch.on_device else None
        of_strategy = None if self.late_schedule is not None else schedule
        self.strategy.start(model, self.optimizer, of_strategy, trainer.scaler, self.hooks())
        self.meter, self.work = LossMeter(args.logging_nan_inf_filter), Work(trainer)
        self.preemption = Preemption(listens=under_launcher() or args.enable_jit_checkpoint)
        self.background, self.clock = trainer._background, of_process()
        self.own_time = trainer._own_time = OwnTime.of(self.strategy.ranks, self.device, trainer.state.global_step)
        self.empties_cache_every = args.torch_empty_cache_steps
        self.ignore_keys = ignore_keys
        self.grad_norm: torch.Tensor | None = None
        self.learning_rate = 0.0
        self.first_step = self.logged_step = trainer.state.global_step
        self.saved_step = -1
        self.go_back: Callable[[Path], None] | None = None
        self.checkpoint: Path | None = None
        self.total_loss, self.lost_steps = 0.0, 0
        self.told: set[str] = set()
        self.start_time = time.time()

    def run(self, first_epoch: int, skip: int) -> None:
        """Train until the control stops the run; start after ``skip`` micro-batches of ``first_epoch``.

        A run that was interrupted after its last step trains no more.

        Raises:
            SystemExit: All ranks agreed to stop early; a checkpoint is saved.
        """
        with self.preemption:
            for epoch in range(first_epoch, self.horizon.epochs):
                if self.trainer.state.global_step >= self.horizon.max_steps:
                    break
                self.epoch(epoch, skip)
                skip = 0
                if self.trainer.control.should_training_stop:
                    break

    def epoch(self, epoch: int, skip: int) -> None:
        self.event("on_epoch_begin")
        done = skip
        for micro_batches, num_items in self.global_batches(epoch, skip):
            done += len(micro_batches)
            self.step(micro_batches, num_items, epoch + done / self.horizon.batches_per_epoch)
            control = self.trainer.control
            if control.should_epoch_stop or control.should_training_stop:
                break
        if done == 0:
            self.stop_for_want_of_data()
        self.event("on_epoch_end")
        self.settle()
        self.obey()

    def global_batches(self, epoch: int, skip: int) -> Iterator[tuple[list[Any], Any]]:
        """Yield the micro-batches of each step, and the number of items that their loss is averaged over.

        Preemption stops the run before the fetch, and before an epoch begins: both draw random numbers, and the
        checkpoint holds the state from before them.
        """
        trainer, first, clock = self.trainer, skip // self.accumulation, self.clock
        iterator: Iterator[Any] | None = None
        for _ in range(first, self.horizon.steps_per_epoch):
            upcoming = trainer.state.global_step + 1
            if self.background is not None and self.background.is_due(upcoming):
                with clock.spending(SAVING):
                    self.background.settle()
                clock.save_ends()
            if self.preemption.begin(upcoming):
                self.yield_to_preemption()
            if iterator is None:
                with clock.spending(RESTORING if skip else DATA):
                    iterator = self.epochs.batches(epoch, skip)
                if self.own_time is not None:
                    iterator = self.own_time.timed(iterator)
            clock.fetch(upcoming)
            micro_batches, num_items = trainer.get_batch_samples(iterator, self.accumulation, self.device)
            clock.train(upcoming)
            if not micro_batches:
                return
            yield micro_batches, num_items

    def step(self, micro_batches: list[Any], num_items: Any, epoch: float) -> None:
        state = self.trainer.state
        self.event("on_step_begin")
        if self.watch is None:
            losses = self.forward_backward(micro_batches, num_items)
        else:
            losses = self.watched_forward_backward(self.watch, micro_batches, num_items, epoch)
        self.meter.add(losses)
        self.grad_norm, _ = self.strategy.update(self.max_grad_norm)
        state.global_step += 1
        state.epoch = epoch
        self.clock.done(state.global_step)
        if self.empties_cache_every and state.global_step % self.empties_cache_every == 0:
            clear_device_cache()
        self.event("on_step_end")
        if self.watch is not None and self.is_verdict_due(self.watch):
            self.settle()
        self.obey()

    def watched_forward_backward(
        self, watch: Watch, micro_batches: list[Any], num_items: Any, epoch: float
    ) -> list[torch.Tensor]:
        """As :meth:`forward_backward`; again from a checkpoint if the step before made the run go back to it."""
        watch.keep_statistics()
        losses = self.forward_backward(micro_batches, num_items)
        if self.settle():
            self.strategy.zero_grad()
            watch.keep_statistics()
            losses = self.forward_backward(micro_batches, num_items)
        watch.begin(self.trainer.state.global_step + 1, epoch, losses)
        return losses

    def is_verdict_due(self, watch: Watch) -> bool:
        """Whether the verdict of a step is read at its end: it is on the host already, or something depends on it."""
        control = self.trainer.control
        return not watch.on_device or control.should_log or control.should_evaluate or control.should_save

    def settle(self) -> bool:
        """Read the verdict of the newest step, if that was not done; return whether the run went back to a checkpoint.

        The schedule of an optimizer that gets the verdict on the device advances here.
        """
        if self.watch is None or not self.watch.is_open:
            return False
        anomaly = self.watch.verdict()
        if anomaly is not None:
            return self.leave_out(self.watch, anomaly)
        if self.late_schedule is not None:
            self.late_schedule.step()
        return False

    def leave_out(self, watch: Watch, anomaly: Anomaly) -> bool:
        """Record a step that was not taken, and go back to the newest checkpoint if that is the policy."""
        state = self.trainer.state
        check_bounds(watch, anomaly, state.log_history)
        checkpoint = self.newest_checkpoint() if watch.policy == ROLLBACK else None
        record(anomaly, watch.policy if checkpoint is not None else SKIP, checkpoint, state)
        self.clock.anomalies = summary_of(state.log_history)
        if checkpoint is None or self.go_back is None:
            return False
        with self.clock.spending(RESTORING):
            self.go_back(checkpoint)
        return True

    def newest_checkpoint(self) -> Path | None:
        """The newest checkpoint of this run, or the one that it resumed from."""
        if self.background is not None:
            with self.clock.spending(SAVING):
                self.background.settle()
        return self.checkpoint if self.saved_step < 0 else self.trainer.checkpoints.path(self.saved_step)

    def forward_backward(self, micro_batches: list[Any], num_items: Any) -> list[torch.Tensor]:
        """Return the losses of the micro-batches, and accumulate their gradients."""
        *earlier, last = micro_batches
        losses, accumulate = [], self.strategy.accumulate
        self.trainer.current_gradient_accumulation_steps = len(micro_batches)
        for batch in earlier:
            with accumulate(last=False):
                losses.append(self.micro_step(batch, num_items))
            self.event("on_substep_end")
        with accumulate(last=True):
            losses.append(self.micro_step(last, num_items))
        return losses

    def micro_step(self, batch: Any, num_items: Any) -> torch.Tensor:
        loss: torch.Tensor = self.trainer.training_step(self.model, batch, num_items)
        self.work.count(batch)
        return loss.detach() if loss.requires_grad else loss

    def hooks(self) -> Hooks:
        """Return the callbacks that run during an update."""
        hooks = Hooks(partial(self.event, "on_pre_optimizer_step"), self.stepped)
        if self.watch is None:
            return hooks
        return hooks._replace(judge=self.watch.judge, on_device=self.watch.on_device)

    def stepped(self) -> None:
        self.event("on_optimizer_step")
        self.learning_rate = self.rate()

    def rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def obey(self) -> None:
        """Log, evaluate and save as the control requests."""
        control = self.trainer.control
        if control.should_log and self.trainer.state.global_step > self.logged_step:
            self.log()
        if control.should_evaluate:
            self.evaluate()
        if self.trainer.control.should_save:
            self.save()

    def log(self) -> None:
        trainer, step = self.trainer, self.trainer.state.global_step
        loss = self.read_losses()
        logs = {"loss": loss / (step - self.logged_step)}
        if (first := self.meter.first_not_finite) is not None and self.watch is None:
            self.tell_not_finite("loss", self.logged_step + 1 + first)
        if self.grad_norm is not None:
            logs["grad_norm"] = self.grad_norm.item()
            if not math.isfinite(logs["grad_norm"]) and self.watch is None and self.strategy.scaler is None:
                self.tell_not_finite("gradient norm", step)  # a scaler, or a watch, leaves this step out
        logs["learning_rate"] = float(self.learning_rate)
        if self.watch is not None and self.clock.anomalies is not None:
            logs["anomalies"] = self.clock.anomalies["count"]
        self.logged_step = step
        if self.own_time is not None and (slowest := self.own_time.compare(step)) is not None:
            self.clock.slowest = slowest
        self.work.settle()
        trainer.store_flos()
        trainer.log(logs, self.start_time)

    def read_losses(self) -> float:
        """Return the sum of the losses since the last read, averaged over the ranks."""
        steps = self.trainer.state.global_step - self.logged_step
        loss: float = sum_over_ranks(self.meter.read(), self.strategy.data, self.device) / self.strategy.data_size
        if math.isfinite(loss) or not self.meter.filter_nan:
            self.total_loss += loss
        else:
            self.lost_steps += steps
        return loss

    def mean_loss(self) -> float:
        """Return the mean loss of this call of ``train``, without steps whose losses were all filtered as NaN."""
        steps = self.trainer.state.global_step - self.first_step - self.lost_steps
        return self.total_loss / max(steps, 0.001) if steps or not self.lost_steps else math.nan

    def tell_not_finite(self, what: str, step: int) -> None:
        """Warn once about a value that is not finite, because a run with NaN loss rarely recovers."""
        if what not in self.told:
            self.told.add(what)
            logger.warning(
                "the %s of step %d is not a finite number, and training goes on: resume from a checkpoint before it, "
                "with a lower learning_rate or max_grad_norm, or without the data that did it", what, step,
            )  # fmt: skip

    def evaluate(self) -> None:
        trainer = self.trainer
        with self.clock.spending(EVALUATING):
            metrics = trainer._evaluate(trainer._trial, self.ignore_keys)
        is_best = trainer._determine_best_metric(metrics=metrics, trial=trainer._trial)
        if trainer.args.save_strategy == "best":
            trainer.control.should_save = is_best

    def save(self) -> None:
        self.work.settle()
        self.clock.save_begins()
        with self.clock.spending(SAVING):
            self.trainer._save_checkpoint(self.model, trial=self.trainer._trial)
        self.saved_step = self.trainer.state.global_step
        if self.background is not None and self.background.is_writing:
            self.trainer.control.should_save = False  # on_save follows when the checkpoint is complete
        else:
            self.clock.save_ends()
            self.event("on_save")

    def event(self, name: str) -> None:
        trainer = self.trainer
        happened = getattr(trainer.callback_handler, name)
        trainer.control = happened(trainer.args, trainer.state, trainer.control)

    def stop_for_want_of_data(self) -> None:
        logger.warning("no batch in this epoch: training ends at step %d", self.trainer.state.global_step)
        self.trainer.control.should_training_stop = True

    def yield_to_preemption(self) -> None:
        """Save a checkpoint, unless this step has one or is the one that the run began with, and exit."""
        self.settle()
        if self.trainer.state.global_step not in (self.saved_step, self.first_step):
            self.save()
        if self.background is not None:
            with self.clock.spending(SAVING):
                self.background.settle()
        self.preemption.leave()
