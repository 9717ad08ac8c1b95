"""The memory of a rank of its own while a model of at least 1 GB starts under ZeRO 3, made whole and without values."""

from __future__ import annotations

import gc
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from bench.bench_shards import INNER, LENGTH, WIDTH, Around, own_memory, peak
from trainwright import Trainer, TrainingArguments, deferred_weights
from trainwright.checkpoint.staging import return_memory
from trainwright.training.prepare import divide_parts
from zero.runs import zero

LAYERS, BUCKET = 10, 10_000_000
HELD = 5
"""How many times its part a rank holds before its first step: parameters, the optimizer's float32 weights, gradients,
and two moments."""


def model_of(layers: int, without_values: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_attention_heads": 12, "vocab_size": 1024}
    torch.manual_seed(0)
    with deferred_weights() if without_values else nullcontext():
        return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=layers))


def trainer_of(folder: Path, model: Any) -> Trainer:
    args = TrainingArguments(
        str(folder), use_cpu=True, disable_tqdm=True, per_device_train_batch_size=1, save_strategy="no", max_steps=1,
        **zero(3, reduce_bucket_size=BUCKET),
    )  # fmt: skip
    data = [{"input_ids": torch.arange(LENGTH), "labels": torch.arange(LENGTH)}] * 64
    return Trainer(model, args, train_dataset=data)


def starts(without_values: bool) -> dict[str, float]:
    """The peaks of this rank beyond its imports: until the model is partitioned, and until the first step."""
    with tempfile.TemporaryDirectory() as name:
        trainer_of(Path(name), model_of(1, False)).train()  # imports, pools, the allocator
        gc.collect()
        return_memory()
        before, found = own_memory(), dict[str, int]()
        with peak(found, "partitioned"):
            trainer = trainer_of(Path(name), model_of(LAYERS, without_values))
            divide_parts(trainer.model, trainer._strategy, max_steps=1)
        around = Around(found, "start", "step")
        trainer.add_callback(around.callback)
        trainer.train()
        around.end()
    sizes = {name: 4 * getattr(parameter, "ds_numel", 0) for name, parameter in trainer.model.named_parameters()}
    return {
        "partitioned": found["partitioned"] - before, "start": found["start"] - before, "model": sum(sizes.values()),
        "layer": sum(size for name, size in sizes.items() if ".layers.0." in name),
        "loss": trainer.state.log_history[-1]["train_loss"],
    }  # fmt: skip
