"""Train a model of a table here, and print the peak memory of its steps: ``python measured.py CASE``.

What torch and the Trainer take by themselves is measured by a first, tiny training and left out.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

SMALL = {"vocab_size": 4096, "max_position_embeddings": 256}
GPT2 = {
    "source": "gpt2",
    "fromConfig": {
        "n_layer": 6,
        "n_embd": 512,
        "n_head": 8,
        "n_positions": 256,
        "vocab_size": 4096,
        "bos_token_id": 1,
        "eos_token_id": 1,
    },
}
LLAMA = {
    "source": "llama",
    "fromConfig": {
        "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 12,
        "num_key_value_heads": 4, **SMALL,
    },
}  # fmt: skip
BERT = {"source": "bert", "fromConfig": {"num_hidden_layers": 6, "hidden_size": 512, "num_attention_heads": 8, **SMALL}}
CASES: dict[str, tuple[dict[str, Any], str, int, dict[str, Any]]] = {
    # name: (model, task, tokens of a row, arguments)
    "gpt2": (GPT2, "CausalLM", 256, {"per_device_train_batch_size": 8}),
    "gpt2, recomputed": (GPT2, "CausalLM", 256, {"per_device_train_batch_size": 8, "gradient_checkpointing": True}),
    "llama, accumulated": (
        LLAMA, "CausalLM", 128, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3},
    ),
    "llama, bf16": (LLAMA, "CausalLM", 256, {"per_device_train_batch_size": 8, "bf16": True}),
    "llama, sgd": (LLAMA, "CausalLM", 128, {"per_device_train_batch_size": 8, "optim": "sgd"}),
    "llama, adafactor": (LLAMA, "CausalLM", 128, {"per_device_train_batch_size": 8, "optim": "adafactor"}),
    "bert": (BERT, "SequenceClassification", 128, {"per_device_train_batch_size": 16}),
}  # fmt: skip


def status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def train(model: Any, rows: list[dict[str, Any]], **arguments: Any) -> Any:
    from trainwright import Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        given = {"max_steps": 3, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True}
        trainer = Trainer(model, TrainingArguments(folder, **given, **arguments), train_dataset=rows)
        trainer.train()
    return trainer


def main(name: str) -> None:
    import torch
    import transformers

    from trainwright.declarative.models import AUTO_CLASSES

    model, task, tokens, arguments = CASES[name]
    auto = getattr(transformers, AUTO_CLASSES[task])

    def built(changes: dict[str, Any]) -> Any:
        return auto.from_config(transformers.CONFIG_MAPPING[model["source"]](**{**model["fromConfig"], **changes}))

    def row(length: int) -> dict[str, Any]:
        ids = torch.ones(length, dtype=torch.long)
        label = torch.tensor(0) if task == "SequenceClassification" else ids
        return {"input_ids": ids, "attention_mask": ids, "labels": label}

    one_layer = {"num_hidden_layers": 1, "n_layer": 1}
    train(built({key: 1 for key in one_layer if key in model["fromConfig"]}), [row(8)] * 64, **arguments)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    trainer = train(built({}), [row(tokens)] * 64, **arguments)
    weights = sum(one.nbytes for one in trainer.model.parameters())
    states = getattr(trainer.optimizer, "optimizer", trainer.optimizer).state.values()
    state = sum(value.nbytes for each in states for value in each.values() if torch.is_tensor(value) and value.dim())
    print(json.dumps({"peak": status("VmHWM") - before, "parameters": weights, "optimizer": state}))


if __name__ == "__main__":
    main(sys.argv[1])
