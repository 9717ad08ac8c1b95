"""Several ranks over gloo: the same losses as one, gradients exchanged once a step, and the ``ddp_*`` arguments.

Starting ranks takes far longer than these runs do, so all of them are made in one world.
"""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from trainer import tiny
from trainer.runs import logged, make, quiet, trained, weights
from trainer.world import in_world
from trainwright import TrainerCallback

GPT2 = {"model": "gpt2", "data": "texts"}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain, accumulated": {"gradient_accumulation_steps": 2},
    "plain, evaluated": {"eval_strategy": "steps", "eval_steps": 3},
    "gpt2": {**GPT2, "include_num_input_tokens_seen": "all"},
    "gpt2, accumulated": {**GPT2, "gradient_accumulation_steps": 2},
    "masked bert": {"model": "masked_bert", "data": "texts"},
    "masked bert, accumulated": {"model": "masked_bert", "data": "texts", "gradient_accumulation_steps": 2},
    "bert": {"model": "bert", "data": "sentences"},
    "t5, accumulated": {"model": "t5", "data": "texts", "gradient_accumulation_steps": 2},
    "t5, targets on one rank": {"model": "t5", "data": "lopsided", "max_steps": 1},
    "gpt2, activations recomputed": {**GPT2, "activation_checkpointing": True},
    "gpt2, each rank's own mean": {**GPT2, "average_tokens_across_devices": False},
}
DDP = {
    "ddp_find_unused_parameters": False,
    "ddp_bucket_cap_mb": 3,
    "ddp_broadcast_buffers": False,
    "ddp_static_graph": True,
}


def run(options: dict[str, Any]) -> dict[str, Any]:
    """What this process sees of a run; ``model`` and ``data`` name functions of :mod:`trainer.tiny`."""
    options = {"max_steps": 6, "train_sampling_strategy": "sequential", **options}
    model = quiet(getattr(tiny, options.pop("model", "classifier"))(seed=options.pop("weights", 0)))
    data = getattr(tiny, options.pop("data", "vectors"))(64)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trained(folder, model, data, **options)
    seen = {key: logged(trainer, key) for key in ("loss", "grad_norm", "eval_loss")}
    counted = {"tokens": trainer.state.num_input_tokens_seen, "flos": trainer.state.total_flos}
    return {**seen, **counted, "weights": weights(trainer), "ddp": ddp_settings(trainer.model_wrapped)}


def ddp_settings(model: nn.Module) -> dict[str, Any] | None:
    if not isinstance(model, nn.parallel.DistributedDataParallel):
        return None
    return {
        "find_unused": model.find_unused_parameters,
        "bucket_mb": model.bucket_bytes_cap / 2**20,
        "buffers": model.broadcast_buffers,
        "static": model.static_graph,
    }


def count_exchanges() -> int:
    """How often this rank exchanges gradients in three steps of four micro-batches."""
    calls = []

    def hook(state, bucket):  # torch reads annotations, and strings are not to its liking
        calls.append(1)
        return allreduce_hook(None, bucket)

    class Register(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            trainer.model_wrapped.register_comm_hook(None, hook)

    options = {"max_steps": 3, "gradient_accumulation_steps": 4, "per_device_train_batch_size": 2}
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(folder, trainer={"callbacks": [Register]}, **options)
        trainer.train()
    return len(calls)


class Branching(tiny.Classifier):
    """Rank 1 does not use its hidden layer in odd steps."""

    calls = 0

    def forward(self, x, labels=None):
        self.calls += 1
        skips = torch.distributed.get_rank() == 1 and self.calls % 2
        logits = self.head(torch.zeros(len(x), 16) if skips else self.hidden(x))
        return nn.functional.cross_entropy(logits, labels), logits


def branch() -> int:
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        return trained(folder, Branching(), max_steps=4).state.global_step


def evaluate(samples: int) -> float:
    """The loss of a language model whose labels all are targets, so that rounds weigh as their samples do."""
    data = [{**sample, "labels": sample["input_ids"]} for sample in tiny.texts(samples)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(folder, quiet(tiny.gpt2()), trainer={"eval_dataset": data}, per_device_eval_batch_size=2)
        return trainer.evaluate()["eval_loss"]


def everything(_: None) -> dict[str, Any]:
    """All that two ranks are asked for."""
    rank = torch.distributed.get_rank()
    own = {"per_device_train_batch_size": 4, "weights": rank}  # ranks that begin apart are brought together
    return {
        **{name: run({**options, **own}) for name, options in CASES.items()},
        "ddp": run({"max_steps": 1, **DDP})["ddp"],
        "exchanges": count_exchanges(),
        "branch": branch(),
        **evaluations(None),
    }


def evaluations(_: None) -> dict[int, float]:
    return {samples: evaluate(samples) for samples in (10, 11)}


@pytest.fixture(scope="module", autouse=True)
def _address():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTER_ADDR", "localhost")  # accelerate asks for it, also of a group that has met
        yield


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return in_world(2, "trainer.test_distributed:everything")


@pytest.mark.parametrize("name", [name for name in CASES if "own mean" not in name])
def test_two_ranks_train_as_one_does_with_twice_the_batch(two, name):
    expected = run({**CASES[name], "per_device_train_batch_size": 8})
    for seen in (ranks[name] for ranks in two):
        assert seen["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert seen["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        assert seen["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
        assert (seen["tokens"], seen["flos"]) == (expected["tokens"], expected["flos"])
        for mine, theirs in zip(seen["weights"], expected["weights"], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    for a, b in zip(two[0][name]["weights"], two[1][name]["weights"], strict=True):
        assert torch.equal(a, b)


def test_each_rank_takes_its_own_mean_when_asked(two):
    """``average_tokens_across_devices`` off: targets weigh more on the rank that has fewer."""
    across, apart = two[0]["gpt2"]["loss"], two[0]["gpt2, each rank's own mean"]["loss"]
    assert across != pytest.approx(apart, rel=1e-6)
    assert across == pytest.approx(apart, rel=0.1)


def test_ddp_is_set_up_as_the_arguments_say(two):
    assert two[0]["ddp"] == {"find_unused": False, "bucket_mb": 3, "buffers": False, "static": True}
    assert two[0]["plain"]["ddp"] == {"find_unused": True, "bucket_mb": 25, "buffers": True, "static": False}
    assert two[0]["gpt2, activations recomputed"]["ddp"]["find_unused"] is False


def test_gradients_are_exchanged_once_a_step(two):
    assert [seen["exchanges"] for seen in two] == [3, 3]


def test_parameters_that_a_rank_does_not_use_are_no_obstacle(two):
    assert [seen["branch"] for seen in two] == [4, 4]


def test_evaluation_is_the_same_with_more_ranks(two):
    """Also where the ranks have different numbers of batches."""
    alone = evaluations(None)
    for seen in [*two, *in_world(3, "trainer.test_distributed:evaluations")]:
        for samples, loss in alone.items():
            assert seen[samples] == pytest.approx(loss, rel=1e-5)
