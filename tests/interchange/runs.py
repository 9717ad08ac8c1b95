"""Runs that begin under one Trainer and go on under the other: ours and that of transformers, on two ranks."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.tensor import DTensor

import trainwright
from trainer import tiny

STEPS, HALF = 6, 3
ARGUMENTS: dict[str, Any] = {
    "max_steps": STEPS, "save_steps": HALF, "logging_steps": 1, "per_device_train_batch_size": 4,
    "optim": "adamw_torch", "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "weight_decay": 0.1,
    "max_grad_norm": 0.5, "use_cpu": True, "disable_tqdm": True, "report_to": "none",
}  # fmt: skip
LOGGED = ("loss", "grad_norm", "learning_rate")


def adapters() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    base = tiny.gpt2()
    torch.manual_seed(3)
    model: Any = get_peft_model(base, LoraConfig(target_modules=["c_attn"], r=4, init_lora_weights=False))
    return model


def zero(stage: int, **more: Any) -> dict[str, Any]:
    autos = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    return {"deepspeed": {"zero_optimization": {"stage": stage}, **dict.fromkeys(autos, "auto"), **more}}


def fsdp(form: str) -> dict[str, Any]:
    blocks = {"transformer_layer_cls_to_wrap": ["GPT2Block"]}
    return {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": f"{form}_STATE_DICT", **blocks}}


OPTIMIZER = {"type": "AdamW", "params": {"torch_adam": True, **dict.fromkeys(("lr", "betas", "eps"), "auto")}}
SCHEDULER = {"type": "WarmupDecayLR", "params": dict.fromkeys(
    ("total_num_steps", "warmup_min_lr", "warmup_max_lr", "warmup_num_steps"), "auto"
)}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How both Trainers spread a model.

    Attributes:
        back: How theirs goes on from ours, if not in the same way.
        elsewhere: How ours goes on from theirs in another layout, besides in the same.
    """

    options: dict[str, Any]
    model: Callable[[], nn.Module] = tiny.gpt2
    back: dict[str, Any] | None = None
    elsewhere: dict[str, Any] | None = None


LAYOUTS = {
    "ZeRO 1": Layout(zero(1)),
    "ZeRO 2": Layout(zero(2), elsewhere=zero(3)),
    "ZeRO 3": Layout(zero(3), elsewhere=zero(1)),
    "ZeRO 2 with an optimizer and a schedule of its own": Layout(
        {**zero(2, optimizer=OPTIMIZER, scheduler=SCHEDULER), "lr_scheduler_type": "linear", "warmup_steps": 2}
    ),
    "ZeRO 3 with adapters": Layout(zero(3), adapters),
    "FSDP 2": Layout(fsdp("SHARDED"), elsewhere={}),
    "FSDP 2, saved whole": Layout(fsdp("FULL"), back={}, elsewhere=fsdp("SHARDED")),
    "FSDP 2 with adapters": Layout(fsdp("SHARDED"), adapters),
}


def run(library: Any, options: dict[str, Any], model: nn.Module, folder: Path, resume: Path | None) -> dict[str, Any]:
    """What the steps of a run logged, with dropout, on samples in the order of the seed."""
    args = library.TrainingArguments(str(folder), **{**ARGUMENTS, **options})
    if library is transformers and "fsdp" in options:
        # accelerate shards no model on ranks that it knows to be CPUs
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    trainer = library.Trainer(model, args, train_dataset=tiny.texts(64))
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        del os.environ[name]  # what transformers' arguments set is none of the next run's
    seen: dict[str, Any] = {key: [entry[key] for entry in trainer.state.log_history if key in entry] for key in LOGGED}
    return seen | {"shards": any(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())}


def swapped(layout: Layout, folder: Path) -> dict[str, Any]:
    """Runs of each Trainer alone, and those that the other one resumes from their middle; an error is its traceback."""
    seen: dict[str, Any] = {}

    def tried(name: str, library: Any, options: dict[str, Any], resume: Path | None = None) -> None:
        try:
            seen[name] = run(library, options, layout.model(), folder / name, resume)
        except BaseException:
            seen[name] = traceback.format_exc()

    middle = f"checkpoint-{HALF}"
    tried("theirs", transformers, layout.options)
    tried("ours", trainwright, layout.options)
    tried("theirs, then ours", trainwright, layout.options, folder / "theirs" / middle)
    back = layout.options if layout.back is None else layout.back
    tried("ours, then theirs", transformers, back, folder / "ours" / middle)
    if layout.elsewhere is not None:
        tried("theirs, then ours elsewhere", trainwright, layout.elsewhere, folder / "theirs" / middle)
    return seen


def everything(folder: Path) -> dict[str, Any]:
    return {name: swapped(layout, folder / name) for name, layout in LAYOUTS.items()}
