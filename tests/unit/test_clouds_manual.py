"""docs/clouds.md: its pools, planned, land on nodes with the labels and taints that each cluster's nodes have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainwright_operator.api import manifest
from trainwright_operator.cli import main

CLOUDS = Path(__file__).parents[2] / "examples" / "clouds"
GPU = {"key": "nvidia.com/gpu", "effect": "NoSchedule"}
NODES: dict[str, tuple[dict[str, str], list[dict[str, str]]]] = {
    "gke": ({"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}, [{**GPU, "value": "present"}]),
    "eks": ({"node.kubernetes.io/instance-type": "p4d.24xlarge"}, [{**GPU, "value": "true"}]),
    "aks": (
        {"node.kubernetes.io/instance-type": "Standard_ND96asr_v4"},
        [{"key": "sku", "value": "gpu", "effect": "NoSchedule"}],
    ),
    "bare-metal": (
        {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        [GPU, {"key": "dedicated", "value": "training", "effect": "NoSchedule"}],
    ),
}
"""Of each cluster's nodes: labels and taints, from the cluster's own documentation."""


def tolerated(taint: dict[str, str], tolerations: list[dict[str, Any]]) -> bool:
    """As the scheduler matches them."""
    return any(
        one.get("key", taint["key"]) == taint["key"]
        and one.get("effect", taint["effect"]) == taint["effect"]
        and (one.get("operator") == "Exists" or one.get("value", "") == taint.get("value", ""))
        for one in tolerations
    )


def test_every_pool_has_its_nodes() -> None:
    assert {file.stem for file in CLOUDS.glob("*.yaml")} - {"job"} == set(NODES)


@pytest.mark.parametrize("cloud", NODES)
def test_pods_fit_the_labels_and_taints_of_the_clouds_nodes(cloud: str, capsys: pytest.CaptureFixture[str]) -> None:
    labels, taints = NODES[cloud]
    files = [str(CLOUDS / "job.yaml"), str(CLOUDS / f"{cloud}.yaml")]
    assert main(["validate", *files]) == 0
    capsys.readouterr()
    assert main(["plan", files[0], "--pools", files[1]]) == 0
    children = manifest.read(capsys.readouterr().out, "out")
    job = next(one.content for one in children if one.content["kind"] == "Job")
    pod = job["spec"]["template"]["spec"]
    assert job["spec"]["completions"] == 2
    assert pod["nodeSelector"].items() <= labels.items()
    assert [taint for taint in taints if not tolerated(taint, pod["tolerations"])] == []
    assert not tolerated({"key": "other", "effect": "NoSchedule"}, pod["tolerations"])
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert pod["containers"][0]["image"].endswith("-nvidia")
