"""Models of many kinds: what is trained of them, what of them is saved, and what cannot be trained at all."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_model
from torch import nn

from trainer import tiny
from trainer.runs import differing, state_of
from trainwright import Trainer, TrainingArguments, UserError
from trainwright.training import losses, prepare


class Everything(nn.Module):
    """Tied weights, a view of a parameter, statistics in buffers, one that is not saved, frozen and unused parts."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(8, 16).requires_grad_(False)
        self.norm = nn.BatchNorm1d(16)
        self.mixed, self.mixed_again = nn.Linear(16, 16), nn.Linear(16, 16)
        self.mixed_again.weight = self.mixed.weight
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.temperature = nn.Parameter(torch.ones(()))
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        self.seen += self.training
        hidden = self.mixed_again(torch.relu(self.mixed(self.norm(self.frozen(x)))))
        logits = self.head(hidden) * self.temperature
        return {"logits": logits} | ({} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)})


def everything() -> nn.Module:
    torch.manual_seed(0)
    return Everything()


def trainer_for(folder: Path, model: nn.Module, data: Any = None, **arguments: Any) -> Trainer:
    given = {"max_steps": 4, "save_steps": 2, "use_cpu": True, "disable_tqdm": True, "learning_rate": 0.01, **arguments}
    data = tiny.vectors(32) if data is None else data
    return Trainer(model, TrainingArguments(str(folder), **given), train_dataset=data, eval_dataset=data[:8])


class TestPlainModules:
    def test_only_parameters_that_are_used_and_not_frozen_are_trained(self, tmp_path: Path) -> None:
        model = everything()
        before = state_of(model)
        trainer_for(tmp_path, model).train()
        still = before.keys() - set(differing(before, state_of(model)))
        assert still == {"frozen.weight", "frozen.bias", "unused.weight", "unused.bias"}
        assert model.mixed.weight is model.mixed_again.weight

    def test_a_resumed_run_ends_in_the_same_bits(self, tmp_path: Path) -> None:
        whole, again = everything(), everything()
        trainer_for(tmp_path / "a", whole).train()
        trainer_for(tmp_path / "b", again).train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
        assert differing(state_of(whole), state_of(again)) == []
        assert again.seen == 4
        assert again.mixed.weight is again.mixed_again.weight

    def test_load_model_of_safetensors_reads_the_checkpoint(self, tmp_path: Path) -> None:
        model, read = everything(), everything()
        trainer_for(tmp_path, model).train()
        assert load_model(read, tmp_path / "checkpoint-4" / "model.safetensors") == (set(), [])
        assert differing(state_of(model), state_of(read)) == []


class TestCompiled:
    """A model that the user has compiled is looked through, trained as it is, and saved without its wrapper."""

    def test_a_compiled_model_trains_and_saves_as_the_plain_one(self, tmp_path: Path) -> None:
        plain, inner = tiny.classifier(dropout=0.0), tiny.classifier(dropout=0.0)
        trainer_for(tmp_path / "a", plain).train()
        trainer = trainer_for(tmp_path / "b", torch.compile(inner, backend="eager"))
        trainer.train()
        assert trainer.label_names == ["labels"]
        assert trainer.evaluate()["eval_loss"] > 0
        assert trainer.predict(tiny.vectors(4)).label_ids.shape == (4,)
        assert differing(state_of(plain), state_of(inner)) == []
        read = tiny.classifier()
        assert load_model(read, tmp_path / "b" / "checkpoint-4" / "model.safetensors") == (set(), [])
        assert differing(state_of(plain), state_of(read)) == []
        torch._dynamo.reset()

    def test_models_of_transformers_keep_their_files(self, tmp_path: Path) -> None:
        trainer = trainer_for(tmp_path, torch.compile(tiny.gpt2(), backend="eager"), tiny.texts(8), max_steps=2)
        trainer.train()
        again = trainer_for(tmp_path / "b", torch.compile(tiny.gpt2(1), backend="eager"), tiny.texts(8), max_steps=3)
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        files = set(os.listdir(tmp_path / "checkpoint-2"))
        assert {"config.json", "generation_config.json", "model.safetensors"} <= files
        torch._dynamo.reset()


class TestTransformers:
    def test_generation_settings_are_saved_with_the_model(self, tmp_path: Path) -> None:
        from transformers import GenerationConfig, GPT2LMHeadModel

        model = tiny.gpt2()
        model.generation_config = GenerationConfig(max_new_tokens=7, num_beams=3)
        trainer_for(tmp_path, model, tiny.texts(8), max_steps=2).train()
        read = GPT2LMHeadModel.from_pretrained(tmp_path / "checkpoint-2")
        assert (read.generation_config.max_new_tokens, read.generation_config.num_beams) == (7, 3)

    def test_question_answering_has_two_labels(self, tmp_path: Path) -> None:
        from transformers import BertConfig, BertForQuestionAnswering

        sizes = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
        model = BertForQuestionAnswering(BertConfig(**sizes, vocab_size=32, max_position_embeddings=16))
        data = [
            {"input_ids": each["input_ids"], "start_positions": torch.tensor(1), "end_positions": torch.tensor(i % 5)}
            for i, each in enumerate(tiny.sentences(16))
        ]
        told = []
        trainer = trainer_for(tmp_path, model, data, max_steps=2)
        trainer.compute_metrics = lambda prediction: told.append(prediction) or {"n": len(prediction.label_ids)}
        trainer.train()
        assert trainer.label_names == ["start_positions", "end_positions"]
        assert trainer.evaluate()["eval_n"] == 2
        starts, ends = told[0].label_ids
        assert (starts.tolist(), ends.tolist()) == ([1] * 8, [0, 1, 2, 3, 4, 0, 1, 2])
        assert [part.shape for part in told[0].predictions] == [(8, 10), (8, 10)]

    def test_several_labels_are_found_by_the_signature(self) -> None:
        from transformers import AlbertForPreTraining, BertForPreTraining, LxmertForPreTraining

        for cls, names in (
            (BertForPreTraining, ["labels", "next_sentence_label"]),
            (AlbertForPreTraining, ["labels", "sentence_order_label"]),
            (LxmertForPreTraining, ["labels", "obj_labels", "matched_label"]),
        ):
            from transformers.utils.generic import find_labels

            with torch.device("meta"):
                model = cls(
                    cls.config_class(num_hidden_layers=1) if cls is not LxmertForPreTraining else cls.config_class()
                )
            assert set(names) <= set(losses.find_labels(model))
            assert losses.find_labels(model) == find_labels(cls)


class TestDeviceMaps:
    """No more than the CPU is here: what a map says is looked at, and what is left alone."""

    @staticmethod
    def mapped(**places: Any) -> nn.Module:
        model = tiny.classifier()
        model.hf_device_map = places
        return model

    def test_a_model_that_is_spread_is_not_moved(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = self.mapped(hidden=0, head=1)
        monkeypatch.setattr(model, "to", lambda *_: pytest.fail("it was moved"))
        trainer = trainer_for(tmp_path, model)
        assert trainer.is_model_parallel
        assert not trainer.place_model_on_device
        trainer.train()

    def test_one_place_is_no_model_parallelism(self, tmp_path: Path) -> None:
        assert not trainer_for(tmp_path, self.mapped(**{"": 0})).is_model_parallel

    @pytest.mark.parametrize(
        ("places", "world_size", "kind", "said"),
        [
            (
                {"hidden": 0, "head": 1},
                2,
                "cuda",
                "spreads it over several devices, which 2 processes cannot each have",
            ),
            ({"hidden": 0, "head": "disk"}, 1, "cuda", "keeps head off the device"),
            ({"hidden": "cpu", "head": 0}, 1, "cuda", "keeps hidden off the device"),
            ({"": "disk"}, 1, "cpu", "keeps the model off the device"),
        ],
    )
    def test_a_device_map_that_cannot_be_trained_is_refused(
        self, places: Any, world_size: int, kind: str, said: str
    ) -> None:
        args = SimpleNamespace(world_size=world_size, device=torch.device(kind))
        with pytest.raises(UserError, match=f"model: its device_map {said}"):
            prepare.check_places(self.mapped(**places), args)

    def test_a_device_map_of_gpus_or_of_one_place_is_accepted(self) -> None:
        for places, kind in (({"a": 0, "b": 1}, "cuda"), ({"": "cpu"}, "cpu"), ({}, "cpu")):
            prepare.check_places(self.mapped(**places), SimpleNamespace(world_size=1, device=torch.device(kind)))

    def test_the_device_map_is_checked_before_the_first_step(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="keeps hidden off the device"):
            trainer_for(tmp_path, self.mapped(hidden="disk", head=0)).train()
