"""Converts model and dataset settings in configs of example scripts, TRL and axolotl to fields of a job's spec.

These files hold more than training arguments: ``model_name_or_path``, ``base_model``, ``dataset_name``, ``datasets``.
They are recognized by name. A note is added for a setting that a manifest has no field for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Object = dict[str, Any]
Note = Callable[[str, str], None]

FIELDS = {
    "model_name_or_path": "model.source",
    "base_model": "model.source",
    "model_revision": "model.revision",
    "revision_of_model": "model.revision",
    "tokenizer_name": "model.tokenizer",
    "tokenizer_name_or_path": "model.tokenizer",
    "tokenizer_config": "model.tokenizer",
    "trust_remote_code": "model.trustRemoteCode",
    "dtype": "model.dtype",
    "torch_dtype": "model.dtype",
    "dataset_name": "dataset.source",
    "train_file": "dataset.source",
    "dataset_config": "dataset.name",
    "dataset_config_name": "dataset.name",
    "dataset_train_split": "dataset.split",
    "validation_file": "dataset.evalSource",
    "dataset_streaming": "dataset.streaming",
    "streaming": "dataset.streaming",
    "block_size": "dataset.blockSize",
    "max_train_samples": "dataset.maxTrainSamples",
    "max_eval_samples": "dataset.maxEvalSamples",
}
LENGTHS = ("max_length", "max_seq_length", "sequence_len")
PACKING = ("packing", "sample_packing")
ENTRY = {"path": "source", "name": "name", "split": "split", "revision": "revision"}
"""Keys of an entry of ``datasets``. A path such as ``json`` is a format; ``data_files`` then has the files."""
FORMATS = ("json", "csv", "parquet", "text")

_ADAPTERS = re.compile(r"use_peft|adapter|lora_.*|peft_.*|load_in_[48]bit|use_(rs|do)lora|bnb_.*|use_bnb.*")
ADAPTERS = "adapters and quantized weights need a script: give it with --script"


def spec_fields(content: Mapping[str, Any], note: Note) -> tuple[Object, Object]:
    """The fields of the spec by path, and the rest, which are arguments; ``note`` is called for what is left out."""
    found: Object = {}
    rest: Object = {}
    packs = any(content.get(name) for name in PACKING)
    for name, value in content.items():
        if path := _path(name, content, packs):
            if value not in (None, "", False):
                found.setdefault(path, value)
        elif name in _READERS:
            _READERS[name](value, found, note)
        elif _ADAPTERS.fullmatch(name):
            if value and not _switched_off(content):
                note(name, f"left out: {ADAPTERS}")
        elif name not in PACKING:
            rest[name] = value
    return found, rest


def _path(name: str, content: Mapping[str, Any], packs: bool) -> str | None:
    if name in LENGTHS:
        return "dataset.blockSize" if packs else "dataset.maxLength"
    if name == "dataset_test_split" and content.get("eval_strategy", "no") not in ("no", False):
        return "dataset.evalSplit"
    return FIELDS.get(name)


def _switched_off(content: Mapping[str, Any]) -> bool:
    """TRL writes all settings of an adapter even if none is used."""
    return content.get("use_peft") is False and not any(content.get(f"load_in_{bits}bit") for bits in (4, 8))


def _datasets(value: Any, found: Object, note: Note) -> None:
    _entries("datasets", value, found, note, {key: f"dataset.{field}" for key, field in ENTRY.items()})


def _test_datasets(value: Any, found: Object, note: Note) -> None:
    fields = {"path": "dataset.evalSource", "split": "dataset.evalSplit"}
    _entries("test_datasets", value, found, note, fields)


def _entries(name: str, value: Any, found: Object, note: Note, fields: Mapping[str, str]) -> None:
    entries = value if isinstance(value, list) else [value]
    if not entries or not isinstance(entries[0], dict):
        if value:
            note(name, "left out: it has no path")
        return
    entry = _with_files(entries[0])
    for key, setting in entry.items():
        if key in fields and setting is not None:
            found.setdefault(fields[key], setting)
        elif setting is not None:
            note(f"{name}[0].{key}", "left out: the dataset of a manifest has no field for it")
    if len(entries) > 1:
        note(name, f"a job has one dataset; the first of {len(entries)} is used")


def _with_files(entry: Object) -> Object:
    """``{path: json, data_files: x.jsonl}`` means the file."""
    if entry.get("path") not in FORMATS or not entry.get("data_files"):
        return entry
    files = entry["data_files"]
    first = files[0] if isinstance(files, list) and len(files) == 1 else files
    return {key: value for key, value in entry.items() if key not in ("data_files", "ds_type")} | {"path": first}


def _share(value: Any, found: Object, note: Note) -> None:
    if isinstance(value, float) and 0 < value < 1:
        found["dataset.validationFraction"] = value
    elif value:
        note("val_set_size", "left out: dataset.validationFraction takes a fraction of the rows, such as 0.05")


def _percentage(value: Any, found: Object, note: Note) -> None:
    if isinstance(value, int | float) and value:
        found["dataset.validationFraction"] = value / 100


def _not_tested(value: Any, found: Object, note: Note) -> None:
    """Ignored, because the run does not evaluate."""


_READERS: dict[str, Callable[[Any, Object, Note], None]] = {
    "datasets": _datasets,
    "test_datasets": _test_datasets,
    "val_set_size": _share,
    "validation_split_percentage": _percentage,
    "dataset_test_split": _not_tested,
}
