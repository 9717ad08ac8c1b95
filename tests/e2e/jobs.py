"""TrainingJobs on the real cluster, and the waits for what becomes of them."""

from __future__ import annotations

from typing import Any

from cluster.kube import Kube, Object


def job(kube: Kube, namespace: str, until, what: str, seconds: float = 180, name: str = "gpt-on-stdlib") -> Object:
    return kube.wait_for("TrainingJob", name, namespace, lambda obj: until(obj.get("status", {})), seconds, what)


def at_step(step: int):
    return lambda status: (status.get("progress") or {}).get("step", 0) >= step


def ended(status: Object) -> bool:
    return status.get("state") in ("Succeeded", "Failed")


def simple(**spec: Any) -> Object:
    """A job of one pod that says a word; ``spec`` is laid over its own."""
    kind = {"apiVersion": "trainwright.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "held"}}
    return {**kind, "spec": {"script": {"inline": "print('trained')"}, "output": {"emptyDir": {}}, **spec}}
