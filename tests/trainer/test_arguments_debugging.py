"""What ``debug``, ``use_liger_kernel``, ``enable_jit_checkpoint`` and accelerate's accumulation settings do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer import tiny
from trainwright import Trainer, get_last_checkpoint
from trainwright.arguments import ArgumentError, TrainingArguments
from trainwright.arguments import machine as its_machine
from trainwright.arguments.errors import ModelError
from trainwright.contract import ENV_NODE_DIR, ExitCode
from trainwright.training.debugging import OverflowFound

TESTS = Path(__file__).parents[1]


def trainer_for(folder: Path, model: nn.Module | None = None, **arguments: Any) -> Trainer:
    given = {"max_steps": 2, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, **arguments}
    return Trainer(model or tiny.classifier(), TrainingArguments(str(folder), **given), train_dataset=tiny.vectors(32))


class Growing(nn.Module):
    """Its second layer gives infinity from the third forward pass on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.passes = nn.Linear(8, 4), nn.Identity(), 0

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.passes += 1
        hidden = self.second(self.first(x) * (float("inf") if self.passes == 3 else 1.0))
        return (nn.functional.cross_entropy(hidden, labels),)


class TestOverflow:
    def test_the_module_that_overflows_is_named(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        trainer = trainer_for(tmp_path, Growing(), debug="underflow_overflow", max_steps=4)
        with pytest.raises(OverflowFound) as error:
            trainer.train()
        assert str(error.value).startswith("debug: inf in input[0] of second (Identity), in forward pass 2;")
        assert "first (Linear)" in caplog.text
        assert " weight\n" in caplog.text

    def test_nothing_is_watched_unless_it_is_asked_for(self, tmp_path: Path) -> None:
        model = Growing()
        trainer_for(tmp_path, model, max_steps=4, logging_nan_inf_filter=False).train()
        assert not any(module._forward_hooks for module in model.modules())

    def test_the_hooks_are_gone_afterwards(self, tmp_path: Path) -> None:
        model = tiny.classifier()
        trainer_for(tmp_path, model, debug=["underflow_overflow"]).train()
        assert not any(module._forward_hooks for module in model.modules())

    def test_outputs_of_any_shape_are_looked_into(self, tmp_path: Path) -> None:
        trainer = trainer_for(tmp_path, tiny.gpt2(), debug="underflow_overflow")
        trainer.train_dataset = tiny.texts(8)
        with torch.no_grad():
            trainer.model.lm_head.weight[0, 0] = float("nan")  # tied to the embedding
        with pytest.raises(
            OverflowFound, match=r"debug: nan in weight of transformer.wte \(Embedding\), in forward pass"
        ):
            trainer.train()


def test_counters_of_a_tpu_need_one() -> None:
    with pytest.raises(ArgumentError, match=r"debug: tpu_metrics_debug needs the package torch_xla.*leave it out"):
        TrainingArguments(debug="tpu_metrics_debug")


class TestLiger:
    @pytest.fixture
    def gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The kernels would need one; that a model is patched is seen without."""
        monkeypatch.setattr(its_machine, "_has", lambda kind: kind == "cuda")

    @staticmethod
    def llama() -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=32))

    def test_liger_kernels_need_a_gpu(self) -> None:
        with pytest.raises(ArgumentError, match="use_liger_kernel: its kernels run on GPUs only"):
            TrainingArguments(use_liger_kernel=True)

    @pytest.mark.usefixtures("gpu")
    def test_parts_of_the_model_are_replaced_as_asked(self, tmp_path: Path) -> None:
        """And of nothing else: an untouched model, and one made later, train without a GPU as before."""
        args = {"save_strategy": "no", "max_steps": 1}
        liger = {"rms_norm": True, "swiglu": False, "cross_entropy": True, "fused_linear_cross_entropy": False}
        fused = TrainingArguments(
            str(tmp_path), **args, use_liger_kernel=True, use_cpu=False, liger_kernel_config=liger
        )
        model, untouched = self.llama(), self.llama()
        with pytest.raises(RuntimeError, match="driver"):  # Triton, at the first forward pass
            Trainer(model, fused, train_dataset=tiny.texts(8)).train()
        assert "liger" in model.model.norm.forward.__module__
        assert "liger" not in model.model.layers[0].mlp.forward.__module__
        for other in (untouched, self.llama()):
            Trainer(other, TrainingArguments(str(tmp_path), **args, use_cpu=True), train_dataset=tiny.texts(8)).train()

    @pytest.mark.usefixtures("gpu")
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (None, "use_liger_kernel: liger-kernel has no kernels for Classifier; leave it out"),
            ({"rmsnorm": True}, "liger_kernel_config: 'rmsnorm' is not one of rope, .*; did you mean rms_norm"),
        ],
    )
    def test_a_model_or_kernel_that_liger_does_not_have_is_refused(
        self, config: Any, message: str, tmp_path: Path
    ) -> None:
        model = tiny.classifier() if config is None else self.llama()
        args = TrainingArguments(str(tmp_path), use_liger_kernel=True, liger_kernel_config=config)
        with pytest.raises(ModelError, match=message):
            Trainer(model, args, train_dataset=tiny.vectors(8)).train()


@pytest.mark.parametrize("enable_jit_checkpoint", [True, False])
def test_sigterm_without_a_launcher_saves_only_when_asked(enable_jit_checkpoint: bool, tmp_path: Path) -> None:
    """A checkpoint where it is asked for; otherwise the process dies as any other does."""
    script = TESTS / "trainer" / "scripts" / "stopped_alone.py"
    environment = {name: value for name, value in os.environ.items() if name != ENV_NODE_DIR}
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(enable_jit_checkpoint)],
        env={**environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    saved = get_last_checkpoint(tmp_path)
    if enable_jit_checkpoint:
        assert (done.returncode, saved) == (int(ExitCode.PREEMPTED), str(tmp_path / "checkpoint-2")), done.stderr
    else:
        assert (done.returncode, saved) == (-signal.SIGTERM, None), done.stderr


class Wrapper(nn.Module):
    """As DistributedDataParallel: it tells when gradients are held back."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.held_back = module, 0

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)

    def no_sync(self) -> Any:
        import contextlib

        self.held_back += 1
        return contextlib.nullcontext()


class TestAccumulation:
    """``accelerator_config.gradient_accumulation_kwargs``."""

    def test_num_steps_is_gradient_accumulation_steps(self, tmp_path: Path) -> None:
        config = {"gradient_accumulation_kwargs": {"num_steps": 3}}
        trainer = trainer_for(tmp_path, accelerator_config=config, max_steps=-1, num_train_epochs=1)
        assert trainer.args.gradient_accumulation_steps == 3
        assert trainer.train().global_step == 2  # 4 batches
        trainer.args.check()
        with pytest.raises(ArgumentError, match="gradient_accumulation_steps: 2 here, and num_steps 3 in"):
            TrainingArguments(accelerator_config=config, gradient_accumulation_steps=2)

    @pytest.mark.parametrize(("sync_each_batch", "held_back"), [(True, 0), (False, 2)])
    def test_gradients_are_exchanged_as_often_as_asked(
        self, sync_each_batch: bool, held_back: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = {"gradient_accumulation_kwargs": {"sync_each_batch": sync_each_batch}}
        trainer = trainer_for(tmp_path, accelerator_config=config, gradient_accumulation_steps=2, max_steps=2)
        wrapped = Wrapper(trainer.model)
        monkeypatch.setattr(trainer, "_wrap_model", lambda model, **_: wrapped)
        trainer.train()
        assert wrapped.held_back == held_back

    @pytest.mark.parametrize(
        ("said", "message"),
        [
            ({"num_step": 2}, "'num_step' is not one of num_steps, sync_each_batch; did you mean num_steps?"),
            (
                {"adjust_scheduler": True},
                "adjust_scheduler is not supported: the schedule steps once an optimizer step",
            ),
            ({"num_steps": 0}, "num_steps must be a whole number above 0, not 0"),
            ({"sync_each_batch": 1}, "sync_each_batch must be true or false, not 1"),
        ],
    )
    def test_a_wrong_setting_of_accumulation_is_refused_in_one_line(self, said: Any, message: str) -> None:
        with pytest.raises(ArgumentError) as error:
            TrainingArguments(accelerator_config={"gradient_accumulation_kwargs": said})
        assert str(error.value).startswith(f"accelerator_config: gradient_accumulation_kwargs: {message}")
