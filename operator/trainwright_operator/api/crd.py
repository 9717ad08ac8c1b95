"""Renders the CustomResourceDefinitions, and checks manifests against the same schema.

``python -m trainwright_operator.api.crd DIRECTORY`` writes the CRDs there, one file each.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainwright.arguments import deepspeed
from trainwright.arguments.errors import Mistake
from trainwright.arguments.fields import FIELDS
from trainwright.nearest import did_you_mean
from trainwright_operator.api import declare, manifest, metadata, mirror, names
from trainwright_operator.api.check import check, check_change, without_nulls
from trainwright_operator.api.job import JobSpec
from trainwright_operator.api.pool import AcceleratorPool
from trainwright_operator.api.status import job_status
from trainwright_operator.api.types import Problem, Rule, Schema

HEADER = "# Written by `make crds` from operator/trainwright_operator/api. Edit that, not this.\n"

JOB_COLUMNS = (
    ("State", ".status.display.state", "The state, and in brackets what blocks the job.", 0),
    ("Step", ".status.display.step", "Steps done and steps in total.", 0),
    ("Loss", ".status.display.loss", "The latest training loss.", 0),
    ("Eval", ".status.display.eval", "The latest evaluation loss.", 0),
    ("Tok/s", ".status.display.tokensPerSecond", "Tokens per second.", 0),
    ("Ends", ".status.display.ends", "When training is expected to end.", 0),
    ("Restarts", ".status.display.restarts", "Attempts after the first.", 0),
    ("Nodes", ".status.display.nodes", "Nodes ready and nodes requested.", 1),
    ("Pool", ".spec.accelerator.pool", "The accelerator pool.", 1),
    ("Slowest", ".status.display.slowest", "The pod that the others wait for.", 1),
    ("Goodput", ".status.display.goodput", "The share of the job's life that was spent in steps.", 1),
    ("Cost", ".status.display.cost", "What the accelerators cost so far.", 1),
    ("Why", ".status.display.why", "Why the job is blocked or has ended, and what to do.", 1),
)
POOL_COLUMNS = (
    ("Vendor", ".spec.vendor", "The vendor of the accelerators.", 0),
    ("Per node", ".spec.perNode", "Accelerators per node.", 0),
    ("Topology", ".spec.topology", "Chips of a TPU slice along each axis.", 0),
    ("Runtime", ".spec.runtime", "The launcher of the ranks.", 1),
)


@lru_cache(maxsize=1)
def job_schema() -> Schema:
    """The schema of a TrainingJob manifest. The operator writes the status, so it is not checked."""
    return _document(names.JOB_KIND, metadata.in_manifest(metadata.JOB_NAME, namespaced=True), declare.schema(JobSpec))


@lru_cache(maxsize=1)
def pool_schema() -> Schema:
    """The schema of an AcceleratorPool manifest."""
    return _document(
        names.POOL_KIND, metadata.in_manifest(metadata.POOL_NAME, namespaced=False), declare.schema(AcceleratorPool)
    )


def _document(kind: str, metadata_schema: Schema, spec: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string", "enum": [names.API_VERSION]},
            "kind": {"type": "string", "enum": [kind]},
            "metadata": metadata_schema,
            "spec": spec,
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "_missing": {"metadata": "is missing; give metadata: {name: ...}", "spec": "is missing; give spec: {...}"},
    }


SCHEMAS = {names.JOB_KIND: job_schema, names.POOL_KIND: pool_schema}


def problems(content: Any) -> list[Problem]:
    """All problems of a TrainingJob or AcceleratorPool manifest that the API server would find."""
    if not isinstance(content, Mapping):
        return [Problem("", "is not a manifest; it begins with apiVersion and kind")]
    kind = content.get("kind")
    if kind is None:
        return [Problem("kind", f"is missing; give kind: {names.JOB_KIND} and apiVersion: {names.API_VERSION}")]
    if not isinstance(kind, str) or kind not in SCHEMAS:
        return [Problem("kind", f"is {kind!r}, not one of {', '.join(SCHEMAS)}{did_you_mean(str(kind), SCHEMAS)}")]
    return check(SCHEMAS[kind](), as_stored(content))


def all_problems(content: Any) -> list[Problem]:
    """Those of :func:`problems`, and what no schema can say."""
    found = problems(content)
    if found or content["kind"] != names.JOB_KIND:
        return found
    return _of_deepspeed(as_stored(content)["spec"].get("trainingArguments") or {})


def _of_deepspeed(arguments: Mapping[str, Any]) -> list[Problem]:
    """Keys of ``deepspeed`` that are not supported, and contradictions of the other arguments."""
    if not arguments.get("deepspeed"):
        return []
    values = {name: info.default for name, info in FIELDS.items()} | mirror.to_arguments(arguments)
    try:
        lines = deepspeed.conflicts(deepspeed.check(values["deepspeed"]), values)
    except Mistake as mistake:
        lines = [str(mistake)]
    return [Problem("spec.trainingArguments.deepspeed", _named(line)) for line in lines]


def _named(line: str) -> str:
    """DeepSpeed's key, which comes first, as it is; the argument after it as a manifest names it."""
    key, here, argument = line.partition(" here, and ")
    return key + here + mirror.in_manifest_names(argument)


def as_stored(content: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest as the API server would store it."""
    stored: dict[str, Any] = without_nulls(SCHEMAS[content["kind"]](), dict(content))
    return stored


def change_problems(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[Problem]:
    """What the API server would refuse in a change of an object that is valid before and after."""
    return check_change(SCHEMAS[new["kind"]](), as_stored(new), as_stored(old))


def render(schema: Any) -> Any:
    """A schema as it appears in the CRD: rules as CEL, without the private keys that begin with ``_``."""
    if isinstance(schema, Rule):
        return schema.render()
    if isinstance(schema, dict):
        return {
            key: render(value) for key, value in schema.items() if not (isinstance(key, str) and key.startswith("_"))
        }
    return [render(item) for item in schema] if isinstance(schema, list) else schema


def job_crd() -> dict[str, Any]:
    root = {
        "description": "A training run: what to train, where, and its result.",
        "properties": {
            **_type_meta(),
            "metadata": metadata.in_crd(metadata.JOB_NAME),
            "spec": declare.schema(JobSpec),
            "status": job_status(),
        },
    }
    shape = {"plural": names.JOB_PLURAL, "kind": names.JOB_KIND, "shortNames": [names.JOB_SHORT], "categories": ["all"]}
    return _crd(shape, "Namespaced", root, JOB_COLUMNS)


def pool_crd() -> dict[str, Any]:
    root = {
        "description": "A pool of identical nodes, described once by an administrator.",
        "properties": {
            **_type_meta(),
            "metadata": metadata.in_crd(metadata.POOL_NAME),
            "spec": declare.schema(AcceleratorPool),
        },
    }
    return _crd(
        {"plural": names.POOL_PLURAL, "kind": names.POOL_KIND, "shortNames": ["apool"]}, "Cluster", root, POOL_COLUMNS
    )


def _type_meta() -> dict[str, Schema]:
    return {
        "apiVersion": {"type": "string", "description": f"{names.API_VERSION}."},
        "kind": {"type": "string", "description": "The kind of the object."},
    }


def _crd(
    shape: dict[str, Any], scope: str, root: Schema, columns: tuple[tuple[str, str, str, int], ...]
) -> dict[str, Any]:
    version: dict[str, Any] = {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": render({"type": "object", "required": ["spec"], **root})},
        "additionalPrinterColumns": [*map(_column, columns), _age()],
    }
    if "status" in root["properties"]:
        version["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{shape['plural']}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "names": {**shape, "singular": shape["kind"].lower(), "listKind": f"{shape['kind']}List"},
            "scope": scope,
            "versions": [version],
        },
    }


def _column(column: tuple[str, str, str, int]) -> dict[str, Any]:
    name, path, description, priority = column
    kind = "integer" if path == ".spec.perNode" else "string"
    wide = {"priority": priority} if priority else {}
    return {"name": name, "type": kind, "jsonPath": path, "description": description, **wide}


def _age() -> dict[str, Any]:
    return {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}


def crds() -> dict[str, str]:
    """File name -> text."""
    documents = (job_crd(), pool_crd())
    return {f"{names.GROUP}_{crd['spec']['names']['plural']}.yaml": HEADER + manifest.write(crd) for crd in documents}


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0] if arguments else "crds")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in crds().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
