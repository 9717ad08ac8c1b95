"""What transformers makes of a configuration, and of a checkpoint, beside what we make of it."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest

from trainwright.arguments import TrainingArguments
from trainwright.arguments.deepspeed import BY_HIDDEN_SIZE, filled, finished, get
from trainwright.arguments.fields import FIELDS

pytest.importorskip("deepspeed", reason="DeepSpeed has an environment of its own: make deepspeed")

ALL: dict[str, Any] = {
    "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto", "fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 3, **{path.partition(".")[2]: "auto" for path in BY_HIDDEN_SIZE}},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupDecayLR", "params": {
        "warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto", "total_num_steps": "auto",
    }},
}  # fmt: skip
GIVEN: dict[str, dict[str, Any]] = {
    "defaults": {},
    "batches": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3},
    "clipping off": {"max_grad_norm": 0.0},
    "optimizer": {
        "learning_rate": 3e-4, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6, "weight_decay": 0.1,
    },
    "brain floats": {"bf16": True},
    "brain floats in evaluation": {"bf16_full_eval": True},
    "warmup as a share": {"warmup_steps": 0.1},
    "each node": {"save_on_each_node": True},
}  # fmt: skip


@pytest.mark.parametrize("name", GIVEN)
def test_auto_is_filled_as_transformers_fills_it(name: str) -> None:
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    args = TrainingArguments("x", use_cpu=True, **GIVEN[name])
    values = {field: getattr(args, field) for field in FIELDS if hasattr(args, field)}
    theirs = HfTrainerDeepSpeedConfig(copy.deepcopy(ALL))
    as_theirs = SimpleNamespace(**values, world_size=2, get_warmup_steps=args.get_warmup_steps)
    theirs.trainer_config_process(as_theirs)
    theirs.trainer_config_finalize(as_theirs, SimpleNamespace(config=SimpleNamespace(hidden_size=48)), 70)
    ours = finished(filled(ALL, values, world_size=2), 48, 70, args.get_warmup_steps(70))
    assert ours == theirs.config
    assert get(ours, "scheduler.params.total_num_steps") == 70


@pytest.mark.parametrize(
    ("config", "given"),
    [
        ({"gradient_clipping": 0.5}, {}),
        ({"train_micro_batch_size_per_gpu": 2}, {}),
        ({"optimizer": {"type": "AdamW", "params": {"betas": [0.5, 0.6]}}}, {}),
        ({"bf16": {"enabled": True}}, {}),
    ],
)
def test_what_transformers_calls_a_mismatch_is_refused(config: dict[str, Any], given: dict[str, Any]) -> None:
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    config = {"zero_optimization": {"stage": 2}, **config}
    with pytest.raises(ValueError, match="here, and"):
        TrainingArguments("x", use_cpu=True, deepspeed=config, **given)
    args = TrainingArguments("x", use_cpu=True, **given)
    theirs = HfTrainerDeepSpeedConfig(config)
    values = {name: getattr(args, name) for name in FIELDS if hasattr(args, name)}
    theirs.trainer_config_process(SimpleNamespace(**values, world_size=1))
    assert theirs.mismatches
