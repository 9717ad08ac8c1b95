"""The two classes: the groups of arguments joined, checked and completed."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from . import environment, groups
from .check import checked, object_of, refuse_unknown
from .derive import derive
from .devices import Devices
from .errors import hidden, refusal
from .fields import FIELDS
from .machine import installed_trackers, lacking
from .serial import Serial
from .setters import Setters


class Named:
    """Looks at the names before ``__init__`` does, which would stop at the first unknown one."""

    def __new__(cls, *args: Any, **values: Any) -> Any:
        if not values.keys() <= cls.__dataclass_fields__.keys():  # type: ignore[attr-defined]
            parameters = inspect.signature(cls).parameters
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
                refuse_unknown(values, parameters)
        return super().__new__(cls)


# Dataclass fields are collected from the last base to the first, and the order is that of Hugging Face's positions.
@dataclass(repr=False)
class TrainingArguments(
    groups.Diagnosis,
    groups.Sharding,
    groups.DistributedDataParallel,
    groups.DataLoading,
    groups.Determinism,
    groups.BestModel,
    groups.Hub,
    groups.Checkpoints,
    groups.Evaluation,
    groups.Logging,
    groups.Memory,
    groups.Precision,
    groups.Stability,
    groups.Optimization,
    groups.LearningRate,
    groups.Duration,
    Setters,
    Serial,
    Devices,
    Named,
):
    """Everything that says how to train, with the names and defaults of Hugging Face's class of this name.

    Attributes can be changed afterwards; :meth:`check` then looks at them again. Raises ``ArgumentError`` (a
    ``ValueError``) with every mistake at once, one line each, and ``NotBuiltError`` (a ``NotImplementedError``) for an
    argument whose effect Trainwright does not have yet. What each argument does stands in
    :data:`trainwright.arguments.fields.FIELDS` and in the manual.
    """

    default_optim: ClassVar[str] = "adamw_torch_fused"
    is_torch_greater_or_equal_than_2_8: ClassVar[bool] = True
    _VALID_DICT_FIELDS: ClassVar[list[str]] = [name for name, info in FIELDS.items() if info.kind.startswith("object")]
    """Fields that may be given as JSON text; a subclass adds its own, for its command line."""

    # Sharding is not built: there are no plugins of accelerate for it.
    deepspeed_plugin: ClassVar[None] = None
    fsdp_plugin_args: ClassVar[None] = None

    def __post_init__(self) -> None:
        self.check()
        self._take_state()

    def check(self) -> None:
        """Checks every argument, completes those that follow from others, and looks whether this machine can do it.

        Raises :class:`ArgumentError`.
        """
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name in FIELDS}
        if values["report_to"] in ("all", ["all"]):
            values["report_to"] = installed_trackers()
        values = checked(values | environment.settings(values))
        for name, value in values.items():
            setattr(self, name, value)
        for name in self._VALID_DICT_FIELDS:
            if name not in FIELDS:
                setattr(self, name, object_of(name, getattr(self, name)))
        derive(self)
        self._validate_args()

    def _validate_args(self) -> None:
        """Looks whether this machine can do what is asked; a subclass may look at what is its own.

        Raises :class:`ArgumentError`.
        """
        if problems := lacking(self):
            raise refusal(problems)

    def __str__(self) -> str:
        shown = {k: hidden(k) if k.endswith("_token") else v for k, v in asdict(self).items()}
        lines = "".join(f"{name}={value},\n" for name, value in sorted(shown.items()))
        return f"{type(self).__name__}(\n{lines})"

    __repr__ = __str__


@dataclass(repr=False)
class Seq2SeqTrainingArguments(groups.Generation, TrainingArguments):
    """:class:`TrainingArguments` and what only models that write a new sequence need."""


def _document(cls: type, seq2seq: bool) -> None:
    """Appends what each argument does, for ``help()`` and notebooks."""
    lines = (f"{name}: {info.description}" for name, info in FIELDS.items() if info.seq2seq <= seq2seq)
    cls.__doc__ = "\n    ".join([f"{cls.__doc__}\n\n    Args:", *(f"    {line}" for line in lines)])


_document(TrainingArguments, seq2seq=False)
_document(Seq2SeqTrainingArguments, seq2seq=True)
