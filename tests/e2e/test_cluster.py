"""What a cluster has to be before anything of ours runs on it: pods of our images that meet and share files."""

from __future__ import annotations

import textwrap

from cluster.jobs import indexed_job, spread
from cluster.kube import Kube, Object

TRAIN = """
import os, socket, sys
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
torch.manual_seed(dist.get_rank())  # ranks start apart: only DDP makes them one
model = DistributedDataParallel(torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
torch.manual_seed(100 + dist.get_rank())
x = torch.randn(64, 8)
y = x.sum(dim=1, keepdim=True)
for step in range(40):
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
weights = [torch.zeros(1, 8) for _ in range(dist.get_world_size())]
dist.all_gather(weights, model.module.weight.detach())
assert all(torch.equal(weights[0], other) for other in weights), "the ranks ended with different weights"
shm = os.statvfs("/dev/shm")
print(f"rank {dist.get_rank()} of {dist.get_world_size()} on {socket.gethostname()} loss {loss.item():.4f}")
print(f"shm {shm.f_blocks * shm.f_frsize >> 20} MiB")
if loss.item() > 0.05:
    raise SystemExit(f"it did not learn: {loss.item()}")
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # gloo's threads may let go of a tensor while Python ends, which aborts the process: our ranks end so too
"""


def service(name: str) -> Object:
    """A headless Service whose names resolve before the pods are ready: ranks meet first."""
    selector = {"batch.kubernetes.io/job-name": name}
    spec = {"clusterIP": "None", "selector": selector, "publishNotReadyAddresses": True}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def torchrun_job(name: str, image: str, script: str) -> Object:
    """A Job of two nodes with two ranks each, joined by static rendezvous at the pod of index 0."""
    run = f"python -m torch.distributed.run --nnodes 2 --nproc-per-node 2 --node-rank $JOB_COMPLETION_INDEX \
--master-addr {name}-0.{name} --master-port 29400 /tmp/train.py"
    container = {
        "image": image,
        "command": ["sh", "-c", f"cat > /tmp/train.py <<'END'\n{script}\nEND\nexec {run}"],
        "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    volumes = [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "96Mi"}}]
    return indexed_job(name, 2, container=container, volumes=volumes, subdomain=name, affinity=spread(name))


def test_torchrun_joins_two_nodes_and_trains_with_gloo(kube: Kube, namespace: str, trainer_image: str) -> None:
    kube.apply(service("ddp"), namespace)
    kube.apply(torchrun_job("ddp", trainer_image, TRAIN), namespace)
    kube.wait_for("Job", "ddp", namespace, ended, seconds=180, what="to end")
    pods = kube.list("Pod", namespace)
    logs = "".join(kube.logs(pod["metadata"]["name"], namespace) for pod in pods)
    assert len({pod["spec"]["nodeName"] for pod in pods}) == 2, "both pods ran on one node"
    assert [f"rank {rank} of 4" in logs for rank in range(4)] == [True] * 4, logs
    assert "shm 96 MiB" in logs, "/dev/shm is not the memory that the pod asked for"
    assert kube.get("Job", "ddp", namespace)["status"].get("succeeded") == 2, logs


def test_a_claim_is_shared_by_pods_on_two_nodes(kube: Kube, namespace: str, operator_image: str) -> None:
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    kube.apply(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "runs"}, "spec": spec}, namespace
    )
    meet = textwrap.dedent("""
        import os, pathlib, time
        me = int(os.environ["JOB_COMPLETION_INDEX"])
        pathlib.Path(f"/output/{me}").write_text(f"from {me}")
        other = pathlib.Path(f"/output/{1 - me}")
        deadline = time.monotonic() + 60
        while not (other.exists() and other.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        print(other.read_text())
    """)
    container = {
        "image": operator_image,
        "command": ["python", "-c", meet],
        "volumeMounts": [{"name": "runs", "mountPath": "/output"}],
    }
    volumes = [{"name": "runs", "persistentVolumeClaim": {"claimName": "runs"}}]
    job = indexed_job("share", 2, container=container, volumes=volumes, affinity=spread("share"))
    kube.apply(job, namespace)
    kube.wait_condition("Job", "share", "Complete", namespace, seconds=90)
    pods = {p["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]: p for p in kube.list("Pod", namespace)}
    assert len({pod["spec"]["nodeName"] for pod in pods.values()}) == 2
    assert [kube.logs(pods[i]["metadata"]["name"], namespace).strip() for i in "01"] == ["from 1", "from 0"]


def ended(job: Object) -> bool:
    """Whether the Job is Complete or Failed."""
    return any(
        condition["type"] in ("Complete", "Failed") and condition["status"] == "True"
        for condition in job.get("status", {}).get("conditions", [])
    )
