"""Pools on the real scheduler: every pod on a node that fits and none elsewhere, gangs as a whole or not at all.

The nodes are simulated, with the resources, labels and taints that the vendors' own tools give them.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from builders import make_job
from cluster.control_plane import ControlPlane
from cluster.kube import ApiError, Kube, condition_of
from cluster.paths import CHECKOUT
from cluster.simulated import FOREVER, RUN_FOR, accelerator_node, simulated_node
from integration.conftest import started
from integration.jobs import state
from integration.operators import Operator
from pool_cases import POOLS as TABLE
from pool_cases import WRONG, pool_manifest
from trainwright_operator.api.manifest import read
from trainwright_operator.api.spec import parse_job, parse_pool
from trainwright_operator.commands.loading import load
from trainwright_operator.commands.planning import planned
from trainwright_operator.core.children import children
from trainwright_operator.core.history import History
from trainwright_operator.core.placement.pools import place
from trainwright_operator.core.policy import budget

MACHINES = {
    "h100-0": ("h100", None),
    "h100-1": ("h100", None),
    "h100-gke-0": ("h100-gke", None),
    "mig-0": ("a100-mig", None),
    "mi300x-0": ("mi300x", None),
    "mi300x-1": ("mi300x", None),
    "cpx-0": ("mi300x-cpx", None),
    "v5e-0": ("v5e-8", "v5e"),
    **{f"v6e-{pool}-{host}": ("v6e-16", f"v6e-{pool}") for pool in "abc" for host in range(4)},
}
POOLS = ("cpu-8", "h100", "h100-gke", "mig", "mi300x", "mi300x-cpx", "v5e-8", "v6e-16", "v6e-2x16")
PLAIN = {"node-0", "node-1", "node-2"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    """A control plane of its own, with machines of every vendor beside three plain nodes."""
    for running in started(ControlPlane(f"pools-{os.getpid()}")):
        for name, (machine, node_pool) in MACHINES.items():
            running.add_node(accelerator_node(name, machine, node_pool))
        yield running


@pytest.fixture(scope="module")
def kube(cluster: ControlPlane) -> Kube:
    return cluster.kube


@pytest.fixture(scope="module")
def crds(kube: Kube) -> None:
    install(kube)
    for name in POOLS:
        kube.apply(pool_manifest(name))


def install(kube: Kube) -> None:
    for path in sorted((CHECKOUT / "crds").glob("*.yaml")):
        for crd in kube.apply(path):
            kube.wait_condition("CustomResourceDefinition", crd["metadata"]["name"], "Established", None)


@pytest.fixture
def namespace(kube: Kube, request) -> Iterator[str]:
    """Not restricted: RDMA takes a capability."""
    name = kube.namespace(f"pools-{abs(hash(request.node.name)) % 10**8}", restricted=False)
    yield name
    kube.delete("Namespace", name, namespace=None)
    kube.wait_list("Pod", name, lambda pods: not pods, what="to be gone")


@pytest.fixture
def operator(crds, kube: Kube, namespace: str, tmp_path: Path) -> Iterator[Operator]:
    running = Operator(kube, namespace, tmp_path, {"GANG_TIMEOUT": "600"}).start().wait_leading()
    yield running
    running.kill()


def job(name, pool, run_for=FOREVER, **asked):
    made = make_job(name).with_("spec.accelerator", {"pool": pool, **asked}).with_("spec.output", {"emptyDir": {}})
    made = made.with_("spec.podTemplate.metadata.annotations", {RUN_FOR: run_for})
    return made.without("metadata.namespace").without("metadata.uid").manifest()


def nodes_of(kube, namespace, name):
    pods = kube.list("Pod", namespace, f"trainwright.dev/job={name}")
    return [pod["spec"].get("nodeName") for pod in sorted(pods, key=lambda pod: pod["metadata"]["name"])]


CASES = {
    "cpu": ("cpu-8", {"nodes": 2, "perNode": 4}, 2, PLAIN),
    "nvidia, whole nodes and InfiniBand": ("h100", {"nodes": 2}, 2, {"h100-0", "h100-1"}),
    "nvidia on GKE, a part of a node": ("h100-gke", {"perNode": 4}, 1, {"h100-gke-0"}),
    "nvidia, MIG": ("mig", {"nodes": 7, "perNode": 1}, 7, {"mig-0"}),
    "amd": ("mi300x", {"nodes": 2}, 2, {"mi300x-0", "mi300x-1"}),
    "amd, partitions": ("mi300x-cpx", {"nodes": 2, "perNode": 8}, 2, {"cpx-0"}),
    "tpu, one host": ("v5e-8", {}, 1, {"v5e-0"}),
    "tpu, a slice of four hosts": ("v6e-16", {}, 4, {f"v6e-{pool}-{host}" for pool in "abc" for host in range(4)}),
}


@pytest.mark.parametrize(("pool", "asked", "pods", "allowed"), CASES.values(), ids=CASES)
def test_every_pod_is_on_a_node_that_fits(kube, namespace, operator, pool, asked, pods, allowed):
    kube.apply(job("train", pool, **asked), namespace)
    state(kube, namespace, "Running")
    nodes = nodes_of(kube, namespace, "train")
    assert len(nodes) == pods
    assert set(nodes) <= allowed


def test_a_job_that_no_node_fits_waits_and_says_why(kube, namespace, operator):
    kube.apply(job("train", "h100", nodes=3), namespace)
    queued = kube.wait_condition("TrainingJob", "train", "Queued", namespace)
    words = {one["type"]: one["message"] for one in queued["status"]["conditions"]}["Queued"]
    assert "Insufficient" in words
    assert set(nodes_of(kube, namespace, "train")) <= {"h100-0", "h100-1", None}


def node_pools(nodes):
    return Counter(MACHINES[node][1] for node in nodes)


def test_a_slice_is_one_node_pool_whole(kube, namespace, operator):
    kube.apply(job("one", "v6e-16"), namespace)
    kube.apply(job("two", "v6e-16"), namespace)
    found = []
    for name in ("one", "two"):
        state(kube, namespace, "Running", name)
        found.append(node_pools(nodes_of(kube, namespace, name)))
    assert [list(one.values()) for one in found] == [[4], [4]]
    assert len({*found[0], *found[1]}) == 2, "never two jobs in one slice"


def test_slices_of_one_job_have_a_node_pool_each_and_start_again_together(kube, namespace, operator):
    kube.apply(job("train", "v6e-2x16"), namespace)
    state(kube, namespace, "Running")
    pods = kube.list("Pod", namespace, "trainwright.dev/job=train")
    by_slice = [
        node_pools(
            one["spec"]["nodeName"] for one in pods if one["metadata"]["labels"]["trainwright.dev/slice"] == slice_
        )
        for slice_ in ("0", "1")
    ]
    assert [list(one.values()) for one in by_slice] == [[4], [4]]
    assert by_slice[0].keys() != by_slice[1].keys()
    lost = next(one["metadata"]["name"] for one in pods if one["metadata"]["labels"]["trainwright.dev/slice"] == "1")
    kube.delete("Pod", lost, namespace)
    for slice_ in (0, 1):
        kube.wait_for("Job", f"train-{slice_}-2", namespace)
    restarted = state(kube, namespace, "Running")
    assert restarted["status"]["restarts"] == {"total": 1, "counted": 0, "disruptions": 1}
    assert restarted["status"]["nodes"]["ready"] == 8


def test_a_half_made_multislice_attempt_is_completed_after_a_crash(kube, namespace, crds, tmp_path):
    """The operator creates one Job of two and dies; the next one finds it, and creates the other."""
    manifest = job("train", "v6e-2x16")
    (stored,) = kube.apply(manifest, namespace)
    parsed, pool = parse_job(stored), parse_pool(pool_manifest("v6e-2x16"))
    first = Operator(kube, namespace, tmp_path, {"IMAGE": "trainer:1-cpu"})
    placement = place(parsed, replace(pool, image="trainer:1-tpu"))
    made = children(parsed, placement, 1, budget=budget(parsed, History()))
    for child in made[:-1]:
        kube.create(child, namespace)
    assert [child["metadata"]["name"] for child in made] == ["tj-train", "train-0-1", "train-1-1"]
    first.start().wait_leading()
    try:
        running = state(kube, namespace, "Running")
        assert [one["attempt"] for one in running["status"]["attempts"]] == [1]
        assert {one["metadata"]["name"] for one in kube.list("Job", namespace)} == {"train-0-1", "train-1-1"}
    finally:
        first.kill()


def test_a_shape_that_does_not_fit_is_told_on_the_resource(kube, namespace, operator):
    kube.apply(job("train", "v6e-16", nodes=3), namespace)
    stalled = kube.wait_condition("TrainingJob", "train", "Stalled", namespace)
    words = {one["type"]: one["message"] for one in stalled["status"]["conditions"]}["Stalled"]
    assert "topology 4x4 has 16 chips, 16 / 4 per host = 4 hosts; nodes: 3 asked" in words
    assert stalled["status"]["display"]["state"] == "Pending (PoolUnusable)"


@pytest.mark.parametrize(("pool", "change", "words"), WRONG.values(), ids=WRONG)
def test_a_pool_that_cannot_be_is_refused_at_apply_in_the_same_words(kube, crds, pool, change, words):
    path, _, message = words.partition(": ")
    with pytest.raises(ApiError) as refused:
        kube.apply(pool_manifest(pool, **change), dryRun="All")
    (cause,) = refused.value.status["details"]["causes"]
    assert cause["field"] == path
    assert cause["message"].endswith(f": {message}")


@pytest.mark.parametrize("name", TABLE)
def test_every_pool_of_the_table_is_taken(kube, crds, name):
    assert kube.apply(pool_manifest(name), dryRun="All")[0]["kind"] == "AcceleratorPool"


def test_rdma_in_a_restricted_namespace_is_refused_with_the_fix(kube, crds, tmp_path):
    name = kube.namespace("pools-restricted")
    running = Operator(kube, name, tmp_path).start().wait_leading()
    try:
        kube.apply(job("train", "h100", nodes=2), name)
        queued = kube.wait_condition("TrainingJob", "train", "Queued", name, seconds=40)
        words = {one["type"]: one["message"] for one in queued["status"]["conditions"]}["Queued"]
        assert "the pool's rdmaResources need IPC_LOCK" in words
        assert "pod-security.kubernetes.io/enforce=privileged" in words
    finally:
        running.kill()
        kube.delete("Namespace", name, None)


# Gangs without PodGroup


def test_two_half_placed_gangs_do_not_hold_each_other_for_ever(kube, namespace, crds, cluster, tmp_path):
    """Six nodes and two gangs of four. Each gang is given three by hand: neither can start, and nothing is left."""
    slots = [f"slot-{number}" for number in range(6)]
    for name in slots:
        node = simulated_node(name, {"nvidia.com/gpu": "1"}, {"slot": "yes"}, taint="nvidia.com/gpu")
        node["spec"]["unschedulable"] = True
        cluster.add_node(node)
    kube.apply(pool_manifest("slots", vendor="nvidia", perNode=1, nodeSelector={"slot": "yes"}))
    running = Operator(kube, namespace, tmp_path, {"GANG_TIMEOUT": "3", "STATUS_INTERVAL": "1"}).start().wait_leading()
    try:
        for name in ("left", "right"):
            kube.apply(job(name, "slots", nodes=4), namespace)
            pods = kube.wait_list(
                "Pod", namespace, lambda found: len(found) == 4, labels=f"trainwright.dev/job={name}", seconds=20
            )
            for pod in pods[:3]:
                bind(kube, namespace, pod["metadata"]["name"], slots.pop())
        for name in [f"slot-{number}" for number in range(6)]:
            kube.patch("Node", name, {"spec": {"unschedulable": None}}, namespace=None)
        placed = [sum(node is not None for node in nodes_of(kube, namespace, name)) for name in ("left", "right")]
        assert placed == [3, 3], "both are half placed"
        finished = [finish(kube, namespace, seconds=120), finish(kube, namespace, seconds=120)]
        assert set(finished) == {"left", "right"}
        outcomes = [
            one["reason"]
            for name in finished
            for one in kube.get("TrainingJob", name, namespace)["status"]["attempts"]
            if one["outcome"] == "Disrupted"
        ]
        assert set(outcomes) == {"GangIncomplete"}
    finally:
        running.kill()
        for number in range(6):
            kube.delete("Node", f"slot-{number}", namespace=None)


def test_an_elastic_job_trains_on_the_nodes_that_there_are(kube, namespace, crds, cluster, tmp_path):
    """Room for three of four: the next attempt has three pods, and the global batch of four; all when a node comes."""
    for number in range(3):
        cluster.add_node(simulated_node(f"few-{number}", {"nvidia.com/gpu": "1"}, {"few": "yes"}, "nvidia.com/gpu"))
    kube.apply(pool_manifest("few", vendor="nvidia", perNode=1, nodeSelector={"few": "yes"}))
    running = Operator(kube, namespace, tmp_path).start().wait_leading()
    elastic = {"pool": "few", "nodes": 4, "minNodes": 2, "elasticTimeoutSeconds": 3}
    made = make_job("train").with_("spec.accelerator", elastic).with_("spec.output", {"emptyDir": {}})
    made = made.training(gradientAccumulationSteps=3).without("metadata.uid").without("metadata.namespace")
    try:
        kube.apply(made.with_("spec.podTemplate.metadata.annotations", {RUN_FOR: FOREVER}).manifest(), namespace)
        found = state(kube, namespace, "Running")
        first, second = found["status"]["attempts"]
        assert (first["reason"], first["outcome"], first["nextNodes"], second["nodes"]) == ("Shrunk", "Disrupted", 3, 3)
        assert found["status"]["restarts"]["counted"] == 0
        pods = kube.list("Pod", namespace, "trainwright.dev/attempt=2")
        resolved = json.loads(pods[0]["metadata"]["annotations"]["trainwright.dev/resolved-job"])
        assert (len(pods), resolved["training_arguments"]["gradient_accumulation_steps"]) == (3, 4)

        cluster.add_node(simulated_node("few-3", {"nvidia.com/gpu": "1"}, {"few": "yes"}, "nvidia.com/gpu"))
        grown = kube.wait_for(
            "TrainingJob",
            "train",
            namespace,
            lambda obj: obj["status"]["state"] == "Running" and obj["status"]["attempts"][-1]["nodes"] == 4,
            60,
            "to have all nodes",
        )
        assert [one.get("reason") for one in grown["status"]["attempts"]] == ["Shrunk", "Grown", None]
        kube.wait_list("Pod", namespace, lambda found: not found, 30, labels="trainwright.dev/probe=train")
    finally:
        running.kill()
        for number in range(4):
            kube.delete("Node", f"few-{number}", namespace=None)


def bind(kube, namespace, pod, node):
    target = {"apiVersion": "v1", "kind": "Node", "name": node}
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod}, "target": target}
    kube.request("POST", kube.path("Pod", namespace, pod, "binding"), binding)


def finish(kube, namespace, seconds):
    """Wait for a gang that is whole, and let it end well: as long as one is incomplete, nobody trains."""
    jobs = kube.wait_list(
        "TrainingJob",
        namespace,
        lambda found: any(one.get("status", {}).get("state") == "Running" for one in found),
        seconds,
        what="to have one at work",
    )
    name = next(one["metadata"]["name"] for one in jobs if one["status"]["state"] == "Running")
    for pod in kube.list("Pod", namespace, f"trainwright.dev/job={name}"):
        kube.patch("Pod", pod["metadata"]["name"], {"metadata": {"annotations": {RUN_FOR: "0s"}}}, namespace)
    state(kube, namespace, "Succeeded", name)
    return name


# Schedulers that a job names


def group_crd(group: str, version: str):
    """The CRD of a scheduler's PodGroup, with the fields that are written, and no other."""
    numbers, texts = (
        {"minMember": {"type": "integer"}},
        {"queue": {"type": "string"}, "priorityClassName": {"type": "string"}},
    )
    spec = {"type": "object", "properties": {**numbers, **texts}}
    schema = {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": {"type": "object"}}}}
    names = {"kind": "PodGroup", "plural": "podgroups", "singular": "podgroup", "listKind": "PodGroupList"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"podgroups.{group}"},
        "spec": {
            "group": group,
            "names": names,
            "scope": "Namespaced",
            "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
        },
    }


NAMED = {
    "volcano": ("scheduling.volcano.sh", "v1beta1", "scheduling.volcano.sh/queue-name", "scheduling.k8s.io/group-name"),
    "kai-scheduler": ("scheduling.run.ai", "v2alpha2", "kai.scheduler/queue", "pod-group-name"),
}


def test_each_attempt_has_a_group_of_the_scheduler_that_the_job_names(kube, namespace, crds, cluster, tmp_path):
    for group, version, _, _ in NAMED.values():
        for made in kube.apply(group_crd(group, version)):
            kube.wait_condition("CustomResourceDefinition", made["metadata"]["name"], "Established", None)
    running = Operator(kube, namespace, tmp_path).start().wait_leading()
    try:
        for scheduler, (group, version, queue, annotation) in NAMED.items():
            made = make_job(scheduler).nodes(2).with_("spec.podTemplate.schedulerName", scheduler)
            made = made.with_("metadata.labels", {queue: "research"}).with_("spec.output", {"emptyDir": {}})
            kube.apply(made.without("metadata.uid").without("metadata.namespace").manifest(), namespace)
            labels = f"trainwright.dev/job={scheduler}"
            pods = kube.wait_list("Pod", namespace, lambda found: len(found) == 2, labels=labels, seconds=30)
            found = kube.get(f"{group}/{version}/PodGroup", f"tj-{scheduler}-1", namespace)
            assert found["spec"] == {"minMember": 2, "queue": "research"}
            assert [pod["metadata"]["annotations"][annotation] for pod in pods] == [f"tj-{scheduler}-1"] * 2
            for pod, node in zip(pods, sorted(PLAIN), strict=False):
                bind(kube, namespace, pod["metadata"]["name"], node)
            state(kube, namespace, "Running", scheduler)
            kube.delete("TrainingJob", scheduler, namespace)
            kube.wait_list(f"{group}/{version}/PodGroup", namespace, lambda found: not found, 30)
    finally:
        running.kill()
        for group, *_ in NAMED.values():
            kube.delete("CustomResourceDefinition", f"podgroups.{group}", None)


# The scheduler's own gangs


@pytest.fixture
def grouped(gang_cluster, tmp_path) -> Iterator[tuple[Kube, str]]:
    kube = gang_cluster.kube
    install(kube)
    namespace = kube.namespace(f"grouped-{os.urandom(3).hex()}")
    kube.apply(pool_manifest("mi300x"))
    running = Operator(kube, namespace, tmp_path).start().wait_leading()
    yield kube, namespace
    running.kill()
    kube.delete("Namespace", namespace, None)


def test_a_gang_with_room_for_all_but_one_binds_nothing(grouped, gang_cluster):
    kube, namespace = grouped
    for number in range(3):
        gang_cluster.add_node(accelerator_node(f"gang-{number}", "mi300x"))
    kube.apply(job("train", "mi300x", nodes=4), namespace)
    pods = kube.wait_list(
        "Pod",
        namespace,
        lambda found: [condition_of(pod, "PodScheduled") for pod in found] == ["False"] * 4,
        seconds=30,
        what="to have been looked at by the scheduler",
    )
    assert [pod["spec"].get("nodeName") for pod in pods] == [None] * 4
    (group,) = kube.list("PodGroup", namespace)
    assert group["spec"]["schedulingPolicy"]["gang"]["minCount"] == 4
    assert group["metadata"]["ownerReferences"][0]["kind"] == "TrainingJob"
    state(kube, namespace, "Queued", seconds=60)
    gang_cluster.add_node(accelerator_node("gang-3", "mi300x"))
    state(kube, namespace, "Running", seconds=60)
    assert sorted(nodes_of(kube, namespace, "train")) == [f"gang-{number}" for number in range(4)]


# The examples


EXAMPLES = [
    "nvidia-8xh100-2-nodes",
    "nvidia-gpudirect-gke",
    "amd-mi300x",
    "tpu-v6e-4x4",
    "tpu-multislice",
    "mig",
    "dra",
    "cpu",
    "any-vendor",
    "volcano",
    "fsdp-llama-7b",
    "fsdp-llama-7b-mi300x",
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_its_pool_and_its_children_are_taken(kube, namespace, crds, name):
    path = CHECKOUT / "examples" / f"{name}.yaml"
    loaded = load([str(path)])
    documents = [document.content for document in read(path.read_text(), name)]
    taken = [kube.apply(document, namespace, dryRun="All")[0]["kind"] for document in documents]
    assert taken.count("TrainingJob") == 1
    objects = planned(loaded)
    for child in objects:
        child["metadata"]["namespace"] = namespace
        assert kube.apply(child, namespace, dryRun="All")[0]["kind"] == child["kind"]
        if child["kind"] == "Job":
            template = child["spec"]["template"]
            pod = {"apiVersion": "v1", "kind": "Pod", **template}
            pod["metadata"] = {**template["metadata"], "name": f"{child['metadata']['name']}-0"}
            kube.create(pod, namespace, dryRun="All")


def test_devices_by_claim_are_allocated_by_the_scheduler(kube, namespace, operator, cluster):
    """A driver's class and its devices on one node: the pods go there, each with devices of its own."""
    cluster.add_node(simulated_node("dra-0"))
    selected = [{"cel": {"expression": "device.driver == 'gpu.nvidia.com'"}}]
    kube.apply(dra("DeviceClass", "gpu.nvidia.com", selectors=selected))
    devices = [
        {"name": f"gpu-{number}", "attributes": {"architecture": {"string": "Hopper" if number < 4 else "Ampere"}}}
        for number in range(8)
    ]
    pool = {"name": "dra-0", "generation": 1, "resourceSliceCount": 1}
    kube.create(dra("ResourceSlice", "dra-0", driver="gpu.nvidia.com", nodeName="dra-0", pool=pool, devices=devices))
    selector = "device.attributes['gpu.nvidia.com'].architecture == 'Hopper'"
    kube.apply(
        pool_manifest(
            "claimed", vendor="nvidia", perNode=8, deviceClassName="gpu.nvidia.com", deviceSelectors=[selector]
        )
    )
    kube.apply(job("train", "claimed", nodes=2, perNode=2), namespace)
    state(kube, namespace, "Running")
    assert nodes_of(kube, namespace, "train") == ["dra-0", "dra-0"]
    claims = kube.list("resource.k8s.io/v1/ResourceClaim", namespace)
    allocated = [one["device"] for claim in claims for one in claim["status"]["allocation"]["devices"]["results"]]
    assert sorted(allocated) == ["gpu-0", "gpu-1", "gpu-2", "gpu-3"]


def dra(kind, name, **spec):
    return {"apiVersion": "resource.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
