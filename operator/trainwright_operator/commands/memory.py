"""``trainwright plan --memory``: the memory that a job needs on each rank, and what would make it fit.

Parameters, gradients and optimizer state are exact. Activations come from one traced step of the job's own model, which
allocates nothing; torch and transformers must be installed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from trainwright import extras
from trainwright.arguments.check import checked
from trainwright.arguments.errors import ArgumentError
from trainwright.arguments.spread import Way, needed, optimizer, stated
from trainwright.contract import UserError
from trainwright.footprint import Estimate, Figures, Layout, Zero, gib, with_adapters
from trainwright_operator.api.spec import AcceleratorPool, TrainingJob
from trainwright_operator.commands import replicas
from trainwright_operator.core.placement.memory import memory_of
from trainwright_operator.core.placement.pools import place
from trainwright_operator.core.quantities import amount
from trainwright_operator.terminal import Columns

if TYPE_CHECKING:
    from trainwright.declarative.footprint import Subject

_EACH_BATCH = "{gradient_accumulation_kwargs: {sync_each_batch: true}}"
"""Without it FSDP keeps the gradients of earlier micro-batches whole."""
HEADINGS = ("MODEL", "PARAMETERS", "GRADIENTS", "OPTIMIZER", "ACTIVATIONS", "BUFFERS", "TOTAL", "VERDICT")


class Report:
    """The report about one job on its pool. Raises :class:`UserError` for a job whose model cannot be made here."""

    def __init__(self, job: TrainingJob, pool: AcceleratorPool) -> None:
        if job.spec.script is not None:
            raise UserError("a script brings its own model, so its memory cannot be estimated; describe shows the peak")
        if line := extras.missing("torch", "transformers", "datasets"):
            raise UserError(line)
        from trainwright.declarative.footprint import Subject

        _check(job.spec.training_arguments)
        self._job, self._pool, self._placed = job, pool, place(job, pool)
        self._arguments: Mapping[str, Any] = job.spec.training_arguments
        self._subject: Subject = Subject(job.spec.model or {}, job.spec.dataset or {}, job.spec.task or "")
        self._known: dict[tuple[int, bool, bool, bool], Figures] = {}
        self.way = stated(self._arguments, self._ranks, self._placed.per_node, self._subject.hidden_size)
        self.room = self._room()

    @property
    def fits(self) -> bool:
        return self.room is None or self.of(self.way).total <= self.room

    def of(self, way: Way) -> Estimate:
        figures = self._figures(way)
        return needed(with_adapters(figures) if way.adapters else figures, way, self._arguments)

    def parts(self) -> Iterator[RenderableType]:
        """For a terminal: the figures of the job as it is, of other layouts, and of what would make it fit."""
        figures, way = self._figures(self.way), self.way
        yield Text(
            f"{self._job.name}: {figures.elements:,} parameters, {_precision(self._arguments)}, "
            f"{optimizer(self._arguments)}, batch {way.batch_size} x {self._subject.tokens} tokens on each rank, "
            f"pool {self._pool.name}: {self._pool_memory()}"
        )
        ways = [way, *(replace(way, layout=one) for one in self._layouts())]
        yield Columns(HEADINGS, [self._row(one) for one in ways], spare=("BUFFERS", "GRADIENTS", "PARAMETERS"))
        if start := self.of(way).start:
            yield Text(f"Each rank holds the whole model at its start, before it is partitioned: {gib(start)}")
        if advice := self._advice():
            yield Text(f"\n{advice}")
        if self.fits:
            return
        yield Text("\nWhat would make it fit, each on top of those before:")
        for name, one in self._remedies():
            total = self.of(one).total
            yield Text(f"  {gib(total):>10}  {self._verdict(total):12}  {name}")

    def _advice(self) -> str | None:
        """A replica in each node, where a rank has room for the larger shard."""
        value = replicas.advised(self._arguments, self._placed)
        if value is None or self.room is None:
            return None
        now, within = self.of(self.way), self._within_nodes(self.way)
        if (then := self.of(within)).total > self.room:
            return None
        return replicas.sentence(value, self._placed, f"{gib(then.total)} for each rank then, {gib(now.total)} now")

    def _within_nodes(self, way: Way) -> Way:
        assert isinstance(way.layout, Layout), "advice is of fsdp alone"
        return replace(way, layout=replace(way.layout, shard=self._placed.per_node))

    def _row(self, way: Way) -> list[RenderableType]:
        found = self.of(way)
        sizes = (found.parameters, found.gradients, found.optimizer, found.activations, found.buffers, found.total)
        return [
            Text(way.layout.name),
            *(Text(gib(size), justify="right") for size in sizes),
            Text(self._verdict(found.total)),
        ]

    def _verdict(self, total: float) -> str:
        return "unknown" if self.room is None else "fits" if total <= self.room else "does not fit"

    def _pool_memory(self) -> str:
        if self.room is not None:
            return f"{gib(self.room)} for each rank"
        if self._pool.vendor == "cpu":
            return "no memory limit (podTemplate.resources.limits.memory)"
        return "its memory is not known (memoryPerAccelerator)"

    def _room(self) -> float | None:
        if self._pool.vendor == "cpu":
            limit = self._placed.limits.get("memory")
            return amount(limit) / self._placed.per_node if limit else None
        return memory_of(self._pool)

    @property
    def _ranks(self) -> int:
        return self._placed.nodes * self._placed.slices * self._placed.per_node

    @property
    def _shards(self) -> bool:
        """Whether FSDP is possible here."""
        return self._pool.vendor != "tpu"

    def _layouts(self) -> list[Layout]:
        """The other ways to spread the model."""
        ranks, per_node = self._ranks, self._placed.per_node
        if ranks == 1 or not self._shards:
            return []
        found = [Layout(ranks), Layout(ranks, ranks), Layout(ranks, ranks, keeps_gathered=True)]
        if 1 < per_node < ranks:
            found.append(Layout(ranks, per_node))
        return [one for one in found if one != self.way.layout]

    def _remedies(self) -> Iterator[tuple[str, Way]]:
        """Until one fits: shard, recompute, accumulate, offload; and adapters, which train less."""
        way = self.way
        instead = ", instead of deepspeed" if isinstance(way.layout, Zero) else ""
        for name, changed in (
            (f"fsdp: full_shard, over {self._ranks} ranks{instead}", self._sharded),
            ("gradientCheckpointing: true", lambda one: replace(one, recompute=True)),
            (f"acceleratorConfig: {_EACH_BATCH}", self._summing_each_batch),
            (self._smaller_batch_name(), self._smaller_batch),
            (f"{self._smaller_batch_name()}, acceleratorConfig: {_EACH_BATCH}", self._smaller_summed_batch),
            ("fsdp: full_shard offload", self._offloaded),
            ("LoRA of rank 16, by a script", lambda one: replace(one, adapters=True)),
        ):
            after = changed(way)
            if after == way or self.of(after).total >= self.of(way).total:
                continue
            way = after
            yield name, way
            if self.room is not None and self.of(way).total <= self.room:
                return

    def _sharded(self, way: Way) -> Way:
        layout = way.layout
        if self._ranks == 1 or not self._shards or (isinstance(layout, Zero) and layout.shard == self._ranks):
            return way
        return replace(
            way, layout=Layout(self._ranks, self._ranks, offload=isinstance(layout, Layout) and layout.offload)
        )

    def _offloaded(self, way: Way) -> Way:
        if isinstance(way.layout, Zero) or way.layout.shard == 1:
            return way
        return replace(way, layout=replace(way.layout, offload=True))

    def _summing_each_batch(self, way: Way) -> Way:
        return replace(way, sync_each_batch=way.accumulates and way.fsdp is not None)

    def _smaller_batch(self, way: Way) -> Way:
        return replace(way, batch_size=1, accumulates=True)

    def _smaller_summed_batch(self, way: Way) -> Way:
        return way if way.batch_size == 1 else self._summing_each_batch(self._smaller_batch(way))

    def _smaller_batch_name(self) -> str:
        steps = self.way.batch_size * int(self._arguments.get("gradient_accumulation_steps", 1))
        return f"perDeviceTrainBatchSize: 1, gradientAccumulationSteps: {steps}"

    def _figures(self, way: Way) -> Figures:
        from trainwright.declarative.footprint import step_of

        key = (way.batch_size, way.recompute, way.fsdp is not None, isinstance(way.layout, Zero))
        if key not in self._known:
            self._known[key] = self._subject.figures(step_of(way, self._arguments))
        return self._known[key]


def _check(arguments: Mapping[str, Any]) -> None:
    """Raises :class:`UserError` for what the job would refuse when it starts."""
    try:
        checked(arguments)
    except ArgumentError as error:
        raise UserError(f"spec.trainingArguments: {'; '.join(map(str, error.problems))}") from None


def _precision(arguments: Mapping[str, Any]) -> str:
    return "bf16" if arguments.get("bf16") else "fp16" if arguments.get("fp16") else "float32"
