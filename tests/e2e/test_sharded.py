"""A model in shards on a real cluster: lost with a pod, gone on from, spread over other ranks, and loaded whole."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.kind.faults import Faults
from cluster.kube import Kube, Object
from demo import example, in_a_pod
from e2e.jobs import ended, job
from integration.charts import Helm
from trainwright_operator.api.manifest import read

EXAMPLE = Path(__file__).parents[2] / "examples" / "fsdp-cpu.yaml"
LOAD = """
import json
from transformers import AutoModelForCausalLM
model, report = AutoModelForCausalLM.from_pretrained("/output", output_loading_info=True)
print(json.dumps({"parameters": model.num_parameters(), "missing": sorted(report["missing_keys"])}))
"""


def sharded(**arguments: object) -> Object:
    (document,) = read(EXAMPLE.read_text(), EXAMPLE.name)
    document.content["spec"]["trainingArguments"] |= {"saveSteps": 10, "loggingSteps": 5, **arguments}
    return document.content


def test_shards_outlive_a_pod_and_go_on_over_other_ranks(
    release: Helm, kube: Kube, namespace: str, trainer_image: str, faults: Faults
) -> None:
    kube.apply(example()[1], namespace)
    kube.apply(sharded(maxSteps=60), namespace)
    job(kube, namespace, lambda status: "checkpoint" in status, "to have a checkpoint", name="fsdp-cpu")
    victim = next(
        pod["metadata"]["name"] for pod in kube.list("Pod", namespace) if "-0-1-1-" in pod["metadata"]["name"]
    )
    faults.kill(victim, namespace)
    done = job(kube, namespace, ended, "to end", seconds=300, name="fsdp-cpu")["status"]
    assert (done["state"], done["progress"]["step"]) == ("Succeeded", 60), done
    assert [one["outcome"] for one in done["attempts"]] == ["Failed", "Succeeded"]

    wider = sharded(maxSteps=80, gradientAccumulationSteps=1)
    wider["metadata"]["name"] = "fsdp-wider"
    wider["spec"]["accelerator"] = {"nodes": 2, "perNode": 2}
    wider["spec"]["podTemplate"] = {"resources": {"requests": {"cpu": "100m"}}}  # a node of the tests has two cores
    wider["spec"]["output"] = {"persistentVolumeClaim": {"claimName": "runs"}, "subPath": "fsdp-cpu", "adopt": True}
    kube.apply(wider, namespace)
    went_on = job(kube, namespace, ended, "to end", seconds=300, name="fsdp-wider")["status"]
    assert (went_on["state"], went_on["progress"]["step"]) == ("Succeeded", 80), went_on
    leader = next(
        pod["metadata"]["name"] for pod in kube.list("Pod", namespace) if "fsdp-wider-0-1-0-" in pod["metadata"]["name"]
    )
    assert "checkpoint-60" in (said := kube.logs(leader, namespace)), "it did not go on from there"
    assert said.count("{'loss'") == 4, "steps 65 to 80"
    loaded = json.loads(in_a_pod(kube, namespace, trainer_image, LOAD, "fsdp-cpu").splitlines()[-1])
    assert loaded["missing"] == []
    assert loaded["parameters"] > 800_000
