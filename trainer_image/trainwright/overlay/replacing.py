"""What is replaced: the Trainers, and the classes of the objects that a Trainer creates.

A replacement derives from both classes, ours first. So ``isinstance`` is true for both, and attributes that a newer
transformers adds to its class exist. Not replaced, because our Trainer accepts them as they are: the arguments (from
which libraries derive theirs), ``TrainerCallback`` and all callbacks, collators, enums, functions.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from trainwright.contract import UserError

logger = logging.getLogger(__name__)

KNOWN = ("5.24",)
"""The versions of transformers that the overlay is tested with."""

# A Trainer creates these and passes them on. A library that creates one passes it to our Trainer.
_EXCHANGED = {"transformers.trainer_callback": ("TrainerState", "TrainerControl", "CallbackHandler")}
# Only a Trainer creates these: our objects must be instances of their classes, whose names need no replacement.
_MADE = {
    "transformers.trainer_callback": ("TrainerCallback", "DefaultFlowCallback", "PrinterCallback", "ProgressCallback"),
    "transformers.trainer_utils": ("EvalPrediction",),
}
# A named tuple cannot derive from two classes: our Trainer creates theirs.
_TUPLES = {"transformers.trainer_utils": ("EvalLoopOutput", "PredictionOutput", "TrainOutput")}
_TRAINERS = {"transformers.trainer": ("Trainer",)}
_SEQ2SEQ = {"transformers.trainer_seq2seq": ("Seq2SeqTrainer",)}


def replace_trainer() -> None:
    """Replace the Trainer of transformers, and the classes of the objects that it creates, by ours.

    Raises:
        UserError: this transformers lacks one of the classes; nothing is replaced then.
    """
    theirs = {name: cls for part in (_TRAINERS, _EXCHANGED, _MADE, _TUPLES) for name, cls in _find(part).items()}
    if importlib.util.find_spec("transformers.trainer_seq2seq") is None:
        raise _lacking(["transformers.trainer_seq2seq"])
    ours = _ours({*theirs} | {"Seq2SeqTrainer"})
    tuples = {name: theirs[name] for name in _names(_TUPLES)}
    for name, cls in tuples.items():
        if cls._fields != ours[name]._fields:
            raise _lacking([f"{cls.__module__}.{name} with the fields {', '.join(ours[name]._fields)}"])
    both = {name: _both(ours[name], theirs[name]) for name in theirs if name not in tuples}
    _rebase_subclasses(ours["TrainerCallback"], both["TrainerCallback"])  # our callbacks are instances of theirs too
    _warn_about_overrides(both["Trainer"], theirs["Trainer"], ours["Trainer"])
    exchanged = {theirs[name]: both[name] for name in ("Trainer", *_names(_EXCHANGED))}
    _swap({**{ours[name]: new for name, new in {**both, **tuples}.items()}, **exchanged})
    seq2seq = sys.modules.get("transformers.trainer_seq2seq")
    _rebase_subclasses(theirs["Trainer"], both["Trainer"], vars(seq2seq).get("Seq2SeqTrainer") if seq2seq else None)


def replace_seq2seq() -> None:
    """The same for ``Seq2SeqTrainer``, which derives from the Trainer at the time of its import."""
    theirs = _find(_SEQ2SEQ)["Seq2SeqTrainer"]
    trainer, ours = _ours(["Trainer"])["Trainer"], _ours(["Seq2SeqTrainer"])["Seq2SeqTrainer"]
    new = _both(ours, trainer)
    _swap({ours: new, theirs: new})
    _rebase_subclasses(theirs, new)


def _names(places: Mapping[str, Iterable[str]]) -> list[str]:
    return [name for names in places.values() for name in names]


def _find(places: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    modules = {place: importlib.import_module(place) for place in places}
    missing = [
        f"{place}.{name}" for place, names in places.items() for name in names if name not in vars(modules[place])
    ]
    if missing:
        raise _lacking(missing)
    return {name: vars(modules[place])[name] for place, names in places.items() for name in names}


def _lacking(missing: list[str]) -> UserError:
    from transformers import __version__

    return UserError(
        f"trainwright.overlay: transformers {__version__} has no {', '.join(missing)}; nothing was replaced; "
        f"install one of {', '.join(KNOWN)}, or leave the overlay out"
    )


def _ours(names: Iterable[str]) -> dict[str, Any]:
    import trainwright

    return {name: getattr(trainwright, name) for name in names}


def _both(ours: type, theirs: type) -> type:
    """A class that derives from both, with the name and the module of ours."""
    names = {"__module__": ours.__module__, "__qualname__": ours.__qualname__, "__doc__": ours.__doc__}
    return type(ours)(ours.__name__, (ours, theirs), names)


def _swap(new: Mapping[type, type]) -> None:
    """Replace each class by its successor, in all imported modules and under any name."""
    by_id = {id(old): successor for old, successor in new.items()}
    for names in map(vars, _modules()):
        for name, value in list(names.items()):
            if (successor := by_id.get(id(value))) is not None:
                names[name] = successor


def _modules() -> list[ModuleType]:
    """All imported modules and those they refer to: transformers recreates modules while old ones are in use."""
    imported = [module for module in [*sys.modules.values()] if _is_module(module)]
    held = [value for module in imported for value in [*vars(module).values()] if _is_module(value)]
    return [*{id(module): module for module in (*imported, *held)}.values()]


def _is_module(value: object) -> bool:
    return issubclass(type(value), ModuleType)  # isinstance would load the lazy proxies in some modules


def _rebase_subclasses(old: type, new: type, except_for: type | None = None) -> None:
    """Make ``new`` the base of the classes that were derived from ``old`` before it was replaced."""
    derived: list[Any] = old.__subclasses__()
    for cls in derived:
        if cls is new or cls is except_for:
            continue
        try:
            cls.__bases__ = tuple(new if base is old else base for base in cls.__bases__)
        except TypeError as error:
            raise UserError(
                f"trainwright.overlay: {cls.__module__}.{cls.__qualname__} was derived from transformers' Trainer "
                f"before and cannot be moved to ours ({error}); make import trainwright.overlay the script's first line"
            ) from None


def _warn_about_overrides(both: type, theirs: type, ours: type) -> None:
    """Warn about methods of a subclass that only the loop of transformers would call."""
    never_called = {name for name in dir(theirs) if callable(getattr(theirs, name)) and not hasattr(ours, name)}

    def __init_subclass__(cls: Any, **kwargs: Any) -> None:  # noqa: N807
        super(both, cls).__init_subclass__(**kwargs)  # type: ignore[arg-type]
        if overridden := sorted(never_called & vars(cls).keys()):
            logger.warning(
                "%s overrides %s of transformers' Trainer, which Trainwright's never calls",
                cls.__qualname__,
                ", ".join(overridden),
            )

    both.__init_subclass__ = classmethod(__init_subclass__)  # type: ignore[assignment, method-assign, arg-type]
