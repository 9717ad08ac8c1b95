"""Declares an object of a manifest once, as a dataclass; schema, documented defaults and parser follow from it.

    @dataclass(frozen=True)
    class Output:
        \"\"\"Where checkpoints go.\"\"\"

        sub_path: Annotated[str | None, string("The folder in the volume.", 1024), Default("the job's name")] = None
        adopt: Annotated[bool, boolean("Continue from another job's checkpoints.")] = False

declares ``{subPath: ..., adopt: ...}`` in a manifest. A field belongs to the manifest if its annotation holds a schema
or its type is another dataclass of this kind; other fields exist only in Python. The first paragraph of the docstring
describes the object. A static method ``rules()`` returns the rules over several fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import lru_cache
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from trainwright_operator.api import mirror
from trainwright_operator.api.types import Schema, record

T = TypeVar("T")


@dataclass(frozen=True)
class Default:
    """Describes what happens if the field is absent, when the default is not a constant."""

    prose: str


@dataclass(frozen=True)
class Missing:
    """The message for a required field that is missing."""

    message: str


class Mutable:
    """Marks a field that may change after creation; the others are immutable."""


@dataclass(frozen=True)
class Declared:
    """One field: ``name`` in Python, ``key`` in a manifest."""

    name: str
    key: str
    type: Any
    schema: Schema
    required: bool
    marks: tuple[Any, ...]

    @property
    def missing(self) -> str | None:
        return next((mark.message for mark in self.marks if isinstance(mark, Missing)), None)

    @property
    def mutable(self) -> bool:
        return Mutable in self.marks

    def read(self, value: Any) -> Any:
        """Converts a validated value of the manifest to the value of the dataclass."""
        if is_dataclass(self.type):
            return parse(cast(type[Any], self.type), value)
        return tuple(value) if isinstance(value, list) else value


def schema(cls: Any) -> Schema:
    """The schema that ``cls`` declares."""
    known = declared(cls)
    required = {field.key: field.missing for field in known if field.required}
    messages = {key: message for key, message in required.items() if message}
    found = record(
        _first_paragraph(cls.__doc__ or ""),
        {field.key: field.schema for field in known},
        required=list(required),
        rules=cls.rules() if hasattr(cls, "rules") else (),
    )
    return found | ({"_missing": messages} if messages else {})


def parse(cls: type[T], data: Mapping[str, Any]) -> T:
    """The object of a manifest that is valid by ``schema(cls)``."""
    return cls(**read(cls, data))


def read(cls: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``cls`` that a valid manifest sets."""
    return {field.name: field.read(data[field.key]) for field in declared(cls) if field.key in data}


@lru_cache
def declared(cls: Any) -> tuple[Declared, ...]:
    """The fields that belong to the manifest, in the order of the class."""
    hints = get_type_hints(cls, include_extras=True)
    found = (_declared(field, hints[field.name]) for field in fields(cls))
    return tuple(field for field in found if field is not None)


def _declared(field: Field[Any], hint: Any) -> Declared | None:
    bare, *marks = get_args(hint) if get_origin(hint) is not None and hasattr(hint, "__metadata__") else [hint]
    shape = next((mark for mark in marks if isinstance(mark, dict)), None)
    if shape is None and not is_dataclass(bare):
        return None
    shape = schema(bare) if shape is None else shape
    prose = f"{shape['description']}{_may_change(marks)}{_default(field, marks)}"
    required = field.default is MISSING and field.default_factory is MISSING
    return Declared(field.name, mirror.camel(field.name), bare, {**shape, "description": prose}, required, tuple(marks))


def _may_change(marks: list[Any]) -> str:
    return " May be changed." if Mutable in marks else ""


def _default(field: Field[Any], marks: list[Any]) -> str:
    prose = next((mark.prose for mark in marks if isinstance(mark, Default)), None)
    if prose is None and isinstance(field.default, bool):
        prose = str(field.default).lower()
    if prose is None and isinstance(field.default, int | float | str):
        prose = str(field.default)
    return f" Default: {prose}." if prose else ""


def _first_paragraph(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split())
