"""What a model divides its loss by, found out rather than read off its signature.

A loss that is averaged over the targets of a whole global batch needs their number in every micro-batch. Many models
take ``**kwargs`` and drop ``num_items_in_batch``: their loss is the mean of their own micro-batch, and whoever believes
the signature multiplies loss and gradients by the number of micro-batches. So the model is called beside the run, once
a Trainer, before its first step. With two counts: a loss that changes is divided by the count, and without a count it
tells which targets it is divided by. A loss that does not change is asked with a part of the targets and with the rest:
if it is the mean of either, micro-batches are weighed by their targets. The model, its buffers and every generator are
left as they were.

Where a model cannot be called for that (on XLA every shape is compiled, on the meta device there are no values, and
quantised weights may be packed anew by a call), :func:`read` follows the source of its ``forward``: does the count
reach a loss function?
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
"""By how much the two counts differ: enough that an auxiliary loss, which stays the same, does not hide the change."""
UNCHANGED = 1e-4
"""The relative difference below which two losses are one, of kernels that add in no fixed order."""
NEAR = 0.01
"""How far the targets that a model divides by may be from those that are counted."""


class Normalisation(IntEnum):
    """What the loss of a micro-batch is divided by. Ranks agree on the greatest of their answers."""

    UNKNOWN = 0
    OWN = 1
    """By something of the micro-batch's own, its samples as a rule."""
    OWN_TARGETS = 2
    """By the micro-batch's own targets: labels other than -100."""
    OWN_SHIFTED_TARGETS = 3
    """The same, where position i is compared with label i+1, so that the first label of a row is no target."""
    COUNT = 4
    """By ``num_items_in_batch``, which counts targets."""
    SHIFTED_COUNT = 5
    """By ``num_items_in_batch``, which counts shifted targets."""

    @property
    def takes_count(self) -> bool:
        return self >= Normalisation.COUNT

    @property
    def counts(self) -> bool:
        """Whether there is something to count: the number is handed to the model, or weighs its micro-batches."""
        return self >= Normalisation.OWN_TARGETS

    @property
    def shifts(self) -> bool:
        return self in (Normalisation.OWN_SHIFTED_TARGETS, Normalisation.SHIFTED_COUNT)


def signature_takes_count(model: nn.Module) -> bool:
    """Whether ``forward`` could be given the count: the model says so, or takes any keyword; as Hugging Face reads it.

    It says nothing of what becomes of the count.
    """
    says = getattr(base_model(model), "accepts_loss_kwargs", None)
    return takes_any_keyword(forward_parameters(model)) if says is None else bool(says)


def declared(model: nn.Module) -> Normalisation | None:
    """What needs no finding out: the model says it itself, or its ``forward`` has no place for a count."""
    says = getattr(base_model(model), "accepts_loss_kwargs", None)
    if says is not None:
        return by_count(model) if says else Normalisation.OWN
    parameters = forward_parameters(model)
    return None if takes_any_keyword(parameters) or COUNT in parameters else Normalisation.OWN


def by_count(model: nn.Module) -> Normalisation:
    """For a model that divides by the count: whether its loss function shifts the labels."""
    return Normalisation.SHIFTED_COUNT if shifts_labels(model) else Normalisation.COUNT


def shifts_labels(model: nn.Module) -> bool:
    """Whether the model's loss function is the one of transformers that compares position i with label i+1."""
    base = base_model(model)
    if getattr(getattr(base, "config", None), "is_encoder_decoder", False) or "transformers" not in sys.modules:
        return False
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    if (own := vars(base).get("_loss_function")) is not None:
        return own is ForCausalLMLoss
    function = LOSS_MAPPING.get(str(getattr(base, "loss_type", None)))
    if function is None:  # then ``loss_function`` is the causal one, where forward calls it at all
        return hasattr(type(base), "loss_function") and _calls_loss_function(cast(Any, type(base)))
    return function is ForCausalLMLoss


def find(trainer: Any, batches: list[Any]) -> Normalisation:
    """What someone said of the model, else what it does; a loss that someone else computes is only read.

    All ranks call this together.
    """
    said, of_class = trainer._says_accepts_loss_kwargs, getattr(type(trainer), "model_accepts_loss_kwargs", None)
    if said is not None or isinstance(of_class, bool):
        return by_count(trainer.model) if trainer.model_accepts_loss_kwargs else Normalisation.OWN
    if trainer._others_loss() or trainer.loss_is_scaled_for_ga is not None:
        return read(trainer.model)
    return agreed(trainer.model, [trainer._prepare_input(batch) for batch in batches[:1]])


def weighed(found: Normalisation, inputs: Any, num_items_in_batch: Any, parts: int) -> tuple[Any, Any]:
    """A micro-batch whose loss is its own mean, and what that has in the mean of the whole batch.

    Args:
        parts: The micro-batches of the whole, where they weigh alike.
    """
    if not found.counts:
        return inputs, 1 / parts
    own = count_items([inputs], found.shifts)
    assert own is not None
    # the mean over no target is NaN, and so is its gradient: any label will do, as its share is none
    return {**inputs, "labels": inputs["labels"].masked_fill(own == 0, 0)}, own / num_items_in_batch


def agreed(model: nn.Module, batches: list[Any]) -> Normalisation:
    """The answer of all ranks together, of which some may hold no targets; each must call this."""
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
    except Exception as error:  # the step itself will say in better words what is wrong with the batch or the model
        logger.debug("what the loss is divided by could not be measured: %s", error)
        return Normalisation.UNKNOWN


def can_be_called(model: nn.Module) -> bool:
    """Whether a call beside the run is cheap and shows anything.

    Not where shapes are compiled or weights missing, nor where weights are quantised: those may be packed anew by a
    call in evaluation mode, into a form that no gradient comes through.
    """
    if any(getattr(part, "is_quantized", False) for part in model.modules()):
        return False
    return not any(p.device.type in ("xla", "tpu", "meta") for p in model.parameters())


def measure(model: nn.Module, batch: Any) -> Normalisation:
    """Call ``model`` with ``batch``, three to five times, and see.

    Args:
        model: The module itself, not its wrappers.
        batch: What ``forward`` takes, on the model's device.
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
    """The number of targets in ``mean``, the loss without a count; what is no sum over targets is taken off first."""
    total = (few - many) / (1 / targets - 1 / (targets * FACTOR))
    rest = few - total / targets
    return total / (mean - rest) if mean != rest else math.inf


def _nearest(divided_by: float, targets: int, shifted: int) -> Normalisation:
    """A model that counts what nobody here can count (pixels of a class of its own) keeps its own mean."""
    off, off_shifted = abs(divided_by - targets), abs(divided_by - shifted)
    if not min(off, off_shifted) <= NEAR * targets:
        return Normalisation.OWN
    return Normalisation.COUNT if off < off_shifted else Normalisation.SHIFTED_COUNT


def _own(loss: Callable[..., float], model: nn.Module, batch: Mapping[str, Any], whole: float) -> Normalisation:
    """Whether ``whole`` is the mean over the targets: then it is that of two parts of them, each by its number."""
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
    """Whether -100 may be put among the labels: an accelerator stops for good at a class that a loss does not know."""
    if labels.dim() != 2 or labels.is_floating_point():
        return False
    safe = labels.device.type == "cpu" or any(hasattr(part, "config") for part in model.modules())
    return safe or bool((labels == IGNORE_INDEX).any())


def _decoder_inputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a decoder reads, which a model makes from the labels where it is not given: the same for each part of them.

    Any tokens will do. The model with the decoder may be a part of this one.
    """
    given = any(name in batch for name in (DECODER_INPUTS, "decoder_inputs_embeds"))
    kinds = {type(part) for part in model.modules()}
    if given or not any(DECODER_INPUTS in inspect.signature(kind.forward).parameters for kind in kinds):
        return {}
    return {DECODER_INPUTS: batch["labels"].clamp(min=0)}


# Without calling it


def read(model: nn.Module) -> Normalisation:
    """What the source of ``forward`` says: by the count, if a loss function gets it, here or in a part of the model."""
    said = declared(model)
    if said is not None:
        return said
    dividing = _dividing(base_model(model), depth=3)
    return Normalisation.OWN if dividing is None else by_count(dividing)


def _dividing(module: nn.Module, depth: int) -> nn.Module | None:
    """The module whose ``forward`` calls a loss function with the count: this one, or a part that it hands it to."""
    called = _calls(cast(Any, type(module)))
    if any("loss" in name.lower() for name in called):
        return module
    parts = [part for name in called if isinstance(part := getattr(module, name, None), nn.Module) and depth > 0]
    return next((found for part in parts if (found := _dividing(base_model(part), depth - 1)) is not None), None)


@cache
def _calls(kind: type[nn.Module]) -> frozenset[str]:
    """The last names of what ``forward`` calls with the count or with all of its keywords."""
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
