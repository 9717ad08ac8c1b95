"""The product on a real cluster: the chart installed, a manifest applied, a model trained, the status right."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.kind.faults import Faults
from cluster.kube import Kube, Object
from demo import example, in_a_pod
from e2e.jobs import at_step, ended, job, simple
from integration.charts import Helm

HUGGING_FACE = """
import torch
from transformers import Trainer, TrainingArguments


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, labels=None):
        return {"loss": ((x * self.weight - labels) ** 2).mean()}


data = [{"x": torch.tensor([float(i)]), "labels": torch.tensor([2.0 * i])} for i in range(8)]
arguments = TrainingArguments("/tmp/out", max_steps=30, logging_steps=5, use_cpu=True, save_strategy="no")
Trainer(Line(), arguments, train_dataset=data).train()
"""
LOAD = """
import json, sys
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = Path("/output")
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
print(json.dumps({"parameters": model.num_parameters(), "ids": tokenizer("def", add_special_tokens=False).input_ids}))
"""


@pytest.fixture
def gpt(release: Helm, kube: Kube, namespace: str) -> Object:
    """The first example, shorter; applied."""
    manifest, claim = example()
    kube.apply(claim, namespace)
    manifest["spec"]["dataset"]["maxTrainSamples"] = 40
    manifest["spec"]["trainingArguments"] |= {"maxSteps": 120, "evalSteps": 60, "saveSteps": 20, "loggingSteps": 5}
    kube.apply(manifest, namespace)
    return manifest


def test_one_apply_gives_a_trained_model(gpt: Object, kube: Kube, namespace: str, trainer_image: str) -> None:
    running = job(kube, namespace, at_step(5), "to report its steps")["status"]
    assert running["nodes"]["ready"] == 2
    done = job(kube, namespace, ended, "to end")["status"]
    assert done["state"] == "Succeeded", done
    assert done["progress"]["step"] == 120
    assert done["display"]["step"] == "120/120"
    metrics = {one["name"]: float(one["value"]) for one in done["metrics"]}
    assert metrics["eval_loss"] < 3.2
    assert done["checkpoint"]["path"] == "checkpoint-120"
    loaded = json.loads(in_a_pod(kube, namespace, trainer_image, LOAD).splitlines()[-1])
    assert loaded["parameters"] > 800_000
    assert len(loaded["ids"]) == 3, "a token for each byte"


def test_a_killed_rank_costs_one_restart_and_no_checkpoint(
    gpt: Object, kube: Kube, namespace: str, faults: Faults
) -> None:
    job(kube, namespace, lambda status: "checkpoint" in status, "to have a checkpoint")
    victim = next(pod for pod in kube.list("Pod", namespace) if "-1-1-" in pod["metadata"]["name"])
    faults.kill(victim["metadata"]["name"], namespace)
    done = job(kube, namespace, ended, "to end", seconds=240)["status"]
    assert done["state"] == "Succeeded", done
    first, second = done["attempts"]
    assert (first["outcome"], first["exitCode"], first["pod"]) == ("Failed", 137, victim["metadata"]["name"])
    assert second["outcome"] == "Succeeded"
    pods = [pod["metadata"]["name"] for pod in kube.list("Pod", namespace)]
    leader = next(name for name in pods if name.startswith("gpt-on-stdlib-0-2-0-"))
    logged = kube.logs(leader, namespace).count("{'loss'")
    assert 0 < logged < 120 // 5, "it began again in place of going on"


def test_a_rank_that_is_killed_alone_starts_again_in_the_same_pods(
    gpt: Object, kube: Kube, namespace: str, faults: Faults
) -> None:
    job(kube, namespace, lambda status: "checkpoint" in status, "to have a checkpoint")
    before = {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in kube.list("Pod", namespace)}
    victim = next(name for name in before.values() if "-1-1-" in name)
    faults.kill_rank(victim, namespace)
    done = job(kube, namespace, ended, "to end", seconds=240)["status"]
    assert done["state"] == "Succeeded", done
    (attempt,) = done["attempts"]
    (ended_round,) = attempt["rounds"]
    assert (ended_round["exitCode"], ended_round["rank"], ended_round["pod"]) == (137, 1, victim)
    assert ended_round["node"]
    assert done["display"]["restarts"] == "1"
    assert {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in kube.list("Pod", namespace)} == before


def test_suspending_saves_first_and_resuming_goes_on(gpt: Object, kube: Kube, namespace: str) -> None:
    job(kube, namespace, at_step(10), "to be at step 10")
    kube.patch("TrainingJob", "gpt-on-stdlib", {"spec": {"suspend": True}}, namespace)
    held = job(kube, namespace, lambda status: status.get("state") == "Suspended", "to be suspended")["status"]
    kube.wait_list("Pod", namespace, lambda pods: not pods, what="to be gone")
    saved = held["checkpoint"]["step"]
    assert saved >= 10
    kube.patch("TrainingJob", "gpt-on-stdlib", {"spec": {"suspend": False}}, namespace)
    done = job(kube, namespace, ended, "to end")["status"]
    assert (done["state"], done["restarts"]["total"]) == ("Succeeded", 0)


def mounting(**volume: Any) -> Object:
    mounts = [{"name": "v", "mountPath": "/data"}]
    return {"podTemplate": {"volumes": [{"name": "v", **volume}], "volumeMounts": mounts}}


MISSING_KEY = {"configMapKeyRef": {"name": "settings", "key": "rate"}}
HELD_UP = {
    "an image that is nowhere": (
        {"podTemplate": {"image": "127.0.0.1:9/none:1"}},
        "ImagePullBackOff",
        "check the image (podTemplate.image, or the pool's) and podTemplate.imagePullSecrets",
    ),
    "a ConfigMap to mount": (
        mounting(configMap={"name": "settings"}),
        "ContainerCreating",
        "create the ConfigMap settings in this namespace",
    ),
    "a Secret to mount": (
        mounting(secret={"secretName": "keys"}),
        "ContainerCreating",
        "create the Secret keys in this namespace",
    ),
    "a ConfigMap for a variable": (
        {"podTemplate": {"env": [{"name": "RATE", "valueFrom": MISSING_KEY}]}},
        "CreateContainerConfigError",
        "create the ConfigMap settings in this namespace",
    ),
    "a script's ConfigMap": (
        {"script": {"configMap": {"name": "code", "key": "train.py"}}},
        "ContainerCreating",
        "create the ConfigMap code in this namespace",
    ),
    "a claim": (
        {"output": {"persistentVolumeClaim": {"claimName": "none"}}},
        "Unschedulable",
        "create the PersistentVolumeClaim none in this namespace",
    ),
}


@pytest.mark.parametrize("name", HELD_UP)
def test_the_status_says_what_a_pod_waits_for_and_how_to_fix_it(
    release: Helm, kube: Kube, namespace: str, name: str
) -> None:
    spec, reason, mend = HELD_UP[name]
    kube.apply(simple(**spec), namespace)
    held = job(kube, namespace, lambda status: mend in (status.get("display") or {}).get("why", ""), mend, name="held")
    assert held["status"]["display"]["state"].endswith(f"({reason})")


def test_an_unmodified_hugging_face_script_reports_its_progress(release: Helm, kube: Kube, namespace: str) -> None:
    spec = {
        "script": {"inline": HUGGING_FACE},
        "output": {"emptyDir": {}},
        "podTemplate": {"env": [{"name": "TRANSFORMERS_VERBOSITY", "value": "debug"}]},
    }
    kind = {"apiVersion": "trainwright.dev/v1alpha1", "kind": "TrainingJob"}
    kube.apply({**kind, "metadata": {"name": "theirs"}, "spec": spec}, namespace)
    done = job(kube, namespace, ended, "to end", name="theirs")["status"]
    assert done["state"] == "Succeeded", done
    assert done["progress"]["percent"] == 100
    assert "loss" in {one["name"] for one in done["metrics"]}
