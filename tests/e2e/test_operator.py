"""The product on a real cluster: the chart installed, a manifest applied, a model trained, the status right."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from cluster import programs
from cluster.kind.faults import Faults
from cluster.kube import Kube, Object
from cluster.paths import CHECKOUT
from integration.charts import Helm
from trainwright_operator.manifest import read

SYSTEM = "trainwright-e2e"
CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "runs"},
    "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
}
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


@pytest.fixture(scope="module")
def release(kube: Kube, operator_image: str, trainer_image: str) -> Iterator[Helm]:
    """The chart, installed with the images of this checkout."""
    if programs.missing(["helm"]):
        pytest.skip("helm is not built: python -m cluster build --programs all, in tests/")
    kube.delete("Namespace", SYSTEM, None)
    kube.wait_gone("Namespace", SYSTEM, None)
    kube.namespace(SYSTEM)
    helm = Helm(kube, SYSTEM)
    repository, _, tag = operator_image.rpartition(":")
    images = {"image.repository": repository, "image.tag": tag, "trainerImage": trainer_image}
    helm.install("--take-ownership", *(part for name, value in images.items() for part in ("--set", f"{name}={value}")))
    yield helm
    helm.uninstall()
    kube.delete("Namespace", SYSTEM, None)


@pytest.fixture
def gpt(release: Helm, kube: Kube, namespace: str) -> Object:
    """The first example, shorter, with a claim that both nodes share; applied."""
    kube.apply(CLAIM, namespace)
    (document,) = read((CHECKOUT / "examples" / "gpt-on-stdlib.yaml").read_text(), "example")
    manifest = document.content
    manifest["spec"]["output"] = {"persistentVolumeClaim": {"claimName": "runs"}}
    manifest["spec"]["dataset"]["maxTrainSamples"] = 40
    manifest["spec"]["trainingArguments"] |= {"maxSteps": 120, "evalSteps": 60, "saveSteps": 20, "loggingSteps": 5}
    kube.apply(manifest, namespace)
    return manifest


def job(kube: Kube, namespace: str, until, what: str, seconds: float = 180, name: str = "gpt-on-stdlib") -> Object:
    return kube.wait_for("TrainingJob", name, namespace, lambda obj: until(obj.get("status", {})), seconds, what)


def at_step(step: int):
    return lambda status: (status.get("progress") or {}).get("step", 0) >= step


def ended(status: Object) -> bool:
    return status.get("state") in ("Succeeded", "Failed")


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


def in_a_pod(kube: Kube, namespace: str, image: str, script: str) -> str:
    """What a script prints that sees the job's output."""
    restricted = {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "main",
        "image": image,
        "command": ["python", "-c", script],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "securityContext": restricted,
        "volumeMounts": [{"name": "runs", "mountPath": "/output", "subPath": "gpt-on-stdlib"}],
    }
    volumes = [{"name": "runs", "persistentVolumeClaim": {"claimName": "runs"}}]
    spec = {"restartPolicy": "Never", "containers": [container], "volumes": volumes}
    kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reads"}, "spec": spec}, namespace)
    kube.wait_for("Pod", "reads", namespace, lambda pod: pod["status"]["phase"] in ("Succeeded", "Failed"), 90)
    return kube.logs("reads", namespace)
