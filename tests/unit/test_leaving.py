"""What the taints of a node say of the end of its pods."""

from __future__ import annotations

import pytest

from builders import make_job
from cluster.paths import CHECKOUT
from scene import Scene
from trainwright_operator.core import leaving as module
from trainwright_operator.core.leaving import GONE, Leaving, leaving, node_of_disruption


def node(*taints: str) -> dict:
    return {"spec": {"taints": [{"key": key, "effect": "NoSchedule"} for key in taints]}}


@pytest.mark.parametrize(
    ("taints", "said"),
    [
        ((), None),
        (("nvidia.com/gpu",), None),
        (("cloud.google.com/impending-node-termination",), "is taken by GKE, as for maintenance"),
        (("node.kubernetes.io/unschedulable", "karpenter.sh/disrupted"), "is removed by Karpenter"),
        (("node.kubernetes.io/unschedulable", "nvidia.com/gpu"), "is cordoned, as by kubectl drain"),
    ],
)
def test_the_taint_that_takes_the_pods_away_is_told(taints, said):
    found = leaving(node(*taints))
    assert (found and found.words) == said


def test_a_node_without_taints_says_nothing():
    assert leaving({"spec": {}}) is None
    assert leaving({}) is None


def test_the_manual_has_every_taint():
    manual = (CHECKOUT / "docs/exit-codes.md").read_text()
    assert [key for key in (*module._TAKEN, *module._IMPAIRED) if f"`{key}`" not in manual] == []


ENDED = {"attempt": 2, "outcome": "Disrupted", "reason": "Preempted", "pod": "p", "node": "a"}


@pytest.mark.parametrize(
    ("before", "planned", "name"),
    [
        ([], [], None),
        ([], [ENDED], "a"),
        ([ENDED], [ENDED], None),
        ([{**ENDED, "message": "other"}], [ENDED], None),
        ([{"attempt": 2}], [ENDED], "a"),
        ([{**ENDED, "reason": "PodDeleted"}], [ENDED], "a"),
        ([{**ENDED, "attempt": 1}], [{**ENDED, "attempt": 1}, ENDED], "a"),
        ([], [{**ENDED, "outcome": "Failed"}], None),
        ([], [{**ENDED, "node": None}], None),
    ],
)
def test_the_node_of_each_new_disruption_is_looked_at_once(before, planned, name):
    assert node_of_disruption({"attempts": before}, {"attempts": planned}) == name


def stopped(said: Leaving | None) -> Scene:
    """Two pods; pod 0 gets a signal that nothing in the cluster explains, and its node says this."""
    scene = Scene(make_job()).settle()
    scene.start_pods().settle().exit(0, 143, ended_by="signal")
    if said:
        scene.nodes = {"node-a": said}
    return scene.wait(15).settle()


@pytest.mark.parametrize(
    ("said", "reason", "message"),
    [
        (None, "UnexplainedStop", "stopped on request, though nothing in the cluster tells of one"),
        (GONE, "NodeLeaving", "stopped on request; node node-a is gone"),
        (
            Leaving("is cordoned", takes_pods=False),
            "UnexplainedStop",
            "stopped on request, though nothing in the cluster tells of one; node node-a is cordoned",
        ),
    ],
)
def test_a_signal_is_explained_by_a_node_that_is_taken_away(said, reason, message):
    entry = stopped(said).status["attempts"][0]
    assert (entry["outcome"], entry["reason"], entry["message"]) == ("Disrupted", reason, message)


def test_what_a_node_said_stays_when_it_is_not_asked_any_more():
    scene = Scene(make_job()).settle()
    scene.start_pods().settle().exit(0, 143, ended_by="signal")
    scene.nodes = {"node-a": GONE}
    scene.settle()
    scene.nodes = {}
    assert scene.wait(15).settle().status["attempts"][0]["reason"] == "NodeLeaving"


def test_ends_that_a_node_explains_are_never_counted():
    scene = Scene(make_job().with_("spec.maxRestarts", 0)).settle()
    scene.nodes = {"node-a": GONE}
    for _ in range(8):
        scene.start_pods().settle().exit(0, 143, ended_by="signal")
        scene.wait(15).settle().wait(600).settle()
    assert (scene.state, scene.status["restarts"]["counted"]) == ("Restarting", 0)
