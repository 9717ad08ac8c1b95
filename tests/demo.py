"""``make demo``: from nothing to a trained model on a real cluster, and the model read back from its volume and loaded.

Every part that is there already is kept: a second run only trains again. The cluster is left up, to look around in.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from cluster import programs
from cluster.kind.provider import Kind
from cluster.kube import Kube, Object
from cluster.paths import CHECKOUT
from cluster.say import ClusterError, say, timed
from integration.charts import Helm
from trainwright_operator.api.manifest import read

SYSTEM, NAMESPACE, NAME = "trainwright-system", "demo", "gpt-on-stdlib"
EXAMPLE = CHECKOUT / "examples" / f"{NAME}.yaml"
LOAD = """
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained("/output"), AutoTokenizer.from_pretrained("/output")
print(f"loaded {type(model).__name__} with {model.num_parameters():,} parameters; it goes on with `def main(`:")
asked = tokenizer("def main(", return_tensors="pt", add_special_tokens=False)
told = model.generate(**asked, max_new_tokens=110, do_sample=True, temperature=0.8, pad_token_id=0)
print(tokenizer.decode(told[0], skip_special_tokens=True))
"""
NEXT = """
Look around:
  export KUBECONFIG={kubeconfig} PATH={kubectl}:{trainwright}:$PATH
  kubectl -n demo get tj,jobs,pods
  kubectl -n demo describe tj gpt-on-stdlib
  trainwright -h                                   # watch, logs, report and describe follow jobs in the cluster
  trainwright report gpt-on-stdlib -n demo
  kubectl explain tj.spec.trainingArguments.learningRate
Go on:
  kubectl -n demo patch tj gpt-on-stdlib --type merge -p '{{"spec":{{"trainingArguments":{{"maxSteps":1200}}}}}}'
  kubectl -n demo delete tj gpt-on-stdlib
  make demo NAME={name}                            # again
  make cluster-down NAME={name}                    # remove every trace
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="trainwright", help="the name of the cluster")
    cluster = Kind(parser.parse_args().name)
    began = time.monotonic()
    try:
        code = demonstrate(cluster)
    except ClusterError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 1
    say(f"the whole demo: {time.monotonic() - began:.0f} s")
    if code == 0:
        places = {name: programs.program(name).parent for name in ("kubectl",)}
        trainwright = Path(sys.executable).parent
        print(NEXT.format(kubeconfig=cluster.kubeconfig, name=cluster.name, trainwright=trainwright, **places))
    return code


def demonstrate(cluster: Kind) -> int:
    """Cluster, images, chart, example, live table, model; the exit code."""
    cluster.up()
    programs.build(("helm", "kubectl"))
    kube = cluster.kube
    with timed("installing the chart"):
        install(Helm(kube, SYSTEM), cluster.image("operator"), cluster.image("trainer"))
    with timed("making the namespace demo anew"):
        afresh(kube)
    for document in example():
        kube.apply(document, NAMESPACE)
    say(f"applied {EXAMPLE.relative_to(CHECKOUT)}")
    options = ["--namespace", NAMESPACE, "--kubeconfig", str(cluster.kubeconfig)]
    if trainwright("watch", NAME, *options):
        return trainwright("describe", NAME, *options) or 1
    trainwright("report", NAME, *options)
    with timed("reading the model back from the claim"):
        said = in_a_pod(kube, NAMESPACE, cluster.image("trainer"), LOAD)
    print(said)
    return 0 if "loaded " in said else 1


def install(helm: Helm, operator_image: str, trainer_image: str) -> None:
    """The chart with the images of this checkout, in the place of an older release or of none."""
    repository, _, tag = operator_image.rpartition(":")
    images = {"image.repository": repository, "image.tag": tag, "trainerImage": trainer_image}
    values = [part for name, value in images.items() for part in ("--set", f"{name}={value}")]
    helm.upgrade("--install", "--create-namespace", "--take-ownership", *values)


def afresh(kube: Kube) -> None:
    """An output that holds another job's checkpoints would be refused, so that what is left of the last run goes."""
    kube.delete("Namespace", NAMESPACE, None)
    kube.wait_gone("Namespace", NAMESPACE, None, 120)
    kube.namespace(NAMESPACE)


def example() -> list[Object]:
    """The objects of the first example: the job, and the claim that its output lies in."""
    return [document.content for document in read(EXAMPLE.read_text(), EXAMPLE.name)]


def trainwright(*arguments: str) -> int:
    """The command line as a person would call it, with this terminal."""
    return subprocess.run([sys.executable, "-m", "trainwright_operator.cli", *arguments], check=False).returncode


def in_a_pod(kube: Kube, namespace: str, image: str, script: str, name: str = NAME) -> str:
    """What a script prints that sees the output of the job ``name``."""
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
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "HF_HUB_DISABLE_PROGRESS_BARS", "value": "1"}],
        "securityContext": restricted,
        "volumeMounts": [{"name": "runs", "mountPath": "/output", "subPath": name}],
    }
    volumes = [{"name": "runs", "persistentVolumeClaim": {"claimName": "runs"}}]
    spec = {"restartPolicy": "Never", "containers": [container], "volumes": volumes}
    kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reads"}, "spec": spec}, namespace)
    kube.wait_for("Pod", "reads", namespace, lambda pod: pod["status"]["phase"] in ("Succeeded", "Failed"), 180)
    return kube.logs("reads", namespace)


if __name__ == "__main__":
    sys.exit(main())
