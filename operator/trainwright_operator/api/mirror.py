"""Converts between ``spec.trainingArguments`` (camelCase) and ``TrainingArguments`` (snake_case).

The fields are the same, with the exceptions in :data:`EXCEPTIONS`, which ``trainwright explain trainingArguments``
prints: a field of several Python types has one form in a manifest, fields that the operator sets do not exist there,
and a secret is a reference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trainwright.arguments.fields import FIELDS, FieldInfo

HUB_TOKEN = "hub_token"

ABSENT = {
    "output_dir": "the operator mounts spec.output and sets it",
    "local_rank": "the launcher sets it",
    "resume_from_checkpoint": "an attempt always resumes from the latest complete checkpoint of its output",
}
"""Arguments that a manifest does not have, and why."""

FORMS = {
    "object": "an object",
    "object|path": "an object; write the content of the file",
    "str|list[str]": "a list",
    "bool|enum": "one of the choices: true is written all, false is written no",
    "bool|str": "text; false is written as the empty text",
}
"""Arguments with several Python types, and the one form of each in a manifest."""

SPECIAL = {
    HUB_TOKEN: "a reference to a Secret: {secretKeyRef: {name, key}}",
    "generation_config": "an object of its settings; a folder or hub id is written {source: ...}",
    "fsdp": "text; true is written full_shard, false as the empty text",
}

EXCEPTIONS: dict[str, str] = {
    **{name: f"not in a manifest: {why}" for name, why in ABSENT.items()},
    **{name: FORMS[info.kind] for name, info in FIELDS.items() if info.kind in FORMS and name not in ABSENT},
    **SPECIAL,
}
"""Every argument whose field is not simply its camelCase name with the same type."""

MIRRORED: dict[str, FieldInfo] = {name: info for name, info in FIELDS.items() if name not in ABSENT}


def camel(name: str) -> str:
    """``per_device_train_batch_size`` -> ``perDeviceTrainBatchSize``."""
    return re.sub(r"_([a-z0-9])", lambda match: match[1].upper(), name)


def snake(name: str) -> str:
    """``perDeviceTrainBatchSize`` -> ``per_device_train_batch_size``."""
    return re.sub(r"[A-Z]", lambda match: f"_{match[0].lower()}", name)


def in_manifest_names(text: str) -> str:
    """``text`` with the names of arguments in camelCase."""
    return re.sub(
        r"\b[a-z0-9]+(?:_[a-z0-9]+)+\b", lambda match: camel(match[0]) if match[0] in FIELDS else match[0], text
    )


def to_arguments(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Valid ``spec.trainingArguments`` as arguments of ``TrainingArguments``, without the reference to the token."""
    named = {snake(key): value for key, value in manifest.items() if key != camel(HUB_TOKEN)}
    return {name: _to_python(name, value) for name, value in named.items()}


def _to_python(name: str, value: Any) -> Any:
    if name == "generation_config" and set(value) == {"source"}:
        return value["source"]
    if name in FIELDS and FIELDS[name].kind == "bool|str" and value == "":
        return False
    return value


def from_argument(name: str, value: Any) -> Any:
    """The value of an argument as a manifest writes it; :class:`ValueError` says why there is no such value."""
    if name in ABSENT:
        raise ValueError(ABSENT[name])
    if name == HUB_TOKEN:
        raise ValueError(f"a token does not belong in a manifest; hubToken takes {SPECIAL[HUB_TOKEN]}")
    if name == "generation_config" and isinstance(value, str):
        return {"source": value}
    if name == "fsdp" and value is True:
        return "full_shard"
    return _CONVERSIONS.get(FIELDS[name].kind, _same)(value)


def _same(value: Any) -> Any:
    return value


def _number(value: Any) -> Any:
    """HfArgumentParser and older versions leave numbers as text. Validation refuses other text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _object(value: Any) -> Any:
    import json

    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except ValueError:
        raise ValueError(f"is the path {value!r}; write the content of the file as an object") from None
    if not isinstance(found, dict):
        raise ValueError(f"must be an object, not {value!r}")
    return found


def _list(value: Any) -> Any:
    return value.replace(",", " ").split() if isinstance(value, str) else value


def _choice(value: Any) -> Any:
    return {True: "all", False: "no"}.get(value, value) if isinstance(value, bool) else value


def _text(value: Any) -> Any:
    """Older versions had a list of options."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is False else value


_CONVERSIONS = {
    "float": _number,
    "object": _object,
    "object|path": _object,
    "str|list[str]": _list,
    "bool|enum": _choice,
    "bool|str": _text,
}
