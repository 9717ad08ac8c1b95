"""``make fault-stories``: faults on the real cluster, each as `kubectl get tj --watch` and `describe` see it.

Needs the cluster of ``make cluster``. The output of each story is also a file in artefacts/faults/.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster import programs
from cluster.kind.faults import Faults
from cluster.kind.provider import Kind
from cluster.kube import Kube, Object
from cluster.paths import CHECKOUT
from cluster.say import say
from demo import SYSTEM, example, install
from e2e.jobs import ended, job
from integration.charts import Helm

NAME = "gpt-on-stdlib"
FOLDER = CHECKOUT / "artefacts" / "faults"
STEPS = {"maxSteps": 400, "evalSteps": 400, "saveSteps": 25, "loggingSteps": 5}
LONGEST = 420.0


@dataclass
class Scene:
    """A job at work in a namespace of its own, and the faults that can be done to it."""

    kube: Kube
    faults: Faults
    namespace: str

    def pod(self, index: int) -> Object:
        pods = [pod for pod in self.kube.list("Pod", self.namespace) if pod["status"]["phase"] == "Running"]
        return next(pod for pod in pods if pod["metadata"]["name"].startswith(f"{NAME}-0-1-{index}-"))

    def name(self, index: int) -> str:
        return str(self.pod(index)["metadata"]["name"])

    def node(self, index: int) -> str:
        return str(self.pod(index)["spec"]["nodeName"])


def kill_rank(scene: Scene) -> None:
    scene.faults.kill_rank(scene.name(1), scene.namespace)


def stop_rank(scene: Scene) -> None:
    scene.faults.kill_rank(scene.name(1), scene.namespace, "STOP")


def delete_pod(scene: Scene) -> None:
    scene.kube.delete("Pod", scene.name(1), scene.namespace)


def drain_node(scene: Scene) -> None:
    scene.faults.drain(scene.node(1))


def stop_node(scene: Scene) -> None:
    scene.faults.stop(scene.node(1))


def fill_disk(scene: Scene) -> None:
    scene.faults.fill("small", scene.namespace, scene.faults.cluster.workers[0])


@dataclass(frozen=True)
class Story:
    """A fault, in the words of the table, and what the job's spec needs for it."""

    title: str
    fault: Callable[[Scene], None]
    spec: Object


STORIES = {
    "kill-rank": Story("a rank is killed with SIGKILL", kill_rank, {}),
    "delete-pod": Story("a pod is deleted", delete_pod, {}),
    "drain-node": Story("a node is drained", drain_node, {}),
    "stop-node": Story("a node is switched off", stop_node, {}),
    "hang": Story("a rank is stopped with SIGSTOP", stop_rank, {"hangTimeoutSeconds": 30}),
    "full-disk": Story(
        "the disk of the output is full",
        fill_disk,
        {"output": {"persistentVolumeClaim": {"claimName": "small"}}, "maxRestarts": 1},
    ),
}


def main(names: list[str]) -> int:
    kind = Kind("trainwright")
    kube, faults = kind.kube, Faults(kind)
    if not _installed(kube):
        kube.namespace(SYSTEM)
        install(Helm(kube, SYSTEM), kind.image("operator"), kind.image("trainer"))
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names or STORIES:
        told = shown(kube, faults, name, STORIES[name])
        (FOLDER / f"{name}.txt").write_text(told)
        print(told, flush=True)
    return 0


def _installed(kube: Kube) -> bool:
    return any(one["metadata"]["name"] == SYSTEM for one in kube.list("Namespace", None))


def shown(kube: Kube, faults: Faults, name: str, story: Story) -> str:
    """The job of a story from its first checkpoint over the fault to its end."""
    namespace = kube.namespace(f"fault-{name}-{int(time.time()) % 100000}")
    scene = Scene(kube, faults, namespace)
    manifest, claim = example()
    kube.apply(claim, namespace)
    if "output" in story.spec:
        faults.small_claim("small", namespace, faults.cluster.workers[0], size="64M")
        manifest["spec"]["accelerator"]["nodes"] = 1
    manifest["spec"] |= story.spec
    room = {"requests": {"cpu": "100m"}}  # so that both pods fit on the node that is left
    manifest["spec"]["podTemplate"] = {**manifest["spec"].get("podTemplate", {}), "resources": room}
    manifest["spec"]["dataset"]["maxTrainSamples"] = 40
    manifest["spec"]["trainingArguments"] |= STEPS
    kube.apply(manifest, namespace)
    watch = _kubectl(kube, namespace, "get", "tj", NAME, "--watch")
    try:
        job(kube, namespace, lambda status: (status.get("checkpoint") or {}).get("step", 0) >= 50, "to save", LONGEST)
        at = time.strftime("%H:%M:%S", time.gmtime())
        story.fault(scene)
        done: Any = job(kube, namespace, ended, "to end", LONGEST)
        say(f"{name}: {done['status']['state']}")
    finally:
        faults.heal()
        watch.terminate()
    seen = watch.communicate()[0]
    about = _kubectl(kube, namespace, "describe", "tj", NAME).communicate()[0]
    status = about[about.index("\nStatus:") :]
    ours = [str(CHECKOUT / ".venv/bin/trainwright"), "describe", NAME, "-n", namespace]
    said = subprocess.run([*ours, f"--kubeconfig={kube.kubeconfig}"], capture_output=True, text=True, check=True).stdout
    kube.delete("Namespace", namespace, None)
    parts = {
        f"kubectl get tj {NAME} --watch": seen,
        f"kubectl describe tj {NAME}": status,
        f"trainwright describe {NAME}": said,
    }
    return "\n".join([f"== {story.title}, at {at}", *(f"\n$ {command}\n{text}" for command, text in parts.items())])


def _kubectl(kube: Kube, namespace: str, *command: str) -> subprocess.Popen[str]:
    program = [str(programs.program("kubectl")), f"--kubeconfig={kube.kubeconfig}", f"--namespace={namespace}"]
    return subprocess.Popen([*program, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
