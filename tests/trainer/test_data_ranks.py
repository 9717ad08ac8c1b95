"""Processes that hold parts of one replica read the same samples, and whatever is counted counts them once."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest

from trainer import tiny
from trainer.world import in_world
from trainwright import Trainer, TrainingArguments
from trainwright.distributed.ddp import DataParallel
from trainwright.distributed.ranks import Ranks

SIZES = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 2}


class Counting(Trainer):
    """Notes what a step is made of."""

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        vars(self).setdefault("read", []).append([batch["input_ids"].tolist() for batch in batches])
        vars(self).setdefault("items", []).append(int(items))
        return batches, items


def a_run(**arguments: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", max_steps=3, logging_steps=1,
            include_num_input_tokens_seen="all", **SIZES, **arguments,
        )  # fmt: skip
        trainer = Counting(tiny.gpt2(), args, train_dataset=tiny.texts(), eval_dataset=tiny.texts(7))
        trainer.train()
        return {
            "read": trainer.read,
            "items": trainer.items,
            "total batch": trainer.get_total_train_batch_size(args),
            "tokens": trainer.state.num_input_tokens_seen,
            "flos": trainer.state.total_flos,
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "norms": [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry],
            "eval": trainer.evaluate()["eval_loss"],
            "rows": len(trainer.predict(tiny.texts(7)).predictions),
        }


def as_one_replica(arguments: dict[str, Any]) -> dict[str, Any]:
    """Two processes with the data rank 0 of 1."""
    import trainwright.trainer.trainer as module

    module.choose = lambda args: DataParallel(args.device, Ranks.current(), Ranks(), options={})
    return a_run(**arguments)


@pytest.mark.parametrize("arguments", [{}, {"accelerator_config": {"dispatch_batches": True}}], ids=["own", "dealt"])
def test_two_processes_of_one_replica_train_and_judge_as_one(arguments: dict[str, Any]) -> None:
    alone, pair = a_run(), in_world(2, "trainer.test_data_ranks:as_one_replica", arguments)
    for seen in pair:
        for name in ("read", "items", "total batch", "tokens", "flos", "rows"):
            assert seen[name] == alone[name], name
        for name in ("losses", "norms", "eval"):
            assert seen[name] == pytest.approx(alone[name], rel=1e-5), name
