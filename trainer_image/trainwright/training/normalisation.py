"""Detect what a model divides its loss by, with measurements instead of the signature of ``forward``.

With gradient accumulation, a loss averaged over the targets of the global batch needs the number of these targets in
every micro-batch. Many models take ``**kwargs`` but ignore ``num_items_in_batch``: they return the mean of the
micro-batch. A Trainer that trusts the signature then multiplies loss and gradients by the number of micro-batches.

Therefore each Trainer makes extra calls of the model before the first step, with two different counts:

- If the loss changes, the model divides by the count. A call without count then shows which targets it counts.
- If the loss does not change, the model is called with a part of the targets and with the rest. If the whole loss is
  the mean of the two, weighted by targets, then micro-batches are weighted by their targets.

These calls leave the model, its buffers and all random generators unchanged.

Some models cannot be called for this: XLA compiles every shape, the meta device has no values, and a call may repack
quantised weights. For them :func:`read` checks in the source of ``forward`` whether the count reaches a loss function.
"""

from __future__ import annotations

import ast
import inspect
import logging
import math
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from functools import cache
from typing import Any, cast

import torch
from torch import nn

from trainwright.devices.seeding import preserved_rng, rng_state, set_rng_state
from trainwright.distributed.ranks import Ranks
from trainwright.distributed.wrapping import base_model, unwrap
from trainwright.training.losses import IGNORE_INDEX, count_items, forward_parameters, loss_of, takes_any_keyword
from trainwright.training.undisturbed import undisturbed

logger = logging.getLogger(__name__)

COUNT, DECODER_INPUTS = "num_items_in_batch", "decoder_input_ids"
FACTOR = 1024
"""Ratio of the two counts: large enough that a constant auxiliary loss does not hide the change."""
UNCHANGED = 1e-4
"""Relative difference below which two losses are equal, because some kernels add in no fixed order."""
NEAR = 0.01
"""Allowed relative difference between the targets that a model divides by and the targets that we count."""


class Normalisation(IntEnum):
    """What the loss of a micro-batch is divided by. All ranks use the greatest value that any rank found."""

    UNKNOWN = 0
    OWN = 1
    """By another number of the micro-batch, usually its samples."""
    OWN_TARGETS = 2
    """By the targets of the micro-batch: labels other than -100."""
    OWN_SHIFTED_TARGETS = 3
    """By the shifted targets of the micro-batch: position i predicts label i+1, so a row's first label is no target."""
    COUNT = 4
    """By ``num_items_in_batch``, which counts targets."""
    SHIFTED_COUNT = 5
    """By ``num_items_in_batch``, which counts shifted targets."""

    @property
    def takes_count(self) -> bool:
        return self >= Normalisation.COUNT

    @property
    def counts(self) -> bool:
        """Whether targets must be counted, for the model or to weight its micro-batches."""
        return self >= Normalisation.OWN_TARGETS

    @property
    def shifts(self) -> bool:
        return self in (Normalisation.OWN_SHIFTED_TARGETS, Normalisation.SHIFTED_COUNT)


def signature_takes_count(model: nn.Module) -> bool:
    """Whether ``forward`` accepts the count: the model declares it, or takes any keyword, by Hugging Face's rule.

    The model may still ignore the count.
    """
    says = getattr(base_model(model), "accepts_loss_kwargs", None)
    return takes_any_keyword(forward_parameters(model)) if says is None else bool(says)


def declared(model: nn.Module) -> Normalisation | None:
    """Return the answer if no measurement is needed: the model declares it, or ``forward`` accepts no count."""
    says = getattr(base_model(model), "accepts_loss_kwargs", None)
    if says is not None:
        return by_count(model) if says else Normalisation.OWN
    parameters = forward_parameters(model)
    return None if takes_any_keyword(parameters) or COUNT in parameters else Normalisation.OWN


def by_count(model: nn.Module) -> Normalisation:
    """Return the kind of count, shifted or not, of a model that divides by the count."""
    return Normalisation.SHIFTED_COUNT if shifts_labels(model) else Normalisation.COUNT


def shifts_labels(model: nn.Module) -> bool:
    """Whether the model uses transformers' causal loss, which compares position i with label i+1."""
    base = base_model(model)
    if getattr(getattr(base, "config", None), "is_encoder_decoder", False) or "transformers" not in sys.modules:
        return False
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    if (own := vars(base).get("_loss_function")) is not None:
        return own is ForCausalLMLoss
    function = LOSS_MAPPING.get(str(getattr(base, "loss_type", None)))
    if function is None:  # then ``loss_function``, if forward calls it, is the causal loss
        return hasattr(type(base), "loss_function") and _calls_loss_function(cast(Any, type(base)))
    return function is ForCausalLMLoss


def find(trainer: Any, batches: list[Any]) -> Normalisation:
    """Use the user's setting, else measure the model; if user code computes the loss, only read the source.

    All ranks must call this.
    """
    said, of_class = trainer._says_accepts_loss_kwargs, getattr(type(trainer), "model_accepts_loss_kwargs", None)
    if said is not None or isinstance(of_class, bool):
        return by_count(trainer.model) if trainer.model_accepts_loss_kwargs else Normalisation.OWN
    if trainer._others_loss() or trainer.loss_is_scaled_for_ga is not None:
        return read(trainer.model)
    if trainer._strategy.sharded:
        batches = _same_batch(batches)
    return agreed(trainer.model, [trainer._prepare_input(batch) for batch in batches[:1]])


def _same_batch(batches: list[Any]) -> list[Any]:
    """Return the batch of the rank with most targets: ranks with shards must make the same calls of the model."""
    ranks = Ranks.current()
    numbers = ranks.gather(_number(batches[0]) if batches else -1)
    source = numbers.index(max(numbers))
    mine = batches[:1] if ranks.rank == source else []
    return ranks.gather(mine)[source]


def weighed(found: Normalisation, inputs: Any, num_items_in_batch: Any, parts: int) -> tuple[Any, Any]:
    """Return the inputs of a micro-batch whose loss is a mean, and its weight in the mean of the accumulated batch.

    Args:
        parts: The number of micro-batches, for equal weights if targets are not counted.
    """
    if not found.counts:
        return inputs, 1 / parts
    own = count_items([inputs], found.shifts)
    assert own is not None
    # Without targets, loss and gradient are NaN. Any label avoids that, because the weight is zero.
    return {**inputs, "labels": inputs["labels"].masked_fill(own == 0, 0)}, own / num_items_in_batch


def agreed(model: nn.Module, batches: list[Any]) -> Normalisation:
    """Return the answer that all ranks agree on; some may have no targets, but all must call this."""
    mine = found = declared(model)
    if mine is None:
        found = Normalisation(max(Ranks.current().gather(int(_measured(model, batches)))))
        if found is Normalisation.UNKNOWN:
            found = read(model)
    assert found is not None
    return found


def _measured(model: nn.Module, batches: list[Any]) -> Normalisation:
    if not batches or not can_be_called(model):
        return Normalisation.UNKNOWN
    try:
        return measure(model, batches[0])
    except Exception as error:  # the training step reports the problem with a better message
        logger.debug("what the loss is divided by could not be measured: %s", error)
        return Normalisation.UNKNOWN


def can_be_called(model: nn.Module) -> bool:
    """Whether an extra call of the model is cheap and useful.

    It is not if every shape is compiled, weights are missing, or weights are quantised: a call in evaluation mode may
    repack quantised weights into a form without gradients.
    """
    if any(getattr(part, "is_quantized", False) for part in model.modules()):
        return False
    return not any(p.device.type in ("xla", "tpu", "meta") for p in model.parameters())


def measure(model: nn.Module, batch: Any) -> Normalisation:
    """Call ``model`` with ``batch`` three to five times, and compare the losses.

    Args:
        model: The module without wrappers.
        batch: The inputs of ``forward``, on the model's device.
    """
    if not _number(batch):
        return Normalisation.UNKNOWN
    model = unwrap(model)
    with preserved_rng(), undisturbed(model), torch.no_grad():
        state = rng_state()

        def loss(**other: Any) -> float:
            set_rng_state(state)
            return float(loss_of(model(**{**batch, **other}), batch).float().mean())

        return _decide(loss, model, batch)


def _decide(loss: Callable[..., float], model: nn.Module, batch: Mapping[str, Any]) -> Normalisation:
    labels, targets = batch["labels"], _number(batch)
    few, many = (loss(**{COUNT: torch.tensor(targets * factor, device=labels.device)}) for factor in (1, FACTOR))
    if not math.isfinite(few) or not math.isfinite(many) or few == 0:
        return Normalisation.UNKNOWN
    if abs(few - many) <= UNCHANGED * abs(few):
        return _own(loss, model, batch, few)
    shifted = _number(batch, shifts=True)
    if targets == shifted:
        return by_count(model)
    return _nearest(_divisor(few, many, loss(), targets), targets, shifted)


def _number(batch: Any, shifts: bool = False) -> int:
    counted = count_items([batch], shifts)
    return 0 if counted is None else int(counted)


def _divisor(few: float, many: float, mean: float, targets: int) -> float:
    """Return the number of targets in ``mean``, the loss without a count, after removing any auxiliary loss."""
    total = (few - many) / (1 / targets - 1 / (targets * FACTOR))
    rest = few - total / targets
    return total / (mean - rest) if mean != rest else math.inf


def _nearest(divided_by: float, targets: int, shifted: int) -> Normalisation:
    """Return the nearest count; a model that counts something else (pixels of some class) keeps its mean."""
    off, off_shifted = abs(divided_by - targets), abs(divided_by - shifted)
    if not min(off, off_shifted) <= NEAR * targets:
        return Normalisation.OWN
    return Normalisation.COUNT if off < off_shifted else Normalisation.SHIFTED_COUNT


def _own(loss: Callable[..., float], model: nn.Module, batch: Mapping[str, Any], whole: float) -> Normalisation:
    """Detect whether ``whole`` is a mean over targets: then it is the weighted mean of two parts of the targets."""
    labels = batch["labels"]
    if not _takes_ignored(model, labels):
        return Normalisation.OWN
    if inputs := _decoder_inputs(model, batch):
        whole = loss(**inputs)
    shifted = labels.ne(IGNORE_INDEX)
    shifted[..., 0] = False
    first = shifted & (shifted.flatten().cumsum(0).view_as(labels) % 3 == 1)  # so that neither part is empty
    parts = [labels.masked_fill(mask, IGNORE_INDEX) for mask in (first, ~first)]
    losses = [loss(labels=part, **inputs) for part in parts]
    off = {}
    for kind in (Normalisation.OWN_TARGETS, Normalisation.OWN_SHIFTED_TARGETS):
        numbers = [_number({"labels": part}, kind.shifts) for part in parts]
        if all(numbers):
            mean = sum(n * value for n, value in zip(numbers, losses, strict=True)) / sum(numbers)
            off[kind] = abs(mean - whole) / abs(whole)
    nearest = min(off, key=off.__getitem__, default=Normalisation.OWN)
    return nearest if off.get(nearest, math.inf) <= UNCHANGED else Normalisation.OWN


def _takes_ignored(model: nn.Module, labels: torch.Tensor) -> bool:
    """Whether the loss accepts -100 as a label: an unknown class would crash an accelerator until the process ends."""
    if labels.dim() != 2 or labels.is_floating_point():
        return False
    safe = labels.device.type == "cpu" or any(hasattr(part, "config") for part in model.modules())
    return safe or bool((labels == IGNORE_INDEX).any())


def _decoder_inputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return fixed decoder inputs, because a model would otherwise derive them from the labels of each part.

    Any tokens work. The model with the decoder may be a submodule.
    """
    given = any(name in batch for name in (DECODER_INPUTS, "decoder_inputs_embeds"))
    kinds = {type(part) for part in model.modules()}
    if given or not any(DECODER_INPUTS in inspect.signature(kind.forward).parameters for kind in kinds):
        return {}
    return {DECODER_INPUTS: batch["labels"].clamp(min=0)}


# -- without calling the model


def read(model: nn.Module) -> Normalisation:
    """Read the source of ``forward``: the model, or a submodule, divides by the count if a loss function gets it."""
    said = declared(model)
    if said is not None:
        return said
    dividing = _dividing(base_model(model), depth=3)
    return Normalisation.OWN if dividing is None else by_count(dividing)


def _dividing(module: nn.Module, depth: int) -> nn.Module | None:
    """Return the module whose ``forward`` passes the count to a loss function: this module or a submodule."""
    called = _calls(cast(Any, type(module)))
    if any("loss" in name.lower() for name in called):
        return module
    parts = [part for name in called if isinstance(part := getattr(module, name, None), nn.Module) and depth > 0]
    return next((found for part in parts if (found := _dividing(base_model(part), depth - 1)) is not None), None)


@cache
def _calls(kind: type[nn.Module]) -> frozenset[str]:
    """Return the last names of the functions that ``forward`` calls with the count or with all of its keywords."""
    return frozenset(name for name, call in _calls_in_forward(kind) if _with_count(call))


@cache
def _calls_loss_function(kind: type[nn.Module]) -> bool:
    return any(name == "loss_function" for name, _ in _calls_in_forward(kind))


def _calls_in_forward(kind: type[nn.Module]) -> Iterator[tuple[str, ast.Call]]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(kind.forward))))
    except (OSError, TypeError, SyntaxError):  # made at run time, or compiled
        return
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", None))
        if name is not None:
            yield name, call


def _with_count(call: ast.Call) -> bool:
    return any(keyword.arg in (None, COUNT) for keyword in call.keywords)
