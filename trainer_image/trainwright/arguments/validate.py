"""All checks together: names, values, what spans them, and what is not built. Pure; every mistake comes out at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from trainwright import rules

from .check import coerce
from .errors import ArgumentError, NotBuiltError, Problem, UnknownArgumentError, refusal
from .fields import FIELDS
from .names import unknown
from .refused import refusals


def checked(values: Mapping[str, Any], across: bool = True) -> dict[str, Any]:
    """``values`` (field -> value, any subset; absent ones stand for their defaults) as the fields hold them.

    ``across`` looks at what spans fields too. Raises :class:`ArgumentError` or :class:`NotBuiltError`.
    """
    taken, problems = coerce(values)
    wrong = {problem.field for problem in problems}
    unbuilt = refusals({name: value for name, value in taken.items() if name not in wrong})
    if across:
        problems += [*_broken_rules(taken, wrong), *_said_twice({n: v for n, v in taken.items() if n not in wrong})]
    if problems:
        raise refusal([*problems, *unbuilt])
    if unbuilt:
        raise NotBuiltError(unbuilt)
    return taken


def _said_twice(values: Mapping[str, Any]) -> list[Problem]:
    """accelerate's name for the accumulated batches, and ours, with different numbers."""
    config, steps = values.get("accelerator_config"), values.get("gradient_accumulation_steps", 1)
    num_steps = (getattr(config, "gradient_accumulation_kwargs", None) or {}).get("num_steps", steps)
    if steps in (1, num_steps):
        return []
    said = f"{steps} here, and num_steps {num_steps} in accelerator_config.gradient_accumulation_kwargs; keep one"
    return [Problem("gradient_accumulation_steps", said)]


def refuse_unknown(values: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises :class:`UnknownArgumentError` for names that are not ``known``, with every other mistake in ``values``."""
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
