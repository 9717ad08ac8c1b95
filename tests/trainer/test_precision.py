"""bf16, fp16 with its scaler, TF32, evaluation in half precision, compilation and recomputed activations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from trainer import tiny
from trainwright import Trainer, TrainerCallback, TrainingArguments
from trainwright.arguments.errors import ModelError
from trainwright.contract import UserError
from trainwright.distributed.wrapping import layers_of
from trainwright.training.precision import apply_tf32, to_float32


def make(folder: Any, model: nn.Module | None = None, callbacks: Any = (), **arguments: Any) -> Trainer:
    defaults = {
        "output_dir": str(folder), "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "max_steps": 4,
        "logging_steps": 1, "learning_rate": 1e-2,
    }  # fmt: skip
    args = TrainingArguments(**(defaults | arguments))
    data = tiny.vectors()
    return Trainer(model or tiny.classifier(), args, train_dataset=data, eval_dataset=data, callbacks=list(callbacks))


def trained(folder: Any, model: nn.Module | None = None, **arguments: Any) -> Trainer:
    """Made and trained at once: making one seeds the generators."""
    trainer = make(folder, model, **arguments)
    trainer.train()
    return trainer


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class Seeing(nn.Module):
    """Notes the type that its layer computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.seen: list[torch.dtype] = []

    def forward(self, x, labels=None):
        logits = self.layer(x)
        self.seen.append(logits.dtype)
        return {"loss": nn.functional.cross_entropy(logits.float(), labels), "logits": logits}


@pytest.mark.parametrize(("field", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_forward_computes_in_the_type_that_is_asked_for(field, dtype, tmp_path):
    trainer = make(tmp_path, Seeing(), **{field: True})
    trainer.train()
    assert set(trainer.model.seen) == {dtype}
    assert trainer.model.layer.weight.dtype == torch.float32
    assert trainer.predict(tiny.vectors(5)).predictions.dtype == "float32"


def test_a_copy_of_a_model_under_autocast_is_its_own(tmp_path):
    trainer = make(tmp_path, Seeing(), bf16=True)
    trainer.train()
    twin = copy.deepcopy(trainer.model)
    nn.init.zeros_(twin.layer.weight)
    nn.init.zeros_(twin.layer.bias)
    sample = tiny.vectors(1)[0]
    outputs = twin(sample["x"][None], labels=sample["labels"][None])
    assert outputs["logits"].abs().sum() == 0
    assert outputs["logits"].dtype == torch.float32


def test_a_forward_that_was_set_on_the_instance_keeps_its_parameters(tmp_path):
    model = Seeing()
    original = model.forward
    model.forward = lambda x, labels=None: original(x, labels)
    trainer = trained(tmp_path, model, bf16=True)
    assert set(model.seen) == {torch.bfloat16}
    assert "eval_loss" in trainer.evaluate()  # no column was taken for unused


def test_only_fp16_has_a_scaler(tmp_path):
    assert make(tmp_path, bf16=True).scaler is None
    assert make(tmp_path).scaler is None
    assert make(tmp_path, fp16=True).scaler.is_enabled()


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd"])
def test_a_step_whose_gradients_overflow_is_skipped(optim, tmp_path):
    """The weights stay, the schedule stays, the scale is halved; the step counts."""
    seen = []

    class Overflow(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 1:
                hook = model.head.weight.register_hook(lambda grad: (hook.remove(), grad * float("inf"))[1])

        def on_step_end(self, args, state, control, model=None, lr_scheduler=None, **kwargs):
            scale = trainer.scaler.get_scale()
            seen.append((model.head.weight.detach().clone(), lr_scheduler.last_epoch, scale))

    trainer = make(tmp_path, callbacks=[Overflow], fp16=True, optim=optim)
    trainer.train()
    weights, positions, scales = zip(*seen, strict=True)
    assert positions == (1, 1, 2, 3)
    assert scales == (65536.0, 32768.0, 32768.0, 32768.0)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_fp16_trains_as_fp32_does(tmp_path):
    full, half = trained(tmp_path, max_steps=12), trained(tmp_path, max_steps=12, fp16=True)
    assert losses(half) == pytest.approx(losses(full), rel=2e-2)
    norms = [[e["grad_norm"] for e in t.state.log_history if "grad_norm" in e] for t in (full, half)]
    assert norms[1] == pytest.approx(norms[0], rel=5e-2)  # unscaled before they are clipped and logged


@pytest.mark.parametrize(("field", "dtype"), [("bf16_full_eval", torch.bfloat16), ("fp16_full_eval", torch.float16)])
def test_full_evaluation_casts_the_model_outside_of_training(field, dtype, tmp_path):
    trainer = make(
        tmp_path, Seeing(), eval_strategy="steps", eval_steps=2, remove_unused_columns=False, **{field: True}
    )
    trainer.data_collator = half_vectors(dtype)
    trainer.evaluate()
    assert trainer.model.layer.weight.dtype == dtype
    assert set(trainer.model.seen) == {dtype}


def half_vectors(dtype: torch.dtype) -> Any:
    def collate(samples: list[Any]) -> dict[str, torch.Tensor]:
        return {
            "x": torch.stack([s["x"] for s in samples]).to(dtype),
            "labels": torch.stack([s["labels"] for s in samples]),
        }

    return collate


def test_outputs_become_fp32_in_every_nest():
    half = torch.ones(1, dtype=torch.float16)
    nest = {"a": (half, [half]), "b": torch.ones(1, dtype=torch.int64), "c": None}
    result = to_float32(nest)
    assert result["a"][0].dtype == result["a"][1][0].dtype == torch.float32
    assert result["b"].dtype == torch.int64
    assert result["c"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="refused only where there is no such GPU")
def test_tf32_is_refused_without_the_gpu_for_it(tmp_path):
    before = torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(UserError, match="tf32: this machine has no NVIDIA GPU of the Ampere generation or later"):
        make(tmp_path, tf32=True)
    assert torch.backends.cuda.matmul.allow_tf32 is before


def test_tf32_false_turns_it_off():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        apply_tf32(None)
        assert torch.backends.cudnn.allow_tf32 is True
        apply_tf32(False)
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (False, False)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_torch_compile_trains_through_the_backend_that_is_named(tmp_path):
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    plain = trained(tmp_path)
    compiled = make(tmp_path, torch_compile=True, torch_compile_backend="eager")
    compiled.args.torch_compile_backend = backend
    compiled.train()
    assert graphs
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-6)
    assert type(compiled.model_wrapped).__name__ == "OptimizedModule"
    assert type(compiled.model) is tiny.Classifier
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"torch_compile_mode": "nonsense"}, "torch_compile_mode: Unrecognized mode=nonsense, should be one of"),
        ({"torch_compile_backend": "nowhere"}, "torch_compile_backend: Invalid backend: 'nowhere'"),
    ],
)
def test_torch_compile_says_what_it_does_not_know(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        trained(tmp_path, torch_compile=True, **arguments)


class Deep(nn.Module):
    """Its layers count how often they compute; they drop at random."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer() for _ in range(4)])
        self.head = nn.Linear(8, 4)

    def forward(self, x, labels=None):
        for layer in self.layers:
            x = layer(x)
        return nn.functional.cross_entropy(self.head(x), labels), x


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return nn.functional.dropout(torch.tanh(self.linear(x)), 0.2, self.training)


@pytest.mark.parametrize(("kwargs", "calls"), [({}, [8, 8, 8, 8]), ({"every_n_layers": 2}, [8, 4, 8, 4])])
def test_activations_of_a_plain_module_are_computed_again(kwargs, calls, tmp_path):
    torch.manual_seed(0)
    model = Deep()
    plain = trained(tmp_path, copy.deepcopy(model))
    again = trained(tmp_path, model, activation_checkpointing=True, activation_checkpointing_kwargs=kwargs)
    assert [layer.calls for layer in plain.model.layers] == [4, 4, 4, 4]
    assert [layer.calls for layer in again.model.layers] == calls
    assert losses(again) == losses(plain)
    again.evaluate()
    assert all(layer.calls <= 8 + 9 for layer in again.model.layers)


def test_a_module_without_layers_cannot_compute_again(tmp_path):
    with pytest.raises(ModelError, match="Classifier has no layers in a ModuleList or Sequential"):
        make(tmp_path, activation_checkpointing=True).train()


def test_layers_are_the_members_of_the_outermost_lists():
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    outer = nn.ModuleDict({"a": nn.ModuleList([inner, nn.Linear(2, 2)]), "b": nn.Sequential(nn.Linear(2, 2))})
    assert list(layers_of(outer)) == [inner, outer["a"][1]]


def test_the_layers_of_a_list_of_lists_are_what_these_hold():
    blocks = nn.ModuleList(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]) for _ in range(2))
    assert list(layers_of(nn.ModuleDict({"blocks": blocks}))) == [*blocks[0], *blocks[1]]
