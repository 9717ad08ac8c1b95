"""Profiles of some steps: by torch's profiler, or by torch_xla's own under XLA.

Enabled by the environment of a job or a pool, because it is not a property of the training. ``PROFILE_STEPS=10-12``
writes a trace of these steps of every rank below ``profile/`` in the output folder. Under torch_xla,
``PROFILE_PORT=9012`` serves profiles on demand to TensorBoard and xprof.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trainwright.contract import UserError

STEPS, PORT = "PROFILE_STEPS", "PROFILE_PORT"


class Profile:
    """Records steps ``first`` to ``last``, counted from 1, into ``folder``; ``port`` serves torch_xla's profiles."""

    def __init__(self, folder: Path, first: int, last: int, port: int | None = None) -> None:
        self.first, self.last, self.port = first, last, port
        self._folder = folder
        self._recording: contextlib.ExitStack | None = None
        self._server: Any = None

    @classmethod
    def from_environment(
        cls, output_dir: str, rank: int, environment: Mapping[str, str] = os.environ
    ) -> Profile | None:
        """None if no profile is requested. Raises :class:`UserError` for invalid values."""
        steps, port = environment.get(STEPS), environment.get(PORT)
        if not steps and not port:
            return None
        if port and not port.isdecimal():
            raise UserError(f"{PORT}: {port!r} is not a port; use a number, for example 9012")
        first, last = parse_steps(steps) if steps else (0, -1)
        return cls(Path(output_dir) / "profile" / f"rank-{rank}", first, last, int(port) if port else None)

    def before(self, step: int, device: torch.device) -> None:
        """Begins to record at the first requested step, or at a later one if the run resumes within the range."""
        if self.port is not None and self._server is None:
            self._server = _serve(self.port, device)
        if self._recording is None and self.first <= step <= self.last:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._recording = contextlib.ExitStack()
            self._recording.enter_context(_xla_trace(self._folder) if device.type == "xla" else _trace(self._folder))

    def after(self, step: int) -> None:
        if step >= self.last:
            self.close()

    def close(self) -> None:
        """Ends the recording and writes it."""
        if self._recording is not None:
            self._recording.close()
            self._recording = None


def parse_steps(text: str) -> tuple[int, int]:
    """The first and the last step of ``"10-12"`` or ``"10"``."""
    found = re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*))?", text.strip())
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if first > last:
        raise UserError(f"{STEPS}: {text!r} is not a range of steps; use the first and the last, for example 10-12")
    return first, last


def _trace(folder: Path) -> Any:
    handler = torch.profiler.tensorboard_trace_handler(str(folder))
    return torch.profiler.profile(on_trace_ready=handler, record_shapes=True, profile_memory=True)


@contextlib.contextmanager
def _xla_trace(folder: Path) -> Any:
    import torch_xla
    import torch_xla.debug.profiler as profiler

    profiler.start_trace(str(folder))
    try:
        yield
        torch_xla.sync(wait=True)
    finally:
        profiler.stop_trace()


def _serve(port: int, device: torch.device) -> Any:
    if device.type != "xla":
        raise UserError(f"{PORT}: only torch_xla serves profiles; set {STEPS} instead")
    import torch_xla.debug.profiler as profiler

    return profiler.start_server(port)
