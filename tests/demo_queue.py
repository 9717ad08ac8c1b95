"""``make demo-queue``: two teams, one quota, the real Kueue; pods on simulated nodes, so that it takes a minute.

The research team borrows what the products team does not use, and gives it back when they want it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from builders import JobBuilder, make_job
from cluster.control_plane import ControlPlane
from cluster.kube import Kube
from cluster.kueue import Kueue
from cluster.paths import CHECKOUT
from cluster.say import ClusterError, say
from cluster.simulated import RUN_FOR
from integration.operators import Operator
from trainwright_operator.api.manifest import read

NAMESPACE = "default"
QUEUE = "kueue.x-k8s.io/queue-name"
SETUP = CHECKOUT / "examples" / "queues.yaml"
FIRST = {"research-0": 2, "research-1": 2, "research-2": 2}
LATER = {"products-0": 2, "products-1": 2}
SECONDS = "20s"


def main() -> int:
    cluster = ControlPlane("demo-queue")
    kueue = Kueue(cluster, {})
    try:
        cluster.up()
        kueue.up()
        with tempfile.TemporaryDirectory() as folder:
            return demonstrate(cluster.kube, Path(folder))
    except ClusterError as error:
        print(f"demo-queue: error: {error}", file=sys.stderr)
        return 1
    finally:
        kueue.down()
        cluster.down()


def demonstrate(kube: Kube, folder: Path) -> int:
    for path in sorted((CHECKOUT / "crds").glob("*.yaml")):
        for crd in kube.apply(path):
            kube.wait_condition("CustomResourceDefinition", crd["metadata"]["name"], "Established", None)
    operator = Operator(kube, NAMESPACE, folder, {"PROGRESS_PORT": "0"}).start().wait_leading()
    try:
        for document in read(SETUP.read_text(), SETUP.name):
            if document.content["kind"] != "TrainingJob":
                kube.apply(document.content)
        say("two ClusterQueues of 4 CPUs each, which lend; three jobs of research, 2 pods of 2 CPUs each")
        apply(kube, FIRST)
        time.sleep(8)
        show(kube, "queue")
        say("now products wants its own quota: two jobs more")
        apply(kube, LATER)
        time.sleep(4)
        show(kube, "queue")
        return show(kube, "watch", *FIRST, *LATER)
    finally:
        operator.stop()


def apply(kube: Kube, jobs: dict[str, int]) -> None:
    for name, nodes in jobs.items():
        kube.apply(job(name, nodes).manifest(), NAMESPACE)


def job(name: str, nodes: int) -> JobBuilder:
    made = make_job(name).nodes(nodes).without("metadata.uid").with_("metadata.namespace", NAMESPACE)
    made = made.with_("metadata.labels", {QUEUE: name.partition("-")[0]}).with_("spec.output", {"emptyDir": {}})
    annotations: dict[str, Any] = {RUN_FOR: SECONDS}
    made = made.with_("spec.podTemplate.metadata.annotations", annotations)
    return made.with_("spec.podTemplate.resources", {"requests": {"cpu": "2", "memory": "1Gi"}})


def show(kube: Kube, *command: str) -> int:
    """The command line as a person would call it, with this terminal."""
    options = ["--namespace", NAMESPACE, "--kubeconfig", str(kube.kubeconfig)]
    program = [sys.executable, "-m", "trainwright_operator.cli"]
    return subprocess.run([*program, *command, *options], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
