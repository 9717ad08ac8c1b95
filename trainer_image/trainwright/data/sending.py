"""Pickle a dataset for data workers, including functions and classes without an importable name, like lambdas.

Tensors are sent by value, unless they are already in shared memory: moving each into shared memory, as torch does
between processes, would need one file per tensor of a dataset.
"""

from __future__ import annotations

import abc
import contextlib
import importlib
import io
import marshal
import pickle
import sys
import time
import types
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

LARGEST = 64 << 20
"""Maximum bytes: for a larger dataset a fork is cheaper than sending."""
LONGEST = 2.0
"""Maximum seconds, for the same reason."""


class UnsendableError(Exception):
    """An object cannot be sent, or not in reasonable time."""


class _Bounded(io.BytesIO):
    def __init__(self) -> None:
        super().__init__()
        self._until = time.monotonic() + LONGEST

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > LARGEST:
            raise UnsendableError(f"it takes more than {LARGEST >> 20} MiB to send")
        if time.monotonic() > self._until:
            raise UnsendableError(f"it takes longer than {LONGEST:.0f} s to send")
        return super().write(data)


class Pickler(ForkingPickler):
    """Pickles for a process that was forked from this one."""

    def reducer_override(self, item: Any) -> Any:
        kind = type(item)
        if kind is types.FunctionType:
            return NotImplemented if _has_name(item) else _function(item)
        if kind in (type, abc.ABCMeta):
            return NotImplemented if _has_name(item) or not item.__flags__ & _MADE_IN_PYTHON else _class(item)
        if kind is torch.Tensor:
            return _tensor(item)
        return NotImplemented


class _Referring(Pickler):
    """Pickles each object of ``shared`` as its index in that list."""

    def __init__(self, file: Any, shared: list[Any]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._shared = {id(item): place for place, item in enumerate(shared)}

    def persistent_id(self, item: Any) -> int | None:
        return self._shared.get(id(item))


def pickled(item: Any, shared: list[Any] | None = None) -> bytes:
    """Raises :class:`UnsendableError`."""
    file = _Bounded()
    try:
        (_Referring(file, shared) if shared else Pickler(file, pickle.HIGHEST_PROTOCOL)).dump(item)
    except UnsendableError:
        raise
    except Exception as error:
        raise UnsendableError(
            f"it cannot be pickled ({(str(error).splitlines() or [type(error).__name__])[0]})"
        ) from error
    return file.getvalue()


def _has_name(item: Any) -> bool:
    """Whether ``item`` can be imported by its ``__module__`` and ``__qualname__``."""
    found = sys.modules.get(item.__module__)
    for part in item.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is item


def _tensor(tensor: torch.Tensor) -> Any:
    if tensor.layout is not torch.strided:
        return tensor.__reduce_ex__(2)
    if tensor.is_shared():
        return NotImplemented
    if tensor.device.type == "cpu" and not tensor.requires_grad:
        with contextlib.suppress(TypeError, RuntimeError):  # a dtype, or a view, that NumPy does not have
            return torch.from_numpy, (tensor.numpy(),)
    return tensor.__reduce_ex__(2)


def _function(function: types.FunctionType) -> Any:
    module, closure = function.__globals__.get("__name__", ""), function.__closure__ or ()
    if getattr(sys.modules.get(module), "__dict__", None) is not function.__globals__:
        raise UnsendableError(f"the function {function.__qualname__} belongs to no module")
    parts = (marshal.dumps(function.__code__), module, function.__name__, len(closure))
    state = {
        "cells": [(cell.cell_contents,) if _is_full(cell) else () for cell in closure],
        "attributes": {
            name: getattr(function, name)
            for name in ("__defaults__", "__kwdefaults__", "__module__", "__qualname__", "__doc__", "__dict__")
        },
    }
    return _make_function, parts, state, None, None, _fill_function


def _is_full(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _make_function(code: bytes, module: str, name: str, cells: int) -> types.FunctionType:
    closure = tuple(types.CellType() for _ in range(cells))
    globals_ = vars(importlib.import_module(module))
    return types.FunctionType(marshal.loads(code), globals_, name, None, closure or None)


def _fill_function(function: types.FunctionType, state: dict[str, Any]) -> None:
    for cell, content in zip(function.__closure__ or (), state["cells"], strict=True):
        if content:
            cell.cell_contents = content[0]
    for name, value in state["attributes"].items():
        setattr(function, name, value)


_MADE_IN_PYTHON = 1 << 9
"""The flag of a class that is defined in Python, not in an extension."""
_OF_A_CLASS = ("__dict__", "__weakref__", "_abc_impl", "__abstractmethods__")
"""Attributes that Python adds to every class."""


def _class(cls: type) -> Any:
    own = dict(vars(cls))
    if "__slots__" in own or "__dataclass_fields__" in own or issubclass(cls, tuple):
        raise UnsendableError(f"{cls.__qualname__} is defined within a function; move it to the top of its module")
    attributes = {name: value for name, value in own.items() if name not in _OF_A_CLASS}
    names = (cls.__name__, cls.__module__, cls.__qualname__)
    return _make_class, (type(cls), cls.__bases__, *names), attributes, None, None, _fill_class


def _make_class(kind: Any, bases: tuple[type, ...], name: str, module: str, qualname: str) -> type:
    made: type = kind(name, bases, {"__module__": module, "__qualname__": qualname})
    return made


def _fill_class(cls: type, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        setattr(cls, name, value)
    if isinstance(cls, abc.ABCMeta):
        abc.update_abstractmethods(cls)  # type: ignore[arg-type]
