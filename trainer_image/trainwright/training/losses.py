"""Losses: what a model must return, label smoothing, the count of items for the mean, and the logged mean.

The contract for all models: ``forward`` takes the keys of a batch, and returns a tuple or a mapping (for example a
ModelOutput). If the batch has labels, the loss is the first element or the value of ``loss``: a scalar tensor that
requires a gradient. The first step of a run checks this; later steps do not.
"""

from __future__ import annotations

import inspect
import logging
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainwright.arguments.errors import ModelError
from trainwright.checkpoint.deferred import is_deferred
from trainwright.contract import DataError
from trainwright.distributed.wrapping import base_model, class_name

logger = logging.getLogger(__name__)

IGNORE_INDEX = -100
"""A label with this value is not a target."""
MULTI_LABEL = "multi_label_classification"


def forward_parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of ``forward``, by name."""
    return inspect.signature(base_model(model).forward).parameters


def takes_any_keyword(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def find_labels(model: nn.Module) -> list[str]:
    """Return the parameters of ``forward`` that are labels by name; for question answering, the positions too."""
    positions = ("start_positions", "end_positions") if "QuestionAnswering" in type(base_model(model)).__name__ else ()
    return [name for name in forward_parameters(model) if "label" in name or name in positions]


def is_causal_lm(model: nn.Module) -> bool:
    """Whether ``model`` is one of transformers' causal language models, whose logits are one position ahead."""
    if "transformers" not in sys.modules:
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return class_name(base_model(model)) in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def can_return_loss(model: nn.Module) -> bool:
    """Whether ``forward`` returns a loss without labels: ``return_loss`` is true by default (models like CLIP)."""
    parameter = forward_parameters(model).get("return_loss")
    return parameter is not None and parameter.default is True


def check_trainable(model: nn.Module, label_names: Iterable[str]) -> None:
    """Raises :class:`ModelError` for a model that cannot be trained with any data."""
    name = type(model).__name__
    if "label" in label_names:
        raise ModelError(f"label_names: {name}.forward must not call an argument 'label'; call it 'labels'")
    if getattr(model, "is_quantized", False) and not getattr(model, "_hf_peft_config_loaded", False):
        quantizer = getattr(model, "hf_quantizer", None)
        if not callable(getattr(model, "get_base_model", None)) and not getattr(quantizer, "is_qat_trainable", False):
            raise ModelError(f"model: {name} is quantised, and its weights cannot be trained; add an adapter to it")
        if quantizer is not None and not quantizer.is_trainable:
            method = getattr(quantizer.quantization_config.quant_method, "value", "its method")
            raise ModelError(f"model: {name} is quantised by {method}, through which no gradient flows; choose another")
    meta = next((n for n, p in model.named_parameters() if p.is_meta), None)
    if meta is not None and not is_deferred(model):
        raise ModelError(
            f"model: parameter {meta} is on the meta device and holds no values; load or initialise {name}"
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError(f"model: no parameter of {name} requires a gradient; unfreeze those that shall be trained")


def check_batch(model: nn.Module, batch: Any) -> None:
    """Raises when ``forward`` cannot be called with this batch."""
    if not isinstance(batch, Mapping):
        raise DataError(
            f"data_collator: a batch must be a mapping of argument names to tensors, got {type(batch).__name__}"
        )
    if not batch:
        raise DataError("data_collator: the batch is empty; name the columns as the arguments of the model's forward")
    parameters = forward_parameters(model)
    where = f"{type(model).__name__}.forward"
    if not takes_any_keyword(parameters) and (unknown := [key for key in batch if key not in parameters]):
        raise DataError(
            f"batch: {where} takes {', '.join(parameters)}, not {', '.join(map(str, unknown))}; "
            "rename the column, or leave remove_unused_columns on"
        )
    if missing := [n for n, p in parameters.items() if _is_required(p) and n not in batch]:
        raise DataError(f"batch: {where} needs {', '.join(missing)}, and the batch has {', '.join(map(str, batch))}")


def _is_required(parameter: inspect.Parameter) -> bool:
    positional = parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return positional and parameter.default is inspect.Parameter.empty


def loss_of(outputs: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    """Return the loss in a model's outputs: the value of ``loss``, or the first element."""
    try:
        loss: torch.Tensor = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
        return loss
    except (KeyError, IndexError, TypeError):
        raise ModelError(_no_loss(outputs, batch)) from None


def _no_loss(outputs: Any, batch: Mapping[str, Any]) -> str:
    got = f"a batch of {', '.join(map(str, batch))}"
    if isinstance(outputs, dict):
        return f"model: no loss among {', '.join(outputs)}, given {got}; give it labels and return 'loss'"
    return (
        f"model: forward returned {type(outputs).__name__}; return a tuple with the loss first, or a dict with 'loss'"
    )


def check_loss(loss: Any, model: nn.Module, batch: Mapping[str, Any], label_names: Iterable[str]) -> None:
    """Raises :class:`ModelError` when ``backward`` cannot start from ``loss``."""
    if not isinstance(loss, torch.Tensor):
        raise ModelError(f"model: the loss is {type(loss).__name__}, not a tensor; {_labels_hint(batch, label_names)}")
    if loss.dim() > 0 and loss.numel() != 1:
        raise ModelError(
            f"model: the loss must be one number, got a tensor of shape {tuple(loss.shape)}; reduce it by its mean, "
            f"and return it as the first element; {_labels_hint(batch, label_names)}"
        )
    if not loss.requires_grad:
        raise ModelError("model: the loss has no gradient; compute it from parameters, without detach or no_grad")
    if not math.isfinite(loss.item()):
        _explain_nan(model)


def _labels_hint(batch: Mapping[str, Any], label_names: Iterable[str]) -> str:
    missing = [name for name in label_names if name not in batch]
    return f"the batch has no {', '.join(missing)}" if missing else "return the loss first when labels are given"


def _explain_nan(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(getattr(parameter, "_local_tensor", parameter)).all():  # of a sharded one, this part
            raise ModelError(f"model: parameter {name} holds NaN or infinity before the first step; load it anew")
    logger.warning("the first loss is not a finite number; check the data and the learning rate")


@dataclass
class LabelSmoother:
    """Cross entropy with label smoothing: ``epsilon`` of each target is spread evenly over all classes.

    ``model_output`` holds logits of shape (..., classes) under ``logits`` or first; labels have shape (...).
    """

    epsilon: float = 0.1
    ignore_index: int = IGNORE_INDEX

    def __call__(
        self, model_output: Any, labels: torch.Tensor, shift_labels: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        logits = model_output["logits"] if isinstance(model_output, dict) else model_output[0]
        if shift_labels:
            logits, labels = logits[..., :-1, :].contiguous(), labels[..., 1:].contiguous()
        surprise = -nn.functional.log_softmax(logits, dim=-1)
        labels = labels.unsqueeze(-1) if labels.dim() == surprise.dim() - 1 else labels
        ignored = labels.eq(self.ignore_index)
        target = surprise.gather(dim=-1, index=labels.clamp(min=0)).masked_fill(ignored, 0.0)
        spread = surprise.sum(dim=-1, keepdim=True, dtype=torch.float32).masked_fill(ignored, 0.0)
        items = num_items_in_batch
        if items is None:
            items = ignored.numel() - ignored.long().sum()
        elif isinstance(items, torch.Tensor):
            items = items.to(target.device)
        uniform = self.epsilon * spread.sum() / (items * surprise.shape[-1])
        loss: torch.Tensor = (1 - self.epsilon) * target.sum() / items + uniform
        return loss


def label_smoother(model: nn.Module, epsilon: float) -> LabelSmoother | None:
    """Return None if labels are not smoothed. Multi-label targets cannot be smoothed; this logs a warning."""
    if epsilon and getattr(getattr(base_model(model), "config", None), "problem_type", None) == MULTI_LABEL:
        logger.warning("label_smoothing_factor is not for %s: nothing is smoothed", MULTI_LABEL)
        return None
    return LabelSmoother(epsilon) if epsilon else None


def count_items(batches: list[Any], shifted: bool) -> torch.Tensor | None:
    """Return the number of targets in ``batches``: labels other than -100. None if labels are not tensors."""
    if not batches or not isinstance(batches[0], Mapping) or "labels" not in batches[0]:
        return None
    try:
        return sum(_targets(batch, shifted).ne(IGNORE_INDEX).sum() for batch in batches)  # type: ignore[return-value]
    except (TypeError, AttributeError):
        return None


def _targets(batch: Mapping[str, Any], shifted: bool) -> torch.Tensor:
    if "shift_labels" in batch:
        shift_labels: torch.Tensor = batch["shift_labels"]
        return shift_labels
    labels: torch.Tensor = batch["labels"]
    return labels[..., 1:] if shifted else labels


class LossMeter:
    """The sum of the losses of the steps since it was last read.

    It keeps scalars on the device and reads them only on request, so that a step never waits for the device.

    Args:
        filter_nan: Replace losses that are not finite by the mean of the other steps. If no step has a finite loss,
            the sum is NaN, never 0.
    """

    CHUNK = 2048
    """Number of scalars to keep before they are summed, if the meter is rarely read."""

    def __init__(self, filter_nan: bool) -> None:
        self.filter_nan = filter_nan
        self.first_not_finite: int | None = None
        """Index of the first step with a loss that is not finite, among the steps of the last read."""
        self._kept: list[list[torch.Tensor]] = []
        self._scalars = 0
        self._start()

    def _start(self) -> None:
        self._finite, self._finite_steps, self._rest, self._steps = 0.0, 0, 0.0, 0
        self._first: int | None = None

    def add(self, losses: list[torch.Tensor]) -> None:
        """Add the losses of one step's micro-batches."""
        self._kept.append(losses)
        self._scalars += len(losses)
        if self._scalars >= self.CHUNK:
            self._sum()

    def peek(self) -> float:
        """Return the sum so far."""
        self._sum()
        if self._steps == self._finite_steps:
            return self._finite
        if not self.filter_nan:
            return self._finite + self._rest
        return self._finite * self._steps / self._finite_steps if self._finite_steps else math.nan

    def read(self) -> float:
        """Return the sum so far, and reset it."""
        total, self.first_not_finite = self.peek(), self._first
        self._start()
        return total

    def _sum(self) -> None:
        """Sum the kept scalars in order; a step is finite if all of its micro-batches are."""
        scalars = [loss.reshape(()) for losses in self._kept for loss in losses]
        values = iter(torch.stack(scalars).tolist() if scalars else ())
        for losses in self._kept:
            step = sum(next(values) for _ in losses)
            if math.isfinite(step):
                self._finite += step
                self._finite_steps += 1
            else:
                self._rest += step
                self._first = self._steps if self._first is None else self._first
            self._steps += 1
        self._kept, self._scalars = [], 0
