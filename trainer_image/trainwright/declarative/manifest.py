"""Typed views of the spec's ``model``, ``dataset`` and ``sample``: what the trainer reads, under Python's names.

The operator has checked types and bounds. A key that is not known here comes from a newer operator, and to ignore it
would train something else than what was asked for: it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from trainwright.contract import UserError
from trainwright.nearest import did_you_mean

T = TypeVar("T")

BYTES = "bytes"
"""The tokenizer that needs no file: one token for each byte."""


@dataclass(frozen=True)
class ModelSpec:
    """``spec.model``: saved weights (a folder or a hub id), or fresh ones from a configuration."""

    source: str
    revision: str | None = None
    from_config: Mapping[str, Any] | None = None
    """Changes to the configuration of ``source``; present, even empty, it means fresh weights."""
    tokenizer: str | None = None
    trust_remote_code: bool = False
    dtype: str | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """``spec.dataset``: where the rows are, which of them, and how they become features."""

    source: str
    format: str | None = None
    name: str | None = None
    revision: str | None = None
    split: str | None = None
    eval_source: str | None = None
    eval_split: str | None = None
    validation_fraction: float | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    """Role to column: ``{"text": "body"}``."""
    block_size: int | None = None
    max_length: int | None = None
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    streaming: bool = False


@dataclass(frozen=True)
class SampleSpec:
    """``spec.sample``: what the trained model is asked to write at the end."""

    prompts: tuple[str, ...]
    max_new_tokens: int = 128
    temperature: float = 1.0
    """0 takes the likeliest token each time."""


def view(kind: type[T], values: Mapping[str, Any], place: str) -> T:
    """``values`` (camelCase keys) as a ``kind``; null means absent. Raises :class:`UserError` naming ``place``."""
    known = {_camel(f.name): f.name for f in fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise UserError(
                f"{place}.{key}: this trainer does not know the field{did_you_mean(key, known)}; "
                "use the trainer image that belongs to the operator's release"
            )
    present = {known[key]: _frozen(value) for key, value in values.items() if value is not None}
    if missing := [name for name in _required(kind) if name not in present]:
        raise UserError(f"{place}.{_camel(missing[0])}: is missing; say it in the manifest")
    return kind(**present)


def _required(kind: type[Any]) -> list[str]:
    return [name for name in kind.__dataclass_fields__ if not hasattr(kind, name) and name not in ("columns",)]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _camel(name: str) -> str:
    return re.sub(r"_(\w)", lambda match: match[1].upper(), name)
