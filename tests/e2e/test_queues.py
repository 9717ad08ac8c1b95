"""Real pods in a queue of the real Kueue: they give way by checkpoint, and return without a step trained again."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from cluster.kind.provider import Kind
from cluster.kube import Kube, Object
from cluster.kueue import Kueue, obstacle
from demo import example, in_a_pod
from e2e.jobs import at_step, ended, job, simple
from integration.charts import Helm
from integration.queued import QUEUE, kueue_object, says, team, workload_of

STEPS = 120
HISTORY = """
import json
state = json.load(open("/output/checkpoint-120/trainer_state.json"))
print(json.dumps([row["step"] for row in state["log_history"] if "loss" in row]))
"""


@pytest.fixture(scope="module", autouse=True)
def kueue(kind: Kind) -> Iterator[Kueue]:
    """Kueue, there before the operator, which then follows queues."""
    if why := obstacle():
        pytest.skip(why)
    running = Kueue(kind, {}, webhooks=False)
    running.up()
    yield running
    running.remove_crds()
    running.down()


def test_a_preempted_job_gives_way_by_checkpoint_and_trains_no_step_twice(
    release: Helm, kube: Kube, namespace: str, trainer_image: str
) -> None:
    team(kube, namespace, cpu="200m", preemption={"withinClusterQueue": "LowerPriority"})
    urgent = f"urgent-{namespace}"
    kube.apply(priority_class(urgent, 1000))
    manifest, claim = example()
    kube.apply(claim, namespace)
    manifest["spec"]["dataset"]["maxTrainSamples"] = 40
    manifest["spec"]["trainingArguments"] |= {"maxSteps": STEPS, "evalSteps": 60, "saveSteps": 50, "loggingSteps": 1}
    kube.apply(in_queue(manifest, cpu="100m"), namespace)
    job(kube, namespace, at_step(10), "to be at step 10")
    kube.apply(in_queue(simple(), cpu="200m", **{"kueue.x-k8s.io/priority-class": urgent}), namespace)

    first = job(kube, namespace, ended, "to end", name="held")["status"]
    assert first["state"] == "Succeeded", first
    done = job(kube, namespace, ended, "to end", seconds=240)["status"]
    assert (done["state"], done["restarts"]["counted"]) == ("Succeeded", 0), done
    assert [one["outcome"] for one in done["attempts"]] == ["Stopped", "Succeeded"]
    assert done["attempts"][0]["reason"] == "Preempted"
    account = done["goodput"]["seconds"]
    lost = account.get("redone", 0.0)
    print(f"the preemption cost {lost} s of work, of {account}")
    assert lost == 0.0
    logged = json.loads(in_a_pod(kube, namespace, trainer_image, HISTORY).splitlines()[-1])
    assert logged == list(range(1, STEPS + 1))
    workload_of(kube, namespace, "gpt-on-stdlib", says("Finished", "Succeeded"))


def priority_class(name: str, value: int) -> Object:
    made = kueue_object("WorkloadPriorityClass", name, {}) | {"value": value}
    del made["spec"]
    return made


def in_queue(manifest: Object, cpu: str, **labels: str) -> Object:
    manifest["metadata"]["labels"] = {QUEUE: "team", **labels}
    requests = {"requests": {"cpu": cpu, "memory": "512Mi"}}
    manifest["spec"]["podTemplate"] = {**manifest["spec"].get("podTemplate", {}), "resources": requests}
    return manifest
