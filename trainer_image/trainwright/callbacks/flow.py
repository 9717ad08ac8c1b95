"""The callbacks that control when a run logs, evaluates, saves and stops."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from trainwright.callbacks.callback import TrainerCallback
from trainwright.callbacks.state import ExportableState, TrainerControl, TrainerState
from trainwright.contract import UserError

if TYPE_CHECKING:
    from trainwright.arguments import TrainingArguments

logger = logging.getLogger(__name__)


class DefaultFlowCallback(TrainerCallback):
    """Decides when to log, evaluate, save and stop, from the strategies and intervals of the arguments."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        step = state.global_step
        evaluates = args.eval_strategy == "steps" and args.eval_delay <= step
        if (args.logging_strategy == "steps" and step % state.logging_steps == 0) or (
            step == 1 and args.logging_first_step
        ):
            control.should_log = True
        if evaluates and step % state.eval_steps == 0:
            control.should_evaluate = True
        if args.save_strategy == "steps" and state.save_steps > 0 and step % state.save_steps == 0:
            control.should_save = True
        if step >= state.max_steps:
            control.should_training_stop = True
            if evaluates:
                control.should_evaluate = True
            if args.save_strategy == "steps":
                control.should_save = True
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        if args.logging_strategy == "epoch":
            control.should_log = True
        if args.eval_strategy == "epoch" and args.eval_delay <= (state.epoch or 0.0):
            control.should_evaluate = True
        if args.save_strategy == "epoch":
            control.should_save = True
        return control


class EarlyStoppingError(UserError, AssertionError):
    """The arguments lack what early stopping needs: a metric, or evaluations."""


class EarlyStoppingCallback(TrainerCallback, ExportableState):
    """Stops the run after ``early_stopping_patience`` evaluations in a row that did not improve the best metric.

    A difference of at most ``early_stopping_threshold`` is not an improvement.
    """

    def __init__(self, early_stopping_patience: int = 1, early_stopping_threshold: float | None = 0.0) -> None:
        self.early_stopping_patience = early_stopping_patience
        self.early_stopping_threshold = early_stopping_threshold
        self.early_stopping_patience_counter = 0

    def check_metric_value(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metric_value: float
    ) -> None:
        """Count this evaluation as an improvement or not."""
        best = state.best_metric
        better = best is None or (metric_value > best if args.greater_is_better else metric_value < best)
        if better and (best is None or abs(metric_value - best) > (self.early_stopping_threshold or 0.0)):
            self.early_stopping_patience_counter = 0
        else:
            self.early_stopping_patience_counter += 1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.metric_for_best_model is None:
            raise EarlyStoppingError(
                "EarlyStoppingCallback: set metric_for_best_model, the metric whose improvement it watches"
            )
        if args.eval_strategy == "no":
            raise EarlyStoppingError(
                "EarlyStoppingCallback: set eval_strategy to 'steps' or 'epoch', it acts on evaluations"
            )
        if not args.load_best_model_at_end:
            logger.warning("EarlyStoppingCallback without load_best_model_at_end: the last model is kept, not the best")

    def on_evaluate(  # type: ignore[override] # as in transformers, with the metrics as a parameter
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        name = args.metric_for_best_model or "loss"
        name = name if name.startswith("eval_") else f"eval_{name}"
        if name not in metrics:
            logger.warning("EarlyStoppingCallback: the metrics (%s) lack %s; not counted", ", ".join(metrics), name)
            return
        self.check_metric_value(args, state, control, metrics[name])
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True

    def state(self) -> dict[str, Any]:
        return {
            "args": {
                "early_stopping_patience": self.early_stopping_patience,
                "early_stopping_threshold": self.early_stopping_threshold,
            },
            "attributes": {"early_stopping_patience_counter": self.early_stopping_patience_counter},
        }
