"""The memory of a rank under ZeRO, counted: every storage that torch makes, from the model to the last step."""

from __future__ import annotations

import tempfile
import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.measured import SMALL
from trainwright import Trainer, TrainerCallback, TrainingArguments
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
CASES: dict[str, dict[str, Any]] = {
    "1": {**zero(1, **BUCKET), "bf16": True},
    "1, accumulated": {**zero(1, **BUCKET), "bf16": True, "gradient_accumulation_steps": 2},
    "2": {**zero(2, **BUCKET), "bf16": True},
    "2, accumulated": {**zero(2, **BUCKET), "bf16": True, "gradient_accumulation_steps": 2},
    "2, a large bucket": {**zero(2, reduce_bucket_size=10_000_000), "bf16": True},
    "2, two buckets": {**zero(2, reduce_bucket_size=10_000_000, overlap_comm=True), "bf16": True},
    "2, float32": zero(2, **BUCKET),
    "2, sgd": {**zero(2, **BUCKET), "bf16": True, "optim": "sgd"},
    "3": {**zero(3, **BUCKET), "bf16": True},
    "3, accumulated": {**zero(3, **BUCKET), "bf16": True, "gradient_accumulation_steps": 2},
    "3, few live": {**zero(3, **BUCKET, **TIGHT), "bf16": True},
    "3, recomputed": {**zero(3, **BUCKET, **TIGHT), "bf16": True, "gradient_checkpointing": True},
    "3, float32": zero(3, **BUCKET),
}  # fmt: skip


class Counted(TorchDispatchMode):
    """``now`` and ``peak`` are bytes of storages that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        name, size = storage._cdata, storage.nbytes()
        if name not in self._sizes:
            weakref.finalize(storage, self._freed, name)
        self.now += size - self._sizes.get(name, 0)
        self._sizes[name] = size
        self.peak = max(self.peak, self.now)

    def _freed(self, name: int) -> None:
        self.now -= self._sizes.pop(name, 0)


class _FromTheSecondStep(TrainerCallback):
    def __init__(self, counted: Counted) -> None:
        self.counted, self.start = counted, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            self.start, self.counted.peak = self.counted.peak, self.counted.now


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
        later = _FromTheSecondStep(counted)
        model = transformers.AutoModelForCausalLM.from_config(config)
        args = TrainingArguments(folder, per_device_train_batch_size=ROWS, **given, **arguments)
        Trainer(model, args, train_dataset=rows, callbacks=[later]).train()
        return later.start, counted.peak
