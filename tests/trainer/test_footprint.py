"""The estimate of ``plan --memory`` against what training takes here."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sweep.table import architectures
from trainer import sharded_memory, swept_memory
from trainer.measured import CASES, GPT2
from trainer.world import in_world
from trainwright import TrainingArguments
from trainwright.arguments.sharding import Fsdp
from trainwright.arguments.spread import needed, stated
from trainwright.contract import UserError
from trainwright.declarative.footprint import Step, Subject, step_of
from trainwright.footprint import Estimate, Layout, estimate, gib, with_adapters
from trainwright_operator.cli import main

SOME = ["gpt2, recomputed", "llama, bf16"]
"""Those of every run; `make footprints` compares all."""
NAMES = CASES if os.environ.get("TRAINWRIGHT_FOOTPRINTS") == "all" else SOME
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def estimated(name: str) -> Estimate:
    model, task, tokens, arguments = CASES[name]
    args = TrainingArguments("unused", use_cpu=True, report_to="none", **arguments)
    packs = {"blockSize": tokens} if task == "CausalLM" else {"maxLength": tokens}
    subject = Subject({**model, "tokenizer": "bytes"}, {"source": "x", **packs}, task)
    dtype = torch.bfloat16 if args.bf16 else None
    figures = subject.figures(Step(args.per_device_train_batch_size, dtype, args.activation_checkpointing))
    accumulates = args.gradient_accumulation_steps > 1
    return estimate(figures, Layout(), str(args.optim.value), accumulates=accumulates)


def measured(name: str) -> dict[str, int]:
    script = Path(__file__).with_name("measured.py")
    command, environment = [sys.executable, str(script), name], {**os.environ, **MALLOC, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_the_estimate_is_what_training_takes(name: str) -> None:
    told, seen = estimated(name), measured(name)
    assert told.parameters == seen["parameters"]
    assert told.optimizer == seen["optimizer"]
    print(f"{name}: {gib(told.total)} estimated, {gib(seen['peak'])} measured")
    assert told.total == pytest.approx(seen["peak"], rel=0.25)


# -- spread over ranks


def estimated_of_rank(name: str, ranks: int) -> Estimate:
    model, task = sharded_memory.MODELS[name.partition(",")[0]]
    given = {"per_device_train_batch_size": sharded_memory.ROWS, **sharded_memory.CASES[ranks][name]}
    lengths = {"blockSize" if task == "CausalLM" else "maxLength": sharded_memory.TOKENS}
    subject = Subject({**model, "tokenizer": "bytes"}, {"source": "x", **lengths}, task)
    way = stated(given, ranks, ranks)
    figures = subject.figures(step_of(way, given))
    return needed(with_adapters(figures) if "adapters" in name else figures, way, given)


@pytest.fixture(scope="module")
def measured_of_ranks() -> dict[int, list[dict[str, sharded_memory.Seen]]]:
    return {ranks: in_world(ranks, "trainer.sharded_memory:seen", CASES_OF[ranks], longest=400) for ranks in CASES_OF}


CASES_OF = {2: sharded_memory.CASES[2], 4: sharded_memory.CASES[4]}


@pytest.mark.skipif(NAMES is SOME, reason="in minutes: make footprints")
@pytest.mark.parametrize(("ranks", "name"), [(ranks, name) for ranks, cases in CASES_OF.items() for name in cases])
def test_the_estimate_is_what_the_rank_with_the_most_takes(measured_of_ranks: Any, ranks: int, name: str) -> None:
    told = estimated_of_rank(name, ranks)
    seen = [rank[name] for rank in measured_of_ranks[ranks]]
    peak = max(one.peak for one in seen)
    print(f"{name}, {ranks} ranks: {gib(told.total)} estimated, {gib(peak)} counted ({told.total / peak - 1:+.1%})")
    if "adapters" not in name:
        assert told.parameters == max(one.parameters for one in seen)
        assert told.optimizer == max(one.optimizer for one in seen)
    assert told.total == pytest.approx(peak, rel=0.25)


UNSHARDED = ("MobileBertForMaskedLM", "SqueezeBertForMaskedLM")
"""torch's fully_shard cannot run these as they are here."""


@pytest.mark.skipif(NAMES is SOME, reason="in minutes: make footprints")
def test_the_estimate_holds_over_architectures() -> None:
    apart, refused = {}, []
    swept = [one for one in architectures() if one.task in swept_memory.LABELS]
    with swept_memory.made_up_ranks():
        for one, fsdp in itertools.product(swept, (None, Fsdp())):
            try:
                told = swept_memory.estimated(one, fsdp)
            except UserError:
                refused.append(one.name)
                continue
            if fsdp is None or one.name not in UNSHARDED:
                apart[one.key, "one rank" if fsdp is None else "FSDP"] = told / swept_memory.counted(one, fsdp) - 1
    print(f"{len(apart)} estimates, {min(apart.values()):+.1%} to {max(apart.values()):+.1%}; refused: {set(refused)}")
    assert {key: share for key, share in apart.items() if abs(share) > 0.1} == {}


# -- plan --memory

POOL = {
    "apiVersion": "trainwright.dev/v1alpha1",
    "kind": "AcceleratorPool",
    "metadata": {"name": "small"},
    "spec": {"vendor": "nvidia", "perNode": 4, "memoryPerAccelerator": "1Gi"},
}


def planned(
    folder: Path, capsys: pytest.CaptureFixture[str], pool: dict[str, Any] | None = None, **spec: Any
) -> tuple[int, str, str]:
    """Exit code and output of ``plan --memory`` for a GPT-2 on four small GPUs, or on what ``pool`` states."""
    own = pool or {}
    pool = {**POOL, "spec": own if "vendor" in own else {**POOL["spec"], **own}}
    stated = {
        "model": {**GPT2, "tokenizer": "bytes"},
        "dataset": {"source": "/data/*.txt", "blockSize": 256},
        "task": "CausalLM",
        "accelerator": {"pool": "small"},
        "output": {"emptyDir": {}},
    }
    job = {
        "apiVersion": "trainwright.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "gpt"},
        "spec": spec if "script" in spec else {**stated, **spec},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump_all([pool, job]))
    code = main(["plan", str(folder / "job.yaml"), "--memory"])
    done = capsys.readouterr()
    return code, done.out, done.err


def test_plan_says_that_a_job_does_not_fit_and_what_would_make_it_fit(tmp_path, capsys) -> None:
    code, out, _ = planned(tmp_path, capsys, accelerator={"pool": "small", "perNode": 1})
    assert code == 1
    assert "21,143,552 parameters" in out
    assert "1.0 GiB for each rank" in out
    *_, heading, recomputed = out.splitlines()
    assert heading == "What would make it fit, each on top of those before:"
    assert re.search(r"5\d\d MiB  fits +gradientCheckpointing: true$", recomputed)


def test_plan_says_that_a_job_fits(tmp_path, capsys) -> None:
    code, out, _ = planned(tmp_path, capsys, trainingArguments={"gradientCheckpointing": True})
    assert (code, "does not fit" in out) == (0, False)
    assert "DDP over 4 ranks" in out or "one rank" in out


def test_a_script_has_no_estimate(tmp_path, capsys) -> None:
    code, _, err = planned(tmp_path, capsys, script={"inline": "pass"}, output={"emptyDir": {}})
    assert code == 2
    assert err.count("\n") == 1
    assert "a script brings its own model" in err


def test_zero_is_counted_with_its_buckets_and_in_stage_2_the_whole_model_at_the_start(tmp_path, capsys) -> None:
    arguments = {"deepspeed": {"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}}, "bf16": True}
    code, out, _ = planned(tmp_path, capsys, trainingArguments=arguments)
    parts = re.search(r"ZeRO 3 over 4 ranks +(\d+) MiB +(\d+) MiB +(\d+) MiB", out)
    assert code == 0
    assert parts, out
    elements, sizes = 21_143_552, (2, 6, 12)
    assert [int(size) for size in parts.groups()] == [round(elements * size / 4 / 2**20) for size in sizes]
    assert "before it is partitioned" not in out
    arguments["deepspeed"]["zero_optimization"]["reduce_bucket_size"] = 500_000_000
    code, out, _ = planned(tmp_path, capsys, trainingArguments=arguments)
    assert (code, out.splitlines()[2].endswith("does not fit")) == (1, True)
    arguments["deepspeed"]["zero_optimization"] = {"stage": 2, "reduce_bucket_size": "auto"}
    _, out, _ = planned(tmp_path, capsys, trainingArguments=arguments)
    assert f"before it is partitioned: {gib(4 * elements)}" in out


def test_a_key_of_deepspeed_whose_memory_is_not_counted_is_named(tmp_path, capsys) -> None:
    arguments = {"deepspeed": {"zero_optimization": {"stage": 2}, "data_types": {"grad_accum_dtype": "fp32"}}}
    code, _, err = planned(tmp_path, capsys, trainingArguments=arguments)
    assert code == 2
    assert err.count("\n") == 1
    assert "what data_types does to memory is not estimated" in err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"optim": "galore_adamw", "optimTargetModules": ["c_attn"]}, "what galore_adamw keeps of the layers"),
        ({"fsdp": "full_shard", "fsdpConfig": {"ignored_modules": "lm_head"}}, "lm_head trains"),
        ({"fsdp": "full_shard", "fsdpConfig": {"transformer_layer_cls_to_wrap": ["Block"]}}, "are of GPT2Block"),
        (
            {
                "fsdp": "full_shard",
                "fsdpConfig": {"auto_wrap_policy": "NO_WRAP", "transformer_layer_cls_to_wrap": ["B"]},
            },
            "NO_WRAP does not choose units by class",
        ),
        (
            {"fsdp": "full_shard", "gradientCheckpointing": True, "fsdpConfig": {"activation_checkpointing": True}},
            "gradient_checkpointing: fsdp_config.activation_checkpointing does the same per unit",
        ),
    ],
)
def test_what_the_job_would_refuse_is_refused_in_one_line(tmp_path, capsys, arguments: Any, line: str) -> None:
    code, out, err = planned(tmp_path, capsys, trainingArguments=arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert line in err


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path, capsys, monkeypatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("We couldn't connect") from ConnectionError("no name")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", unreachable)
    code, out, err = planned(tmp_path, capsys, model={"source": "org/model"})
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "We couldn't connect" in err


def test_replicas_within_nodes_of_one_process_are_refused(tmp_path, capsys) -> None:
    nodes = {"pool": "small", "nodes": 2, "perNode": 1}
    code, _, err = planned(tmp_path, capsys, trainingArguments={"fsdp": "hybrid_shard"}, accelerator=nodes)
    assert (code, err.count("\n")) == (2, 1)
    assert "each node has one process" in err


def test_gradients_that_stay_whole_are_counted_and_how_to_sum_them_is_said(tmp_path, capsys) -> None:
    stated = {"fsdp": "full_shard", "fsdpConfig": {"activation_checkpointing": True}, "gradientAccumulationSteps": 4}
    code, out, _ = planned(tmp_path, capsys, pool={"memoryPerAccelerator": "320Mi"}, trainingArguments=stated)
    assert code == 1
    whole = gib(4 * 21_143_552)
    assert re.search(rf"FSDP full_shard over 4 ranks +\d+ MiB +{whole} .*does not fit", out)
    assert "  acceleratorConfig: {gradient_accumulation_kwargs: {sync_each_batch: true}}\n" in out


def test_fsdp_is_not_proposed_for_tpus(tmp_path, capsys) -> None:
    tpu = {"vendor": "tpu", "generation": "v5e", "topology": "2x2", "chipsPerHost": 4, "memoryPerAccelerator": "100Mi"}
    code, out, _ = planned(tmp_path, capsys, pool=tpu)
    assert (code, "FSDP" in out, "fsdp" in out) == (1, False, False)


def test_sharding_is_advised_first_and_what_is_sharded_is_counted_so(tmp_path, capsys) -> None:
    code, out, _ = planned(tmp_path, capsys)
    assert (code, "DDP over 4 ranks" in out) == (1, True)
    assert out.splitlines()[-2].endswith("fsdp: full_shard, over 4 ranks")
    sharded = {"fsdp": "full_shard", "fsdpConfig": {"activation_checkpointing": True}}
    code, out, _ = planned(tmp_path, capsys, trainingArguments=sharded)
    assert (code, out.splitlines()[2].startswith("FSDP full_shard over 4 ranks")) == (0, True)


def test_replicas_between_nodes_are_proposed_where_a_rank_has_room_for_them(tmp_path, capsys) -> None:
    nodes = {"pool": "small", "nodes": 2}
    recomputed = {"fsdp": "full_shard", "fsdpConfig": {"activation_checkpointing": True}}
    code, out, _ = planned(tmp_path, capsys, trainingArguments=recomputed, accelerator=nodes)
    now, then = (re.search(rf"FSDP full_shard over {ranks}.* (\d+ MiB)  fits", out) for ranks in ("8", "4 ranks, 2"))
    assert code == 0
    assert now
    assert then
    advice = out.splitlines()[-1]
    assert advice.startswith("spec.trainingArguments.fsdp: hybrid_shard keeps a replica in each of the 2 nodes")
    assert advice.endswith(f"; {then[1]} for each rank then, {now[1]} now")
    code, out, _ = planned(tmp_path, capsys, trainingArguments={"fsdp": "full_shard"}, accelerator=nodes)
    assert (code, "hybrid_shard" in out) == (1, False)
