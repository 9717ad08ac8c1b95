"""Kubernetes' quantities as numbers, and the few sizes that follow from them."""

from __future__ import annotations

import re
from math import ceil

_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
_DECIMAL = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_NUMBER = re.compile(r"^([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([A-Za-z]*)$")


def amount(quantity: str | float) -> float:
    """``4``, ``"1.5"``, ``"500m"`` and ``"16Gi"`` in whole units: cores, bytes."""
    matched = _NUMBER.match(str(quantity))
    if matched is None:
        raise ValueError(f"{quantity!r} is no quantity")
    number, suffix = matched.groups()
    return float(number) * (_BINARY.get(suffix) or _DECIMAL.get(suffix) or 1)


def half(quantity: str | float) -> str:
    """Half of an amount of memory, in whole MiB."""
    return f"{ceil(amount(quantity) / 2 / 2**20)}Mi"


def threads(cpu: str | float, ranks: int) -> int:
    """``OMP_NUM_THREADS``: each rank's whole share of the cores that the pod asks for, and at least one.

    It follows from the manifest alone, never from the machine, because results depend on it to the last bit.
    """
    return max(1, int(amount(cpu) / ranks))
