"""A script as users write it, for one process or several ranks: TRL's SFT of a tiny model, and of adapters on it.

    python -m trainwright.overlay compat/sft_on_ranks.py MODELS OUT

Ranks share the batch of one process, and shard the model, by FSDP 2 or as ``LAYOUT`` says, which holds arguments in
JSON. What was logged goes to ``OUT``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch.distributed.tensor import DTensor
from trl import SFTConfig, SFTTrainer

from compat import tiny

RANKS = int(os.environ.get("WORLD_SIZE", "1"))
LAYOUT = json.loads(os.environ.get("LAYOUT", '{"fsdp": true, "fsdp_config": {"version": 2}}'))
SHARDED: dict[str, Any] = LAYOUT if RANKS > 1 else {}


def train(models: Path, out: Path, adapters: LoraConfig | None) -> None:
    args = SFTConfig(
        str(out / "run"), max_steps=6, per_device_train_batch_size=4 // RANKS, per_device_eval_batch_size=2,
        gradient_accumulation_steps=2, learning_rate=1e-3, logging_steps=1, eval_strategy="steps", eval_steps=3,
        save_strategy="no", use_cpu=True, report_to="none", disable_tqdm=True, seed=3, bf16=False, **SHARDED,
    )  # fmt: skip
    rows, evaluated = tiny.texts(64), tiny.texts(12)
    model = str(models / "causal")
    trainer = SFTTrainer(model, args, train_dataset=rows, eval_dataset=evaluated, peft_config=adapters)
    trainer.train()
    is_sharded = all(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in trainer.model.parameters())
    trainer.save_model(str(out / "model"))
    if args.process_index == 0:
        found = {
            "log": trainer.state.log_history,
            "sharded": is_sharded,
            "lineage": [str(c) for c in SFTTrainer.__mro__],
        }
        (out / "log.json").write_text(json.dumps(found))


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]) / "whole", None)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    train(Path(sys.argv[1]), Path(sys.argv[2]) / "adapters", lora)
