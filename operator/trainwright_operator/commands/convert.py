"""``trainwright convert``: ``TrainingArguments.to_dict()`` or a config of TRL or axolotl to a manifest, and back."""

from __future__ import annotations

import json
import re
import sys
from argparse import Namespace
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainwright.arguments import Seq2SeqTrainingArguments, sharding
from trainwright.arguments.fields import FIELDS
from trainwright.arguments.names import FORMER
from trainwright.nearest import did_you_mean
from trainwright_operator.api import crd, manifest, mirror, names
from trainwright_operator.commands import foreign, loading

DONE, INVALID = 0, 2
Object = dict[str, Any]

PLACEHOLDERS = {"model": "gpt2", "dataset": "/data/*.txt", "claim": "runs"}
CALCULATED = {"_n_gpu", "n_gpu", "distributed_state", "deepspeed_plugin", "train_batch_size", "eval_batch_size"}
"""Entries of ``to_dict`` in some versions that are not arguments."""


class Notes:
    """Notes for the user about a conversion, printed as comments of the manifest."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, field: str, note: str) -> None:
        self.lines.append(" ".join(f"{field}: {note}".split()))


def main(options: Namespace) -> int:
    try:
        content = _read(options.file)
        is_manifest = "kind" in content and "apiVersion" in content
        if (options.to or ("arguments" if is_manifest else "manifest")) == "arguments":
            print(json.dumps(_arguments(options.file, content, is_manifest), indent=2))
        else:
            return _print_manifest(options, content if not is_manifest else _already(options.file))
    except loading.InvalidManifests as invalid:
        print("\n".join(invalid.lines), file=sys.stderr)
        return INVALID
    return DONE


def _already(source: str) -> Object:
    raise loading.InvalidManifests([f"{source}: is already a manifest; --to arguments converts it to arguments"])


def _read(file: str) -> Object:
    try:
        documents = list(manifest.read(loading.text(file), loading.source(file)))
    except manifest.ManifestError as error:
        raise loading.InvalidManifests([str(error)]) from None
    jobs = [one for one in documents if isinstance(one.content, dict) and one.content.get("kind") == names.JOB_KIND]
    chosen = jobs or documents
    if len(chosen) != 1 or not isinstance(chosen[0].content, dict):
        raise loading.InvalidManifests(
            [f"{loading.source(file)}: must hold one set of arguments, or one {names.JOB_KIND}"]
        )
    content: Object = chosen[0].content
    return content


# To arguments


def _arguments(file: str, content: Object, is_manifest: bool) -> Object:
    """Everything that the manifest sets, under the Python names."""
    if not is_manifest:
        raise loading.InvalidManifests([f"{loading.source(file)}: is not a manifest; it has no apiVersion and kind"])
    if content["kind"] == names.POOL_KIND:
        raise loading.InvalidManifests([f"{loading.source(file)}: is an {names.POOL_KIND}, which has no arguments"])
    problems = crd.all_problems(content)
    if problems:
        raise loading.InvalidManifests([f"{loading.source(file)}: {problem}" for problem in problems])
    return mirror.to_arguments(content["spec"].get("trainingArguments", {}))


# To a manifest


def _print_manifest(options: Namespace, content: Object) -> int:
    """Print the manifest even if it is invalid, so that the user can fix it."""
    notes = Notes()
    found, arguments = foreign.spec_fields(content, notes.add)
    spec = _what(options, found, notes)
    spec["trainingArguments"] = training_arguments(arguments, notes)
    spec["output"] = {"persistentVolumeClaim": {"claimName": options.claim or _placeholder("claim", notes)}}
    document = {
        "apiVersion": names.API_VERSION,
        "kind": names.JOB_KIND,
        "metadata": {"name": _name(options, arguments)},
        "spec": spec,
    }
    for line in notes.lines:
        print(f"# {line}")
    print(manifest.write(document), end="")
    problems = crd.all_problems(document)
    for problem in problems:
        print(f"{loading.source(options.file)}: {problem}", file=sys.stderr)
    return INVALID if problems else DONE


def _what(options: Namespace, found: Object, notes: Notes) -> Object:
    if options.script:
        for path in found:
            notes.add(path, "left out: the script defines what it trains")
        return {"script": {"inline": _script(options.script)}}
    return {
        "model": _part("model", options.model, found, notes),
        "dataset": _part("dataset", options.dataset, found, notes),
        "task": options.task or "CausalLM",
    }


def _part(part: str, stated: str | None, found: Object, notes: Notes) -> Object:
    """The model or the dataset. The settings in the file apply only to the model or dataset of the file."""
    if stated:
        return {"source": stated}
    fields = {path.partition(".")[2]: value for path, value in found.items() if path.startswith(f"{part}.")}
    source = fields.pop("source", None) or _placeholder(part, notes)
    return {"source": source, **fields}


def _script(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise loading.InvalidManifests([f"{file}: cannot be read: {error}"]) from None


def _placeholder(what: str, notes: Notes) -> str:
    notes.add(f"--{what}", f"{PLACEHOLDERS[what]} is a placeholder for your own")
    return PLACEHOLDERS[what]


def _name(options: Namespace, arguments: Mapping[str, Any]) -> str:
    """A valid Kubernetes name, from the run's name or the last part of the output folder."""
    if options.name:
        return str(options.name)
    wanted = arguments.get("run_name") or Path(str(arguments.get("output_dir") or "")).name or "training"
    name = re.sub(r"[^a-z0-9]+", "-", str(wanted).lower()).strip("-").lstrip("0123456789-")
    return name[: names.MAX_NAME_LENGTH].rstrip("-") or "training"


def training_arguments(arguments: Mapping[str, Any], notes: Notes) -> Object:
    """The arguments that differ from the defaults, as a manifest writes them; ``notes`` collects what is left out."""
    found: Object = {}
    present = modern(arguments, notes)
    for name, value in present.items():
        if _is_auto(name, value):
            notes.add(mirror.camel(name), "left out: auto; set true if the devices support it")
            continue
        if _is_default(name, value, present) or name in mirror.ABSENT:
            continue
        try:
            found[mirror.camel(name)] = mirror.from_argument(name, _without_defaults(name, value))
        except ValueError as error:
            notes.add(mirror.camel(name), f"left out: {error}")
    return found


@lru_cache(maxsize=1)
def _derived() -> Object:
    """What ``to_dict`` writes if no argument is set."""
    return Seq2SeqTrainingArguments().to_dict()


def _is_default(name: str, value: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether the argument can be left out: ``to_dict`` also writes values that were derived."""
    if name == "eval_steps":
        return value is None or value == arguments.get("logging_steps", FIELDS["logging_steps"].default)
    if name == "do_eval" and arguments.get("eval_strategy", "no") != "no":
        return True
    if name == "fsdp" and not value:
        return True
    if name == "fsdp_config" and isinstance(value, dict):
        return not _without_defaults(name, value)
    return value is None or value in (FIELDS[name].default, _derived().get(name))


def _is_auto(name: str, value: Any) -> bool:
    return FIELDS[name].kind == "bool" and value == "auto"


def _without_defaults(name: str, value: Any) -> Any:
    """The value; of accelerator_config and fsdp_config only the settings that differ from the defaults."""
    if name == "fsdp_config" and isinstance(value, dict):
        filled = sharding.completed(None, None)
        return {key: setting for key, setting in sharding.read_file(value).items() if filled.get(key) != setting}
    if name != "accelerator_config" or not isinstance(value, dict):
        return value
    defaults = _derived()[name]
    return {key: setting for key, setting in value.items() if setting is not None and setting != defaults.get(key)}


def modern(arguments: Mapping[str, Any], notes: Notes) -> Object:
    """The arguments under their current names; old names are converted if a single argument replaced them.

    A choice with the value false was a bare ``no`` in YAML.
    """
    found: Object = {}
    for name, value in arguments.items():
        if name in FIELDS:
            found.setdefault(name, "no" if value is False and "no" in (FIELDS[name].choices or ()) else value)
        elif name in CALCULATED or value is None:
            continue
        elif new := _renamed(name):
            if value not in (False, 0):
                found[new[0]] = value if new[1] is None else new[1]
                notes.add(name, f"is now {mirror.camel(new[0])}")
        else:
            notes.add(name, f"left out: {_why(name)}")
    return found


def _renamed(name: str) -> tuple[str, Any] | None:
    former = FORMER.get(name)
    return _RENAMED.get(name) or ((former, None) if former in FIELDS else None)


_RENAMED: dict[str, tuple[str, Any]] = {
    "evaluation_strategy": ("eval_strategy", None),
    "warmup_ratio": ("warmup_steps", None),
    "no_cuda": ("use_cpu", None),
    "per_gpu_train_batch_size": ("per_device_train_batch_size", None),
    "per_gpu_eval_batch_size": ("per_device_eval_batch_size", None),
    "push_to_hub_model_id": ("hub_model_id", None),
    "adafactor": ("optim", "adafactor"),
    "group_by_length": ("train_sampling_strategy", "group_by_length"),
    "include_inputs_for_metrics": ("include_for_metrics", ["inputs"]),
    "evaluate_during_training": ("eval_strategy", "steps"),
    "micro_batch_size": ("per_device_train_batch_size", None),
    "num_epochs": ("num_train_epochs", None),
    "optimizer": ("optim", None),
    "lr_scheduler": ("lr_scheduler_type", None),
}
"""Old name -> current name, and the value of the current one (None: the same)."""


def _why(name: str) -> str:
    return FORMER.get(name, f"no argument has this name{did_you_mean(name, FIELDS)}").removeprefix("nothing: ")
