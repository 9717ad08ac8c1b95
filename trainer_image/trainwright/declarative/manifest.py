"""Typed views of the spec's ``model``, ``dataset`` and ``sample``, with Python names.

The operator has checked types and bounds. An unknown key comes from a newer operator; it is an error, because ignoring
it would train something other than requested.
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
"""The tokenizer without a file: one token for each byte."""


@dataclass(frozen=True)
class ModelSpec:
    """``spec.model``: saved weights (a folder or a hub id), or new ones from a configuration."""

    source: str
    revision: str | None = None
    from_config: Mapping[str, Any] | None = None
    """Changes to the configuration of ``source``; if present, even empty, the weights are new."""
    tokenizer: str | None = None
    trust_remote_code: bool = False
    dtype: str | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """``spec.dataset``: the source of the rows, which of them to use, and how they become features."""

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
    """``spec.sample``: the text that the trained model generates at the end."""

    prompts: tuple[str, ...]
    max_new_tokens: int = 128
    temperature: float = 1.0
    """0 for greedy decoding."""


def view(kind: type[T], values: Mapping[str, Any], place: str) -> T:
    """``values`` (camelCase keys) as a ``kind``; null means absent. Raises :class:`UserError` naming ``place``."""
    known = {_camel(f.name): f.name for f in fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise UserError(
                f"{place}.{key}: this trainer does not know the field{did_you_mean(key, known)}; "
                "use the trainer image of the operator's release"
            )
    present = {known[key]: _frozen(value) for key, value in values.items() if value is not None}
    if missing := [name for name in _required(kind) if name not in present]:
        raise UserError(f"{place}.{_camel(missing[0])}: is missing; set it in the manifest")
    return kind(**present)


def _required(kind: type[Any]) -> list[str]:
    return [name for name in kind.__dataclass_fields__ if not hasattr(kind, name) and name not in ("columns",)]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _camel(name: str) -> str:
    return re.sub(r"_(\w)", lambda match: match[1].upper(), name)
