"""The properties of this process: device, rank, world size. torch is imported on first use."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trainwright.arguments.enums import ParallelMode

from .errors import ArgumentError, Problem

if TYPE_CHECKING:
    import torch

_OF_THIS_PROCESS = ("distributed_state", "_setup_devices", "_n_gpu")
_NO_STATE = "use_configured_state needs an Accelerator or PartialState; make one before, or leave it out"

logger = logging.getLogger("trainwright")

_LEVELS = {name: getattr(logging, name.upper()) for name in ("debug", "info", "warning", "error", "critical")}
_LEVELS["detail"] = logging.DEBUG


class Devices:
    """The device and the rank of this process, which joins the process group once, on first use."""

    per_device_train_batch_size: int
    per_device_eval_batch_size: int
    warmup_steps: float
    ddp_timeout: int
    ddp_backend: str | None
    use_cpu: bool
    save_on_each_node: bool
    log_on_each_node: bool
    log_level: str
    log_level_replica: str
    accelerator_config: Any

    @property
    def train_batch_size(self) -> int:
        """The number of samples of this process in one forward pass of training."""
        return self.per_device_train_batch_size * max(1, self.n_gpu)

    @property
    def eval_batch_size(self) -> int:
        """The number of samples of this process in one forward pass of evaluation."""
        return self.per_device_eval_batch_size * max(1, self.n_gpu)

    @property
    def ddp_timeout_delta(self) -> timedelta:
        """``ddp_timeout`` for ``torch.distributed``."""
        return timedelta(seconds=self.ddp_timeout)

    def _take_state(self) -> None:
        """Sets up accelerate's state if the program has imported accelerate, for example for its logging.

        Other programs cannot use that state, and do not wait for the import of torch here.
        """
        state = sys.modules.get("accelerate.state")
        configured = state is not None and bool(state.PartialState._shared_state)
        if self.accelerator_config.use_configured_state and not configured:
            raise ArgumentError([Problem("accelerator_config", _NO_STATE)])
        if state is not None and not configured:
            _ = self.distributed_state

    @cached_property
    def distributed_state(self) -> Any:
        """accelerate's ``PartialState``: joins the process group that the launcher's environment describes."""
        from accelerate.state import AcceleratorState, PartialState

        if self.accelerator_config.use_configured_state:
            if not PartialState._shared_state:
                raise ArgumentError([Problem("accelerator_config", _NO_STATE)])
            return PartialState(cpu=self.use_cpu)
        AcceleratorState._reset_state(reset_partial_state=True)
        return self._joined()

    def _joined(self) -> Any:
        """Joins the process group, after checking that the pool's device is there."""
        from trainwright.devices import check, report, tpu, xla

        if not self.use_cpu:
            check.require()
        if xla.is_used():
            xla.initialize(self.use_cpu)
        native_tpu = not self.use_cpu and tpu.is_used()
        state = tpu.join(self.ddp_timeout_delta) if native_tpu else self._join()
        report.log_device(state.device, int(state.process_index), max(0, int(state.local_process_index)))
        return state

    def _join(self) -> Any:
        from accelerate.state import PartialState

        cpu = self.use_cpu or _no_accelerator()
        backend = self.ddp_backend if launched() else None  # a single process needs no backend
        try:
            return PartialState(cpu=cpu, backend=backend, timeout=self.ddp_timeout_delta)
        except ValueError as error:
            if backend is None:
                raise
            raise ArgumentError([Problem("ddp_backend", f"{error}, or leave it out")]) from error

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self._setup_devices

    @cached_property
    def _setup_devices(self) -> torch.device:
        """Joins the process group and returns the device; a subclass may override it."""
        device: torch.device = self.distributed_state.device
        return device

    @property
    def n_gpu(self) -> int:
        """The number of accelerators of this process: 0 on a CPU, those of its host under torch_xla, otherwise 1.

        Several accelerators need a launcher, which starts a process for each.
        """
        return self._n_gpu

    @cached_property
    def _n_gpu(self) -> int:
        """Scripts may set this attribute."""
        if self.device.type == "xla":
            from trainwright.devices import xla

            return xla.device_count()
        return 0 if self.device.type == "cpu" else 1

    @property
    def parallel_mode(self) -> ParallelMode:
        """The kind of parallelism between the processes."""
        if self.device.type == "xla":
            return ParallelMode.TPU
        alone = self.distributed_state.distributed_type == "NO"
        return ParallelMode.NOT_PARALLEL if alone else ParallelMode.DISTRIBUTED

    @property
    def world_size(self) -> int:
        """The number of processes that train together."""
        return int(self.distributed_state.num_processes)

    @property
    def process_index(self) -> int:
        """The rank of this process."""
        return int(self.distributed_state.process_index)

    @property
    def local_process_index(self) -> int:
        """The rank of this process within its node."""
        return max(0, int(self.distributed_state.local_process_index))  # -1 under torch_xla without a launcher

    @property
    def should_log(self) -> bool:
        """Whether this process logs at ``log_level``; the others log at ``log_level_replica``."""
        return (self.local_process_index if self.log_on_each_node else self.process_index) == 0

    @property
    def should_save(self) -> bool:
        """Whether this process writes models and checkpoints."""
        return (self.local_process_index if self.save_on_each_node else self.process_index) == 0

    @property
    def _no_sync_in_gradient_accumulation(self) -> bool:
        """Whether ranks may delay the reduction of gradients until the last micro-batch of a step."""
        return True

    @property
    def place_model_on_device(self) -> bool | None:
        """For subclasses to override: whether the Trainer moves the model; None leaves it to the Trainer."""
        return None

    def get_process_log_level(self) -> int:
        """The log level of this process: ``log_level`` if ``should_log``, otherwise ``log_level_replica``."""
        level = self.log_level if self.should_log else self.log_level_replica
        return logger.getEffectiveLevel() if level == "passive" else _LEVELS[level]

    @contextmanager
    def main_process_first(self, local: bool = True, desc: str = "work") -> Iterator[None]:
        """Runs the body in the main process first, then in the others; ``desc`` names the work in the debug log.

        ``local`` means the main process of each node, for results that are local to the node; otherwise rank 0.
        """
        state = self.distributed_state
        first = state.is_local_main_process if local else state.is_main_process
        try:
            if not first:
                logger.debug("%d: waiting for the main process to do %s", self.process_index, desc)
                state.wait_for_everyone()
            yield
        finally:
            if first:
                logger.debug("%d: %s is done, the others continue", self.process_index, desc)
                state.wait_for_everyone()

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """``warmup_steps`` as a number of steps; a value below 1 is a fraction of all steps, rounded up."""
        return int(self.warmup_steps) if self.warmup_steps >= 1 else math.ceil(num_training_steps * self.warmup_steps)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the process group and the device, because they are only valid in this process."""
        return {name: value for name, value in self.__dict__.items() if name not in _OF_THIS_PROCESS}


def launched() -> bool:
    """Whether a launcher started this process, by the environment of torchrun or MPI."""
    return any(name in os.environ for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"))


def _no_accelerator() -> bool:
    """Whether ``cpu`` must be requested: accelerate only joins CPU processes then; else each rank would train alone."""
    import torch

    return not torch.accelerator.is_available()
