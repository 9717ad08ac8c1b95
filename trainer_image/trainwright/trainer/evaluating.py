"""The Trainer's methods that judge a model: evaluate, predict, and what they are made of."""

from __future__ import annotations

import math
import time
from typing import Any

from torch import nn

from trainwright.evaluation import passes
from trainwright.outputs import EvalLoopOutput, PredictionOutput
from trainwright.training import metrics
from trainwright.training.debugging import tell_tpu_metrics
from trainwright.training.optimizers.averaging import averaged_weights


class Evaluating:
    """A part of :class:`trainwright.Trainer`."""

    args: Any
    state: Any
    control: Any
    callback_handler: Any
    eval_dataset: Any
    compute_metrics: Any
    optimizer: Any
    _memory: Any

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Metrics over ``eval_dataset``, or over the Trainer's own; each of a dict of sets under its key.

        Args:
            eval_dataset: A set, a dict of sets, or the key of one of the Trainer's own.
            ignore_keys: Outputs of the model that are not gathered.
            metric_key_prefix: What the metrics' names begin with.
        """
        given = eval_dataset is not None
        chosen = eval_dataset if given else self.eval_dataset
        if isinstance(chosen, dict):
            return self._evaluate_each(chosen, given, ignore_keys, metric_key_prefix)
        with self._memory.stage("eval") as measured:
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
        """The metrics of all sets; one of the Trainer's own is called by its key, so that its loader can be kept."""
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
        """The model's outputs for ``test_dataset``, one row per sample, with metrics if it has labels."""
        with self._memory.stage("test") as measured:
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
        steps = math.ceil(output.num_samples / (self.args.eval_batch_size * self.args.world_size))
        output.metrics.update(metrics.speed_metrics(prefix, start, num_samples=output.num_samples, num_steps=steps))

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """One pass over ``dataloader``; what ``evaluate`` and ``predict`` have in common."""
        with averaged_weights(self.optimizer):
            return passes.evaluation_loop(
                self, dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """Loss, logits and labels of one batch; None for what there is not, or what ``prediction_loss_only`` omits."""
        return passes.prediction_step(self, model, inputs, prediction_loss_only, ignore_keys)
