"""The plain manifest of the operator, from the chart: `helm template ... | python generate.py > trainwright.yaml`.

What only Helm needs is left out: hooks, and the labels and annotations that say Helm manages an object. The CRDs come
first and the namespace after them, so that one `kubectl apply` finds what it needs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from trainwright_operator.api.manifest import read, write

NAMESPACE = "trainwright-system"
HEADER = "# Written by `make chart` from charts/trainwright with its default values. Edit that, not this.\n"
FIRST = ("CustomResourceDefinition", "Namespace", "ServiceAccount")


def bundle(objects: Iterable[dict[str, Any]]) -> str:
    kept = [plain(obj) for obj in objects if "helm.sh/hook" not in (obj["metadata"].get("annotations") or {})]
    return HEADER + write(*sorted([namespace(), *kept], key=lambda obj: _rank(obj["kind"])))


def namespace() -> dict[str, Any]:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}


def plain(value: Any) -> Any:
    """Without Helm's marks, at any depth: a pod template carries them too."""
    if isinstance(value, dict):
        kept = {key: plain(child) for key, child in value.items() if not _of_helm(key)}
        return {key: child for key, child in kept.items() if key != "annotations" or child}
    return [plain(child) for child in value] if isinstance(value, list) else value


def _of_helm(key: str) -> bool:
    return key.startswith("helm.sh/") or key == "app.kubernetes.io/managed-by"


def _rank(kind: str) -> int:
    return FIRST.index(kind) if kind in FIRST else len(FIRST)


if __name__ == "__main__":
    sys.stdout.write(bundle(document.content for document in read(sys.stdin.read(), "the chart")))
