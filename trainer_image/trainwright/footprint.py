"""How much memory a rank needs for training: pure arithmetic over figures of a model, its sharding and its optimizer.

:func:`estimate` adds up what is exact (weights, gradients, optimizer state) and the peak of one traced step. The
tracing itself, which needs torch, is in ``trainwright.declarative.footprint``. Sizes are in bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from operator import ge

GIB = 2**30

_BLOCKED_BYTE = 1.0 + 4 / 256
"""Of a state in 8 bits: a byte, and a float32 scale for each block of 256."""
_FOUR_BIT = 1.0 + 2 * 4 / 128
_STATES = {
    "ademamix": 3, "sgd": 0, "adagrad": 1, "rmsprop": 1, "schedule_free_sgd": 1, "lion": 1, "rmsprop_bnb": 1,
    "lomo": 0,
    "grokadamw": 0,  # it keeps them in host memory between the steps
}  # fmt: skip
"""How many numbers an optimizer keeps for each parameter; the others keep two moments."""
_AS_WEIGHTS = ("adamw_torch", "sgd", "adagrad", "rmsprop", "schedule_free_", "stable_adamw")
"""Beginnings of those whose state has the format of the weights; that of the others is in float32."""
_SETTINGS = {"sgd": ("momentum",), "rmsprop": ("momentum", "centered")}
"""Values of ``optim_args`` that each add a state, unless they are 0 or false."""
_STEPPING = {"adamw_torch": 4, "rmsprop": 4, "adagrad": 8}
"""Bytes for each parameter that torch's loops over all whole tensors of an accelerator make while they step."""
_ENGINE_STEPPING = {"adamw_torch": 12.0, "rmsprop": 8.0}
"""Bytes for each element of the largest tensor that an engine's optimizer steps, while it steps that: at most three
tensors in float32 for AdamW, two for RMSprop."""
_FACTORED = ("adafactor", "galore_adafactor", "galore_adafactor_layerwise", "adalomo")
_IN_PLACE = ("lomo", "adalomo")
"""Optimizers that use up each gradient as soon as it is computed."""


@dataclass(frozen=True)
class Point:
    """A moment of a step: live activations (with temporaries), and live gradients.

    Under FSDP ``gradients`` are those that were summed over the ranks, of all shards; ``unreduced`` those that are
    still whole, with the buffer in which they are summed. What is gathered, with its buffers, is freed after the
    forward pass of a unit and gathered again, or stays until its backward pass.
    """

    activations: int
    gradients: int
    gathered_again: int = 0
    stays_gathered: int = 0
    unreduced: int = 0


@dataclass(frozen=True)
class Shape:
    """A parameter as FSDP divides it: by the rows of its first dimension."""

    rows: int
    columns: int
    width: int
    """Bytes of an element."""
    trained: bool = True

    def shard(self, ranks: int) -> int:
        """Elements on the rank that has the most."""
        return -(-self.rows // ranks) * self.columns


@dataclass(frozen=True)
class Figures:
    """What a model needs on one device that holds all of it."""

    elements: int
    """The number of parameters."""
    parameters: int
    trainable: int
    """The number of parameters that are trained."""
    gradients: int
    factored: int
    """State of an optimizer that keeps rows and columns (Adafactor)."""
    gathered: int
    """All parameters in the format in which FSDP gathers them."""
    largest_unit: int
    """Those of the largest unit that FSDP gathers at once."""
    buffers: int
    points: tuple[Point, ...]
    """The moments of a step that can be its peak."""
    shapes: tuple[Shape, ...] = ()
    """Those of all parameters."""
    in_bytes: int | None = None
    """Elements of which bitsandbytes keeps states in 8 bits: not of embeddings and small tensors. None for all."""
    summed: int = 0
    """All gradients in the format in which FSDP sums them over the ranks, where it is traced."""


@dataclass(frozen=True)
class Layout:
    """How a model is spread: over how many ranks each part is divided; 1 is a whole copy on each rank."""

    ranks: int = 1
    shard: int = 1
    keeps_gathered: bool = False
    """Whether gathered parameters stay until the backward pass (shard_grad_op)."""
    offload: bool = False
    """Whether parameters, gradients and optimizer state are in host memory."""

    @property
    def name(self) -> str:
        if self.ranks == 1:
            return "one rank"
        if self.shard == 1:
            return f"DDP over {self.ranks} ranks"
        kind = "shard_grad_op" if self.keeps_gathered else "full_shard"
        within = f", {self.ranks // self.shard} replicas" if self.shard < self.ranks else ""
        return f"FSDP {kind} over {self.shard} ranks{within}{', offloaded' if self.offload else ''}"


@dataclass(frozen=True)
class Zero:
    """How DeepSpeed's ZeRO spreads a model over all ranks. Sizes are in elements."""

    ranks: int
    stage: int
    offload_optimizer: bool = False
    offload_parameters: bool = False
    bucket: int = 500_000_000
    """Of the buffers in which gradients are reduced; they are allocated whole, however small the model is."""
    live: int = 1_000_000_000
    """Of stage 3: how many gathered parameters may stay until they are needed again."""
    prefetched: int = 50_000_000
    persistent: int = 100_000
    """Of stage 3: smaller parameters are never partitioned."""
    stepped: int = 1_000_000_000
    """Of stage 3: how many elements of its partition a rank steps at a time."""
    sent: int = 0
    """Bytes of an element of gradients in the format that they are sent in, if that is another."""

    @property
    def shard(self) -> int:
        """Over how many ranks the parameters are divided."""
        return self.ranks if self.stage == 3 else 1

    @property
    def name(self) -> str:
        parts = {"optimizer": self.offload_optimizer, "parameters": self.offload_parameters}
        offloaded = " and ".join(name for name, on in parts.items() if on)
        over = f"{self.ranks} ranks" if self.ranks > 1 else "one rank"
        return f"ZeRO {self.stage} over {over}{f', {offloaded} offloaded' if offloaded else ''}"


@dataclass(frozen=True)
class Estimate:
    """The peak memory of one rank, by its parts."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float
    """Of the model, and of the exchange with other ranks."""
    start: float = 0.0
    """What a rank holds before the first step, if that is not a part of these: the whole model, until an engine has
    partitioned it."""

    @property
    def total(self) -> float:
        return max(self.start, self.parameters + self.gradients + self.optimizer + self.activations + self.buffers)


def estimate(
    figures: Figures,
    layout: Layout,
    optim: str,
    optim_args: str = "",
    accumulates: bool = False,
    sync_each_batch: bool = False,
) -> Estimate:
    """The peak of one rank.

    Args:
        accumulates: Gradients of earlier micro-batches are there in every forward pass.
        sync_each_batch: FSDP sums them after each micro-batch; else each rank keeps them whole until the last.
    """
    if layout.shard > 1:
        return _estimate_sharded(figures, layout, optim, optim_args, accumulates, sync_each_batch)
    state = optimizer_state(figures, optim, optim_args)
    whole = 0 if optim.removesuffix("_layerwise") in _IN_PLACE else figures.gradients
    peak = max((one.activations + _accumulated(one, whole, accumulates) for one in figures.points), default=0)
    peak = max(peak, whole + _STEPPING.get(optim, 0) * figures.trainable)
    buckets = figures.gradients if layout.ranks > 1 else 0  # into which DDP copies the gradients
    return Estimate(figures.parameters, whole, state, max(0, peak - whole), figures.buffers + buckets)


def _accumulated(point: Point, whole: int, accumulates: bool) -> int:
    return whole if accumulates else min(point.gradients, whole)


def _estimate_sharded(
    figures: Figures, layout: Layout, optim: str, optim_args: str, accumulates: bool, sync_each_batch: bool
) -> Estimate:
    """What is kept is that of the rank with the largest shards. Gathered units are among the buffers."""
    on_device = 0 if layout.offload else 1
    shard = layout.shard
    share = _largest_share(figures, shard)
    kept = figures.gradients * share * on_device
    whole = figures.summed if accumulates and not sync_each_batch else 0

    def gathered(point: Point) -> int:
        return point.unreduced + (point.stays_gathered if layout.keeps_gathered else point.gathered_again)

    def size(point: Point) -> float:
        reduced = kept if accumulates and sync_each_batch else point.gradients * share * on_device
        return point.activations + gathered(point) + (whole or reduced)

    peak = max(figures.points, key=size, default=Point(0, 0))
    rest = max(0.0, size(peak) - max(kept, whole))
    buffers = min(rest, float(gathered(peak)))
    return Estimate(
        _sharded(figures, shard) * on_device,
        float(max(kept, whole)),
        _sharded_state(figures, optim, optim_args, shard) * on_device,
        rest - buffers,
        figures.buffers + buffers,
    )


def _sharded(figures: Figures, ranks: int) -> float:
    """Bytes of the parameters on the rank that has the most of them."""
    if not figures.shapes:
        return figures.parameters / ranks
    return float(sum(one.shard(ranks) * one.width for one in figures.shapes))


def _sharded_state(figures: Figures, optim: str, optim_args: str, ranks: int) -> float:
    """As :func:`optimizer_state`, on the rank that has the most: rows and columns of a matrix are whole on each."""
    if optim not in _FACTORED or not figures.shapes:
        return optimizer_state(figures, optim, optim_args) * _largest_share(figures, ranks)
    vectors = [one for one in figures.shapes if one.trained and one.columns == 1]
    return figures.factored - 4.0 * sum(one.rows - one.shard(ranks) for one in vectors)


def _largest_share(figures: Figures, ranks: int) -> float:
    """The share of the trained parameters that this rank has."""
    trained = [one for one in figures.shapes if one.trained]
    if not trained:
        return 1 / ranks
    return sum(one.shard(ranks) for one in trained) / sum(one.shard(1) for one in trained)


_MOST_PERSISTENT = 1_000_000
"""Elements: with a threshold above this all parameters of stage 3 are counted as gathered."""


def estimate_zero(
    figures: Figures, zero: Zero, optim: str, optim_args: str = "", accumulates: bool = False
) -> Estimate:
    """The peak of one rank under ZeRO, in the number format of ``figures.gathered``, which the engine gave the model.

    Parameters, gradients (in this format, and in float32 while the optimizer steps) and the optimizer's state with its
    float32 weights are what DeepSpeed's ``estimate_zero2_model_states_mem_needs`` and ``estimate_zero3_...`` sum up.
    """
    width = figures.gathered / max(1, figures.elements)
    partition = figures.trainable / zero.ranks
    on_device = 0 if zero.offload_optimizer else 1
    parameters = 0 if zero.offload_parameters else figures.gathered / zero.shard
    state = (4 * figures.trainable + optimizer_state(figures, optim, optim_args, 4)) / zero.ranks * on_device
    kept = width * partition * on_device
    in_float32 = 4 * partition * on_device
    whole = width * figures.trainable if zero.stage == 1 else kept
    always = accumulates or zero.stage == 3
    backward = max(
        (one.activations + (whole if always else min(one.gradients, whole)) for one in figures.points), default=0.0
    )
    stepping = kept + in_float32 + width * partition * on_device  # it flattens the gradients
    stepped = min(partition, zero.stepped) if zero.stage == 3 else partition
    stepping += _ENGINE_STEPPING.get(optim, 0.0) * stepped * on_device
    buffers = _exchange_zero(figures, zero, width)
    rest = max(backward, stepping - buffers) - kept - in_float32
    # Of stages 1 and 2 the engine gets the whole model on the device, in the format in which it was made.
    start = float(figures.parameters) if zero.stage < 3 else 0.0
    return Estimate(parameters, kept + in_float32, state, max(0.0, rest), figures.buffers + buffers, start)


def _exchange_zero(figures: Figures, zero: Zero, width: float) -> float:
    """The buckets, the gradients of a unit on their way into them with a copy, and what stage 3 gathers."""
    found = (width + zero.sent) * zero.bucket + 2 * figures.largest_unit
    if zero.stage < 3:
        return found
    everything = zero.persistent > _MOST_PERSISTENT
    gathered = figures.elements if everything else min(figures.elements, zero.live + zero.prefetched)
    return found + width * gathered + figures.largest_unit


def optimizer_state(figures: Figures, optim: str, optim_args: str = "", width: float | None = None) -> float:
    """The state that the optimizer keeps on the device. Paged optimizers keep theirs in host memory when it is full.

    Args:
        width: Bytes of an element of a weight that it steps; None for those of the weights that are kept.
    """
    name = optim.removeprefix("paged_").removesuffix("_layerwise")
    if name in _FACTORED:
        return float(figures.factored)
    if name == "adamw_torch_4bit":
        return _FOUR_BIT * figures.trainable
    if name == "adamw_torch_8bit":
        return 2 * _BLOCKED_BYTE * figures.trainable
    kind = name.removesuffix("_8bit").removesuffix("_32bit")
    states = _STATES.get(kind, 2) + len(_added_states(kind, optim_args))
    if name.endswith("_8bit"):
        in_bytes = figures.trainable if figures.in_bytes is None else figures.in_bytes
        return states * (_BLOCKED_BYTE * in_bytes + 4.0 * (figures.trainable - in_bytes))
    if not name.startswith(_AS_WEIGHTS) or "bnb" in name:
        return 4.0 * states * figures.trainable
    width = width or figures.gradients / max(1, figures.trainable)
    compensation = width if name == "stable_adamw" and width < 4 else 0  # of what a weight of 16 bits cannot hold
    return (states * width + compensation) * figures.trainable


def _added_states(kind: str, optim_args: str) -> list[str]:
    given = dict(part.strip().partition("=")[::2] for part in (optim_args or "").split(",") if "=" in part)
    off = ("0", "0.0", "false", "no", "")
    return [name for name in _SETTINGS.get(kind, ()) if given.get(name, "").strip().lower() not in off]


def peaks(points: Iterable[Point]) -> tuple[Point, ...]:
    """Those of ``points`` that no other one exceeds in everything, with the most activations first."""
    found: list[Point] = []
    for point in sorted(set(points), key=_sizes, reverse=True):
        if not any(all(map(ge, _sizes(other), _sizes(point))) for other in found):
            found.append(point)
    return tuple(found)


def _sizes(point: Point) -> tuple[int, ...]:
    return astuple(point)


def with_adapters(figures: Figures, rank: int = 16) -> Figures:
    """Roughly the same model with LoRA: about 1 % of its parameters are trained, the others have no gradients."""
    share = min(1.0, rank / 16 * 0.01)
    points = tuple(
        replace(point, gradients=int(point.gradients * share), unreduced=int(point.unreduced * share))
        for point in figures.points
    )
    return replace(
        figures,
        trainable=int(figures.trainable * share),
        gradients=int(figures.gradients * share),
        factored=int(figures.factored * share),
        points=points,
        in_bytes=None,
        summed=int(figures.summed * share),
    )


def gib(size: float) -> str:
    """``61.2 GiB``, ``840 MiB``."""
    if size < GIB:
        return f"{size / 2**20:.0f} MiB"
    return f"{size / GIB:.1f} GiB"
