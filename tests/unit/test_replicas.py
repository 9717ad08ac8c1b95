"""What `plan` says of jobs on several nodes whose weights would all cross the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from builders import make_job
from pool_cases import pool_manifest
from trainwright_operator.api import manifest
from trainwright_operator.api.spec import parse_job, parse_pool
from trainwright_operator.cli import main
from trainwright_operator.commands import replicas
from trainwright_operator.core.placement.pools import place

TWO_NODES = {"nodes": 2, "perNode": 8}


def objects(arguments: dict[str, Any], accelerator: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    job = make_job().with_("spec.accelerator", {"pool": "h100", **accelerator}).without("metadata.uid")
    stated = {**job.manifest()["spec"]["trainingArguments"], **arguments}
    pool = {"vendor": "nvidia", "perNode": 8}
    return job.with_("spec.trainingArguments", stated).manifest(), pool_manifest("h100", **pool)


def advised(accelerator: dict[str, Any], **arguments: Any) -> str | None:
    job, pool = objects(arguments, accelerator)
    parsed = parse_job(job)
    return replicas.advised(parsed.spec.training_arguments, place(parsed, parse_pool(pool)))


@pytest.mark.parametrize(
    ("fsdp", "proposed"),
    [
        ("full_shard", "hybrid_shard"),
        ("full_shard auto_wrap", "hybrid_shard auto_wrap"),
        ("shard_grad_op", "hybrid_shard_zero2"),
        ("auto_wrap", "hybrid_shard auto_wrap"),
    ],
)
def test_on_several_nodes_replicas_are_proposed_in_the_words_of_the_job(fsdp: str, proposed: str) -> None:
    assert advised(TWO_NODES, fsdp=fsdp) == proposed
    assert advised(TWO_NODES, fsdp=proposed) is None


@pytest.mark.parametrize(
    ("accelerator", "arguments"),
    [
        pytest.param({"nodes": 1, "perNode": 8}, {"fsdp": "full_shard"}, id="one node"),
        pytest.param({"nodes": 4, "perNode": 1}, {"fsdp": "full_shard"}, id="one rank a node"),
        pytest.param(TWO_NODES, {}, id="data parallel"),
        pytest.param(TWO_NODES, {"fsdp": ""}, id="switched off"),
        pytest.param(TWO_NODES, {"fsdp": "full_shard offload"}, id="offloaded"),
        pytest.param(TWO_NODES, {"fsdp": "full_shard", "fsdpConfig": {"cpu_offload": True}}, id="offloaded by key"),
        pytest.param(TWO_NODES, {"deepspeed": {"zero_optimization": {"stage": 3}}}, id="deepspeed"),
        pytest.param(
            TWO_NODES,
            {"fsdp": "full_shard", "parallelismConfig": {"dp_replicate_size": 4, "dp_shard_size": 4}},
            id="replicas of another size",
        ),
        pytest.param(
            TWO_NODES,
            {"fsdp": "full_shard", "parallelismConfig": {"dp_shard_size": 16}},
            id="one copy, stated by its size",
        ),
    ],
)
def test_nothing_is_proposed_where_it_changes_nothing_or_sizes_are_stated(
    accelerator: dict[str, Any], arguments: dict[str, Any]
) -> None:
    assert advised(accelerator, **arguments) is None


def planned(folder: Path, capsys: pytest.CaptureFixture[str], fsdp: str) -> tuple[str, str, str]:
    path = folder / "job.yaml"
    path.write_text(manifest.write(*objects({"fsdp": fsdp}, {**TWO_NODES, "nodes": 3})))
    assert main(["plan", str(path)]) == 0
    return str(path), *capsys.readouterr()


def test_plan_says_so_in_one_line_beside_the_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out, err = planned(tmp_path, capsys, "full_shard")
    assert {document.content["kind"] for document in manifest.read(out, "out")} >= {"Job"}
    assert err == (
        f"{path}: spec.trainingArguments.fsdp: hybrid_shard keeps a replica in each of the 3 nodes and exchanges less "
        "over the network (gradients, no weights); plan --memory says whether it fits\n"
    )
    assert planned(tmp_path, capsys, "hybrid_shard")[2] == ""
