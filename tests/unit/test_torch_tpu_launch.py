"""The environment of planned TPU pods against TorchTPU's own launch function, as ``fixtures.record_torch_tpu`` ran it.

The library is 300 MB and takes seconds to import, so the answers are recorded: what it was given must be what is
planned today, or the record is made again.
"""

from __future__ import annotations

import json

import pytest

from fixtures.record_torch_tpu import RECORD, given, torchtpu_cases

RECORDED = json.loads(RECORD.read_text())["cases"]


@pytest.fixture(params=torchtpu_cases())
def pods(request):
    return RECORDED[request.param]


@pytest.mark.parametrize("case", torchtpu_cases())
def test_the_record_is_of_what_is_planned(case):
    assert [pod["given"] for pod in RECORDED[case]] == given(case), "run `python -m fixtures.record_torch_tpu`"


def slices_of(pods):
    by_slice = {}
    for pod in pods:
        by_slice.setdefault(pod["given"].get("MEGASCALE_SLICE_ID", "0"), []).append(pod)
    return by_slice.values()


def test_every_pod_of_a_slice_agrees_on_addresses_one_for_each_rank_in_the_order_of_ranks(pods):
    for slice_ in slices_of(pods):
        (addresses,) = {pod["set"]["TORCH_TPU_SLICEBUILDER_ADDRESSES"] for pod in slice_}
        hosts = slice_[0]["given"]["TPU_WORKER_HOSTNAMES"].split(",")
        ranks = range(int(slice_[0]["given"]["PET_NPROC_PER_NODE"]))
        assert addresses.split(",") == [f"{host}:{8070 + rank}" for host in hosts for rank in ranks]
        assert len(hosts) == len(slice_)


def test_the_function_finds_the_slice_as_large_as_it_is_and_its_first_host_the_master(pods):
    for slice_ in slices_of(pods):
        for pod in slice_:
            assert pod["set"]["NNODES"] == str(len(slice_))
            assert pod["set"]["MASTER_ADDR"] == pod["given"]["TPU_WORKER_HOSTNAMES"].split(",")[0]


def test_what_the_plan_has_decided_is_left_as_it_is(pods):
    """The node rank stays the completion index, and the profiling session is the same for the whole attempt."""
    decided = {"NODE_RANK", "TORCH_TPU_TOPOLOGY", "TORCH_TPU_XPROF_SESSION_ID"}
    assert all(decided <= pod["given"].keys() and not decided & pod["set"].keys() for pod in pods)
    assert len({pod["given"]["TORCH_TPU_XPROF_SESSION_ID"] for pod in pods}) == 1
    assert all(
        pod["given"]["NODE_RANK"] == pod["given"]["TPU_WORKER_ID"] == pod["given"]["PET_NODE_RANK"] for pod in pods
    )
