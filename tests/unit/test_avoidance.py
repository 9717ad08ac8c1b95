"""Nodes on which attempts fail first: when they are avoided, how, and what is not held against a node."""

from __future__ import annotations

import pytest

from builders import make_job
from scene import START, Scene
from status_schema import problems
from trainwright_operator.cluster.metrics import Metrics
from trainwright_operator.core.avoidance import avoiding
from trainwright_operator.remote.nodes import rows

PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def scene(**job: object) -> Scene:
    return Scene(make_job().nodes(2).with_("spec.maxRestarts", 99)).settle()


def attempt(scene: Scene, *nodes: str) -> Scene:
    """The pods of the attempt that is due run on these nodes."""
    scene.wait(400).settle().start_pods()
    for index, node in enumerate(nodes):
        scene.pod(index)["spec"]["nodeName"] = node
    return scene.settle().wait(5)


def fails(scene: Scene, index: int, code: int = 1) -> Scene:
    scene.exit(index, code).wait(1).exit_all(1, ended_by="peer").settle()
    return scene


def affinity(scene: Scene) -> dict:
    return scene.wait(400).settle().pod()["spec"].get("affinity") or {}


def test_a_node_is_avoided_after_the_second_failure_there() -> None:
    job = scene()
    fails(attempt(job, "good", "bad"), 1)
    assert "avoidedNodes" not in job.status
    assert "nodeAffinity" not in affinity(job)
    fails(attempt(job, "good", "bad"), 1, 137)
    (one,) = job.status["avoidedNodes"]
    assert (one["node"], one["failures"]) == ("bad", 2)
    assert one["why"] == "attempt 1: exit code 1; attempt 2: exit code 137 (SIGKILL)"
    (wish,) = affinity(job)["nodeAffinity"][PREFERRED]
    assert wish["preference"]["matchFields"] == [{"key": "metadata.name", "operator": "NotIn", "values": ["bad"]}]
    assert sum("node bad is avoided from now on" in event for event in job.events) == 1
    assert problems(job.status) == []


def test_a_node_whose_preflight_hangs_twice_is_avoided_for_what_the_preflight_found() -> None:
    job, error = scene(), "preflight: rank 1 on bad did not multiply matrices within 60 s"
    for _ in range(2):
        attempt(job, "good", "bad").exit(1, 124, reason="Hang", error=error, rank=1, ended_by="script")
        job.wait(1).exit_all(124, reason="Hang", error=error, rank=1, ended_by="peer").settle()
    (one,) = job.status["avoidedNodes"]
    assert (one["node"], one["failures"]) == ("bad", 2)
    assert one["why"] == f"attempt 1: Hang: {error}; attempt 2: Hang: {error}"
    assert problems(job.status) == []
    last = job.status["attempts"][-1]
    assert (last["node"], last["reason"], last["message"]) == ("bad", "Hang", error)


def test_the_reason_has_every_failure_and_as_much_of_the_messages_as_there_is_room_for() -> None:
    job = scene()
    for _ in range(3):
        attempt(job, "good", "bad").exit(1, 1, error="no free memory\non the device " + "x" * 400)
        job.wait(1).exit_all(1, ended_by="peer").settle()
    (one,) = job.status["avoidedNodes"]
    assert all(f"attempt {number}: no free memory on the device xxx" in one["why"] for number in (1, 2, 3))
    assert one["why"].count("more characters") == 3
    for _ in range(9):
        fails(attempt(job, "good", "bad"), 1)
    (one,) = job.status["avoidedNodes"]
    assert "attempt 1: Error; attempt 2: Error; attempt 3: Error;" in one["why"]
    assert problems(job.status) == []


def test_it_stays_avoided_when_its_attempts_have_left_the_status() -> None:
    job = scene()
    for _ in range(2):
        fails(attempt(job, "good", "bad"), 1)
    for number in range(25):
        fails(attempt(job, f"n{number}", f"m{number}"), 0)
    assert [one["node"] for one in job.status["avoidedNodes"]] == ["bad"]


def test_what_was_asked_for_and_what_a_retry_would_not_change_is_not_held_against_a_node() -> None:
    job = scene()
    for _ in range(3):
        attempt(job, "good", "evicting").evict(1).settle().wait(90).settle()
    assert "avoidedNodes" not in job.status
    fails(attempt(job, "good", "bad"), 1, 64)
    assert (job.state, "avoidedNodes" in job.status) == ("Failed", False)


def test_a_node_that_was_lost_twice_is_avoided() -> None:
    job = scene()
    for _ in range(2):
        attempt(job, "good", "flaky").evict(1, "DeletionByTaintManager").settle().wait(90).settle()
    assert [one["node"] for one in job.status["avoidedNodes"]] == ["flaky"]


def test_the_wish_stands_beside_what_the_job_asks_of_nodes() -> None:
    asked = {"nodeAffinity": {PREFERRED: [{"weight": 1}], "requiredDuringSchedulingIgnoredDuringExecution": {}}}
    found = avoiding(asked, ["a", "b"])
    assert found is not None
    assert [one["weight"] for one in found["nodeAffinity"][PREFERRED]] == [1, 100]
    assert len(found["nodeAffinity"][PREFERRED][1]["preference"]["matchFields"]) == 2
    assert "requiredDuringSchedulingIgnoredDuringExecution" in found["nodeAffinity"]
    assert asked["nodeAffinity"][PREFERRED] == [{"weight": 1}]
    assert avoiding(None, []) is None


def test_failures_are_counted_by_node_once() -> None:
    job, metrics = scene(), Metrics()
    fails(attempt(job, "good", "bad"), 1)
    stored = {"metadata": {"namespace": "d"}, "status": {}}
    metrics.transition(stored, job.status, START)
    metrics.transition({**stored, "status": job.status}, job.status, START)
    assert metrics.registry.get_sample_value("trainwright_node_failures_total", {"node": "bad"}) == 1


def test_the_nodes_of_all_jobs_are_listed_with_those_that_avoid_them() -> None:
    one, other = scene(), scene()
    fails(attempt(one, "good", "bad"), 1)
    for _ in range(2):
        fails(attempt(other, "good", "bad"), 1)
    fails(attempt(other, "worn", "good"), 0)
    jobs = [{"metadata": {"name": name}, "status": job.status} for name, job in (("first", one), ("second", other))]
    found = rows(jobs, other.now)
    assert [row[:4] for row in found] == [("bad", "3", "2", "second"), ("worn", "1", "1", "")]
    assert found[0][5].startswith("second, attempt 2: Error")


@pytest.mark.parametrize("jobs", [[], [{"metadata": {"name": "new"}}]])
def test_without_failures_nothing_is_listed(jobs: list) -> None:
    assert rows(jobs, START) == []
