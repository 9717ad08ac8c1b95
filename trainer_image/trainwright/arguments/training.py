"""The two classes of arguments: they join the groups, check the values and complete them."""

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
    """Checks the names before ``__init__``, which would stop at the first unknown one."""

    def __new__(cls, *args: Any, **values: Any) -> Any:
        if not values.keys() <= cls.__dataclass_fields__.keys():  # type: ignore[attr-defined]
            parameters = inspect.signature(cls).parameters
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
                refuse_unknown(values, parameters)
        return super().__new__(cls)


# Dataclass fields are collected from the last base to the first; the order matches transformers' positional arguments.
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
    """The settings of a training run, with the names and defaults of the class of this name in transformers.

    Attributes can be changed afterwards; :meth:`check` then checks them again. Raises ``ArgumentError`` (a
    ``ValueError``) with all problems at once, one line each, and ``NotBuiltError`` (a ``NotImplementedError``) for an
    argument whose effect Trainwright does not implement yet. :data:`trainwright.arguments.fields.FIELDS` and the manual
    describe each argument.
    """

    default_optim: ClassVar[str] = "adamw_torch_fused"
    is_torch_greater_or_equal_than_2_8: ClassVar[bool] = True
    _VALID_DICT_FIELDS: ClassVar[list[str]] = [name for name, info in FIELDS.items() if info.kind.startswith("object")]
    """Fields that may be given as JSON text; a subclass adds those of its command line."""

    # Sharding is not built: there are no plugins of accelerate for it.
    deepspeed_plugin: ClassVar[None] = None
    fsdp_plugin_args: ClassVar[None] = None

    def __post_init__(self) -> None:
        self.check()
        self._take_state()

    def check(self) -> None:
        """Checks every argument, derives missing ones, and checks that this machine supports them.

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
        """Checks that this machine supports the arguments; a subclass may add checks of its own arguments.

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
    """:class:`TrainingArguments`, plus the arguments of models that generate sequences."""


def _document(cls: type, seq2seq: bool) -> None:
    """Appends the description of each argument, for ``help()`` and notebooks."""
    lines = (f"{name}: {info.description}" for name, info in FIELDS.items() if info.seq2seq <= seq2seq)
    cls.__doc__ = "\n    ".join([f"{cls.__doc__}\n\n    Args:", *(f"    {line}" for line in lines)])


_document(TrainingArguments, seq2seq=False)
_document(Seq2SeqTrainingArguments, seq2seq=True)
