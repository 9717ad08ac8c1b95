"""Two minutes of a small cluster: jobs that train, wait, fail and stop, a lost node, and a leader that is killed."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builders import JobBuilder, make_job
from cluster.control_plane import ControlPlane
from cluster.kube import Kube
from cluster.paths import CHECKOUT
from cluster.say import say
from cluster.simulated import FOREVER, RUN_FOR, accelerator_node
from dashboard.trainers import INDEX, Endpoint, Trainer
from integration.jobs import finish
from integration.operators import Operator, free_port
from trainwright.contract import ExitCode, Termination
from trainwright_operator.api.names import LABEL_ATTEMPT, LABEL_JOB

Object = dict[str, Any]
HOME, RESEARCH, VISION = "trainwright-system", "research", "vision"
QUEUE = "kueue.x-k8s.io/queue-name"
END_SECONDS = 125
SLOW = {"rank": 9, "factor": 2.4, "step": 300}
SUSPEND = {"spec": {"suspend": True}}
LEASE = {"LEASE_DURATION": "6", "LEASE_RENEW_DEADLINE": "4", "LEASE_PERIOD": "1"}
SETTINGS = {"NAMESPACES": "", "OPERATOR_NAMESPACE": HOME, "STATUS_INTERVAL": "1", "KUEUE": "on", **LEASE}
POOLS = {
    "h100": ({"vendor": "nvidia", "perNode": 8, "nodeSelector": {"nvidia.com/gpu.present": "true"}}, (2.5, "USD")),
    "mi300x": ({"vendor": "amd", "perNode": 8, "nodeSelector": {"amd.com/gpu.family": "AI"}}, (1.8, "EUR")),
}


@dataclass
class Story:
    """A control plane with Kueue, two operators, and what happens to their jobs."""

    cluster: ControlPlane
    folder: Path
    trainers: dict[str, Trainer] = field(default_factory=dict)
    operators: dict[str, Operator] = field(default_factory=dict)

    @property
    def kube(self) -> Kube:
        return self.cluster.kube

    def prepare(self) -> None:
        """CRDs, nodes, pools, namespaces, queues, and two operators, of which the first leads."""
        for path in sorted((CHECKOUT / "crds").glob("*.yaml")):
            for crd in self.kube.apply(path):
                self.kube.wait_condition("CustomResourceDefinition", crd["metadata"]["name"], "Established", None)
        for name in (HOME, RESEARCH, VISION):
            self.kube.namespace(name, restricted=False)
        for index in range(4):
            self.cluster.add_node(accelerator_node(f"h100-{index}", "h100"))
            self.cluster.add_node(accelerator_node(f"mi300x-{index}", "mi300x"))
        for name, (spec, (price, currency)) in POOLS.items():
            pool = {"apiVersion": "trainwright.dev/v1alpha1", "kind": "AcceleratorPool", "metadata": {"name": name}}
            self.kube.apply({**pool, "spec": {**spec, "price": {"perAcceleratorHour": price, "currency": currency}}})
        self._queues()
        for name in ("trainwright-0", "trainwright-1"):
            settings = {**SETTINGS, "POD_NAME": name, "PROGRESS_PORT": str(free_port())}
            operator = Operator(self.kube, HOME, self.folder, settings).start()
            self.operators[name] = operator if self.operators else operator.wait_leading()
        self.operators["trainwright-0"].wait_serving()
        self.endpoint = Endpoint(self.kube, HOME, self.folder)

    def close(self) -> None:
        for operator in self.operators.values():
            if operator.process is not None and operator.process.poll() is None:
                operator.kill()

    def tell(self) -> None:
        """Let it happen; every trainer pushes each second."""
        began, due = time.monotonic(), sorted(self._events().items())
        while (now := time.monotonic() - began) < END_SECONDS:
            while due and due[0][0] <= now:
                second, (what, happens) = due.pop(0)
                say(f"{second:4d} s  {what}")
                happens()
            self.endpoint.port = self._port_of_the_leader() or self.endpoint.port
            for trainer in self.trainers.values():
                trainer.tick(self.endpoint, self.kube)
            time.sleep(max(0.0, began + now + 1 - time.monotonic()))

    def jobs(self) -> list[Object]:
        return self.kube.list("TrainingJob")

    def _events(self) -> dict[int, tuple[str, Callable[[], object]]]:
        return {
            1: ("research/gpt on 16 H100, vision/vit on 16 MI300X", lambda: (self._run(RESEARCH, "gpt", "h100"),
                                                                             self._run(VISION, "vit", "mi300x"))),
            4: ("research/llama on 8 H100; research/first and second share a queue with room for one", self._more),
            20: ("a rank of gpt is killed; its ranks start again in place", self._round),
            26: ("a pod of llama hangs", self._hang),
            30: ("a pod of vit is evicted", self._evict),
            38: ("the node of vit's second pod is taken out of service", self._lose_node),
            42: ("rank 9 of gpt is slow", lambda: setattr(self.trainers["gpt"], "slowest", SLOW)),
            50: ("first succeeds; second may start", lambda: finish(self.kube, RESEARCH, "first")),
            56: ("llama hangs again", self._hang),
            76: ("the leader is killed; the standby takes over", self.operators["trainwright-0"].kill),
            95: ("llama is suspended", lambda: self.kube.patch("TrainingJob", "llama", SUSPEND, RESEARCH)),
            105: ("vit succeeds", lambda: finish(self.kube, VISION, "vit")),
        }  # fmt: skip

    def _port_of_the_leader(self) -> int | None:
        for operator in self.operators.values():
            if (operator.metrics() or {}).get("trainwright_progress_serving") == 1:
                return int(operator.settings["PROGRESS_PORT"])
        return None

    def _run(self, namespace: str, name: str, pool: str, nodes: int = 2, queue: str = "") -> None:
        self.kube.apply(job(namespace, name, pool, nodes, queue).manifest())
        self.trainers[name] = Trainer(namespace, name)

    def _more(self) -> None:
        self._run(RESEARCH, "llama", "h100", nodes=1)
        self._run(RESEARCH, "first", "", nodes=2, queue="shared")
        self._run(RESEARCH, "second", "", nodes=2, queue="shared")

    def _round(self) -> None:
        self.trainers["gpt"].restart_in_place(self.endpoint, self.kube, node_rank=1)

    def _pods(self, namespace: str, name: str) -> list[Object]:
        """Those of the newest attempt, by their index."""
        pods = self.kube.list("Pod", namespace, f"{LABEL_JOB}={name}")
        newest = max(int(pod["metadata"]["labels"][LABEL_ATTEMPT]) for pod in pods)
        mine = [pod for pod in pods if int(pod["metadata"]["labels"][LABEL_ATTEMPT]) == newest]
        return sorted(mine, key=lambda pod: int(pod["metadata"]["labels"][INDEX]))

    def _hang(self) -> None:
        """The launcher of llama's pod gives up: the kubelet's part of it."""
        pod, code = self._pods(RESEARCH, "llama")[-1], int(ExitCode.HANG)
        message = Termination("Hang", code, rank=0, error="no rank finished a step", ended_by="script").to_json()
        status = copy.deepcopy(pod["status"])
        status["phase"] = "Failed"
        end = {"exitCode": code, "reason": "Error", "message": message}
        end |= {"startedAt": status["startTime"], "finishedAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        status["containerStatuses"][0] |= {"ready": False, "started": False, "state": {"terminated": end}}
        self.kube.patch("Pod", pod["metadata"]["name"], {"status": status}, RESEARCH, "status")

    def _evict(self) -> None:
        self.kube.evict(self._pods(VISION, "vit")[1]["metadata"]["name"], VISION)

    def _lose_node(self) -> None:
        """A taint that the node controller does not remove again, as it would that of a node which answers."""
        taints = [{"key": "example.com/broken", "effect": "NoExecute"}]
        self.kube.patch("Node", self._pods(VISION, "vit")[1]["spec"]["nodeName"], {"spec": {"taints": taints}}, None)

    def _queues(self) -> None:
        resources = [{"name": "cpu", "nominalQuota": 4}, {"name": "memory", "nominalQuota": "16Gi"}]
        group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": "any", "resources": resources}]}
        api = "kueue.x-k8s.io/v1beta2"
        for kind, name, namespace, spec in (
            ("ResourceFlavor", "any", None, {}),
            ("ClusterQueue", "shared", None, {"namespaceSelector": {}, "resourceGroups": [group]}),
            ("LocalQueue", "shared", RESEARCH, {"clusterQueue": "shared"}),
        ):
            metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
            self.kube.apply({"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec})


def job(namespace: str, name: str, pool: str, nodes: int, queue: str) -> JobBuilder:
    made = make_job(name).nodes(nodes).without("metadata.uid").with_("metadata.namespace", namespace)
    made = made.with_("spec.output", {"emptyDir": {}}).with_(
        "spec.podTemplate.metadata.annotations", {RUN_FOR: FOREVER}
    )
    if queue:
        made = made.with_("metadata.labels", {QUEUE: queue})
        return made.with_("spec.podTemplate.resources", {"requests": {"cpu": "2", "memory": "1Gi"}})
    return made.with_("spec.accelerator.pool", pool)
