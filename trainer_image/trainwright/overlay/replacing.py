"""What is replaced: the Trainers, and the classes of what a Trainer makes.

A replacement is of both classes, ours first: ``isinstance`` holds by either name, and what a newer transformers adds
to its class is there. Of transformers are left alone, because ours takes them as they are: the arguments (libraries
derive theirs from them), ``TrainerCallback`` and all callbacks, collators, enums, functions.
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

# What a Trainer makes and hands out. A library that makes one of these itself hands it to our Trainer.
_EXCHANGED = {"transformers.trainer_callback": ("TrainerState", "TrainerControl", "CallbackHandler")}
# What only a Trainer makes: ours shall be an instance of theirs, and their name may stay.
_MADE = {
    "transformers.trainer_callback": ("TrainerCallback", "DefaultFlowCallback", "PrinterCallback", "ProgressCallback"),
    "transformers.trainer_utils": ("EvalPrediction",),
}
# Tuples with named fields cannot be of two classes: ours makes theirs.
_TUPLES = {"transformers.trainer_utils": ("EvalLoopOutput", "PredictionOutput", "TrainOutput")}
_TRAINERS = {"transformers.trainer": ("Trainer",)}
_SEQ2SEQ = {"transformers.trainer_seq2seq": ("Seq2SeqTrainer",)}


def replace_trainer() -> None:
    """Put our Trainer, and what it makes, in the place of transformers'.

    Raises:
        UserError: this transformers lacks something of it; nothing is replaced then.
    """
    theirs = {name: cls for part in (_TRAINERS, _EXCHANGED, _MADE, _TUPLES) for name, cls in _looked_for(part).items()}
    if importlib.util.find_spec("transformers.trainer_seq2seq") is None:
        raise _lacking(["transformers.trainer_seq2seq"])
    ours = _ours({*theirs} | {"Seq2SeqTrainer"})
    tuples = {name: theirs[name] for name in _names(_TUPLES)}
    for name, cls in tuples.items():
        if cls._fields != ours[name]._fields:
            raise _lacking([f"{cls.__module__}.{name} with the fields {', '.join(ours[name]._fields)}"])
    both = {name: _both(ours[name], theirs[name]) for name in theirs if name not in tuples}
    _derive_anew(ours["TrainerCallback"], both["TrainerCallback"])  # so that our own callbacks are of theirs as well
    _watch_overrides(both["Trainer"], theirs["Trainer"], ours["Trainer"])
    exchanged = {theirs[name]: both[name] for name in ("Trainer", *_names(_EXCHANGED))}
    _swap({**{ours[name]: new for name, new in {**both, **tuples}.items()}, **exchanged})
    seq2seq = sys.modules.get("transformers.trainer_seq2seq")
    _derive_anew(theirs["Trainer"], both["Trainer"], but=vars(seq2seq).get("Seq2SeqTrainer") if seq2seq else None)


def replace_seq2seq() -> None:
    """The same for ``Seq2SeqTrainer``, which derives from whatever Trainer there was when it was imported."""
    theirs = _looked_for(_SEQ2SEQ)["Seq2SeqTrainer"]
    trainer, ours = _ours(["Trainer"])["Trainer"], _ours(["Seq2SeqTrainer"])["Seq2SeqTrainer"]
    new = _both(ours, trainer)
    _swap({ours: new, theirs: new})
    _derive_anew(theirs, new)


def _names(places: Mapping[str, Iterable[str]]) -> list[str]:
    return [name for names in places.values() for name in names]


def _looked_for(places: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    modules = {place: importlib.import_module(place) for place in places}
    missing = [
        f"{place}.{name}" for place, names in places.items() for name in names if name not in vars(modules[place])
    ]
    if missing:
        raise _lacking(missing)
    return {name: vars(modules[place])[name] for place, names in places.items() for name in names}


def _lacking(missing: list[str]) -> UserError:
    from transformers import __version__

    from trainwright.overlay.arrival import KNOWN

    return UserError(
        f"trainwright.overlay: transformers {__version__} has no {', '.join(missing)}; nothing was replaced; "
        f"install one of {', '.join(KNOWN)}, or leave the overlay out"
    )


def _ours(names: Iterable[str]) -> dict[str, Any]:
    import trainwright

    return {name: getattr(trainwright, name) for name in names}


def _both(ours: type, theirs: type) -> type:
    """A class of both, which goes by the name and the place of ours."""
    names = {"__module__": ours.__module__, "__qualname__": ours.__qualname__, "__doc__": ours.__doc__}
    return type(ours)(ours.__name__, (ours, theirs), names)


def _swap(new: Mapping[type, type]) -> None:
    """Each class for its successor, wherever a module that is imported has it under any name."""
    by_id = {id(old): successor for old, successor in new.items()}
    for names in map(vars, _modules()):
        for name, value in list(names.items()):
            if (successor := by_id.get(id(value))) is not None:
                names[name] = successor


def _modules() -> list[ModuleType]:
    """All that is imported, and what their names hold: transformers makes itself anew and leaves its users the old."""
    imported = [module for module in [*sys.modules.values()] if _is_module(module)]
    held = [value for module in imported for value in [*vars(module).values()] if _is_module(value)]
    return [*{id(module): module for module in (*imported, *held)}.values()]


def _is_module(value: object) -> bool:
    return issubclass(type(value), ModuleType)  # isinstance would wake the proxies that some modules hold


def _derive_anew(old: type, new: type, but: type | None = None) -> None:
    """Give ``new`` for base to the classes that were derived from ``old`` before it was replaced."""
    derived: list[Any] = old.__subclasses__()
    for cls in derived:
        if cls is new or cls is but:
            continue
        try:
            cls.__bases__ = tuple(new if base is old else base for base in cls.__bases__)
        except TypeError as error:
            raise UserError(
                f"trainwright.overlay: {cls.__module__}.{cls.__qualname__} was derived from transformers' Trainer "
                f"before and cannot be led to ours ({error}); make import trainwright.overlay the script's first line"
            ) from None


def _watch_overrides(both: type, theirs: type, ours: type) -> None:
    """Say of a subclass which of its methods only transformers' own loop would call."""
    unheard = {name for name in dir(theirs) if callable(getattr(theirs, name)) and not hasattr(ours, name)}

    def __init_subclass__(cls: Any, **kwargs: Any) -> None:  # noqa: N807
        super(both, cls).__init_subclass__(**kwargs)  # type: ignore[arg-type]
        if overridden := sorted(unheard & vars(cls).keys()):
            logger.warning(
                "%s overrides %s of transformers' Trainer, which Trainwright's never calls",
                cls.__qualname__,
                ", ".join(overridden),
            )

    both.__init_subclass__ = classmethod(__init_subclass__)  # type: ignore[assignment, method-assign, arg-type]
