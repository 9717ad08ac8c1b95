"""The shapes of argument values, as annotated types: the Python type, annotated with a :class:`Shape` for the checks.

``typing.get_type_hints`` without extras returns the plain types, as parsers that read a dataclass expect (for example
``HfArgumentParser``); :mod:`trainwright.arguments.fields` reads the annotations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, TypeVar, dataclass_transform

from trainwright.arguments.enums import (
    DebugOption,
    HubStrategy,
    IntervalStrategy,
    OptimizerNames,
    SaveStrategy,
    SchedulerType,
)


@dataclass(frozen=True, repr=False)
class Shape:
    """``kind`` is a key of :data:`KINDS`; bounds are for numbers, ``pattern`` for text, and ``form`` describes it.

    Choices may also be in the field's metadata, where argument parsers look for them.
    """

    kind: str
    optional: bool = False
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: float | None = None
    exclusive_maximum: float | None = None
    enum: type[Enum] | None = None
    choices: tuple[str, ...] | None = None
    pattern: str | None = None
    form: str | None = None

    def __repr__(self) -> str:
        bounds = {name: getattr(self, name) for name in ("minimum", "maximum", "exclusive_maximum")}
        said = "".join(f", {name}={bound}" for name, bound in bounds.items() if bound is not None)
        return f"Shape({self.kind!r}{said})"


KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "enum": "one of the choices",
    "bool|enum": "one of the choices, or true or false",
    "bool|str": "text, or true or false",
    "list[str]": "a list of texts",
    "str|list[str]": "a text or a list of texts",
    "object": "a mapping, or its JSON text",
    "object|path": "a mapping, its JSON text, or the path of a JSON file",
    "opaque": "an object that only Python can build",
}
"""The description of each kind."""

TRACKERS = (
    *("all", "none", "azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "kubeflow"),
    *("mlflow", "neptune", "swanlab", "tensorboard", "trackio", "wandb"),
)

KEY_VALUES = r"^\s*[^=,\s]+\s*=[^=,]+(,\s*[^=,\s]+\s*=[^=,]+)*$"
"""``key=value`` pairs separated by commas, the format of ``optim_args``."""

Flag = Annotated[bool, Shape("bool")]
MaybeFlag = Annotated[bool | None, Shape("bool", optional=True)]

Count = Annotated[int, Shape("int", minimum=1)]
MaybeCount = Annotated[int | None, Shape("int", optional=True, minimum=1)]
CountOrNone = Annotated[int, Shape("int", minimum=0)]
Limit = Annotated[int | None, Shape("int", optional=True, minimum=0)]
UnsetOrCount = Annotated[int, Shape("int", minimum=-1)]
Seed = Annotated[int, Shape("int", minimum=0, maximum=2**32 - 1)]
MaybeSeed = Annotated[int | None, Shape("int", optional=True, minimum=0, maximum=2**32 - 1)]

NonNegative = Annotated[float, Shape("float", minimum=0)]
MaybeNonNegative = Annotated[float | None, Shape("float", optional=True, minimum=0)]
Share = Annotated[float, Shape("float", minimum=0, maximum=1)]
Decay = Annotated[float, Shape("float", minimum=0, exclusive_maximum=1)]

Text = Annotated[str, Shape("str")]
MaybeText = Annotated[str | None, Shape("str", optional=True)]
MaybePath = Annotated[str | None, Shape("str", optional=True, pattern=r"\S", form="a path")]
KeyValues = Annotated[str | None, Shape("str", optional=True, pattern=KEY_VALUES, form="key=value with commas between")]
TextOrFlag = Annotated[str | None, Shape("bool|str", optional=True)]

Texts = Annotated[list[str], Shape("list[str]")]
MaybeTexts = Annotated[list[str] | None, Shape("list[str]", optional=True)]
TextOrTexts = Annotated[None | str | list[str], Shape("str|list[str]", optional=True)]  # noqa: RUF036 - for parsers

Choice = Annotated[str, Shape("enum")]
MaybeChoice = Annotated[str | None, Shape("enum", optional=True)]
TokenCounting = Annotated[str | bool, Shape("bool|enum", choices=("all", "non_padding", "no"))]
Trackers = Annotated[None | str | list[str], Shape("str|list[str]", optional=True, choices=TRACKERS)]  # noqa: RUF036
DebugOptions = Annotated[str | list[DebugOption], Shape("str|list[str]", optional=True, enum=DebugOption)]
Interval = Annotated[IntervalStrategy | str, Shape("enum", enum=IntervalStrategy)]
SaveInterval = Annotated[SaveStrategy | str, Shape("enum", enum=SaveStrategy)]
HubPush = Annotated[HubStrategy | str, Shape("enum", enum=HubStrategy)]
Scheduler = Annotated[SchedulerType | str, Shape("enum", enum=SchedulerType)]
Optimizer = Annotated[OptimizerNames | str, Shape("enum", enum=OptimizerNames)]

Object = Annotated[dict[str, Any] | str | None, Shape("object", optional=True)]
ObjectOrPath = Annotated[dict[str, Any] | str | None, Shape("object|path", optional=True)]
Sizes = Annotated[Any | None, Shape("object", optional=True)]
Generation = Annotated[str | object | None, Shape("object|path", optional=True)]
Opaque = Annotated[Any | None, Shape("opaque", optional=True)]


T = TypeVar("T")


@dataclass_transform()
def group(title: str) -> Callable[[type[T]], type[T]]:
    """Makes a dataclass of the arguments of one subject, without ``__init__``, which the class of all groups has."""

    def decorate(cls: type[T]) -> type[T]:
        cls._title = title  # type: ignore[attr-defined]
        cls.__doc__ = f"{title}."  # otherwise dataclass() computes a signature for it
        return dataclass(init=False, repr=False, eq=False)(cls)

    return decorate


def argument(default: Any, description: str, **for_parsers: Any) -> Any:
    """A field. ``for_parsers`` are keywords of ``argparse.add_argument``: ``choices``, ``nargs``, ``const``."""
    metadata = {"help": description, **for_parsers}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)
