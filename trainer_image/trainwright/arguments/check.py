"""Checks each value against its field: type, choices, bounds. Pure; the error messages matter most.

Values are converted as in transformers if that is unambiguous: JSON text to a mapping, an enum to its value, a path
object to text, a numpy scalar to a number, ``1e3`` to a whole number. Other values are errors with a message.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import Enum
from typing import Any, TypeVar

from trainwright import rules

from . import deepspeed, sharding
from .accelerator import AcceleratorConfig
from .errors import ArgumentError, Mistake, Problem, UnknownArgumentError, hidden, refusal, shown
from .fields import FIELDS, FieldInfo
from .names import not_one_of, unknown
from .shapes import KINDS
from .sharding import is_on

N = TypeVar("N", int, float)


def coerce(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The converted values, and a problem for each value that cannot be converted, which stays as it was."""
    taken, problems = dict(values), []
    for name, value in values.items():
        try:
            taken[name] = coerce_one(FIELDS[name], value)
        except Mistake as mistake:
            problems.append(Problem(name, str(mistake), mistake.raised))
    return taken, problems


def coerce_one(info: FieldInfo, value: Any) -> Any:
    """``value``, converted to the type of the field. Raises :class:`Mistake`."""
    value = _plain(value)
    if value is None or (info.name.endswith("_token") and value == hidden(info.name)):
        return _absent(info)
    return _BY_FIELD.get(info.name, _BY_KIND[info.kind])(info, value)


def _plain(value: Any) -> Any:
    """The plain Python value of an enum member, a numpy scalar or a path object."""
    if isinstance(value, Enum):
        return value.value
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def _absent(info: FieldInfo) -> None:
    if not info.optional:
        raise Mistake(f"must not be None; leave it out for {info.default!r}")


def _bool(info: FieldInfo, value: Any) -> bool:
    if not isinstance(value, bool):
        raise Mistake(f"must be true or false, not {_typed(info, value)}{_unquoted(value, ('true', 'false'))}")
    return value


def _int(info: FieldInfo, value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise Mistake(f"must be a whole number, not {_typed(info, value)}{_unquoted_number(value)}")
    return _within(info, value)


def _float(info: FieldInfo, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise Mistake(f"must be a number, not {_typed(info, value)}{_unquoted_number(value)}")
    if not math.isfinite(value):
        raise Mistake(f"must be a finite number, not {value}")
    return _within(info, value)


def _within(info: FieldInfo, number: N) -> N:
    if info.minimum is not None and number < info.minimum:
        raise Mistake(f"must be at least {info.minimum}, not {number}")
    if info.maximum is not None and number > info.maximum:
        raise Mistake(f"must be at most {info.maximum}, not {number}")
    if info.exclusive_minimum is not None and number <= info.exclusive_minimum:
        raise Mistake(f"must be above {info.exclusive_minimum}, not {number}")
    if info.exclusive_maximum is not None and number >= info.exclusive_maximum:
        raise Mistake(f"must be below {info.exclusive_maximum}, not {number}")
    return number


def _str(info: FieldInfo, value: Any) -> str:
    if not isinstance(value, str):
        raise Mistake(f"must be text, not {_typed(info, value)}")
    if info.pattern is not None and not re.search(info.pattern, value):
        raise Mistake(f"must be {info.form}, not {shown(info.name, value)}")
    return value


def _enum(info: FieldInfo, value: Any) -> Any:
    choices = info.choices or ()
    if value is False and "no" in choices:
        raise Mistake('is the boolean false; write "no" in quotes, since a bare no is a boolean in YAML')
    if value not in choices:
        raise Mistake(f"{shown(info.name, value)} {not_one_of(value, choices)}")
    return info.enum(value) if info.enum else value


def _bool_or_enum(info: FieldInfo, value: Any) -> Any:
    return value if isinstance(value, bool) else _enum(info, value)


def _bool_or_str(info: FieldInfo, value: Any) -> Any:
    return value if isinstance(value, bool) else _str(info, value)


def _texts(info: FieldInfo, value: Any) -> list[str]:
    if isinstance(value, str):
        raise Mistake(f"must be a list of texts, not a text; write [{value!r}]")
    if not isinstance(value, (list, tuple)):
        raise Mistake(f"must be a list of texts, not {_typed(info, value)}")
    return [_element(info, _plain(element)) for element in value]


def _element(info: FieldInfo, element: Any) -> str:
    if not isinstance(element, str):
        raise Mistake(f"must hold texts only, not {_typed(info, element)}")
    if info.choices and element not in info.choices:
        raise Mistake(f"{element!r} {not_one_of(element, info.choices)}")
    return element


def _text_or_texts(info: FieldInfo, value: Any) -> Any:
    if not isinstance(value, str):
        return _texts(info, value)
    for element in value.split() if info.choices else ():
        _element(info, element)
    return value


def _object(info: FieldInfo, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = _parsed(info.name, value, info.kind)
    if not isinstance(value, Mapping):
        raise Mistake(f"must be {KINDS[info.kind]}, not {_typed(info, value)}")
    wrong = next((key for key in value if not isinstance(key, str)), None)
    if wrong is not None:
        raise Mistake(f"must have texts for keys, not {wrong!r}")
    return dict(value)


def object_of(name: str, value: Any) -> Any:
    """Parses a text that begins like a JSON object, for a field that a subclass of the arguments adds.

    Raises :class:`ArgumentError`.
    """
    if not isinstance(value, str) or not value.startswith("{"):
        return value
    try:
        return _parsed(name, value, "object|path")
    except Mistake as mistake:
        raise ArgumentError([Problem(name, str(mistake))]) from None


def _parsed(name: str, text: str, kind: str) -> Any:
    """Parses JSON text to a mapping; texts inside that look like numbers or booleans are converted to these."""
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise Mistake(f"must be {KINDS[kind]}; {shown(name, text)} is not JSON: {error}") from None
    return _typed_values(parsed) if isinstance(parsed, dict) else parsed


def _typed_values(mapping: dict[str, Any]) -> dict[str, Any]:
    return {key: _typed_value(value) for key, value in mapping.items()}


def _typed_value(value: Any) -> Any:
    if isinstance(value, dict):
        return _typed_values(value)
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    if value.isdecimal():
        return int(value)
    return float(value) if value.replace(".", "", 1).isdecimal() else value


def _object_or_path(info: FieldInfo, value: Any) -> Any:
    if isinstance(value, str) and not value.startswith("{"):
        return value
    if not isinstance(value, (str, Mapping)) and hasattr(value, "to_dict"):
        return value
    return _object(info, value)


def _accelerator_config(info: FieldInfo, value: Any) -> AcceleratorConfig:
    return AcceleratorConfig.of(value if isinstance(value, type) else _object_or_path(info, value))


def _fsdp(info: FieldInfo, value: Any) -> Any:
    """A list of words, as older versions of transformers take it, becomes one text."""
    words = sharding.words(_bool_or_str(info, value) if not isinstance(value, list | tuple) else value)
    if isinstance(value, bool) or value == "":
        return value
    return is_on(value) and (" ".join(words) or True)


def _fsdp_config(info: FieldInfo, value: Any) -> dict[str, Any] | None:
    config = sharding.read_file(_object_or_path(info, value))
    sharding.read(None, config)
    nothing = sharding.completed(None, None)
    return config if any(key not in nothing or nothing[key] != setting for key, setting in config.items()) else None


def _deepspeed(info: FieldInfo, value: Any) -> Any:
    """The value as it was given, as in transformers, because scripts read it."""
    config = _object_or_path(info, value)
    deepspeed.check(config)
    return config


def _parallelism_config(info: FieldInfo, value: Any) -> Any:
    is_larger = any(size > 1 for size in sharding.axes(value).values())
    return (dict(value) if isinstance(value, Mapping) else value) if is_larger else None


def _opaque(info: FieldInfo, value: Any) -> Any:
    return value


_BY_FIELD: dict[str, Callable[[FieldInfo, Any], Any]] = {
    "accelerator_config": _accelerator_config,
    "deepspeed": _deepspeed,
    "fsdp": _fsdp,
    "fsdp_config": _fsdp_config,
    "parallelism_config": _parallelism_config,
}

_BY_KIND: dict[str, Callable[[FieldInfo, Any], Any]] = {
    "bool": _bool,
    "int": _int,
    "float": _float,
    "str": _str,
    "enum": _enum,
    "bool|enum": _bool_or_enum,
    "bool|str": _bool_or_str,
    "list[str]": _texts,
    "str|list[str]": _text_or_texts,
    "object": _object,
    "object|path": _object_or_path,
    "opaque": _opaque,
}


def _typed(info: FieldInfo, value: Any) -> str:
    """A value with its type, for a message: ``the text '3e-4'``."""
    kinds = {str: "the text", bool: "the boolean", int: "the number", float: "the number", list: "the list"}
    kind = kinds.get(type(value), f"the {type(value).__name__}")
    return f"{kind} {shown(info.name, value)}"


def _unquoted_number(value: Any) -> str:
    """The hint for a text that looks like a number. YAML also reads 3e-4 as text, because it has no decimal point."""
    if not isinstance(value, str):
        return ""
    if re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", value):
        digits, exponent = re.split("[eE]", value)
        return f"; write {digits}.0e{exponent} without quotes (YAML wants the point)"
    try:
        float(value)
    except ValueError:
        return ""
    return "; write it without quotes"


def _unquoted(value: Any, literals: Iterable[str]) -> str:
    return "; write it without quotes" if isinstance(value, str) and value.lower() in literals else ""


def checked(values: Mapping[str, Any], across: bool = True) -> dict[str, Any]:
    """Checks and converts ``values`` (field -> value, any subset; absent ones mean their defaults).

    ``across`` also checks the rules that span fields. Raises :class:`ArgumentError`.
    """
    taken, problems = coerce(values)
    wrong = {problem.field for problem in problems}
    if across:
        sound = {name: value for name, value in taken.items() if name not in wrong}
        problems += [*_broken_rules(taken, wrong), *_accumulation_conflict(sound), *_recomputed_twice(sound)]
        problems += [*_deepspeed_conflicts(sound), *_computed_in_two(sound)]
    if problems:
        raise refusal(problems)
    return taken


def _accumulation_conflict(values: Mapping[str, Any]) -> list[Problem]:
    """A problem if accelerate's name and ours for the accumulated batches have different values."""
    config, steps = values.get("accelerator_config"), values.get("gradient_accumulation_steps", 1)
    num_steps = (getattr(config, "gradient_accumulation_kwargs", None) or {}).get("num_steps", steps)
    if steps in (1, num_steps):
        return []
    message = f"{steps} here, and num_steps {num_steps} in accelerator_config.gradient_accumulation_kwargs; keep one"
    return [Problem("gradient_accumulation_steps", message)]


def _recomputed_twice(values: Mapping[str, Any]) -> list[Problem]:
    """A problem if both the model and FSDP should recompute activations, as in transformers."""
    config = values.get("fsdp_config")
    by_fsdp = str((config or {}).get("activation_checkpointing", False)).lower() == "true"
    name = next((name for name in ("activation_checkpointing", "gradient_checkpointing") if values.get(name)), None)
    if name is None or not (by_fsdp and is_on(values.get("fsdp"))):
        return []
    message = "fsdp_config.activation_checkpointing does the same per unit; keep that one, which gathers weights once"
    return [Problem(name, message)]


def _computed_in_two(values: Mapping[str, Any]) -> list[Problem]:
    """A problem if ``bf16`` or ``fp16``, and the precision of ``fsdp_config``, are two formats of 16 bits."""
    config, args = values.get("fsdp_config"), {"bf16": "bfloat16", "fp16": "float16"}
    given = None if not is_on(values.get("fsdp")) else sharding.read(values["fsdp"], config).param_dtype
    name = next((name for name in args if values.get(name)), None)
    if name is None or given not in args.values() or given == args[name]:
        return []
    return [Problem("fsdp_config", f"mixed_precision_policy computes in {given}, and {name} in {args[name]}; keep one")]


def _deepspeed_conflicts(values: Mapping[str, Any]) -> list[Problem]:
    """A problem for each key of ``deepspeed`` that has another value than the argument of the same meaning."""
    if not values.get("deepspeed"):
        return []
    complete = {name: info.default for name, info in FIELDS.items()} | dict(values)
    found = deepspeed.conflicts(deepspeed.read_file(values["deepspeed"]), complete)
    return [Problem("deepspeed", line) for line in found]


def refuse_unknown(values: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises :class:`UnknownArgumentError` for names that are not ``known``, with all other problems of ``values``."""
    problems = unknown(values, known)
    if not problems:
        return
    try:
        checked({name: value for name, value in values.items() if name in known and name in FIELDS})
    except ArgumentError as error:
        problems += error.problems
    raise UnknownArgumentError(problems)


def _broken_rules(values: Mapping[str, Any], wrong: Collection[str]) -> list[Problem]:
    complete = {name: info.default for name, info in FIELDS.items()} | dict(values)
    return [Problem(rule.fields[0], rule.message) for rule in rules.violations(complete, wrong)]
