"""A table of all arguments with their properties, for the schema, the manual and the checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass
from dataclasses import fields as dataclass_fields
from typing import Any, get_type_hints

from .groups import GROUPS, Generation
from .shapes import Shape


@dataclass(frozen=True)
class FieldInfo:
    """One argument of ``TrainingArguments``.

    ``kind`` is a key of :data:`trainwright.arguments.shapes.KINDS`. ``optional`` means that ``None`` is allowed and
    means not given. For a list, ``choices`` are those of its elements. ``seq2seq`` marks the arguments that only
    ``Seq2SeqTrainingArguments`` has. Bounds are inclusive except for ``exclusive_*``. ``form`` describes ``pattern``.
    """

    name: str
    kind: str
    optional: bool
    default: Any
    choices: tuple[str, ...] | None
    minimum: float | None
    maximum: float | None
    exclusive_minimum: float | None
    exclusive_maximum: float | None
    pattern: str | None
    form: str | None
    description: str
    group: str
    seq2seq: bool
    enum: type | None


def _describe(field: Field[Any], shape: Shape, group: type) -> FieldInfo:
    return FieldInfo(
        name=field.name,
        kind=shape.kind,
        optional=shape.optional,
        default=field.default if field.default_factory is MISSING else field.default_factory(),
        choices=_choices(field, shape),
        minimum=shape.minimum,
        maximum=shape.maximum,
        exclusive_minimum=shape.exclusive_minimum,
        exclusive_maximum=shape.exclusive_maximum,
        pattern=shape.pattern,
        form=shape.form,
        description=field.metadata["help"],
        group=group._title,  # type: ignore[attr-defined]
        seq2seq=group is Generation,
        enum=shape.enum,
    )


def _choices(field: Field[Any], shape: Shape) -> tuple[str, ...] | None:
    if shape.enum is not None:
        return tuple(member.value for member in shape.enum)
    named = field.metadata.get("choices") or shape.choices
    return tuple(named) if named else None


def _infos() -> Iterator[FieldInfo]:
    for group in GROUPS:
        hints = get_type_hints(group, include_extras=True)
        for field in dataclass_fields(group):
            yield _describe(field, hints[field.name].__metadata__[0], group)


FIELDS: dict[str, FieldInfo] = {info.name: info for info in _infos()}
"""All arguments by name, in positional order."""
