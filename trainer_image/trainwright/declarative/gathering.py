"""What FSDP 2 has in memory in the course of a step beside the shards and the activations, without its collectives.

torch's ``fully_shard`` gathers a unit into one buffer and copies it from there into its parameters. In the forward pass
the buffer stays until the next unit is gathered. In the backward pass the buffer of the unit that comes next is filled
while the gradients of the present one are computed; when they are complete they are copied into another buffer, in the
format in which they are summed, which stays until those of the next unit are there. The root's own parameters are not
freed between the passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

Size = Callable[[nn.Parameter], int]


class Unit:
    """A module whose parameters are gathered together, without those of the units within.

    Attributes:
        gradients: Bytes of those that the backward pass has computed and that are not yet summed over the ranks.
        summed: Bytes of these in the format in which they are summed.
        kept: Bytes of these as they are kept, of all shards.
    """

    def __init__(self, module: nn.Module, own: list[nn.Parameter]) -> None:
        self.module = module
        self.size = sum(parameter.nbytes for parameter in own)
        self.gradients = self.summed = self.kept = 0
        self.waiting = {id(parameter) for parameter in own if parameter.requires_grad}


class Gathered:
    """The parameters that are gathered at a time, with the buffers. ``size`` is in bytes.

    Args:
        again: Whether the backward pass gathers them again (full_shard), or they stay until then (shard_grad_op).
    """

    def __init__(self, root: Unit, again: bool) -> None:
        self._root, self._again = root, again
        self._units: set[Unit] = set()
        self._buffer = 0
        self._ahead: Unit | None = None

    @property
    def size(self) -> int:
        ahead = self._ahead.size if self._ahead else 0
        return sum(unit.size for unit in self._units) + self._buffer + ahead

    def gather(self, unit: Unit, note: Callable[[], None]) -> None:
        if unit in self._units:
            return
        if unit is self._ahead:
            self._ahead = None
        former, self._buffer = self._buffer, self._buffer + unit.size
        note()
        self._buffer -= former
        self._units.add(unit)

    def leave(self, unit: Unit) -> None:
        """After the forward pass of a unit."""
        if unit is self._root:
            self._buffer = 0
        elif self._again:
            self._units.discard(unit)

    def gather_ahead(self, unit: Unit | None) -> None:
        self._buffer = 0
        if unit is not None and unit not in self._units:
            self._ahead = unit

    def free(self, unit: Unit) -> None:
        self._units.discard(unit)


class Gathering:
    """Follows the units of a model through a forward and a backward pass.

    ``again`` and ``stays`` count what is gathered in both ways of FSDP; ``unreduced`` are bytes of gradients that are
    whole, and of the buffer in which they are summed; ``reduced`` those of gradients that are complete, of all shards.

    Args:
        units: The root comes last.
        sums: The bytes of a parameter's gradient in the format in which it is summed.
        kept: Those of a parameter's gradient as it is kept, of all shards.
        note: Called at each moment that can be a peak.
    """

    def __init__(self, units: list[Unit], sums: Size, kept: Size, note: Callable[[], None]) -> None:
        self._sums, self._kept, self._note = sums, kept, note
        self._root = units[-1]
        self.again, self.stays = Gathered(self._root, True), Gathered(self._root, False)
        self.unreduced = self.reduced = 0
        self._summing = 0
        self._order: list[Unit] = []
        self._of_parameter = {identity: unit for unit in units for identity in unit.waiting}
        self._open: Unit | None = None
        self._backward = False
        for unit in units:
            self._follow(unit)

    def _follow(self, unit: Unit) -> None:
        def before(*_: Any) -> None:
            self._gather(unit)

        def after(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
            if not self._backward:
                self.again.leave(unit)
                self.stays.leave(unit)
                self._order.append(unit)
            for tensor in _differentiable(outputs):
                tensor.register_hook(lambda _gradient: self._begin(unit))

        unit.module.register_forward_pre_hook(before)
        unit.module.register_forward_hook(after)

    def _gather(self, unit: Unit) -> None:
        for one in (self.again, self.stays):
            one.gather(unit, self._note)
        self._note()

    def _begin(self, unit: Unit) -> None:
        """The backward pass of a unit begins."""
        self._backward = True
        if unit is self._open:
            return
        if self._open is not None and self._open is not self._root:
            self._reduce(self._open)
        self._open = unit
        self._gather(unit)
        following = self._before(unit)
        for one in (self.again, self.stays):
            one.gather_ahead(following)
        self._note()

    def _before(self, unit: Unit) -> Unit | None:
        """The unit whose forward pass came before, for which the backward pass will ask next."""
        places = [place for place, one in enumerate(self._order) if one is unit]
        if not places:
            return None
        place = places[-1]
        del self._order[place:]
        return self._order[place - 1] if place else None

    def accumulated(self, parameter: nn.Parameter) -> None:
        """A gradient is there."""
        unit = self._of_parameter[id(parameter)]
        unit.gradients += parameter.nbytes
        unit.summed += self._sums(parameter)
        unit.kept += self._kept(parameter)
        self.unreduced += parameter.nbytes
        unit.waiting.discard(id(parameter))
        self._note()
        if not unit.waiting and unit is not self._root:
            self._reduce(unit)

    def end(self) -> None:
        for unit in {*self._of_parameter.values()}:
            self._reduce(unit)

    def _reduce(self, unit: Unit) -> None:
        """Free a unit, and sum the gradients that it has over the ranks."""
        for one in (self.again, self.stays):
            one.free(unit)
        if not unit.gradients:
            return
        self.unreduced += unit.summed - self._summing
        self._note()
        self.unreduced -= unit.gradients
        self._summing = unit.summed
        self.reduced += unit.kept
        unit.gradients = unit.summed = unit.kept = 0


def _differentiable(outputs: Any) -> Iterable[torch.Tensor]:
    values = outputs.values() if isinstance(outputs, dict) else [outputs]
    for leaf in tree_leaves(list(values)):
        if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
            yield leaf
