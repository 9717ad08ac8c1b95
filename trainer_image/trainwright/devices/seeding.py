"""Randomness of a run: one seed for every generator, and their states as a checkpoint keeps them.

The names, the seeds and the layout of a saved state are those of Hugging Face, so that either library resumes from the
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
"""``python``, ``numpy`` and ``cpu`` always; ``cuda`` (every device of this process), ``xla`` or ``tpu`` where it is."""

_PROCESS = os.getpid()


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seed ``random``, NumPy and torch on every device.

    Args:
        seed: Any integer that ``numpy.random.seed`` takes (0 to 2**32 - 1).
        deterministic: Also choose deterministic kernels where there are any, which can be slower.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # every accelerator that torch knows, too
    if _xla_at_work():
        xla.set_rng_state(seed)
    if deterministic:
        torch.use_deterministic_algorithms(True)


def enable_full_determinism(seed: int, warn_only: bool = False) -> None:
    """Seed, and let every run with this seed on this kind of device compute the same bits.

    Args:
        seed: See :func:`set_seed`.
        warn_only: Warn, instead of raising, where an operation has no deterministic kernel.
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
    if _xla_at_work():
        state["xla"] = xla.rng_state()
    if (tpu := _native_tpu()) is not None:
        state["tpu"] = tpu.get_rng_state()
    return state


def _xla_at_work() -> bool:
    """Whether torch_xla computes in this process; a data worker, which may be forked off it, must not touch it."""
    return "torch_xla" in sys.modules and os.getpid() == _PROCESS and xla.is_used()


def _native_tpu() -> Any:
    """TorchTPU's module, where the device is in use."""
    module = getattr(torch, "tpu", None)
    return module if module is not None and module.is_initialized() else None


def set_rng_state(state: RNGState) -> None:
    """Put the generators back where :func:`rng_state`, here or in Hugging Face's Trainer, found them."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        _set_cuda_state(state["cuda"])
    if "xla" in state and _xla_at_work():
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
    """Whatever is drawn inside, the generators go on afterwards as if nothing had been."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


def derived_seed(*parts: int) -> int:
    """A 63-bit seed that any change of ``parts`` changes altogether: (seed, epoch, batch, rank), say."""
    text = ",".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def seed_everything(seed: int) -> None:
    """Like :func:`set_seed`, for seeds of up to 64 bits, and on the CPU alone: what a data worker needs."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
