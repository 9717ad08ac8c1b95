"""One pass over an evaluation or test set: losses, outputs and labels of every sample.

Each sample is evaluated once, on one rank. The last batch is not padded with repeated samples, so the results do not
depend on the number of processes. If only the loss is needed, the ranks communicate once, at the end; else in every
round.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from trainwright.contract import DataError
from trainwright.data.diagnosis import raise_explained
from trainwright.data.dispatch import DispatchingLoader
from trainwright.data.epochs import readable
from trainwright.data.loader import Loader
from trainwright.data.loaders import has_length
from trainwright.data.samplers import ShardedBatches
from trainwright.data.workers import watch_start
from trainwright.distributed.collectives import (
    Collector,
    batch_size_of,
    detach,
    gather_objects,
    gather_rows,
    map_leaves,
    pad_across_ranks,
)
from trainwright.distributed.ranks import Ranks
from trainwright.evaluation.metrics import named_numbers, shown_to_metrics
from trainwright.outputs import EvalLoopOutput, EvalPrediction


def prediction_step(
    trainer: Any, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
) -> tuple[Any, Any, Any]:
    """Return loss, outputs and labels of one batch; see ``Trainer.prediction_step``.

    Args:
        ignore_keys: Outputs to omit; by default those that the model's configuration names.
    """
    if torch.is_grad_enabled():  # a pass turns it off once for all batches
        with torch.no_grad():
            return prediction_step(trainer, model, inputs, prediction_loss_only, ignore_keys)
    names = trainer.label_names
    if not isinstance(inputs, dict | Mapping):
        raise DataError(f"data_collator: a batch must be a mapping of names to tensors, got {type(inputs).__name__}")
    has_loss = _has_loss(trainer, inputs)
    inputs = trainer._prepare_inputs(inputs)
    labels = _unpacked([detach(inputs.get(name)) for name in names]) if has_loss else None
    try:
        with trainer.compute_loss_context_manager():
            if has_loss:
                # a model's loss is already the mean over the batch; user code that computes a loss gets the count
                others = trainer._others_loss()
                items = trainer._get_num_items_in_batch([inputs], trainer.args.device) if others else None
                loss, outputs = trainer.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=items)
                loss = detach(loss if loss.ndim == 0 else loss.mean())
            else:
                loss, outputs = None, model(**inputs)
    except Exception as error:
        raise_explained(error, trainer.model, inputs, names)
        raise
    if prediction_loss_only:
        return loss, None, None
    ignored = ignored_by_default(trainer.model) if ignore_keys is None else ignore_keys
    return loss, _unpacked([detach(output) for output in _logits(outputs, has_loss, ignored)]), labels


def _has_loss(trainer: Any, inputs: Mapping[str, Any]) -> bool:
    """Whether the model returns a loss for this batch."""
    if trainer.label_names:
        return all(inputs.get(name) is not None for name in trainer.label_names)
    wanted = inputs.get("return_loss")
    return bool(trainer.can_return_loss if wanted is None else wanted)


def ignored_by_default(model: nn.Module) -> list[str]:
    """Return the outputs that the model's configuration omits."""
    config = getattr(model, "config", None)
    return [] if config is None else getattr(config, "keys_to_ignore_at_inference", ["cache"]) or []


def _logits(outputs: Any, has_loss: bool, ignore_keys: list[str]) -> tuple[Any, ...]:
    """Return the model's outputs without the loss."""
    if isinstance(outputs, dict):
        left_out = {*ignore_keys, "loss"} if has_loss else set(ignore_keys)
        return tuple(value for key, value in outputs.items() if key not in left_out)
    if isinstance(outputs, torch.Tensor):
        return (outputs,)
    return tuple(outputs[1:] if has_loss else outputs)


def _unpacked(nests: list[Any]) -> Any:
    return nests[0] if len(nests) == 1 else tuple(nests)


def evaluation_loop(
    trainer: Any,
    loader: Any,
    description: str,
    prediction_loss_only: bool | None = None,
    ignore_keys: list[str] | None = None,
    metric_key_prefix: str = "eval",
) -> EvalLoopOutput:
    """Evaluate the model on every batch of ``loader``. All ranks must call this; each gets the whole result.

    Args:
        description: ``"Evaluation"`` or ``"Prediction"``, which keeps the outputs even with ``batch_eval_metrics``.
        prediction_loss_only: By default the value in the arguments.

    Without batches, the result has only metrics that need none, for example the run time.
    """
    if prediction_loss_only is None:
        prediction_loss_only = trainer.args.prediction_loss_only
    model, preparation = _prepare(trainer)
    trainer.callback_handler.eval_dataloader = loader
    run = _Pass(trainer, model, loader, prediction_loss_only, ignore_keys, description == "Prediction")
    run.run()
    trainer._strategy.rest(trainer.model)
    metrics = run.metrics()
    if preparation is not None:
        metrics["model_preparation_time"] = preparation
    prefixed = {
        key if key.startswith(f"{metric_key_prefix}_") else f"{metric_key_prefix}_{key}": value
        for key, value in plain(metrics).items()
    }
    return EvalLoopOutput(run.predictions, run.labels, prefixed, run.num_samples)


def _prepare(trainer: Any) -> tuple[nn.Module, float | None]:
    """Return the module in evaluation mode, and the seconds of preparation unless training had prepared it."""
    args, preparation = trainer.args, None
    if trainer.is_in_train:
        model = trainer.model
    else:
        start = time.time()
        model = trainer._wrap_model(trainer.model, training=False)
        dtype = torch.float16 if args.fp16_full_eval else torch.bfloat16 if args.bf16_full_eval else None
        model = model.to(dtype=dtype, device=args.device) if dtype is not None else model
        preparation = None if trainer.is_prepared else round(time.time() - start, 4)
    model.eval()
    if hasattr(trainer.optimizer, "eval"):  # schedule-free optimizers keep separate weights for evaluation
        trainer.optimizer.eval()
    return model, preparation


_MAY_GATHER = ("compute_loss", "prediction_step")
"""Methods that users override, and that may gather over the ranks, as those of TRL do."""


class _Pass:
    """One pass over a loader, and its results.

    Attributes:
        predictions: Nested arrays with one row per sample, after the pass. ``labels`` and ``inputs`` likewise.
        num_samples: Samples over all ranks.
        in_step: Whether a forward pass may be a collective, which all ranks make equally often.
    """

    def __init__(
        self,
        trainer: Any,
        model: nn.Module,
        loader: Any,
        loss_only: bool,
        ignore_keys: list[str] | None,
        is_prediction: bool,
    ) -> None:
        args = trainer.args
        self.trainer, self.model, self.loader, self.args = trainer, model, loader, args
        if ignore_keys is None and not trainer._overrides("prediction_step"):
            ignore_keys = ignored_by_default(trainer.model)  # once for all batches
        self.loss_only, self.ignore_keys = loss_only, ignore_keys
        self.ranks = trainer._strategy.data
        self.wants_inputs, self.wants_losses = (name in args.include_for_metrics for name in ("inputs", "loss"))
        own_loss = trainer.compute_loss_func is not None or any(map(trainer._overrides, _MAY_GATHER))
        self.in_step = trainer._strategy.sharded or own_loss
        self.by_batch = args.batch_eval_metrics and trainer.compute_metrics is not None
        self.keeps_outputs = is_prediction or not args.batch_eval_metrics
        self.batch_metrics: dict[str, Any] | None = None
        self.losses: list[torch.Tensor] = []
        self.counts: list[int] = []
        expected = len(loader.dataset) if has_length(getattr(loader, "dataset", None)) else 0
        self.collectors = [
            Collector(args.eval_do_concat_batches, args.eval_accumulation_steps, expected) for _ in range(3)
        ]
        self.predictions = self.labels = self.inputs = None
        self.num_samples = 0
        self.stand_in: Any = None

    def run(self) -> None:
        trainer = self.trainer
        with contextlib.nullcontext() if trainer._overrides("prediction_step") else torch.no_grad():
            for batch, is_last in in_step(self.loader, self.ranks):
                self._judge(batch, is_last)
                trainer.control = trainer.callback_handler.on_prediction_step(self.args, trainer.state, trainer.control)
        self.predictions, self.labels, self.inputs = (collector.take() for collector in self.collectors)
        self.sample_losses = self._losses_of_all()

    def _judge(self, batch: Any, is_last: bool) -> None:
        """Evaluate one round; ``batch`` is None if only other ranks have samples left."""
        loss = logits = labels = inputs = None
        count = 0
        if self.in_step:
            self._call_with_the_others(batch)
        if batch is not None:
            loss, logits, labels = self.trainer.prediction_step(
                self.model, batch, self.loss_only, ignore_keys=self.ignore_keys
            )
            count = self._samples_of(batch, logits)
            inputs = self.trainer._prepare_input(batch[self._main_input()]) if self.wants_inputs else None
        self.counts.append(count)
        if loss is not None:
            self.losses.append(loss)
        if not self.loss_only or self.wants_inputs:
            logits, labels = self._preprocessed(logits, labels)
            nest = None if batch is None else (logits, labels, inputs)
            logits, labels, inputs = self._gather(nest) or (None, None, None)
            if self.keeps_outputs:
                for collector, kept in zip(self.collectors, (logits, labels, inputs), strict=True):
                    if kept is not None:
                        collector.add(kept)
        if self.by_batch:
            self._compute_batch(batch, loss, count, logits, labels, is_last)

    def _call_with_the_others(self, batch: Any) -> None:
        """Call the model if this rank has no batch but others have, because they may wait for it."""
        if not self.counts:  # the first round: a rank may never get a batch of its own
            self.stand_in = self._first_batch(batch)
        if batch is None:
            self.trainer.prediction_step(self.model, self.stand_in, self.loss_only, ignore_keys=self.ignore_keys)

    def _first_batch(self, batch: Any) -> Any:
        """Return this rank's first batch, or that of another rank."""
        lacking = self.ranks.gather(batch is None)
        if not any(lacking):
            return batch
        source = lacking.index(False)
        return self.ranks.gather(batch if self.ranks.rank == source else None)[source]

    def _samples_of(self, batch: Any, logits: Any) -> int:
        """Return the samples of a batch. Rows can differ: a collator may join samples, or make two rows per pair."""
        batches = getattr(self.loader, "batch_sampler", None)
        if isinstance(batches, ShardedBatches):
            return batches.samples_in(len(self.counts))
        return self._real(batch_size_of(batch) or batch_size_of(logits) or self.args.eval_batch_size)

    def _main_input(self) -> str:
        return getattr(self.trainer.model, "main_input_name", "input_ids")

    def _real(self, count: int) -> int:
        """Return the samples of this rank's batch, without those that a foreign loader repeated as padding."""
        total = self._remainder()
        return count if total is None else max(0, min(count, total - self.ranks.rank * count))

    def _remainder(self) -> int | None:
        """Return the real samples in the last round of a loader that accelerate prepared; None in all other cases."""
        if isinstance(self.loader, Loader | DispatchingLoader) or self.ranks.world_size == 1:
            return None
        state = self.trainer.accelerator.gradient_state
        return state.remainder if state.end_of_dataloader and state.remainder > 0 else None

    def _preprocessed(self, logits: Any, labels: Any) -> tuple[Any, Any]:
        """Call ``preprocess_logits_for_metrics`` with logits and labels padded to the longest of all ranks."""
        preprocess = self.trainer.preprocess_logits_for_metrics
        if preprocess is None or self.loss_only:
            return logits, labels
        labels, logits = pad_across_ranks(labels, self.ranks), pad_across_ranks(logits, self.ranks)
        if logits is None:
            return None, labels
        kept = preprocess(logits, labels)
        return (kept if self.trainer.compute_metrics is None else shown_to_metrics(kept)), labels

    def _gather(self, nest: Any) -> Any:
        if self.args.eval_use_gather_object:
            return gather_objects(nest, self.ranks)
        gathered, total = gather_rows(nest, self.ranks, self.args.device), self._remainder()
        return gathered if total is None else map_leaves(lambda leaf: leaf[:total], gathered)

    def _compute_batch(self, batch: Any, loss: Any, count: int, logits: Any, labels: Any, is_last: bool) -> None:
        """Call ``compute_metrics`` for each round (``batch_eval_metrics``); the last call returns the result."""
        losses = None if loss is None else loss.repeat(count)
        extras = {
            "losses": self._gather(losses) if self.wants_losses else None,
            "inputs": self._gather(None if batch is None else dict(batch)) if self.wants_inputs else None,
        }
        if logits is not None and labels is not None:
            prediction = EvalPrediction(predictions=logits, label_ids=labels, **extras)
            metrics = self.trainer.compute_metrics(prediction, compute_result=is_last)
            self.batch_metrics = named_numbers(metrics) if is_last else metrics

    def _losses_of_all(self) -> np.ndarray | None:
        """Return one loss per sample, in the order of the samples; None if there was no loss."""
        values = torch.stack(self.losses).float().cpu().numpy() if self.losses else None
        parts = self.ranks.gather((values, self.counts))
        self.num_samples = sum(sum(counts) for _, counts in parts)
        if all(values is None for values, _ in parts):
            return None
        if len(parts) == 1:
            return np.repeat(*parts[0])
        return np.concatenate(
            [
                np.repeat(values[number], counts[number])
                for number in range(max(len(counts) for _, counts in parts))
                for values, counts in parts
                if counts[number]
            ]
        )

    def metrics(self) -> dict[str, Any]:
        """Return the user's metrics and the mean loss, without prefix."""
        metrics = dict(self.batch_metrics or {})
        compute = self.trainer.compute_metrics
        if compute is not None and not self.by_batch and self.predictions is not None and self.labels is not None:
            losses = self.sample_losses if self.wants_losses else None
            prediction = EvalPrediction(self.predictions, self.labels, inputs=self.inputs, losses=losses)
            metrics = named_numbers(compute(prediction))
        if self.sample_losses is not None:
            metrics["loss"] = self._mean_loss(self.sample_losses)
        return metrics

    def _mean_loss(self, losses: np.ndarray) -> float:
        finite = np.isfinite(losses)
        if self.args.logging_nan_inf_filter and finite.any():
            losses = losses[finite]
        return float(losses.mean())


def in_step(loader: Any, ranks: Ranks) -> Iterator[tuple[Any, bool]]:
    """Yield this rank's batch, or None if only other ranks have one, and whether this is the last round."""
    watch_start(loader, "eval_dataset")
    rounds = max(ranks.gather(len(loader))) if has_length(loader) else None
    if rounds == 0:
        return
    batches = readable(iter(loader))
    if rounds is None:
        yield from _until_all_end(batches, ranks)
    else:
        for number in range(rounds):
            yield next(batches, None), number == rounds - 1


def _until_all_end(batches: Iterator[Any], ranks: Ranks) -> Iterator[tuple[Any, bool]]:
    """Read streams one batch ahead, to detect the last round."""
    current, ended = next(batches, None), object()
    if not any(ranks.gather(current is not None)):
        return
    while True:
        upcoming = next(batches, ended)
        is_last = all(ranks.gather(upcoming is ended))
        yield current, is_last
        if is_last:
            return
        current = None if upcoming is ended else upcoming


def plain(value: Any) -> Any:
    """Convert numbers of NumPy and torch to Python numbers, for JSON."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    is_scalar = isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.numel() == 1)
    return value.item() if is_scalar else value
