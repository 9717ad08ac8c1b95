"""``--set PATH=VALUE``: changes fields of a manifest for one command, without another file."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from trainwright_operator.api import crd, manifest
from trainwright_operator.api.manifest import Document
from trainwright_operator.commands.loading import InvalidManifests

Changes = list[tuple[str, str]]


def overridden(document: Document, changes: Changes) -> Document:
    """The document with these fields, validated again; :class:`InvalidManifests` if it is not valid with them."""
    if not changes:
        return document
    content = copy.deepcopy(document.content)
    for path, value in changes:
        _set(content, path, value)
    if problems := crd.all_problems(content):
        raise InvalidManifests(f"--set: {problem}" for problem in problems)
    return replace(document, content=content)


def _set(content: dict[str, Any], path: str, value: str) -> None:
    *parents, last = path.split(".")
    parent = content
    for key in parents:
        parent = parent.setdefault(key, {})
        if not isinstance(parent, dict):
            raise InvalidManifests([f"--set {path}: {key} is not an object"])
    parent[last] = _value(path, value)


def _value(path: str, text: str) -> Any:
    try:
        documents = list(manifest.read(text, f"--set {path}"))
    except manifest.ManifestError as error:
        raise InvalidManifests([str(error)]) from None
    if len(documents) != 1:
        raise InvalidManifests([f"--set {path}: give one value after the ="])
    return documents[0].content
