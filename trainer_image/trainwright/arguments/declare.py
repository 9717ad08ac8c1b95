"""How an argument is declared: its default, and its description where argument parsers look for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform()
def group(title: str) -> Callable[[type[T]], type[T]]:
    """Makes a dataclass of one subject's arguments. It gets no ``__init__``: the class that joins the groups has it."""

    def decorate(cls: type[T]) -> type[T]:
        cls._title = title  # type: ignore[attr-defined]
        cls.__doc__ = f"{title}."  # otherwise dataclass() works out a signature to put there
        return dataclass(init=False, repr=False, eq=False)(cls)

    return decorate


def argument(default: Any, description: str, **for_parsers: Any) -> Any:
    """A field. ``for_parsers`` are keywords of ``argparse.add_argument``: ``choices``, ``nargs``, ``const``."""
    metadata = {"help": description, **for_parsers}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)
