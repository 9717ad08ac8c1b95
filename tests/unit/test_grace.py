"""Whether there is time for a checkpoint when a pod is asked to stop, and what the status says when there is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builders import make_job
from scene import Scene
from status_schema import problems
from trainwright_operator.api.spec import AcceleratorPool
from trainwright_operator.core.grace import needed
from trainwright_operator.core.placement.pools import BUILTIN


def running(grace: int = 30, pool: AcceleratorPool = BUILTIN["cpu"], save: float = 60.0) -> Scene:
    job = make_job().with_("spec.terminationGracePeriodSeconds", grace)
    scene = Scene(job, pool).settle().start_pods().settle().wait(900)
    clock = {"stepping": 700.0, "data": 100.0, "saving": save, "step": 500, "first": 100, "save": save, "open": 0}
    return scene.push(step=500, maxSteps=1000, clock=clock).settle()


def message(scene: Scene) -> str:
    return str(scene.condition("Running")["message"])


def test_a_stop_needs_two_steps_the_longest_save_and_the_reserve_of_the_launcher() -> None:
    assert needed(running().status["goodput"]) == 60 + 2 * 2 + 5


def test_a_grace_period_shorter_than_a_save_is_warned_of_with_the_one_that_is_needed() -> None:
    scene = running(grace=30)
    expected = (
        "a save takes 60 s, so a pod needs 69 s to stop without losing steps, but terminationGracePeriodSeconds is 30: "
        "give it at least 69"
    )
    assert message(scene).endswith(expected)
    assert scene.status["display"]["why"] == expected
    assert problems(scene.status) == []


def test_with_time_enough_or_before_the_first_save_nothing_is_said() -> None:
    assert "save takes" not in message(running(grace=69))
    assert "save takes" not in message(running(save=0.0))


NODES = {
    "GKE spot by its taint": ({"tolerations": ({"key": "cloud.google.com/gke-spot", "operator": "Exists"},)}, 15),
    "GKE spot by its label": ({"node_selector": {"cloud.google.com/gke-spot": "true"}}, 15),
    "AKS spot": ({"tolerations": ({"key": "kubernetes.azure.com/scalesetpriority", "value": "spot"},)}, 30),
    "EKS spot": ({"node_selector": {"eks.amazonaws.com/capacityType": "SPOT"}}, 120),
    "Karpenter spot": ({"node_selector": {"karpenter.sh/capacity-type": "spot"}}, 120),
}


@pytest.mark.parametrize("name", NODES)
def test_nodes_that_a_cloud_takes_back_give_less_than_a_pod_asks_for(name: str) -> None:
    fields, seconds = NODES[name]
    pool = replace(BUILTIN["cpu"], **fields)
    scene = running(grace=3600, pool=pool, save=200.0)
    assert f"give at most {seconds} s when they are taken back: save more often" in message(scene)
    assert "save takes" not in message(running(grace=3600, pool=pool, save=1.0))


def test_nodes_on_demand_are_not_taken_for_those() -> None:
    pool = replace(BUILTIN["cpu"], node_selector={"eks.amazonaws.com/capacityType": "ON_DEMAND"})
    assert "taken back" not in message(running(grace=3600, pool=pool))
