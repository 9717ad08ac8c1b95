"""Pools: which one a job gets, and what follows from it."""

from __future__ import annotations

import pytest

from builders import make_job
from trainwright_operator.api import pool
from trainwright_operator.api.spec import AcceleratorPool
from trainwright_operator.core.placement.pools import BUILTIN, VENDORS, choose, image_of, place
from trainwright_operator.core.placement.vendor import PoolError
from trainwright_operator.core.quantities import amount, threads

DEFAULT = {"trainwright.dev/is-default-pool": "true"}


@pytest.mark.parametrize(
    ("wanted", "pools", "chosen"),
    [
        (None, [], "cpu"),
        ("cpu", [], "cpu"),
        ("h100", [], None),
        ("h100", [AcceleratorPool("h100", "nvidia")], "h100"),
        (None, [AcceleratorPool("h100", "nvidia")], "cpu"),
        (None, [AcceleratorPool("h100", "nvidia", annotations=DEFAULT)], "h100"),
        ("cpu", [AcceleratorPool("h100", "nvidia", annotations=DEFAULT)], "cpu"),
        (None, [AcceleratorPool(name, "cpu", annotations=DEFAULT) for name in ("b", "a")], "a"),
    ],
)
def test_a_job_gets_the_pool_it_names_or_else_the_default(wanted, pools, chosen):
    job = make_job() if wanted is None else make_job().with_("spec.accelerator.pool", wanted)
    pool = choose(job.build(), {pool.name: pool for pool in pools})
    assert (pool and pool.name) == chosen


def test_a_clusters_own_cpu_pool_goes_before_the_builtin_one():
    own = AcceleratorPool("cpu", "cpu", image="mine")
    assert choose(make_job().build(), {"cpu": own}) is own


@pytest.mark.parametrize(
    ("per_node", "resources", "requests", "omp"),
    [
        (None, {}, {"cpu": "1"}, 1),
        (2, {}, {"cpu": "2"}, 1),
        (2, {"requests": {"cpu": "8"}}, {"cpu": "8"}, 4),
        (3, {"requests": {"cpu": 8}}, {"cpu": 8}, 2),
        (1, {"limits": {"cpu": "2500m"}}, {}, 2),
        (4, {"requests": {"cpu": "500m"}}, {"cpu": "500m"}, 1),
        (1, {"requests": {"memory": "1Gi"}}, {"memory": "1Gi", "cpu": "1"}, 1),
    ],
)
def test_cpu_requests_and_threads_follow_from_ranks_and_resources(per_node, resources, requests, omp):
    job = make_job().nodes(2, per_node).with_("spec.podTemplate.resources", resources).build()
    found = place(job, BUILTIN["cpu"])
    assert (found.nodes, found.slices, found.requests, found.threads) == (2, 1, requests, omp)


def test_pool_and_template_are_merged_and_the_template_wins():
    taint = {"key": "train", "operator": "Exists"}
    pool = AcceleratorPool("big", "cpu", node_selector={"a": "1", "b": "1"}, tolerations=(taint,), image="pool")
    job = make_job().with_("spec.podTemplate", {"nodeSelector": {"b": "2"}, "tolerations": [{"key": "mine"}]})
    found = place(job.build(), pool)
    assert found.node_selector == {"a": "1", "b": "2"}
    assert found.tolerations == (taint, {"key": "mine"})
    assert found.image == "pool"
    assert place(job.with_("spec.podTemplate.image", "own").build(), pool).image == "own"


def test_a_pools_per_node_is_the_default_and_the_limit():
    pool = AcceleratorPool("big", "cpu", per_node=4)
    assert place(make_job().build(), pool).per_node == 4
    with pytest.raises(PoolError, match=r"spec\.accelerator\.perNode: 8 is more than pool 'big' has in a node \(4\)"):
        place(make_job().nodes(1, 8).build(), pool)


SLICE = AcceleratorPool("slice", "tpu", generation="v6e", topology="4x4", chips_per_host=4)
BIG = AcceleratorPool("big", "cpu")
SHARDED = {
    "one process": (BIG, 1, {}, "fsdp: shards over the processes of a run, and this one trains alone"),
    "a TPU": (SLICE, None, {}, "fsdp: TPUs are sharded by their own compiler"),
    "sizes": (BIG, 4, {"dp_replicate_size": 3, "dp_shard_size": 2}, "parallelismConfig: 3 x 2 does not make the 4"),
    "a size": (BIG, 4, {"dp_replicate_size": 3}, "parallelismConfig: 3 does not make the 4 processes"),
}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("onAnomaly", "Skip", "spec.onAnomaly: a step of a compiled program cannot be left out on TPUs"),
        ("preflight", {}, "spec.preflight: it has no checks for TPUs"),
    ],
)
def test_what_tpus_cannot_do_is_refused(field: str, value: object, said: str) -> None:
    with pytest.raises(PoolError, match=said):
        place(make_job().with_(f"spec.{field}", value).build(), SLICE)


@pytest.mark.parametrize("name", SHARDED)
def test_shards_that_do_not_fit_the_processes_are_refused(name):
    pool, nodes, sizes, said = SHARDED[name]
    job = make_job().training(fsdp="full_shard", **({"parallelismConfig": sizes} if sizes else {}))
    job = job.nodes(nodes) if nodes else job
    with pytest.raises(PoolError) as refused:
        place(job.build(), pool)
    assert str(refused.value).startswith(f"spec.trainingArguments.{said}")


def test_shards_that_fit_the_processes_are_placed():
    sizes = {"dp_replicate_size": 2, "dp_shard_size": 2}
    job = make_job().nodes(4).training(fsdp="full_shard", parallelismConfig=sizes).build()
    assert place(job, AcceleratorPool("big", "cpu")).nodes == 4


def gpus(memory=None, **pool):
    job = make_job()
    if memory:
        job = job.with_("spec.podTemplate.resources.limits", {"memory": memory})
    return place(job.build(), AcceleratorPool("h100", "nvidia", **pool))


@pytest.mark.parametrize(
    ("memory", "pool", "size"),
    [
        (None, None, None),
        ("64Gi", None, "32768Mi"),
        ("1G", None, "477Mi"),
        (None, "16Gi", "16Gi"),
        ("64Gi", "16Gi", "16Gi"),
    ],
)
def test_shared_memory_is_half_the_memory_unless_the_pool_says(memory, pool, size):
    assert gpus(memory, shm_size=pool).shm_size == size


def test_shared_memory_leaves_room_for_the_process():
    with pytest.raises(
        PoolError, match=r"limits\.memory: 16Gi leaves nothing beside the 16Gi of /dev/shm of pool 'h100'"
    ):
        gpus("16Gi", shm_size="16Gi")


def test_rdma_needs_locked_memory():
    found = gpus(rdma_resources={"rdma/ib": 8})
    assert (found.limits["rdma/ib"], found.capabilities) == (8, ("IPC_LOCK",))
    assert gpus().capabilities == ()


def test_a_pool_that_speaks_of_the_taint_has_the_last_word():
    own = {"key": "nvidia.com/gpu", "operator": "Equal", "value": "reserved"}
    assert gpus(tolerations=(own,)).tolerations == (own,)
    other = {"key": "team", "operator": "Exists"}
    assert [one["key"] for one in gpus(tolerations=(other,)).tolerations] == ["nvidia.com/gpu", "team"]


@pytest.mark.parametrize(
    ("pool", "setting", "image"),
    [
        (AcceleratorPool("p", "cpu"), "mine/trainer:1-cpu", "mine/trainer:1-cpu"),
        (AcceleratorPool("p", "amd"), "mine/trainer:1-cpu", "mine/trainer:1-amd"),
        (AcceleratorPool("p", "tpu"), "mine/trainer:1-cpu", "mine/trainer:1-tpu"),
        (AcceleratorPool("p", "tpu", runtime="torch_xla"), "mine/trainer:1-cpu", "mine/trainer:1-tpu-xla"),
        (AcceleratorPool("p", "amd"), "mine/everything:1", "mine/everything:1"),
        (AcceleratorPool("p", "amd", image="own"), "mine/trainer:1-cpu", "own"),
    ],
)
def test_a_pool_without_an_image_gets_that_of_its_vendor(pool, setting, image):
    assert image_of(pool, setting) == image


def test_a_script_of_ones_own_may_drive_several_hosts_with_pytorch_xla():
    pool = AcceleratorPool("v6e", "tpu", topology="4x4", chips_per_host=4, runtime="torch_xla")
    found = place(make_job().script(inline="import torch_xla").build(), pool)
    assert (found.nodes, found.per_node, found.devices) == (4, 1, 4)


def test_devices_are_claimed_where_the_pool_names_a_class():
    found = gpus(device_class_name="gpu.nvidia.com", per_node=4)
    assert (found.device_class, found.devices, found.per_node) == ("gpu.nvidia.com", 4, 4)
    assert "nvidia.com/gpu" not in {**found.requests, **found.limits}


@pytest.mark.parametrize(
    ("quantity", "value"),
    [
        ("4", 4),
        ("1.5", 1.5),
        ("500m", 0.5),
        (2, 2),
        ("2e3", 2000),
        ("1k", 1000),
        ("0.1", 0.1),
        ("1Ki", 1024),
        ("1E", 1e18),
    ],
)
def test_quantities_are_read_as_kubernetes_reads_them(quantity, value):
    assert amount(quantity) == pytest.approx(value)


@pytest.mark.parametrize(("cpu", "ranks", "expected"), [("8", 2, 4), ("7", 2, 3), ("500m", 1, 1), ("1", 4, 1)])
def test_threads_are_each_ranks_whole_share(cpu, ranks, expected):
    assert threads(cpu, ranks) == expected


def test_every_vendor_of_the_crd_is_planned_for_and_no_other():
    assert list(VENDORS) == list(pool.VENDORS)
    assert {one.name for one in VENDORS.values()} == set(VENDORS)
