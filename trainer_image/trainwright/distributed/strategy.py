"""How a run is spread over processes and devices: decided before the first step, and all that the loop knows of it.

A :class:`Strategy` prepares the model and the optimizer, runs the backward pass, and turns gradients into an update.
Clipping and stepping are one call, because an engine such as DeepSpeed clips within its step and knows the norm only
afterwards. Each implementation has a file of its own; :func:`trainwright.distributed.choice.choose` picks one.

Rank and data rank are two things. The ``rank`` numbers processes: it decides who writes, who logs, and which file of
random state is whose. The ``data_rank`` numbers shares of the data: processes that hold parts of one replica (tensor or
context parallelism) have one data rank and read the same samples. They are neighbours: the mesh has its data axes
outermost.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from trainwright.distributed.ranks import Ranks

Kind = Literal["model", "optimizer"]


class Hooks(NamedTuple):
    """What the loop does between the parts of an update.

    Attributes:
        before_step: After the gradients are clipped, where the engine lets something in between; else before both.
        after_step: After the optimizer's step, before the schedule's.
        clip: Takes the place of the strategy's own clipping; returns the norm.
    """

    before_step: Callable[[], object]
    after_step: Callable[[], object]
    clip: Callable[[], Any] | None = None


class Strategy(ABC):
    """One way to spread a run; see the module.

    Attributes:
        mesh: Name -> size of the axes that are larger than one.
        ranks: The processes of the run.
        data: The shares of the data, as ranks whose group gathers each share once.
        scaler: Of gradients in fp16; None for other number formats.
    """

    mesh: Mapping[str, int] = {}

    def __init__(self, device: torch.device, ranks: Ranks, data: Ranks | None = None) -> None:
        self.device, self.ranks, self.data = device, ranks, data if data is not None else ranks
        self.scaler: Any = None

    @property
    def data_rank(self) -> int:
        """Which share of the data this process reads."""
        return self.data.rank

    @property
    def data_size(self) -> int:
        """The number of shares."""
        return self.data.world_size

    @property
    def replica_size(self) -> int:
        """Processes that read one share together."""
        return self.ranks.world_size // self.data_size

    def place(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """How the tensors of a batch come to the device."""
        return lambda tensor: tensor.to(self.device, non_blocking=True)

    @abstractmethod
    def new_scaler(self) -> Any:
        """The scaler of a model that is about to be trained, where its number format needs one; else None."""

    @abstractmethod
    def wrap(self, model: nn.Module) -> nn.Module:
        """The module that exchanges gradients, or parameters, with the other ranks."""

    @abstractmethod
    def prepare(
        self,
        model: nn.Module,
        make_optimizer: Callable[[], Any],
        wrap: Callable[[nn.Module], nn.Module] | None = None,
    ) -> tuple[nn.Module, Any]:
        """The module that training goes through, and the optimizer, made in the order that this strategy needs.

        Args:
            wrap: Puts more around :meth:`wrap`, such as compilation.
        """

    @abstractmethod
    def start(self, model: nn.Module, optimizer: Any, schedule: Any, scaler: Any, hooks: Hooks) -> None:
        """Take what the steps of one run work on: all that can be decided before the first of them is decided here.

        Args:
            model: As :meth:`prepare` returned it, and ``optimizer`` likewise.
            schedule: Stepped after each step that was not skipped; None for one that follows a metric.
        """

    @abstractmethod
    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        """What a micro-batch runs in: the exchange of gradients is held back until the last one of a step."""

    @abstractmethod
    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of ``loss``, a scalar, to those of the step."""

    @abstractmethod
    def update(self, max_norm: float) -> tuple[Any, bool]:
        """Clip, step the optimizer and the schedule, clear the gradients; with the hooks in between.

        Args:
            max_norm: What the norm of all gradients is scaled down to; 0 leaves them as they are.

        Returns:
            The norm before clipping, and whether the optimizer skipped its step because gradients overflowed.
        """

    @abstractmethod
    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
        """Scale the gradients down to ``max_norm``; returns their norm before that."""

    @abstractmethod
    def norm(self, parameters: Iterable[nn.Parameter]) -> torch.Tensor:
        """The norm of all gradients."""

    @abstractmethod
    def zero_grad(self) -> None:
        """Forget the gradients."""

    @abstractmethod
    def state(self, kind: Kind, part: Any) -> dict[str, Any]:
        """What this rank saves of ``part``, the model or the optimizer: all of it, or its shards."""

    @abstractmethod
    def load(self, kind: Kind, part: Any, state: dict[str, Any]) -> None:
        """Put ``part`` back into a saved :meth:`state`."""
