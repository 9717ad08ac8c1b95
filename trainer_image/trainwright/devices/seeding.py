"""Random generators: one seed for all of them, and their states for a checkpoint.

The names, the seeds and the layout of a saved state are those of Hugging Face, so each library can resume from the
other's ``rng_state.pth``.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from trainwright.devices import xla

RNGState = dict[str, Any]
"""Always ``python``, ``numpy`` and ``cpu``; ``cuda`` (every device of this process), ``xla`` or ``tpu`` if in use."""

_PROCESS = os.getpid()


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seed ``random``, NumPy and torch on every device.

    Args:
        seed: An integer that ``numpy.random.seed`` accepts (0 to 2**32 - 1).
        deterministic: Also use deterministic kernels where torch has any, which may be slower.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # also seeds torch's accelerators
    if _uses_xla():
        xla.set_rng_state(seed)
    if deterministic:
        torch.use_deterministic_algorithms(True)


def enable_full_determinism(seed: int, warn_only: bool = False) -> None:
    """Seed, and make runs with this seed on the same kind of device bitwise reproducible.

    Args:
        seed: See :func:`set_seed`.
        warn_only: Warn, instead of raising an error, if an operation has no deterministic kernel.
    """
    set_seed(seed)
    os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":16:8"
    os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def rng_state() -> RNGState:
    """The states of this process's generators; see :data:`RNGState`."""
    state: RNGState = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if _uses_xla():
        state["xla"] = xla.rng_state()
    if (tpu := _native_tpu()) is not None:
        state["tpu"] = tpu.get_rng_state()
    return state


def _uses_xla() -> bool:
    """Whether this process computes with torch_xla. False in a data worker, because a forked one must not call it."""
    return "torch_xla" in sys.modules and os.getpid() == _PROCESS and xla.is_used()


def _native_tpu() -> Any:
    """TorchTPU's module, if the device is in use."""
    module = getattr(torch, "tpu", None)
    return module if module is not None and module.is_initialized() else None


def set_rng_state(state: RNGState) -> None:
    """Restore the states from :func:`rng_state`, of this library or of Hugging Face's Trainer."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        _set_cuda_state(state["cuda"])
    if "xla" in state and _uses_xla():
        xla.set_rng_state(state["xla"])
    if "tpu" in state and (tpu := _native_tpu()) is not None:
        tpu.set_rng_state(state["tpu"])


def _set_cuda_state(state: torch.Tensor | list[torch.Tensor]) -> None:
    if isinstance(state, torch.Tensor):
        torch.cuda.set_rng_state(state)
    else:
        torch.cuda.set_rng_state_all(state[: torch.cuda.device_count()])


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the generators afterwards, so that random numbers drawn inside have no effect outside."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


def derived_seed(*parts: int) -> int:
    """A 63-bit hash of ``parts``, for example (seed, epoch, batch, rank), as a seed."""
    text = ",".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def seed_everything(seed: int) -> None:
    """Like :func:`set_seed`, but for seeds of up to 64 bits and only on the CPU, for data workers."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
