"""The manual of the arguments, from their fields.

``make manual`` writes the committed page, with the module and the test of each effect; a test finds drift.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from trainwright.rules import RULES

from .fields import FIELDS, FieldInfo
from .shapes import KINDS

_HEAD = """\
# Training arguments

The fields of `TrainingArguments` and `Seq2SeqTrainingArguments`: names, types, defaults and choices are those of
Hugging Face's classes. In a manifest they stand under `spec.trainingArguments` in camelCase
(`per_device_train_batch_size` is `perDeviceTrainBatchSize`). A field that is left out has its default.

Each has its effect in the module of `trainwright` that is named as *where*, and a test that fails without that effect:
`make prove` takes the effects away one by one and demands it. This page is written by `make manual`; change the fields,
not the page.
"""
_RULES_HEAD = """\
## What must fit together

Checked at construction and by `kubectl apply`, all at once:
"""


def manual(effects: Mapping[str, tuple[str, str]] | None = None) -> str:
    """The page as Markdown. ``effects``: field -> the module with its effect, and the test of the effect."""
    groups, effects = groupby(FIELDS.values(), key=lambda info: info.group), effects or {}
    return "\n".join([_HEAD, *(_group(title, infos, effects) for title, infos in groups), _rules()])


def _group(title: str, infos: Any, effects: Mapping[str, tuple[str, str]]) -> str:
    return f"## {title}\n\n" + "\n".join(_entry(info, effects.get(info.name)) for info in infos)


def _entry(info: FieldInfo, effect: tuple[str, str] | None) -> str:
    """A field's section: its name, description and facts."""
    facts = [f"- {name}: {fact}" for name, fact in [*_facts(info), *_shown(effect)] if fact]
    return "\n".join([f"### `{info.name}`", "", _code(info.description), "", *facts, ""])


def _shown(effect: tuple[str, str] | None) -> list[tuple[str, str]]:
    if effect is None:
        return []
    where, test = effect
    return [("where", f"`{where}`" if where.endswith(".py") else where), ("test", f"`{test}`")]


def _facts(info: FieldInfo) -> list[tuple[str, str]]:
    return [
        ("type", KINDS[info.kind] + (", or left out" if info.optional else "")),
        ("default", "not set" if info.default is None else f"`{info.default!r}`"),
        ("bounds", _bounds(info)),
        ("form", info.form or ""),
        ("choices", ", ".join(f"`{choice}`" for choice in info.choices or ())),
        ("class", "`Seq2SeqTrainingArguments`" if info.seq2seq else ""),
    ]


def _bounds(info: FieldInfo) -> str:
    bounds = [
        ("at least", info.minimum),
        ("above", info.exclusive_minimum),
        ("at most", info.maximum),
        ("below", info.exclusive_maximum),
    ]
    return ", ".join(f"{label} {bound}" for label, bound in bounds if bound is not None)


def _code(text: str) -> str:
    """Formats names in snake_case as code."""
    return re.sub(r"\b[a-z]+(?:_[a-z0-9]+)+\b", r"`\g<0>`", text)


def _rules() -> str:
    return "\n".join([_RULES_HEAD, *(f"- {_code(rule.message)}" for rule in RULES), ""])
