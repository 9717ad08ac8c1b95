"""Queues on the command line: what Kueue needs for pools, and who waits in which place."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, Group

from builders import make_job
from pool_cases import pool_manifest
from trainwright_operator.api import manifest
from trainwright_operator.cli import main
from trainwright_operator.core.queues.workload import Workload
from trainwright_operator.remote.queueing import _asked_for, _section

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
Object = dict[str, Any]


def made(capsys: pytest.CaptureFixture[str], folder: Path, *pools: str) -> dict[tuple[str, str], Object]:
    path = folder / "pools.yaml"
    path.write_text(manifest.write(*map(pool_manifest, pools)))
    assert main(["pools", "--kueue", str(path)]) == 0
    found = [one.content for one in manifest.read(capsys.readouterr().out, "out")]
    return {(one["kind"], one["metadata"]["name"]): one["spec"] for one in found}


def test_a_flavor_selects_the_nodes_of_its_pool(capsys, tmp_path) -> None:
    found = made(capsys, tmp_path, "v6e-2x16", "h100")
    assert found["ResourceFlavor", "v6e-2x16"]["nodeLabels"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert found["ResourceFlavor", "h100"]["nodeLabels"]["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"


def test_the_cluster_queue_covers_what_the_pods_of_every_pool_request(capsys, tmp_path) -> None:
    (group,) = made(capsys, tmp_path, "v6e-2x16", "h100")["ClusterQueue", "accelerators"]["resourceGroups"]
    assert group["coveredResources"][:4] == ["cpu", "memory", "google.com/tpu", "nvidia.com/gpu"]
    for flavor in group["flavors"]:
        assert [one["name"] for one in flavor["resources"]] == group["coveredResources"]


def test_claimed_devices_are_covered_by_the_name_of_their_quota(capsys, tmp_path) -> None:
    path = tmp_path / "pools.yaml"
    claimed = {"vendor": "nvidia", "deviceClassName": "gpu.nvidia.com"}
    pools = [pool_manifest("a", **claimed), pool_manifest("b", **claimed, quotaResource="example.com/gpu")]
    path.write_text(manifest.write(*pools))
    assert main(["pools", "--kueue", str(path)]) == 0
    captured = capsys.readouterr()
    assert "name: example.com/gpu" in captured.out
    assert "not counted: the devices of a, which have a deviceClassName; set quotaResource" in captured.err


def test_files_without_a_pool_are_an_error(capsys, tmp_path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(manifest.write(make_job().without("metadata.uid").manifest()))
    assert main(["pools", "--kueue", str(path)]) == 2
    assert "holds no AcceleratorPool" in capsys.readouterr().err


def workload(name: str, created: str, *conditions: Object, priority: int = 0) -> Workload:
    meta = {"name": f"trainingjob-{name}", "labels": {"trainwright.dev/job": name}, "creationTimestamp": created}
    spec = {"queueName": "team", "priority": priority, "podSets": [{"count": 2}]}
    return Workload({"metadata": meta, "spec": spec, "status": {"conditions": list(conditions)}})


def when(kind: str, status: str, message: str = "") -> Object:
    return {
        "type": kind,
        "status": status,
        "message": message,
        "reason": kind,
        "lastTransitionTime": "2026-01-01T11:00:00Z",
    }


@pytest.mark.parametrize("served", [True, False])
def test_those_that_wait_are_listed_in_their_order(served: bool) -> None:
    waits = when("QuotaReserved", "False", "insufficient quota")
    found = [
        workload("late", "2026-01-01T11:59:00Z", waits),
        workload("runs", "2026-01-01T10:00:00Z", when("QuotaReserved", "True"), when("Admitted", "True")),
        workload("first", "2026-01-01T11:00:00Z", waits),
        workload("urgent", "2026-01-01T11:58:00Z", waits, priority=9),
    ]
    order = ("urgent", "first", "late")
    places = {f"trainingjob-{name}": (at, at + 4) for at, name in enumerate(order, 1)} if served else {}
    queue = {"metadata": {"name": "team"}, "spec": {"clusterQueue": "cq"}}
    console = Console(file=io.StringIO(), width=160)
    console.print(Group(*_section(queue, found, places, NOW)))
    lines = [line.split() for line in console.file.getvalue().splitlines() if line.strip()]

    assert lines[0] == ["queue", "team", "(ClusterQueue", "cq):", "1", "admitted,", "3", "waiting"]
    names = ("runs", "urgent", "first", "late")
    assert [next(word for word in line if word in names) for line in lines[2:]] == list(names)
    shown = [["1", "5"], ["2", "6"], ["3", "7"]]
    assert [line[:2] for line in lines[3:]] == (shown if served else [["-", "-"]] * 3)
    assert lines[3][3:6] == ["9", "2", "2m"]
    assert lines[4][5] == "60m"


def test_a_queue_that_does_not_exist_is_listed_with_those_that_wait_for_it() -> None:
    waits = workload("gpt", "2026-01-01T11:00:00Z", when("QuotaReserved", "False", "LocalQueue team doesn't exist"))
    other = {"metadata": {"name": "zoo"}, "spec": {"clusterQueue": "cq"}}
    found = _asked_for([other], [waits])
    assert list(found) == ["team", "zoo"]
    assert next(iter(_section(found["team"], [waits], {}, NOW))) == (
        "queue team (no such LocalQueue exists): 0 admitted, 1 waiting"
    )


def test_an_elastic_job_is_listed_with_the_pods_that_it_was_admitted_with() -> None:
    made = workload("gpt", "2026-01-01T11:00:00Z", when("QuotaReserved", "True"), when("Admitted", "True"))
    made.stored["spec"]["podSets"] = [{"count": 4}]
    made.stored["status"]["admission"] = {"clusterQueue": "cq", "podSetAssignments": [{"count": 3}]}
    console = Console(file=io.StringIO(), width=160)
    console.print(Group(*_section({"metadata": {"name": "team"}, "spec": {}}, [made], {}, NOW)))
    row = next(line.split() for line in console.file.getvalue().splitlines() if "gpt" in line)
    assert row[:4] == ["gpt", "0", "3", "60m"]
