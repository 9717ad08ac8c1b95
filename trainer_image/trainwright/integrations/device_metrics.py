"""Callbacks for runs on an accelerator: end the graphs of torch_xla, log device metrics, and record profiles.

As callbacks, they cost a run on CPUs nothing.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from trainwright.callbacks.callback import TrainerCallback
from trainwright.contract import UserError
from trainwright.devices import check, xla
from trainwright.devices.meter import Meter
from trainwright.devices.profile import Profile
from trainwright.devices.report import device_name

logger = logging.getLogger(__name__)


def callbacks_for(args: Any) -> list[TrainerCallback]:
    """The callbacks that the device of ``args`` needs; they run before the user's callbacks.

    Raises:
        UserError: the device does not support the arguments.
    """
    on_xla = args.device.type == "xla"
    if (problem := _unsupported_format(args)) is not None:
        raise UserError(problem)
    if "tpu_metrics_debug" in args.debug and not on_xla:
        raise UserError("debug: tpu_metrics_debug needs torch_xla, which this run does not use; leave it out")
    profile = Profile.from_environment(args.output_dir, args.process_index)
    found: list[TrainerCallback] = [XlaCallback(args.debug)] if on_xla else []
    if args.device.type != "cpu":
        found.append(FiguresCallback(found[0].mark if found else None))  # type: ignore[attr-defined]
    return [*found, *([ProfileCallback(profile)] if profile is not None else [])]


def _unsupported_format(args: Any) -> str | None:
    """The message for a number format that the arguments ask for and the device lacks; None if there is none."""
    is_nvidia = args.device.type == "cuda" and torch.version.cuda is not None
    capability = torch.cuda.get_device_capability(args.device) if is_nvidia else None
    return check.unsupported_format(args, args.device.type, capability, device_name(args.device) if is_nvidia else "")


class XlaCallback(TrainerCallback):
    """Ends a graph of torch_xla after each micro-batch, each step, and each batch of an evaluation."""

    def __init__(self, debug: list[str]) -> None:
        self.mark = xla.StepMark(logger.warning)
        self._prints_metrics = "tpu_metrics_debug" in debug

    def on_substep_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self.mark()

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self.mark.end_step()

    def on_prediction_step(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self.mark()

    def on_epoch_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if self._prints_metrics:
            xla.print_metrics()


class FiguresCallback(TrainerCallback):
    """Adds the device metrics of :class:`Meter` to the training logs and to the log history."""

    def __init__(self, mark: xla.StepMark | None) -> None:
        self._mark = mark
        self._meter: Meter | None = None

    def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self._meter = Meter(args.device, args.world_size * max(1, args.n_gpu), self._mark)

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        if self._meter is None or logs is None or "loss" not in logs:
            return
        figures = self._meter.read(state.total_flos)
        logs.update(figures)
        if state.log_history:
            state.log_history[-1].update(figures)


class ProfileCallback(TrainerCallback):
    """Records a profile of some steps of this rank."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile

    def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self._profile.before(state.global_step + 1, args.device)

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self._profile.after(state.global_step)

    def on_train_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self._profile.close()
