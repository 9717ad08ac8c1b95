"""Measures what one training step of a declarative job needs, without allocating it.

The model is made of tensors without storage (torch's FakeTensorMode), and one forward and backward pass is traced: each
operation counts what it creates and frees. So attention, activation checkpointing and mixed precision are those of the
model's own code, and not of a formula.
"""

from __future__ import annotations

import logging
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainwright.arguments.deepspeed import hidden_size_of
from trainwright.arguments.sharding import Fsdp
from trainwright.arguments.spread import Arguments, Way, needed, stated
from trainwright.contract import ResolvedJob, UserError
from trainwright.declarative import tasks
from trainwright.declarative.gathering import Gathering, Size, Unit
from trainwright.declarative.manifest import DatasetSpec, ModelSpec, view
from trainwright.declarative.models import follow_tokenizer, load_config, new_model, positions
from trainwright.declarative.tokenizers import load_tokenizer
from trainwright.distributed.fsdp import ignored_modules, units_of
from trainwright.distributed.wrapping import layers_of
from trainwright.footprint import Estimate, Figures, Point, Shape, Zero, peaks
from trainwright.integrations import expected_memory
from trainwright.training.activation_checkpointing import recompute_activations, recompute_layer
from trainwright.training.losses import is_causal_lm, label_smoother
from trainwright.training.precision import autocast_forward

logger = logging.getLogger(__name__)
DynamicOutputs = (DataDependentOutputException, DynamicOutputShapeException)


@dataclass(frozen=True)
class Step:
    """What of the arguments decides the memory of a step on one rank."""

    batch_size: int = 8
    dtype: torch.dtype | None = None
    """Of autocast; None computes in the format of the weights."""
    recompute: bool = False
    recompute_kwargs: Mapping[str, Any] | None = None
    fsdp: Fsdp | None = None
    """Of a model that FSDP shards. It gathers the weights in ``dtype``, so that autocast makes no copies of them."""
    converted: bool = False
    """Whether an engine keeps the whole model in ``dtype``, without autocast."""
    use_cache: bool = False
    label_smoothing: float = 0.0


def step_of(way: Way, given: Arguments) -> Step:
    """The step of a rank that trains this way."""
    dtype = torch.bfloat16 if given.get("bf16") else torch.float16 if given.get("fp16") else None
    kwargs = given.get("activation_checkpointing_kwargs") or given.get("gradient_checkpointing_kwargs")
    return Step(
        way.batch_size,
        dtype,
        way.recompute,
        kwargs,
        way.fsdp,
        converted=isinstance(way.layout, Zero),
        use_cache=bool(given.get("use_cache", False)),
        label_smoothing=float(given.get("label_smoothing_factor", 0.0)),
    )


@dataclass(frozen=True)
class Sample:
    """The shape of a batch: ``tokens`` of each row, and which labels a row has."""

    tokens: int
    labels: str
    """``tokens`` for one of each token, ``row`` for one of each row."""


class Subject:
    """The model of a job, and how long its rows are.

    Raises:
        UserError: the job has a script, or its configuration or its tokenizer cannot be read here.
    """

    def __init__(self, model: Mapping[str, Any], dataset: Mapping[str, Any], task: str) -> None:
        self._spec = view(ModelSpec, dict(model), "spec.model")
        data = view(DatasetSpec, dict(dataset), "spec.dataset")
        self._task = tasks.task_named(task)
        self._config = load_config(self._spec, task)
        tokenizer = load_tokenizer(self._spec, self._task.template)
        if self._spec.from_config is not None:
            follow_tokenizer(self._config, tokenizer, self._spec.from_config)
        with _without_storage():
            longest = positions(new_model(self._spec, self._config, task))
        lengths = tasks.lengths(self._task, data, tokenizer, longest)
        self.tokens = int(lengths["block_size"] or lengths["max_length"] or 1)
        self.hidden_size = hidden_size_of(self._config)

    def figures(self, step: Step) -> Figures:
        """The figures of one step, traced."""
        with _without_storage():
            model = new_model(self._spec, self._config, self._task.name)
            kind = "row" if self._task.name == "SequenceClassification" else "tokens"
            return trace(model, step, Sample(self.tokens, kind))


def announce_expected(job: ResolvedJob, ranks: int) -> None:
    """Estimate what a rank needs, as ``plan --memory`` does, for the status. No job fails because of it."""
    try:
        with torch.random.fork_rng(devices=[]):
            expected_memory.announce(expected(job, ranks))
    except Exception as error:  # the model's own code runs here, with tensors that it does not know
        logger.info("the memory of this job is not estimated: %s", error)


def expected(job: ResolvedJob, ranks: int) -> Estimate:
    """What each of ``ranks`` processes needs. Raises :class:`UserError` for a job that has no estimate."""
    given = job.training_arguments
    if job.script is not None:
        raise UserError("a script has no estimate")
    subject = Subject(job.model or {}, job.dataset or {}, job.task or "")
    way = stated(given, ranks, job.per_node, subject.hidden_size)
    return needed(subject.figures(step_of(way, given)), way, given)


def trace(model: nn.Module, step: Step, sample: Sample) -> Figures:
    """The figures of ``model``; it must have been made without storage, as everything that it computes is."""
    model.train()
    if (config := getattr(model, "config", None)) is not None:
        config.use_cache = step.use_cache  # as the Trainer does
    units: list[nn.Module] = []
    if step.fsdp:
        ignored_modules(model, step.fsdp)  # nothing is frozen, so each of them is refused
        units = [*units_of(model, step.fsdp), model]
    if step.fsdp and step.fsdp.activation_checkpointing:
        for unit in units[:-1]:
            recompute_layer(unit)
    elif step.recompute:
        recompute_activations(model, dict(step.recompute_kwargs or {}) or None)
    if not step.converted:
        autocast_forward(model, torch.device("cpu"), step.dtype)
    inputs = _inputs(step.batch_size, sample)
    kept = _kept(model, step)
    _convert(model, step)
    parameters = list(model.parameters())
    live = Live([*parameters, *model.buffers(), *inputs.values()], [one for one in parameters if one.requires_grad])
    summed = partial(_summed, kept=kept, fsdp=step.fsdp or Fsdp())
    if step.fsdp:
        live.follow(list(_fsdp_units(units)), summed, kept.__getitem__)
    with live:
        _loss(model, inputs, step.label_smoothing).backward()
    live.end()
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    return Figures(
        elements=sum(parameter.numel() for parameter in parameters),
        parameters=sum(kept.values()),
        trainable=sum(parameter.numel() for parameter in trained),
        gradients=sum(kept[parameter] for parameter in trained),
        factored=sum(map(_factored, trained)),
        gathered=sum(map(_size, parameters)),
        largest_unit=max((sum(map(_size, unit)) for unit in _units(model)), default=0),
        buffers=sum(map(_size, model.buffers())),
        points=peaks(live.points),
        shapes=tuple(_shapes(kept)),
        in_bytes=_in_bytes(model),
        summed=sum(map(summed, trained)),
    )


def _loss(model: nn.Module, inputs: dict[str, torch.Tensor], smoothing: float) -> torch.Tensor:
    """The model's own loss, or that of smoothed labels, which the Trainer computes from the logits."""
    smoother = label_smoother(model, smoothing)
    if smoother is None:
        return cast(torch.Tensor, model(**inputs)["loss"])
    labels = inputs["labels"]
    others = {name: value for name, value in inputs.items() if name != "labels"}
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        others["decoder_input_ids"] = labels  # as the collator makes them from the labels
    return smoother(model(**others), labels, is_causal_lm(model))


def _kept(model: nn.Module, step: Step) -> dict[nn.Parameter, int]:
    """The bytes of each parameter as a rank keeps it: with mixed precision FSDP trains in float32."""
    is_mixed = step.fsdp is not None and step.dtype is not None

    def width(parameter: nn.Parameter) -> int:
        return max(4, parameter.itemsize) if is_mixed and parameter.requires_grad else parameter.itemsize

    return {parameter: parameter.numel() * width(parameter) for parameter in model.parameters()}


def _convert(model: nn.Module, step: Step) -> None:
    """Give the weights the number format in which the model computes, if that is not left to autocast."""
    computes = step.dtype if step.converted or step.fsdp else None
    if step.fsdp and step.fsdp.param_dtype:
        computes = getattr(torch, step.fsdp.param_dtype)
    if computes is None:
        return
    for tensor in [*model.parameters(), *(model.buffers() if step.converted else ())]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(computes)


def _fsdp_units(modules: list[nn.Module]) -> Iterator[Unit]:
    """The units of ``modules``, inner ones first."""
    inside: set[nn.Parameter] = set()
    for module in modules:
        own = [parameter for parameter in module.parameters() if parameter not in inside]
        inside.update(own)
        yield Unit(module, own)


def _summed(parameter: nn.Parameter, kept: Mapping[nn.Parameter, int], fsdp: Fsdp) -> int:
    """Bytes of a gradient in the format in which it is summed: float32 where weights are converted."""
    if fsdp.reduce_dtype:
        return parameter.numel() * int(getattr(torch, fsdp.reduce_dtype).itemsize)
    return _size(parameter) if _size(parameter) == kept[parameter] else 4 * parameter.numel()


_LEAST_IN_BYTES = 4096
"""Elements of the smallest tensor of which bitsandbytes keeps states in 8 bits."""


def _in_bytes(model: nn.Module) -> int:
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    large = (one for one in model.parameters() if one.grad is not None and one.numel() >= _LEAST_IN_BYTES)
    return sum(one.numel() for one in large if one not in embeddings)


def _shapes(kept: Mapping[nn.Parameter, int]) -> Iterator[Shape]:
    for parameter, size in kept.items():
        rows = parameter.shape[0] if parameter.dim() else 1
        yield Shape(
            rows, parameter.numel() // max(1, rows), size // max(1, parameter.numel()), parameter.grad is not None
        )


class Live(TorchDispatchMode):
    """Counts the memory of tensors that are made while it is on; ``points`` are the moments of its growth."""

    def __init__(self, known: list[torch.Tensor], trained: list[nn.Parameter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.points: list[Point] = []
        self._gathering: Gathering | None = None
        self._alive = {tensor.untyped_storage()._cdata for tensor in known}
        self._total = self._gradients = 0
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(self._accumulated)

    def follow(self, units: list[Unit], sums: Size, kept: Size) -> None:
        """Count what FSDP has in memory for ``units`` too. See :class:`Gathering`."""
        self._gathering = Gathering(units, sums, kept, self._note)

    def end(self) -> None:
        if self._gathering is not None:
            self._gathering.end()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._made(tensor.untyped_storage())
        return made

    def _made(self, storage: torch.UntypedStorage) -> None:
        name, size = storage._cdata, storage.nbytes()
        if name in self._alive:
            return
        self._alive.add(name)
        self._total += size
        self._note()
        weakref.finalize(storage, self._freed, name, size)

    def _freed(self, name: int, size: int) -> None:
        self._alive.discard(name)
        self._total -= size

    def _accumulated(self, parameter: Any) -> None:
        self._gradients += _size(parameter)
        if self._gathering is not None:
            self._gathering.accumulated(parameter)
        self._note()

    def _note(self) -> None:
        activations, fsdp = max(0, self._total - self._gradients), self._gathering
        if fsdp is None:
            self.points.append(Point(activations, self._gradients))
            return
        self.points.append(Point(activations, fsdp.reduced, fsdp.again.size, fsdp.stays.size, fsdp.unreduced))


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _factored(parameter: torch.Tensor) -> int:
    """Rows and columns of the last two dimensions, in float32; a vector is kept whole."""
    if parameter.dim() < 2:
        return 4 * parameter.numel()
    *rest, rows, columns = parameter.shape
    return 4 * int(torch.Size(rest).numel()) * (rows + columns)


def _units(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """The parameters of each layer, and those that are in no layer."""
    inside: set[int] = set()
    for layer in layers_of(model):
        parameters = list(layer.parameters())
        inside |= set(map(id, parameters))
        yield parameters
    yield [parameter for parameter in model.parameters() if id(parameter) not in inside]


def _inputs(batch_size: int, sample: Sample) -> dict[str, torch.Tensor]:
    shape = (batch_size, sample.tokens)
    tokens = torch.ones(shape, dtype=torch.long)
    labels = tokens.clone() if sample.labels == "tokens" else torch.zeros(batch_size, dtype=torch.long)
    return {"input_ids": tokens, "attention_mask": torch.ones(shape, dtype=torch.long), "labels": labels}


@contextmanager
def _without_storage() -> Iterator[None]:
    """Everything that is made inside has a shape and no memory."""
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:  # of the model's own code
        line = (str(error).splitlines() or [type(error).__name__])[0]
        reason = f"it looks at values ({line})" if isinstance(error, DynamicOutputs) else line
        raise UserError(
            f"spec.model: its memory cannot be estimated, as it does not run without data: {reason}"
        ) from error
    finally:
        logging.disable(former)
