"""Containers beside the trainer in real pods: one prepares, one runs along, and the job ends all the same."""

from __future__ import annotations

from cluster.kube import Kube
from e2e.jobs import ended, job, simple
from integration.charts import Helm

READS = """
import pathlib, time
deadline = time.monotonic() + 60
while not (heard := pathlib.Path("/shared/beats")).exists() and time.monotonic() < deadline:
    time.sleep(0.1)
print("PREPARED", pathlib.Path("/shared/prepared").read_text(), "BEATS", heard.exists())
"""
BEATS = "import time\nwhile True:\n    open('/shared/beats', 'a').write('x')\n    time.sleep(0.2)\n"


def test_a_sidecar_and_an_init_container_serve_the_trainer_and_hold_up_no_end(
    release: Helm, kube: Kube, namespace: str
) -> None:
    shared = [{"name": "shared", "mountPath": "/shared"}]
    prepares = ["python", "-c", "open('/shared/prepared', 'w').write('yes')"]
    affinity = {
        "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "kubernetes.io/os"}]}
    }
    template = {
        "volumes": [{"name": "shared", "emptyDir": {}}],
        "volumeMounts": shared,
        "initContainers": [{"name": "prepare", "command": prepares, "volumeMounts": shared}],
        "sidecars": [{"name": "beat", "command": ["python", "-c", BEATS], "volumeMounts": shared}],
        "affinity": affinity,
        "dnsConfig": {"options": [{"name": "ndots", "value": "3"}]},
    }
    kube.apply(simple(script={"inline": READS}, accelerator={"nodes": 2}, podTemplate=template), namespace)
    done = job(kube, namespace, ended, "to end", name="held")["status"]
    assert (done["state"], done["restarts"]["total"]) == ("Succeeded", 0), done
    for pod in kube.list("Pod", namespace):
        assert "PREPARED yes BEATS True" in kube.logs(pod["metadata"]["name"], namespace, container="trainer")
        beat = next(one for one in pod["status"]["initContainerStatuses"] if one["name"] == "beat")
        assert "terminated" in beat["state"]
