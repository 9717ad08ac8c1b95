"""The memory of a rank under ZeRO, counted: every storage that torch makes, from the model to the last step."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from typing import Any

import torch

from trainer.counted import Counted, FromTheSecondStep
from trainer.measured import SMALL
from trainwright import Trainer, TrainingArguments, deferred_weights
from zero.runs import zero

TOKENS, ROWS = 128, 2
MODEL = {
    "source": "llama",
    "fromConfig": {
        "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, **SMALL,
    },
}  # fmt: skip
BUCKET = {"reduce_bucket_size": 1_000_000}
TIGHT = {"stage3_max_live_parameters": 10**5, "stage3_max_reuse_distance": 10**5, "stage3_prefetch_bucket_size": 10**5}
TORCH_ADAM = {"type": "AdamW", "params": {"lr": "auto", "torch_adam": True}}


def with_section(given: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """In bfloat16, with more sections of the configuration."""
    return {"deepspeed": {**given["deepspeed"], **sections}, "bf16": True}


CASES: dict[str, dict[str, Any]] = {
    "1": {**zero(1, **BUCKET), "bf16": True},
    "1, accumulated": {**zero(1, **BUCKET), "bf16": True, "gradient_accumulation_steps": 2},
    "2": {**zero(2, **BUCKET), "bf16": True},
    "2, accumulated": {**zero(2, **BUCKET), "bf16": True, "gradient_accumulation_steps": 2},
    "2, a large bucket": {**zero(2, reduce_bucket_size=10_000_000), "bf16": True},
    "2, two buckets": {**zero(2, reduce_bucket_size=10_000_000, overlap_comm=True), "bf16": True},
    "2, float32": zero(2, **BUCKET),
    "2, adamw_torch": {**zero(2, **BUCKET), "bf16": True, "optim": "adamw_torch"},
    "2, rmsprop": {**zero(2, **BUCKET), "bf16": True, "optim": "rmsprop"},
    "2, sent in float32": with_section(zero(2, reduce_bucket_size=10_000_000), communication_data_type="fp32"),
    "2, an optimizer of the configuration": with_section(zero(2, **BUCKET), optimizer=TORCH_ADAM),
    "2, sgd": {**zero(2, **BUCKET), "bf16": True, "optim": "sgd"},
    "3": {**zero(3, **BUCKET), "bf16": True},
    "3, accumulated": {**zero(3, **BUCKET), "bf16": True, "gradient_accumulation_steps": 2},
    "3, few live": {**zero(3, **BUCKET, **TIGHT), "bf16": True},
    "3, adamw_torch": {**zero(3, **BUCKET), "bf16": True, "optim": "adamw_torch"},
    "3, adamw_torch, stepped in parts": {
        **zero(3, **BUCKET, sub_group_size=200_000), "bf16": True, "optim": "adamw_torch",
    },
    "3, sent in float32": with_section(zero(3, reduce_bucket_size=10_000_000), communication_data_type="fp32"),
    "3, recomputed": {**zero(3, **BUCKET, **TIGHT), "bf16": True, "gradient_checkpointing": True},
    "3, float32": zero(3, **BUCKET),
}  # fmt: skip


def peaks(cases: dict[str, dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """Case -> peaks of this rank until the end of the first step, and from then on."""
    return {name: _peak(arguments) for name, arguments in cases.items()}


def _peak(arguments: dict[str, Any]) -> tuple[int, int]:
    import transformers

    ids = torch.ones(TOKENS, dtype=torch.long)
    rows = [{"input_ids": ids, "attention_mask": ids, "labels": ids}] * 64
    config = transformers.CONFIG_MAPPING[MODEL["source"]](**MODEL["fromConfig"])
    given = {"max_steps": 3, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    with tempfile.TemporaryDirectory() as folder, Counted() as counted:
        later = FromTheSecondStep(counted)
        in_parts = arguments["deepspeed"]["zero_optimization"]["stage"] == 3
        with deferred_weights() if in_parts else nullcontext():
            model = transformers.AutoModelForCausalLM.from_config(config)
        args = TrainingArguments(folder, per_device_train_batch_size=ROWS, **given, **arguments)
        Trainer(model, args, train_dataset=rows, callbacks=[later]).train()
        return later.start, counted.peak
