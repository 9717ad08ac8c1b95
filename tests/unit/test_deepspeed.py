"""DeepSpeed's configuration: what ``auto`` becomes, what contradicts the arguments, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainwright.arguments import ArgumentError, TrainingArguments
from trainwright.arguments.check import checked
from trainwright.arguments.deepspeed import check, filled, finished, hidden_size_of, read_file, stage_of
from trainwright.arguments.errors import Mistake
from trainwright.arguments.fields import FIELDS

ZERO = {"zero_optimization": {"stage": 2}}
BOTH = 'set both alike, or the first to "auto"'


def values(**given: Any) -> dict[str, Any]:
    return {name: info.default for name, info in FIELDS.items()} | given


def deep(**keys: Any) -> dict[str, Any]:
    return {**ZERO, **keys}


CONTRADICTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "batch": (
        deep(train_micro_batch_size_per_gpu=4), {},
        f"train_micro_batch_size_per_gpu is 4 here, and per_device_train_batch_size is 8; {BOTH}",
    ),
    "accumulation": (
        deep(gradient_accumulation_steps=2), {"gradient_accumulation_steps": 3},
        f"gradient_accumulation_steps is 2 here, and gradient_accumulation_steps is 3; {BOTH}",
    ),
    "clipping": (
        deep(gradient_clipping=0.5), {}, f"gradient_clipping is 0.5 here, and max_grad_norm is 1.0; {BOTH}",
    ),
    "rate": (
        deep(optimizer={"type": "AdamW", "params": {"lr": 1e-3}}), {"learning_rate": 1e-4},
        f"optimizer.params.lr is 0.001 here, and learning_rate is 0.0001; {BOTH}",
    ),
    "betas": (
        deep(optimizer={"type": "AdamW", "params": {"betas": [0.9, 0.95]}}), {},
        f"optimizer.params.betas is [0.9, 0.95] here, and adam_beta1 and adam_beta2 is [0.9, 0.999]; {BOTH}",
    ),
    "half precision": (deep(fp16={"enabled": True}), {}, f"fp16.enabled is True here, and fp16 is False; {BOTH}"),
    "brain floats": (
        deep(bf16={"enabled": False}), {"bf16": True}, f"bf16.enabled is False here, and bf16 is True; {BOTH}",
    ),
    "two optimizers": (
        deep(optimizer={"type": "AdamW"}), {"optim": "sgd"},
        "optimizer.type is AdamW here, and optim is sgd; leave one out",
    ),
    "two schedules": (
        deep(scheduler={"type": "WarmupLR"}), {"lr_scheduler_type": "cosine"},
        "scheduler.type is WarmupLR here, and lr_scheduler_type is cosine; leave one out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_names_both_values(name: str) -> None:
    config, given, said = CONTRADICTIONS[name]
    with pytest.raises(ArgumentError) as error:
        checked({"deepspeed": config, **given})
    assert [str(problem) for problem in error.value.problems] == [f"deepspeed: {said}"]


WRONG: dict[str, tuple[Any, str]] = {
    "nothing to shard": ({}, "zero_optimization is missing"),
    "stage 0": ({"zero_optimization": {"stage": 0}}, "zero_optimization.stage: 0 shards nothing"),
    "no stage": ({"zero_optimization": {}}, "zero_optimization.stage: it is missing"),
    "stage 4": ({"zero_optimization": {"stage": 4}}, "must be 1, 2 or 3, not 4"),
    "an unknown key": (deep(gradient_cliping=1), "did you mean gradient_clipping?"),
    "a disk": (deep() | {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "use 'cpu'"),
    "a pipeline": (deep(pipeline={"stages": 2}), "pipeline is not supported"),
    "tensor parallelism": (deep(tensor_parallel={"autotp_size": 2}), "tensor parallelism is not built yet"),
    "automatic, but not filled": (
        deep(optimizer={"type": "SGD", "params": {"momentum": "auto"}}),
        "optimizer.params.momentum: 'auto' is not filled",
    ),
    "two formats": (deep(fp16={"enabled": True}, bf16={"enabled": True}), "are both true; keep one"),
    "no file": ("ds.json", "there is no file 'ds.json'"),
    "DeepSpeed's recomputation": (deep(activation_checkpointing={"profile": True}), "set gradient_checkpointing"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused_with_its_key(name: str) -> None:
    config, said = WRONG[name]
    with pytest.raises(Mistake, match=said.replace("(", r"\(").replace("?", r"\?")):
        check(config)


def test_sections_that_are_switched_off_are_accepted() -> None:
    check(deep(autotuning={"enabled": False}, elasticity={"enabled": False}, tensor_parallel={}))


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"fsdp": True}, "fsdp and deepspeed exclude each other"),
        ({"optim": "adafactor"}, "optim cannot step on DeepSpeed's partitions"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size cannot make DeepSpeed's engine again"),
    ],
)
def test_arguments_that_exclude_it_are_refused(others: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        checked({"deepspeed": ZERO, **others})


def test_without_the_package_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainwright.arguments.machine._found", lambda module: module != "deepspeed")
    with pytest.raises(ImportError) as error:
        TrainingArguments("x", use_cpu=True, deepspeed=ZERO)
    (line,) = str(error.value).splitlines()
    assert line.startswith("deepspeed: needs the package deepspeed, which is not installed; run: pip install")


AUTO: dict[str, Any] = {
    "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto", "fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "stage3_param_persistence_threshold": "auto"},
    "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto", "warmup_num_steps": "auto"}},
}  # fmt: skip


def test_auto_is_filled_from_arguments_ranks_model_and_steps() -> None:
    given = values(per_device_train_batch_size=4, gradient_accumulation_steps=3, max_grad_norm=0.7, bf16=True)
    config = finished(filled(AUTO, given, world_size=2), hidden_size=32, max_steps=50, warmup_steps=0)
    assert config == {
        "train_batch_size": 24, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 3,
        "gradient_clipping": 0.7, "fp16": {"enabled": False}, "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3, "reduce_bucket_size": 1024, "stage3_param_persistence_threshold": 320},
        "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 50, "warmup_num_steps": 1}},
    }  # fmt: skip


def test_what_is_absent_follows_the_arguments_too() -> None:
    config = filled(ZERO, values(max_grad_norm=0.3, bf16=True), world_size=1)
    assert (config["gradient_clipping"], config["bf16"]) == (0.3, {"enabled": True})
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (8, 1)


def test_the_batch_of_all_ranks_must_fit() -> None:
    with pytest.raises(Mistake, match="train_batch_size is 24 here, and 2 processes x 8 samples x 1 accumulated is 16"):
        filled(deep(train_batch_size=24), values(), world_size=2)


def test_a_run_of_another_length_is_refused() -> None:
    schedule = {"type": "WarmupDecayLR", "params": {"total_num_steps": 10, "warmup_num_steps": "auto"}}
    with pytest.raises(Mistake, match="total_num_steps is 10 here, and the number of steps of this run is 50"):
        finished(deep(scheduler=schedule), None, 50, 5)


def test_a_width_that_is_needed_and_not_known_is_named() -> None:
    config = {"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}
    with pytest.raises(Mistake, match="reduce_bucket_size: 'auto' follows the model's hidden_size"):
        finished(config, None, 5, 0)


def test_the_width_of_a_model_is_found_where_transformers_finds_it() -> None:
    class Config:
        def __init__(self, **given: Any) -> None:
            vars(self).update(given)

    assert hidden_size_of(Config(hidden_size=8)) == 8
    assert hidden_size_of(Config(hidden_sizes=[4, 16])) == 16
    assert hidden_size_of(Config(text_config=Config(hidden_size=12))) == 12
    assert hidden_size_of(None) is None


def test_a_file_is_read_and_a_mapping_is_copied(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text('{"zero_optimization": {"stage": "auto"}}')
    assert stage_of(read_file(str(file))) == 2
    file.write_text("{")
    with pytest.raises(Mistake, match="is not JSON"):
        read_file(str(file))
    filled(AUTO, values(), world_size=1)
    assert AUTO["train_batch_size"] == "auto"
