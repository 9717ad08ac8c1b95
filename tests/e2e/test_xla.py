"""A job of a TPU pool under PyTorch/XLA, in a real pod on CPU: SPMD over two virtual devices.

The node says that it has the chips; `PJRT_DEVICE=CPU` in the pool's environment does the rest. The image is one of its
own and large, so that it is there only where it was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from cluster.accelerators import advertise, withdraw
from cluster.kind.provider import Kind
from cluster.kube import Kube, Object
from demo import example
from integration.charts import Helm

CHIPS = {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "1x1",
}
POOL = "v5e-on-cpu"


@pytest.fixture
def xla_image(kind: Kind) -> str:
    try:
        return kind.image("trainer-xla")
    except KeyError:
        pytest.skip("the nodes have no image with PyTorch/XLA: make images MORE=trainer-xla")


@pytest.fixture
def pool(kube: Kube, kind: Kind, xla_image: str) -> Iterator[str]:
    """A pool of one host with one chip, and a node that says it is that host."""
    on_cpu = {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "2"}
    spec = {
        "vendor": "tpu",
        "generation": "v5e",
        "topology": "1x1",
        "chipsPerHost": 1,
        "runtime": "torch_xla",
        "image": xla_image,
        "env": [{"name": name, "value": value} for name, value in on_cpu.items()],
    }
    kind_of_pool = {"apiVersion": "trainwright.dev/v1alpha1", "kind": "AcceleratorPool"}
    kube.apply({**kind_of_pool, "metadata": {"name": POOL}, "spec": spec})
    advertise(kube, kind.workers[0], "google.com/tpu", 1, CHIPS)
    yield POOL
    withdraw(kube, kind.workers[0], "google.com/tpu", CHIPS)
    kube.delete("AcceleratorPool", POOL, None)


def test_a_job_of_a_tpu_pool_trains_under_xla(release: Helm, pool: str, kube: Kube, kind: Kind, namespace: str) -> None:
    kube.apply(claim(), namespace)
    kube.apply(gpt_on_xla(pool), namespace)
    done = kube.wait_for("TrainingJob", "gpt-on-xla", namespace, has_ended, 240, "to end")["status"]
    assert done["state"] == "Succeeded", done
    assert (done["progress"]["step"], done["checkpoint"]["path"]) == (20, "checkpoint-20")
    metrics = {one["name"]: float(one["value"]) for one in done["metrics"]}
    assert metrics["loss"] < 5.3, "it begins at ln(260) = 5.56"
    assert metrics["xla_compilations"] <= 3, "steps kept compiling"
    (pod,) = kube.list("Pod", namespace, labels="trainwright.dev/job=gpt-on-xla")
    assert pod["spec"]["nodeName"] == kind.workers[0]
    device = next(
        json.loads(line)
        for line in kube.logs(pod["metadata"]["name"], namespace).splitlines()
        if line.startswith('{"event": "device"')
    )
    assert (device["devices"], device["spmd"]) == (2, True)


def has_ended(job: Object) -> bool:
    return job.get("status", {}).get("state") in ("Succeeded", "Failed")


def claim() -> Object:
    return example()[1]


def gpt_on_xla(pool: str) -> Object:
    """As small as a model can be: what is tested is the way there."""
    gpt = {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 64}
    arguments = {"maxSteps": 20, "perDeviceTrainBatchSize": 4, "learningRate": 0.001, "bf16": True}
    return {
        "apiVersion": "trainwright.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "gpt-on-xla"},
        "spec": {
            "task": "CausalLM",
            "model": {"source": "gpt2", "fromConfig": gpt, "tokenizer": "bytes"},
            "dataset": {"source": "stdlib://json/*.py", "blockSize": 64},
            "trainingArguments": {**arguments, "loggingSteps": 5, "saveSteps": 10},
            "accelerator": {"pool": pool},
            "output": {"persistentVolumeClaim": {"claimName": "runs"}},
        },
    }
