"""Every feature of the Trainer on two ranks with shards: it does what it does in one process.

Starting ranks takes far longer than these runs do, so all of them are made in one world.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from trainer import tiny
from trainer.runs import logged, make, quiet
from trainer.test_fsdp import whole
from trainer.world import in_world
from trainwright import EarlyStoppingCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback
from trainwright.declarative.job import _sample
from trainwright.declarative.manifest import SampleSpec

SAMPLES = 64
STEPS = {"max_steps": 4, "train_sampling_strategy": "sequential", "optim": "sgd", "learning_rate": 0.05}


def sharded() -> bool:
    return torch.distributed.is_initialized()


def own(**options: Any) -> dict[str, Any]:
    """Arguments of this process: with shards, half of the batch."""
    fsdp = {"fsdp": True} if sharded() else {}
    return {**STEPS, "per_device_train_batch_size": 4 if sharded() else 8, **fsdp, **options}


def trainer_of(folder: str, model: nn.Module | None = None, data: Any = None, **options: Any) -> Trainer:
    return make(folder, quiet(model or tiny.gpt2()), data or tiny.texts(SAMPLES), **own(**options))


def losses(model: nn.Module | None = None, data: Any = None, **options: Any) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(folder, model, data, **options)
        trainer.train()
    return {key: logged(trainer, key) for key in ("loss", "grad_norm", "eval_loss")}


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the reductions of gradients, and the number formats that they are made in."""
    seen: Counter[str] = Counter()
    name = next(n for n in ("reduce_scatter_single", "reduce_scatter_tensor") if hasattr(torch.distributed, n))
    reduce = getattr(torch.distributed, name)

    def count(*args: Any, **kwargs: Any) -> Any:
        seen[str(kwargs["input"].dtype).removeprefix("torch.")] += 1
        return reduce(*args, **kwargs)

    with mock.patch.object(torch.distributed, name, count):
        yield seen


# -- what both one process and two ranks do: their results are compared


def label_smoothing() -> Any:
    return losses(label_smoothing_factor=0.2)


def frozen_parameters() -> Any:
    model = tiny.gpt2()
    for parameter in model.transformer.h[0].parameters():
        parameter.requires_grad = False
    return losses(model)


def low_rank_adapters() -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    model = get_peft_model(tiny.gpt2(), LoraConfig(target_modules=["c_attn"], r=4, init_lora_weights=False))
    return losses(model)


def activations_recomputed_by_the_model() -> Any:
    return losses(activation_checkpointing=True)


def activations_recomputed_by_fsdp() -> Any:
    return losses(fsdp_config={"activation_checkpointing": True} if sharded() else None)


def kept_after_the_forward_pass() -> Any:
    return losses(fsdp_config={"reshard_after_forward": False} if sharded() else None)


def prefetched() -> Any:
    return losses(fsdp_config={"forward_prefetch": True} if sharded() else None)


def wrapped_by_size() -> Any:
    config = {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 1000}
    return losses(fsdp_config=config if sharded() else None)


def wrapped_as_one() -> Any:
    return losses(fsdp_config={"auto_wrap_policy": "NO_WRAP"} if sharded() else None)


def words_of_older_versions() -> Any:
    return losses(**({"fsdp": "shard_grad_op auto_wrap offload"} if sharded() else {}))


OPTIMIZERS = (
    "adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop", "grokadamw", "schedule_free_radam",
    "schedule_free_adamw", "schedule_free_sgd", "stable_adamw",
)  # fmt: skip
"""Those that step on shards, of what this environment has; ``rules.UNSHARDED`` has those that cannot."""


def optimizers() -> Any:
    return [loss for name in OPTIMIZERS for loss in _stepped(name)]


def _stepped(optim: str) -> list[float]:
    options = {"optim": optim, "lr_scheduler_type": "constant", "learning_rate": 1e-3}
    return losses(tiny.classifier(), tiny.vectors(SAMPLES), **options)["loss"]


def compiled() -> Any:
    return losses(torch_compile=True, torch_compile_backend="aot_eager", max_steps=2)


def trained_twice_after_an_evaluation() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(folder, trainer={"eval_dataset": tiny.texts(5)}, per_device_eval_batch_size=2)
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        trainer.train()
        return [before, *logged(trainer, "loss"), trainer.evaluate()["eval_loss"]]


def batches_that_do_not_fit() -> Any:
    """The first two sizes run out of memory in the backward pass, on all ranks."""
    limit = 6 if not sharded() else 3

    class Small(tiny.Classifier):
        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
            if len(x) > limit and torch.is_grad_enabled():
                self.hidden(x)
                raise RuntimeError("CUDA out of memory.")
            return super().forward(x, labels)

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(folder, Small(), tiny.vectors(SAMPLES), auto_find_batch_size=True)
        trainer.train()
        return [trainer.state.train_batch_size * (2 if sharded() else 1), trainer.state.global_step]


def evaluations(samples: int) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(folder, per_device_eval_batch_size=2)
        output = trainer.predict([{**sample, "labels": sample["input_ids"]} for sample in tiny.texts(samples)])
        return [output.metrics["test_loss"], output.predictions, output.label_ids]


def evaluated_on_uneven_ranks() -> Any:
    return evaluations(11)


def evaluated_with_nothing_for_one_rank() -> Any:
    return evaluations(1)


def evaluated_in_half_precision() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(folder, trainer={"eval_dataset": tiny.texts(6)}, bf16_full_eval=True)
        return trainer.evaluate()["eval_loss"]


class Gathering(Trainer):
    """Its loss is a collective, as that of TRL's trainers is."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        if sharded():
            torch.distributed.all_reduce(torch.ones(()))
        return super().compute_loss(*args, **kwargs)


def evaluated_by_a_loss_that_gathers() -> Any:
    """Whole models on both ranks: only the loss makes them wait for each other."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(folder, kind=Gathering, fsdp=None, per_device_eval_batch_size=2)
        return trainer.evaluate(tiny.texts(5))["eval_loss"]


def generated() -> Any:
    args = {"use_cpu": True, "predict_with_generate": True, "per_device_eval_batch_size": 2, "save_strategy": "no"}
    with tempfile.TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(folder, disable_tqdm=True, **own(**args))
        trainer = Seq2SeqTrainer(quiet(tiny.t5()), arguments, train_dataset=tiny.texts(SAMPLES))
        before = trainer.predict(tiny.texts(5), max_length=8).predictions
        trainer.train()
        return [before, trainer.predict(tiny.texts(5), max_length=8).predictions]


def stopped_early() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(
            folder,
            trainer={"eval_dataset": tiny.texts(6), "callbacks": [EarlyStoppingCallback(1, 10.0)]},
            eval_strategy="steps", eval_steps=1, metric_for_best_model="loss", max_steps=8,
        )  # fmt: skip
        trainer.train()
        return trainer.state.global_step


def read_by_a_callback() -> Any:
    seen = []

    class Reader(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **more: Any) -> None:
            seen.append(float(sum(weight.square().sum() for weight in whole(model))))

        on_evaluate = on_step_end

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(
            folder,
            trainer={"eval_dataset": tiny.texts(6), "callbacks": [Reader]}, eval_strategy="steps", eval_steps=2,
        )  # fmt: skip
        trainer.train()
    return seen


COMPARED: list[Callable[[], Any]] = [
    label_smoothing, frozen_parameters, low_rank_adapters, activations_recomputed_by_the_model,
    activations_recomputed_by_fsdp, kept_after_the_forward_pass, prefetched, wrapped_by_size, wrapped_as_one,
    words_of_older_versions, compiled, trained_twice_after_an_evaluation, batches_that_do_not_fit,
    evaluated_on_uneven_ranks, evaluated_with_nothing_for_one_rank, evaluated_in_half_precision, generated,
    evaluated_by_a_loss_that_gathers,
    stopped_early, read_by_a_callback, optimizers,
]  # fmt: skip


# -- what two ranks show by themselves


def exchanges(**options: Any) -> Any:
    with counted() as seen:
        losses(gradient_accumulation_steps=4, per_device_train_batch_size=2, max_steps=3, **options)
    return dict(seen)


def once_a_step() -> Any:
    return exchanges()


def with_every_batch() -> Any:
    return exchanges(accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": True}})


def mixed_precision() -> Any:
    used = set()

    class Spy(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **more: Any) -> None:
            layer = model.transformer.h[0].mlp.c_fc
            layer.register_forward_pre_hook(lambda module, inputs: used.add(str(module.weight.dtype)))

    with counted() as seen:
        logs = losses(bf16=True, trainer={"callbacks": [Spy]})
    return logs["loss"], sorted(used), sorted(seen)


def scaled_gradients() -> Any:
    """fp16: a gradient that overflows on one rank lets all skip the step."""
    rank = torch.distributed.get_rank()

    class Overflow(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            scales.append(trainer.scaler.get_scale())

    class Growing(tiny.Classifier):
        calls = 0

        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
            loss, *rest = super().forward(x, labels)
            self.calls += self.training
            return (loss * (1e30 if rank == 1 and self.calls == 2 and self.training else 1.0), *rest)

    scales: list[float] = []
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(
            folder, Growing(), tiny.vectors(SAMPLES), fp16=True, max_steps=4, trainer={"callbacks": [Overflow]}
        )
        trainer.train()
        return scales, [float(weight.abs().max()) for weight in whole(trainer.model)]


def noisy_embeddings() -> Any:
    return losses(neftune_noise_alpha=5.0)["loss"], losses()["loss"]


def uneven_texts() -> list[dict[str, Any]]:
    """Texts of which every second batch of four has two targets in a row only: those of the second rank."""
    rows = tiny.texts(SAMPLES)
    for row in (row for number, row in enumerate(rows) if number % 8 >= 4):
        row["labels"][2:] = -100
    return rows


def own_means() -> Any:
    return losses(data=uneven_texts(), model=tiny.t5(), average_tokens_across_devices=False)["loss"]


class Numbers:
    """A tokenizer of the numbers that the tiny models know."""

    bos_token_id, eos_token_id, pad_token_id = 0, 0, 0

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(part) for part in text.split()]}

    def decode(self, ids: torch.Tensor, **_: Any) -> str:
        return " ".join(str(int(number)) for number in ids)


def sampled() -> str | None:
    """What is written of the trained model at the end of a job; None on ranks that write nothing."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(folder)
        trainer.train()
        output = Path(folder) / "written"
        output.mkdir()
        _sample(trainer, Numbers(), SampleSpec(prompts=("3 4 5", "9"), max_new_tokens=6), output)
        written = output / "samples.txt"
        return written.read_text() if written.exists() else None


def tied_and_resting() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(folder, trainer={"eval_dataset": tiny.texts(6)})
        trainer.train()
        trainer.evaluate()
        model = trainer.model
        return {
            "tied": model.lm_head.weight is model.transformer.wte.weight,
            "shards": all(isinstance(parameter, DTensor) for parameter in model.parameters()),
            "state": all(isinstance(group["exp_avg"], DTensor) for group in trainer.optimizer.state.values() if group),
            "enabled": trainer.is_fsdp_enabled,
            "parameters": trainer.get_num_trainable_parameters(),
            "units": sum(isinstance(module, FSDPModule) for module in model.modules()),
        }


def preempted() -> Any:
    """SIGTERM to one rank: all save the same step and leave, and go on from there."""
    rank = torch.distributed.get_rank()

    class Signal(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if rank == 1 and state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    folder = trainer_folder()
    options = {"save_strategy": "steps", "save_steps": 100, "enable_jit_checkpoint": True, "max_steps": 8}
    trainer = trainer_of(folder, trainer={"callbacks": [Signal]}, **options)
    try:
        trainer.train()
        left = None
    except SystemExit as error:
        left = error.code
    stopped = trainer.state.global_step
    again = trainer_of(folder, tiny.gpt2(seed=9), **options)
    again.train(resume_from_checkpoint=True)
    torch.distributed.barrier()
    if rank == 0:
        shutil.rmtree(folder)
    return left, stopped, logged(trainer, "loss") + logged(again, "loss")[stopped:], again.state.global_step


def trainer_folder() -> str:
    """One folder for all ranks."""
    folders = [tempfile.mkdtemp()]
    torch.distributed.broadcast_object_list(folders, src=0)
    return str(folders[0])


SHOWN: list[Callable[[], Any]] = [
    once_a_step, with_every_batch, mixed_precision, scaled_gradients, noisy_embeddings, own_means, sampled,
    tied_and_resting, preempted,
]  # fmt: skip


def everything(_: None) -> dict[str, Any]:
    return {function.__name__: attempted(function) for function in [*COMPARED, *SHOWN]}


def attempted(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception:  # on all ranks alike: the test of this feature fails, and those after it run
        return traceback.format_exc()


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return in_world(2, "trainer.test_fsdp_features:everything")


@pytest.mark.parametrize("function", COMPARED, ids=lambda function: function.__name__)
def test_two_ranks_do_what_one_process_does(two, function):
    alone = function()
    for seen in two:
        assert_alike(seen[function.__name__], alone, 1e-2 if function is evaluated_in_half_precision else 1e-5)


def assert_alike(seen: Any, expected: Any, near: float) -> None:
    assert not isinstance(seen, str), seen
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert seen[key] == pytest.approx(value, rel=near), key
    elif isinstance(expected, list):
        for mine, theirs in zip(seen, expected, strict=True):
            assert mine == pytest.approx(theirs, rel=near, abs=near)
    else:
        assert seen == pytest.approx(expected, rel=near)


def test_gradients_are_reduced_once_a_step(two):
    assert [seen["once_a_step"] for seen in two] == [{"float32": 3 * 3}] * 2


def test_gradients_are_reduced_with_every_batch_when_asked(two):
    assert [seen["with_every_batch"] for seen in two] == [{"float32": 3 * 3 * 4}] * 2


def test_units_compute_in_bf16_and_gradients_are_summed_in_float32(two):
    for seen in two:
        loss, used, reduced = seen["mixed_precision"]
        assert (used, reduced) == (["torch.bfloat16"], ["float32"])
        assert loss == pytest.approx(losses(bf16=True)["loss"], rel=5e-3)


def test_all_ranks_skip_a_step_in_which_one_overflows(two):
    for seen in two:
        scales, largest = seen["scaled_gradients"]
        assert scales[0] == scales[1] == 2 * scales[2]
        assert all(value < 10 for value in largest)


def test_a_signal_to_one_rank_saves_all_of_them_at_one_step(two):
    whole_run = losses(max_steps=8)["loss"]
    (left, stopped, seen, ended), other = two[0]["preempted"], two[1]["preempted"]
    assert (left, stopped, ended) == (other[0], other[1], 8)
    assert left not in (None, 0)
    assert stopped in (2, 3, 4)
    assert seen == pytest.approx(whole_run, rel=1e-5)


def test_noise_reaches_the_embeddings(two):
    for seen in two:
        noisy, plain = seen["noisy_embeddings"]
        assert noisy != plain
        assert noisy == pytest.approx(plain, rel=0.2)


def test_each_rank_takes_its_own_mean_when_asked(two):
    rows, model = uneven_texts(), tiny.t5()
    ranks = (torch.utils.data.default_collate(rows[:4]), torch.utils.data.default_collate(rows[4:8]))
    own = [model(**batch).loss.item() for batch in ranks]
    assert two[0]["own_means"][0] == pytest.approx(sum(own) / 2, rel=1e-6)
    across = losses(data=rows, model=tiny.t5())["loss"]
    assert two[0]["own_means"][0] != pytest.approx(across[0], rel=1e-3)


def test_all_ranks_write_the_sample_of_a_sharded_model_together(two):
    assert [seen["sampled"] for seen in two] == [sampled(), None]


def test_after_training_and_evaluation_all_parameters_are_shards_and_tied_ones_tied(two):
    size = sum(parameter.numel() for parameter in tiny.gpt2().parameters())
    expected = {"tied": True, "shards": True, "state": True, "enabled": True, "parameters": size, "units": 3}
    assert [seen["tied_and_resting"] for seen in two] == [expected] * 2
