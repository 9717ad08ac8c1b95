"""Adapters of PEFT: what a checkpoint holds, runs that resume to the bit, and a base model that nobody touches."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import nn

from trainer import tiny
from trainer.runs import differing, state_of
from trainwright import Trainer, TrainingArguments, UserError
from trainwright.arguments.errors import ModelError
from trainwright.checkpoint.weights import load_weights

LORA = {"task_type": "CAUSAL_LM", "target_modules": ["c_attn"], "r": 2, "lora_dropout": 0.1}


def wrapped(seed: int = 0, **config: Any) -> nn.Module:
    base = tiny.gpt2()
    torch.manual_seed(seed)
    return get_peft_model(base, LoraConfig(**(LORA | config)))


def prompted() -> nn.Module:
    base = tiny.gpt2()
    torch.manual_seed(0)
    return get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


def own() -> nn.Module:
    """A model of transformers that carries the adapter itself."""
    model = tiny.gpt2()
    torch.manual_seed(0)
    model.add_adapter(LoraConfig(**LORA), adapter_name="mine")
    return model


def several() -> nn.Module:
    model = wrapped()
    model.add_adapter("other", LoraConfig(**(LORA | {"r": 3})))
    model.set_adapter("other")
    return model


MODELS = {
    "lora": wrapped,
    "modules saved whole": lambda: wrapped(modules_to_save=["lm_head"]),
    "embeddings": lambda: wrapped(target_modules=["c_attn", "wte"]),
    "the head, whose own weights peft saves too": lambda: wrapped(target_modules=["c_attn", "lm_head"]),
    "rank-stabilised dora": lambda: wrapped(use_dora=True, use_rslora=True),
    "prompt tuning": prompted,
    "the model's own adapter": own,
    "several, one active": several,
}


def trained(folder: Path, model: nn.Module, resume: Any = None, **arguments: Any) -> Trainer:
    given = {"max_steps": 4, "save_steps": 2, "logging_steps": 1, "learning_rate": 0.05, **arguments}
    args = TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **given)
    trainer = Trainer(model, args, train_dataset=tiny.texts(32), eval_dataset=tiny.texts(8))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture
def any_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks for a version of peft for a model's own adapters that is not out yet."""
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.18.0")


@pytest.mark.usefixtures("any_peft")
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_only_what_is_trained_changes_and_a_resumed_run_ends_in_the_same_bits(make: Any, tmp_path: Path) -> None:
    model = make()
    before, free = state_of(model), {name for name, p in model.named_parameters() if p.requires_grad}
    whole = trained(tmp_path / "a", model)
    changed = set(differing(before, state_of(model)))
    assert changed
    assert changed <= free
    again = trained(tmp_path / "b", make(), resume=str(tmp_path / "a" / "checkpoint-2"))
    assert differing(state_of(whole.model), state_of(again.model)) == []
    assert {name for name, p in again.model.named_parameters() if p.requires_grad} == free


def test_a_checkpoint_is_what_peft_reads(tmp_path: Path) -> None:
    model = trained(tmp_path, wrapped(modules_to_save=["lm_head"])).model
    folder = tmp_path / "checkpoint-4"
    assert {"adapter_model.safetensors", "adapter_config.json", "optimizer.pt"} <= set(os.listdir(folder))
    assert not (folder / "model.safetensors").exists()
    assert json.loads((folder / "adapter_config.json").read_text())["modules_to_save"] == ["lm_head"]
    read = PeftModel.from_pretrained(tiny.gpt2(), folder)
    assert differing(state_of(model), state_of(read)) == []


def test_the_model_is_saved_as_its_adapter(tmp_path: Path) -> None:
    trainer = trained(tmp_path / "run", wrapped(), save_strategy="no")
    trainer.save_model(str(tmp_path / "saved"))
    read = PeftModel.from_pretrained(tiny.gpt2(), tmp_path / "saved")
    assert differing(state_of(trainer.model), state_of(read)) == []


def test_adapters_have_folders_of_their_names_and_the_active_one_stays(tmp_path: Path) -> None:
    trainer = trained(tmp_path, several(), resume=None)
    assert (tmp_path / "checkpoint-4" / "other" / "adapter_config.json").is_file()
    model = several()
    load_weights(model, tmp_path / "checkpoint-4")
    assert model.active_adapters == ["other"]
    assert differing(state_of(model), state_of(trainer.model)) == []


def test_the_best_adapter_is_loaded_at_the_end(tmp_path: Path) -> None:
    trainer = trained(
        tmp_path, wrapped(), load_best_model_at_end=True, eval_strategy="steps", eval_steps=2, greater_is_better=True
    )
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == "checkpoint-2"  # that with the greater loss
    read = PeftModel.from_pretrained(tiny.gpt2(), best)
    assert differing(state_of(trainer.model), state_of(read)) == []


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            lambda: wrapped(r=4),
            r"the adapter default does not match the model: .*lora_A.weight is \(2, 16\) there and \(4, 16\)",
        ),
        (lambda: wrapped(target_modules=["c_fc"]), "missing base_model.model.transformer.h.0.mlp.c_fc.lora_A.weight"),
        (several, "holds no weights .* of the adapter other"),
    ],
)
def test_the_checkpoint_of_another_adapter_is_refused(model: Any, said: str, tmp_path: Path) -> None:
    trained(tmp_path / "a", wrapped(), max_steps=2)
    fresh = model()
    before = state_of(fresh)
    with pytest.raises(UserError, match=said) as error:
        trained(tmp_path / "b", fresh, resume=str(tmp_path / "a" / "checkpoint-2"))
    assert "\n" not in str(error.value)
    assert differing(before, state_of(fresh)) == []


def test_a_damaged_adapter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="the adapter default cannot be read"):
        load_weights(wrapped(), tmp_path)


class TestQuantised:
    """bitsandbytes computes in 4 and 8 bits on a CPU too."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        from transformers import LlamaConfig, LlamaForCausalLM

        folder = tmp_path_factory.mktemp("llama")
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=32)).save_pretrained(folder)
        return folder

    @staticmethod
    def quantised(folder: Path, bits: int) -> nn.Module:
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
        return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map="cpu")

    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.filterwarnings("ignore")
    def test_adapters_on_a_quantised_model_are_trained_and_resumed(
        self, bits: int, folder: Path, tmp_path: Path
    ) -> None:
        def model() -> nn.Module:
            base = self.quantised(folder, bits)
            torch.manual_seed(0)
            return get_peft_model(base, LoraConfig(**(LORA | {"target_modules": ["q_proj", "up_proj"]})))

        first = model()
        before = {name: p.clone() for name, p in first.named_parameters() if not p.requires_grad}
        whole = trained(tmp_path / "a", first)
        after = dict(first.named_parameters())
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
        again = trained(tmp_path / "b", model(), resume=str(tmp_path / "a" / "checkpoint-2"))
        lora = [name for name in state_of(whole.model) if "lora" in name]
        ours, theirs = state_of(whole.model), state_of(again.model)
        assert [name for name in lora if not torch.equal(ours[name], theirs[name])] == []

    @pytest.mark.filterwarnings("ignore")
    def test_weights_of_a_quantised_model_cannot_be_trained(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"model: LlamaForCausalLM is quantised, .* add an adapter to it"):
            trained(tmp_path, self.quantised(folder, 4))

    @pytest.mark.filterwarnings("ignore")
    def test_a_method_without_gradients_is_refused_with_adapters_too(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = self.quantised(folder, 4)
        model = get_peft_model(base, LoraConfig(**(LORA | {"target_modules": ["q_proj"]})))
        monkeypatch.setattr(type(base.hf_quantizer), "is_trainable", False)
        with pytest.raises(ModelError, match=r"model: .* quantised by bitsandbytes, .* no gradient"):
            trained(tmp_path, model)
