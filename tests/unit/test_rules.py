"""Each rule in named cases, and its two forms against each other: the Python predicate and the CEL of the CRD."""

from __future__ import annotations

import re
from typing import Any

import cel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwright.arguments.fields import FIELDS
from trainwright.rules import DEFAULTS, RULES, Rule, camel, violations

BY_NAME = {rule.name: rule for rule in RULES}
COMPILED = {rule.name: cel.compile(rule.cel) for rule in RULES}

EVAL = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}

# rule -> (values that are fine, values that are not)
CASES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "length": (
        [{}, {"num_train_epochs": 0.5}, {"num_train_epochs": 0, "max_steps": 1}, {"max_steps": 0}],
        [{"num_train_epochs": 0}, {"num_train_epochs": 0, "max_steps": -1}, {"num_train_epochs": 0, "max_steps": 0}],
    ),
    "warmup-steps-whole": (
        [{}, {"warmup_steps": 0.1}, {"warmup_steps": 1}, {"warmup_steps": 100}],
        [{"warmup_steps": 1.5}, {"warmup_steps": 100.1}],
    ),
    "one-number-format": (
        [{}, {"fp16": True}, {"bf16": True}, {"bf16": True, "fp16": False}],
        [{"fp16": True, "bf16": True}],
    ),
    "one-number-format-for-evaluation": (
        [{}, {"fp16_full_eval": True}, {"bf16_full_eval": True}],
        [{"fp16_full_eval": True, "bf16_full_eval": True}],
    ),
    "logging-interval": (
        [{}, {"logging_steps": 1}, {"logging_steps": 0.01}, {"logging_steps": 0, "logging_strategy": "epoch"}],
        [{"logging_steps": 0}, {"logging_steps": 0, "logging_strategy": "steps"}],
    ),
    "logging-steps-whole": (
        [{}, {"logging_steps": 0.5}, {"logging_steps": 3}, {"logging_steps": 1.5, "logging_strategy": "no"}],
        [{"logging_steps": 1.5}, {"logging_steps": 100.01}],
    ),
    "eval-interval": (
        [
            {},
            {"eval_steps": 0},
            {"eval_strategy": "steps"},
            {"eval_strategy": "steps", "eval_steps": 0},
            {"eval_strategy": "steps", "eval_steps": 5, "logging_steps": 0},
            {"eval_strategy": "epoch", "logging_steps": 0},
        ],
        [
            {"eval_strategy": "steps", "logging_steps": 0},
            {"eval_strategy": "steps", "eval_steps": 0, "logging_steps": 0},
        ],
    ),
    "eval-steps-whole": (
        [
            {"eval_steps": 2.5},
            {"eval_strategy": "steps", "eval_steps": 0.25},
            {"eval_strategy": "steps", "eval_steps": 25, "logging_steps": 2.5},
        ],
        [
            {"eval_strategy": "steps", "eval_steps": 2.5},
            {"eval_strategy": "steps", "logging_steps": 2.5},
            {"eval_strategy": "steps", "eval_steps": 0, "logging_steps": 2.5},
        ],
    ),
    "save-interval": (
        [{}, {"save_steps": 1}, {"save_steps": 0, "save_strategy": "no"}, {"save_steps": 0.1}],
        [{"save_steps": 0}],
    ),
    "save-steps-whole": (
        [{"save_steps": 0.1}, {"save_steps": 7}, {"save_steps": 7.5, "save_strategy": "epoch"}],
        [{"save_steps": 7.5}],
    ),
    "save-best-needs-evaluation": (
        [{}, {"save_strategy": "best", "eval_strategy": "steps"}, {"save_strategy": "best", "eval_strategy": "epoch"}],
        [{"save_strategy": "best"}, {"save_strategy": "best", "eval_strategy": "no"}],
    ),
    "save-best-needs-metric": (
        [
            {},
            {"save_strategy": "best", "metric_for_best_model": "f1"},
            {"save_strategy": "best", "load_best_model_at_end": True},
            {"save_strategy": "best", "lr_scheduler_type": "greedy"},
        ],
        [{"save_strategy": "best"}, {"save_strategy": "best", "lr_scheduler_type": "cosine"}],
    ),
    "load-best-needs-evaluation": (
        [{}, {"load_best_model_at_end": True, "eval_strategy": "epoch"}, {"load_best_model_at_end": False}],
        [{"load_best_model_at_end": True}, {"load_best_model_at_end": True, "save_strategy": "best"}],
    ),
    "load-best-same-strategies": (
        [
            EVAL,
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "best"},
            {"eval_strategy": "epoch", "save_strategy": "steps"},
        ],
        [
            {"load_best_model_at_end": True, "eval_strategy": "epoch"},
            {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "no"},
            {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "epoch"},
        ],
    ),
    "load-best-save-on-evaluation": (
        [
            EVAL,
            EVAL | {"eval_steps": 100, "save_steps": 300},
            EVAL | {"eval_steps": 0.1, "save_steps": 0.3},
            EVAL | {"eval_steps": 0.07, "save_steps": 0.14},
            EVAL | {"logging_steps": 5, "save_steps": 10},
            EVAL | {"eval_steps": 0, "logging_steps": 5, "save_steps": 10},
            {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 4},
        ],
        [
            EVAL | {"eval_steps": 3, "save_steps": 4},
            EVAL | {"eval_steps": 100, "save_steps": 50},
            EVAL | {"eval_steps": 0.2, "save_steps": 0.3},
            EVAL | {"eval_steps": 0.5, "save_steps": 500},
            EVAL | {"eval_steps": 1, "save_steps": 0.5},
            EVAL | {"logging_steps": 7},
        ],
    ),
    "scheduler-needs-evaluation": (
        [{}, {"lr_scheduler_type": "cosine"}, {"lr_scheduler_type": "greedy", "eval_strategy": "epoch"}],
        [{"lr_scheduler_type": "greedy"}, {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "no"}],
    ),
    "low-rank-needs-targets": (
        [{}, {"optim": "galore_adamw", "optim_target_modules": "all-linear"}, {"optim": "sgd"}],
        [{"optim": "galore_adamw"}, {"optim": "apollo_adamw_layerwise"}],
    ),
    "steps-in-backward-take-whole-batches": (
        [
            {},
            {"gradient_accumulation_steps": 2},
            {"optim": "lomo"},
            {"optim": "galore_adamw", "gradient_accumulation_steps": 2},
        ],
        [
            {"optim": "lomo", "gradient_accumulation_steps": 2},
            {"optim": "galore_adamw_layerwise", "gradient_accumulation_steps": 2},
        ],
    ),
    "steps-in-backward-take-no-scaled-gradients": (
        [{}, {"fp16": True}, {"optim": "adalomo"}, {"optim": "galore_adamw", "fp16": True}],
        [{"optim": "adalomo", "fp16": True}, {"optim": "apollo_adamw_layerwise", "fp16": True}],
    ),
    "one-way-to-shard": (
        [{}, {"fsdp": "full_shard"}, {"deepspeed": {"a": 1}}, {"fsdp": "", "deepspeed": {"a": 1}}],
        [{"fsdp": "full_shard", "deepspeed": {"a": 1}}, {"fsdp": "full_shard", "deepspeed": {}}],
    ),
    "fsdp-settings-need-fsdp": (
        [{}, {"fsdp": "full_shard", "fsdp_config": {"cpu_offload": True}}],
        [{"fsdp_config": {"cpu_offload": True}}, {"fsdp": "", "fsdp_config": {"cpu_offload": True}}],
    ),
    "sizes-need-fsdp": (
        [{}, {"fsdp": "full_shard", "parallelism_config": {"dp_replicate_size": 2}}],
        [{"parallelism_config": {"dp_replicate_size": 2}}],
    ),
    "optimizers-that-take-shards": (
        [{}, {"optim": "lomo"}, {"fsdp": "full_shard"}, {"fsdp": "", "optim": "adamw_8bit"}],
        [
            {"fsdp": "full_shard", "optim": optim}
            for optim in ("lomo", "adamw_8bit", "galore_adamw", "apollo_adamw", "paged_lion_8bit")
        ],
    ),
    "optimizers-that-take-partitions": (
        [{"optim": "adafactor"}, {"optim": "sgd", "deepspeed": {"a": 1}}, {"deepspeed": {"a": 1}}],
        [{"optim": "adafactor", "deepspeed": {"a": 1}}, {"optim": "schedule_free_sgd", "deepspeed": {"a": 1}}],
    ),
    "deepspeed-is-made-once": (
        [{"auto_find_batch_size": True}, {"deepspeed": {"a": 1}}],
        [{"auto_find_batch_size": True, "deepspeed": {"a": 1}}],
    ),
    "liger-settings-need-liger": (
        [{}, {"use_liger_kernel": True}, {"use_liger_kernel": True, "liger_kernel_config": {"rope": True}}],
        [{"liger_kernel_config": {"rope": True}}, {"use_liger_kernel": False, "liger_kernel_config": {}}],
    ),
    "prefetch-needs-workers": (
        [{}, {"dataloader_prefetch_factor": 2, "dataloader_num_workers": 1}, {"dataloader_num_workers": 1}],
        [{"dataloader_prefetch_factor": 2}, {"dataloader_prefetch_factor": 2, "dataloader_num_workers": 0}],
    ),
    "persistent-needs-workers": (
        [{}, {"dataloader_persistent_workers": True, "dataloader_num_workers": 2}],
        [{"dataloader_persistent_workers": True}],
    ),
    "start-method-needs-workers": (
        [{}, {"dataloader_multiprocessing_context": "spawn", "dataloader_num_workers": 2}],
        [{"dataloader_multiprocessing_context": "spawn"}],
    ),
    "cpu-backend": (
        [{}, {"ddp_backend": "nccl"}, {"use_cpu": True}, {"use_cpu": True, "ddp_backend": "gloo"}],
        [{"use_cpu": True, "ddp_backend": "nccl"}],
    ),
}

FINE = [
    pytest.param(BY_NAME[name], values, id=f"{name}-{i}") for name in CASES for i, values in enumerate(CASES[name][0])
]
WRONG = [
    pytest.param(BY_NAME[name], values, id=f"{name}-{i}") for name in CASES for i, values in enumerate(CASES[name][1])
]


def holds(rule: Rule, values: dict[str, Any]) -> bool:
    return rule.predicate({name: info.default for name, info in FIELDS.items()} | values)


def holds_in_cel(rule: Rule, values: dict[str, Any]) -> bool:
    """As the API server evaluates it: numbers of ``number`` fields are doubles, absent fields are absent."""
    typed = {camel(k): float(v) if FIELDS[k].kind == "float" else v for k, v in values.items() if v is not None}
    return COMPILED[rule.name].execute({"self": typed})


def test_every_rule_has_cases() -> None:
    assert list(CASES) == [rule.name for rule in RULES]


@pytest.mark.parametrize(("rule", "values"), FINE)
def test_a_rule_holds_for_its_right_cases_in_python_and_in_cel(rule: Rule, values: dict[str, Any]) -> None:
    assert holds(rule, values)
    assert holds_in_cel(rule, values)


@pytest.mark.parametrize(("rule", "values"), WRONG)
def test_a_rule_is_broken_by_its_wrong_cases_in_python_and_in_cel(rule: Rule, values: dict[str, Any]) -> None:
    assert not holds(rule, values)
    assert not holds_in_cel(rule, values)


def value_of(name: str) -> st.SearchStrategy[Any]:
    info = FIELDS[name]
    if info.kind == "bool":
        return st.booleans()
    if info.choices:
        return st.sampled_from(info.choices)
    if info.kind == "int":
        return st.integers(int(info.minimum or 0), 5)
    if info.kind == "float":
        return st.one_of(st.integers(0, 12), st.floats(0, 12), st.integers(0, 100).map(lambda n: n / 100))
    return st.sampled_from(["loss", "f1"])


SPANNED = sorted({field for rule in RULES for field in rule.fields})


@given(st.fixed_dictionaries({}, optional={name: value_of(name) for name in SPANNED}))
@settings(max_examples=200)
def test_python_and_cel_agree_on_any_values(values: dict[str, Any]) -> None:
    for rule in RULES:
        assert holds(rule, values) == holds_in_cel(rule, values), rule.name


def test_what_absent_means_in_cel_is_the_default() -> None:
    for name, default in DEFAULTS.items():
        assert default == FIELDS[name].default
        assert isinstance(default, float) == (FIELDS[name].kind == "float"), name
    used = {field for rule in RULES for field in rule.fields}
    assert {name for name in used if FIELDS[name].default is not None} == set(DEFAULTS)


@pytest.mark.parametrize("rule", RULES, ids=[rule.name for rule in RULES])
def test_a_rule_looks_only_at_its_fields(rule: Rule) -> None:
    mentioned = set(re.findall(r"self\.(\w+)", rule.cel))
    assert mentioned == {camel(field) for field in rule.fields}
    assert "{" not in rule.cel


@pytest.mark.parametrize(("name", "values"), [(name, values) for name, (fine, _) in CASES.items() for values in fine])
def test_what_was_right_stays_so_when_the_target_goes_up(name: str, values: dict[str, Any]) -> None:
    """API servers judge these rules at creation alone; of what they look at, only this may change afterwards."""
    steps, epochs = values.get("max_steps", -1), values.get("num_train_epochs", 3.0)
    raised = {"max_steps": steps + 1 if steps > 0 else steps, "num_train_epochs": epochs + 0.5}
    defaults = {field: info.default for field, info in FIELDS.items()}
    assert BY_NAME[name].predicate(defaults | values | raised)


@pytest.mark.parametrize("rule", RULES, ids=[rule.name for rule in RULES])
def test_a_message_begins_with_the_field_to_fix_and_says_how(rule: Rule) -> None:
    assert rule.message.startswith(rule.fields[0])
    assert len(rule.message) < 180
    assert not re.search(r"[a-z]_[a-z]", rule.camel_message.replace("reduce_lr_on_plateau", ""))
    assert rule.camel_message.startswith(camel(rule.fields[0]))


def test_a_rule_is_not_asked_about_a_value_that_is_wrong_by_itself() -> None:
    values = {name: info.default for name, info in FIELDS.items()} | {"fp16": True, "bf16": True, "max_steps": "5"}
    assert [rule.name for rule in violations(values, {"max_steps"})] == ["one-number-format"]
    assert violations(values, {"max_steps", "bf16"}) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bf16", "bf16"),
        ("tf32", "tf32"),
        ("adam_beta1", "adamBeta1"),
        ("per_device_train_batch_size", "perDeviceTrainBatchSize"),
        ("ddp_bucket_cap_mb", "ddpBucketCapMb"),
    ],
)
def test_names_are_written_in_camel_case(name: str, expected: str) -> None:
    assert camel(name) == expected


def test_camel_names_are_distinct() -> None:
    assert len({camel(name) for name in FIELDS}) == len(FIELDS)
