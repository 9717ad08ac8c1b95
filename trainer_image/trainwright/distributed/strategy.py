"""How a run is spread over processes and devices. The choice is made before the first step.

A :class:`Strategy` prepares the model and the optimizer, runs the backward pass, and turns gradients into an update.
Clipping and stepping are one call, because engines like DeepSpeed clip inside their step and know the norm only
afterwards. Each implementation has one file; :func:`trainwright.distributed.choice.choose` selects one.

``rank`` and ``data_rank`` differ. ``rank`` numbers the processes: it decides which process writes and logs, and which
file of random state belongs to it. ``data_rank`` numbers the shards of the data: the processes of one replica (tensor
or context parallelism) have the same data rank and read the same samples. They have adjacent ranks, because the data
axes of the mesh are outermost.
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
    """Callbacks of the loop during an update.

    Attributes:
        before_step: Called between clipping and the optimizer's step; before both, if the engine joins the two.
        after_step: Called after the optimizer's step and before the schedule's.
        clip: Replaces the strategy's clipping; returns the norm.
        judge: Takes the norm, before the optimizer's step; returns a scalar on the device, which is not 0 if the step
            may not be taken. All ranks call it together, and get the same.
        on_device: Whether the optimizer reads that scalar on the device. Else the host waits for it.
    """

    before_step: Callable[[], object]
    after_step: Callable[[], object]
    clip: Callable[[], Any] | None = None
    judge: Callable[[Any], torch.Tensor] | None = None
    on_device: bool = False


class Strategy(ABC):
    """One way to spread a run; see the module's docstring.

    Attributes:
        mesh: Name -> size of the axes that are larger than one.
        ranks: The processes of the run.
        data: One rank per shard of the data; its group gathers each shard once.
        scaler: The gradient scaler for fp16; None for other number formats.
        sharded: Whether each rank holds only shards of the model. Then forward passes, :meth:`state` and reading
            weights are collectives, which all ranks call in the same order.
        owns_checkpoints: Whether an engine writes and reads the state of training in files of its own.
        autocasts: Whether forward passes need autocast for a number format with 16 bits; an engine converts the model.
        schedule_of_engine: The schedule that an engine's configuration names, made by :meth:`prepare`.
    """

    mesh: Mapping[str, int] = {}
    sharded = False
    owns_checkpoints = False
    autocasts = True
    schedule_of_engine: Any = None

    def __init__(self, device: torch.device, ranks: Ranks, data: Ranks | None = None) -> None:
        self.device, self.ranks, self.data = device, ranks, data if data is not None else ranks
        self.scaler: Any = None

    @property
    def data_rank(self) -> int:
        """The shard of the data that this process reads."""
        return self.data.rank

    @property
    def data_size(self) -> int:
        """The number of data shards."""
        return self.data.world_size

    @property
    def replica_size(self) -> int:
        """The number of processes in one replica, which read the same shard."""
        return self.ranks.world_size // self.data_size

    @property
    def whole_checkpoints(self) -> bool:
        """Whether checkpoints hold the whole model in one file, also if it is sharded."""
        return True

    @property
    def offloads(self) -> bool:
        """Whether parameters are kept in host memory."""
        return False

    def place(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The function that moves a tensor of a batch to the device."""
        return lambda tensor: tensor.to(self.device, non_blocking=True)

    @abstractmethod
    def new_scaler(self) -> Any:
        """Return a new gradient scaler if the number format needs one; else None."""

    @abstractmethod
    def wrap(self, model: nn.Module) -> nn.Module:
        """Wrap the model in the module that exchanges gradients, or parameters, with the other ranks."""

    def units(self, model: nn.Module) -> list[nn.Module]:
        """Return the modules that are gathered, compiled and recomputed one by one; none if the model is whole."""
        return []

    def rest(self, model: nn.Module) -> None:  # noqa: B027 - only a sharded model has something to free
        """Free what forward passes without a backward pass leave behind."""

    def take_weights(self, model: nn.Module) -> None:  # noqa: B027 - only an engine keeps weights of its own
        """Train on with the weights that were loaded into the model."""

    def recover(self, model: nn.Module) -> None:  # noqa: B027 - only a sharded model has something to restore
        """Make the model usable after a step that failed on all ranks."""

    @abstractmethod
    def prepare(
        self,
        model: nn.Module,
        make_optimizer: Callable[[], Any],
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        max_steps: int = 0,
    ) -> tuple[nn.Module, Any]:
        """Create the wrapped module and the optimizer, in the order that this strategy needs.

        Args:
            wrap: Used instead of :meth:`wrap`; it calls that and adds more, for example compilation.
            max_steps: The number of steps of the run, for an engine whose configuration depends on it.
        """

    @abstractmethod
    def start(self, model: nn.Module, optimizer: Any, schedule: Any, scaler: Any, hooks: Hooks) -> None:
        """Set the objects that the steps of one run use, and make all decisions that do not depend on a step.

        Args:
            model: The module that :meth:`prepare` returned.
            optimizer: The optimizer that :meth:`prepare` returned.
            schedule: Stepped after each step that was not skipped; None if the schedule follows a metric.
        """

    @abstractmethod
    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        """Return the context of a micro-batch, which delays the gradient exchange until the ``last`` of a step."""

    @abstractmethod
    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradients of ``loss``, a scalar."""

    @abstractmethod
    def update(self, max_norm: float) -> tuple[Any, bool]:
        """Clip, step the optimizer and the schedule, clear the gradients, and call the hooks.

        Args:
            max_norm: Maximum norm of all gradients; 0 disables clipping.

        Returns:
            The norm before clipping, and whether the optimizer skipped its step because gradients overflowed.
        """

    @abstractmethod
    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
        """Clip the gradients to ``max_norm``; return their norm before clipping."""

    @abstractmethod
    def norm(self, parameters: Iterable[nn.Parameter]) -> torch.Tensor:
        """Return the norm of all gradients."""

    @abstractmethod
    def zero_grad(self) -> None:
        """Clear the gradients."""

    @abstractmethod
    def state(self, kind: Kind, part: Any, whole: bool = True) -> dict[str, Any]:
        """Return the state that this rank saves of ``part``, the model or the optimizer.

        Args:
            whole: Return all of it, on rank 0 at least. Else a strategy that shards returns this rank's shards.
        """

    @abstractmethod
    def load(self, kind: Kind, part: Any, state: dict[str, Any]) -> None:
        """Restore ``part`` from a saved :meth:`state`."""
