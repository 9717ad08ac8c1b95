"""Sets the environment of a node's ranks before they start, by the runtime and the vendor of their pool.

Variables that the pool or the job sets are kept. Ranks inherit the launcher's environment, so it is changed in place.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import warnings
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainwright.contract import (
    ENV_OUTPUT_DIR,
    ENV_PACKAGES_DIR,
    ENV_RUNTIME,
    ENV_VENDOR,
    OUTPUT_DIR,
    PACKAGES_DIR,
    RUNTIMES,
    UserError,
)
from trainwright.launch.rendezvous import Place

FLIGHT_RECORDS = "flight-recorder"
"""The folder, within the output folder, for the collectives of each rank when one of them timed out."""

_FLIGHT_RECORD = "TORCH_FR_DUMP_TEMP_FILE"
_GPU_DEFAULTS = {
    "NCCL_DEBUG": "WARN",  # RCCL reads the same names
    "TORCH_FR_BUFFER_SIZE": "2000",
    "TORCH_FR_DUMP_ON_TIMEOUT": "1",
}
_OLDER_NAMES = {
    "TORCH_FR_BUFFER_SIZE": "TORCH_NCCL_TRACE_BUFFER_SIZE",
    "TORCH_FR_DUMP_ON_TIMEOUT": "TORCH_NCCL_DUMP_ON_TIMEOUT",
    _FLIGHT_RECORD: "TORCH_NCCL_DEBUG_INFO_TEMP_FILE",
}


def prepare(environment: MutableMapping[str, str], place: Place, attempt: int) -> Place:
    """Completes the environment; returns ``place`` with the number of ranks that the runtime starts.

    Raises:
        UserError: the runtime is unknown, or this image lacks it.
    """
    runtime = environment.get(ENV_RUNTIME) or RUNTIMES[0]
    if runtime not in _PREPARATIONS:
        raise UserError(f"{ENV_RUNTIME}: {runtime!r} is not a runtime; it is one of {', '.join(RUNTIMES)}")
    environment.setdefault("USE_TORCH_XLA", "1" if runtime == "torch_xla" else "0")
    return _PREPARATIONS[runtime](environment, place, attempt)


def import_packages(environment: MutableMapping[str, str]) -> None:
    """Lets every rank import the packages of ``spec.script.requirements``, before those of the image."""
    parts = [environment.get(ENV_PACKAGES_DIR, PACKAGES_DIR), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, parts))


def _torchrun(environment: MutableMapping[str, str], place: Place, attempt: int) -> Place:
    if environment.get(ENV_VENDOR) in ("nvidia", "amd"):
        folder = Path(environment.get(ENV_OUTPUT_DIR, OUTPUT_DIR)) / FLIGHT_RECORDS
        with contextlib.suppress(OSError):  # the trainer reports an output folder that cannot be written
            folder.mkdir(parents=True, exist_ok=True)
        defaults = {**_GPU_DEFAULTS, _FLIGHT_RECORD: str(folder / f"attempt-{attempt}-rank-")}
        environment.update({name: value for name, value in defaults.items() if not _is_set(name, environment)})
    return place


def separate_flight_records(environment: MutableMapping[str, str], attempt: int, round: int) -> None:
    """Keeps the records of an earlier round: those of this one get another name, unless the user chose the name."""
    path = environment.get(_FLIGHT_RECORD, "")
    if round > 1 and (match := re.fullmatch(rf"(.*/{FLIGHT_RECORDS}/attempt-{attempt})(-round-\d+)?-rank-", path)):
        environment[_FLIGHT_RECORD] = f"{match[1]}-round-{round}-rank-"


def _is_set(name: str, environment: Mapping[str, str]) -> bool:
    return name in environment or _OLDER_NAMES.get(name, name) in environment


def _torchtpu(environment: MutableMapping[str, str], place: Place, attempt: int) -> Place:
    """Calls TorchTPU's function for the settings that all ranks share, once, before any rank starts."""
    try:
        distributed = importlib.import_module("torch.tpu.distributed")
    except ImportError as error:
        raise UserError(
            f"{ENV_RUNTIME}: torchtpu is not in this image ({error}); use an image of the target tpu"
        ) from None
    _set_launch_env(distributed, place)
    return place


def _set_launch_env(distributed: Any, place: Place) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that its API may change, but the image pins its version
            distributed.set_tpu_launch_env(nproc_per_node=place.per_node)
    except ValueError as error:
        raise UserError(f"accelerator: TorchTPU cannot be started here: {' '.join(str(error).split())}") from None


def _torch_xla(environment: MutableMapping[str, str], place: Place, attempt: int) -> Place:
    """One process drives all chips of its host."""
    return replace(place, per_node=1)


_PREPARATIONS: dict[str, Callable[[MutableMapping[str, str], Place, int], Place]] = dict(
    zip(RUNTIMES, (_torchrun, _torchtpu, _torch_xla), strict=True)
)
