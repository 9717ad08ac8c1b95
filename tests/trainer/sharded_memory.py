"""What each rank of a sharded training has in memory, counted, in the cases of a table."""

from __future__ import annotations

import tempfile
from typing import Any, NamedTuple

import torch

from trainer.counted import Counted, FromTheSecondStep, resized_by_fsdp
from trainer.measured import SMALL
from trainwright import Trainer, TrainingArguments
from trainwright.distributed.named_state import held

TOKENS, ROWS = 128, 2
LLAMA = {
    "source": "llama",
    "fromConfig": {
        "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, **SMALL,
    },
}  # fmt: skip
GPT2 = {
    "source": "gpt2",
    "fromConfig": {
        "n_layer": 4,
        "n_embd": 252,
        "n_head": 4,
        "n_positions": 128,
        "vocab_size": 1003,
        "bos_token_id": 1,
        "eos_token_id": 1,
    },
}
T5 = {
    "source": "t5",
    "fromConfig": {"d_model": 256, "d_kv": 64, "d_ff": 512, "num_layers": 3, "num_heads": 4, "vocab_size": 2048},
}
MODELS = {"llama": (LLAMA, "CausalLM"), "gpt2": (GPT2, "CausalLM"), "t5": (T5, "Seq2SeqLM")}
FULL: dict[str, Any] = {"fsdp": "full_shard"}
BF16: dict[str, Any] = {**FULL, "bf16": True}
PAIR: dict[str, dict[str, Any]] = {
    "llama, full_shard": FULL,
    "llama, shard_grad_op": {"fsdp": "shard_grad_op"},
    "llama, bf16": BF16,
    "llama, bf16, recomputed by FSDP": {**BF16, "fsdp_config": {"activation_checkpointing": True}},
    "llama, bf16, recomputed by the model": {**BF16, "gradient_checkpointing": True},
    "llama, accumulated": {**FULL, "gradient_accumulation_steps": 2},
    "llama, bf16, accumulated": {**BF16, "gradient_accumulation_steps": 2},
    "llama, accumulated, summed each batch": {
        **FULL,
        "gradient_accumulation_steps": 2,
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    },
    "llama, one unit": {**FULL, "fsdp_config": {"auto_wrap_policy": "NO_WRAP"}},
    "llama, units by size": {
        **FULL,
        "fsdp_config": {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 300_000},
    },
    "llama, computed in bf16": {**FULL, "fsdp_config": {"mixed_precision_policy": "bf16"}},
    "llama, summed in bf16": {**BF16, "fsdp_config": {"mixed_precision_policy": {"reduce_dtype": "bf16"}}},
    "llama, adafactor": {**FULL, "optim": "adafactor"},
    "llama, sgd": {**FULL, "optim": "sgd"},
    "llama, adapters": BF16,
    "gpt2, full_shard": FULL,
    "t5, bf16": BF16,
    "llama, DDP": {},
}
FOUR: dict[str, dict[str, Any]] = {
    "llama, full_shard": FULL,
    "llama, bf16": BF16,
    "gpt2, full_shard": FULL,
    "llama, replicas": {**FULL, "parallelism_config": {"dp_replicate_size": 2, "dp_shard_size": 2}},
    "llama, bf16, replicas": {**BF16, "parallelism_config": {"dp_replicate_size": 2, "dp_shard_size": 2}},
}
CASES = {2: PAIR, 4: FOUR}


class Seen(NamedTuple):
    """Bytes of one rank."""

    parameters: int
    optimizer: int
    peak: int
    """Of a step after the first."""


def made(name: str) -> Any:
    """The model of a case, with adapters if its name says so."""
    import transformers

    from trainwright.declarative.models import AUTO_CLASSES

    spec, task = MODELS[name.partition(",")[0]]
    config = transformers.CONFIG_MAPPING[spec["source"]](**spec["fromConfig"])
    if task == "Seq2SeqLM":
        config.decoder_start_token_id = 0
    model = getattr(transformers, AUTO_CLASSES[task]).from_config(config)
    if "adapters" in name:
        import peft

        model = peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules=["q_proj", "v_proj"]))
    return model


def seen(cases: dict[str, dict[str, Any]]) -> dict[str, Seen]:
    """Train each case on this rank."""
    return {name: _seen(name, arguments) for name, arguments in cases.items()}


def _seen(name: str, arguments: dict[str, Any]) -> Seen:
    ids = torch.ones(TOKENS, dtype=torch.long)
    rows = [{"input_ids": ids, "attention_mask": ids, "labels": ids}] * 64
    given = {"max_steps": 3, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    with tempfile.TemporaryDirectory() as folder, Counted() as counted, resized_by_fsdp(counted):
        later = FromTheSecondStep(counted)
        args = TrainingArguments(folder, per_device_train_batch_size=ROWS, **given, **arguments)
        trainer = Trainer(made(name), args, train_dataset=rows, callbacks=[later])
        trainer.train()
    states = getattr(trainer.optimizer, "optimizer", trainer.optimizer).state.values()
    return Seen(
        sum(held(one).nbytes for one in trainer.model.parameters()),
        sum(held(one).nbytes for each in states for one in each.values() if torch.is_tensor(one) and one.dim()),
        counted.peak,
    )
