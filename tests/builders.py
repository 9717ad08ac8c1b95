"""Objects for tests, said in words: ``make_job().nodes(2).training(maxSteps=4)``.

Every call returns a new builder; ``manifest()`` gives the plain dicts a user would write, ``build()`` the checked job.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainwright_operator.api import names
from trainwright_operator.api.spec import TrainingJob, parse_job


@dataclass(frozen=True)
class JobBuilder:
    """A TrainingJob in the making."""

    _manifest: Mapping[str, Any]

    def manifest(self) -> dict[str, Any]:
        return copy.deepcopy(dict(self._manifest))

    def build(self) -> TrainingJob:
        return parse_job(self.manifest())

    def with_(self, path: str, value: Any) -> JobBuilder:
        """Set a dotted path of the manifest, ``spec.output.subPath``; parents are made as needed."""
        manifest = self.manifest()
        *parents, last = path.split(".")
        parent = manifest
        for key in parents:
            parent = parent.setdefault(key, {})
        parent[last] = value
        return JobBuilder(manifest)

    def without(self, path: str) -> JobBuilder:
        manifest = self.manifest()
        *parents, last = path.split(".")
        parent = manifest
        for key in parents:
            parent = parent.get(key, {})
        parent.pop(last, None)
        return JobBuilder(manifest)

    def named(self, name: str) -> JobBuilder:
        return self.with_("metadata.name", name)

    def nodes(self, nodes: int, per_node: int | None = None) -> JobBuilder:
        job = self.with_("spec.accelerator.nodes", nodes)
        return job if per_node is None else job.with_("spec.accelerator.perNode", per_node)

    def training(self, **arguments: Any) -> JobBuilder:
        """Add training arguments by their camelCase names."""
        stated = dict(self._manifest["spec"].get("trainingArguments") or {})
        return self.with_("spec.trainingArguments", {**stated, **arguments})

    def script(self, **script: Any) -> JobBuilder:
        """Train the user's own script in place of model, dataset and task."""
        return self.without("spec.model").without("spec.dataset").without("spec.task").with_("spec.script", script)

    def suspended(self, suspend: bool = True) -> JobBuilder:
        return self.with_("spec.suspend", suspend)

    def status(self, **status: Any) -> JobBuilder:
        return self.with_("status", {**(self._manifest.get("status") or {}), **status})


def make_job(name: str = "gpt-corpus") -> JobBuilder:
    """A small job that is right: GPT-2 from its configuration, on text files, to a claim."""
    return JobBuilder(
        {
            "apiVersion": names.API_VERSION,
            "kind": names.JOB_KIND,
            "metadata": {
                "name": name,
                "namespace": "default",
                "uid": "0d9b8f3e-6a5c-4d1e-9f70-000000000001",
                "generation": 1,
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {
                "model": {"source": "gpt2", "fromConfig": {"n_layer": 2, "n_embd": 32, "n_head": 2}},
                "dataset": {"source": "/data/*.txt", "format": "text"},
                "task": "CausalLM",
                "trainingArguments": {"maxSteps": 200, "learningRate": 3e-4},
                "output": {"persistentVolumeClaim": {"claimName": "runs"}},
            },
        }
    )
