"""The Trainer that generates: tokens, metrics and padding are those of transformers, with one process and with two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

import trainwright
from trainer import tiny
from trainer.world import in_world
from trainwright import Seq2SeqTrainer, Seq2SeqTrainingArguments
from trainwright.contract import UserError

TOLERANCE = 1e-5
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1}


def t5() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.1}
    return T5ForConditionalGeneration(T5Config(vocab_size=32, decoder_start_token_id=0, **sizes, **SPECIAL))


def decoder() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, bos_token_id=0, **sizes, **SPECIAL))
    model.loss_type = "ForCausalLM"  # what it computes; unsaid, transformers' Trainer counts a target too many in a row
    return model


def reversals(samples: int = 11, labels: bool = True, seed: int = 3) -> list[dict[str, Any]]:
    """Sequences with their first five tokens in reverse, an end and a place that does not count."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(2, 32, (samples, 7), generator=generator)
    data = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]
    end = torch.tensor([1, -100])
    return [{**d, "labels": torch.cat([d["input_ids"].flip(0)[:5], end])} for d in data] if labels else data


def shapes(prediction: Any) -> dict[str, float]:
    tokens, labels = prediction
    sums = {"sum": float(np.where(tokens < 0, 0, tokens).sum())}
    return {"rows": len(tokens), "width": tokens.shape[1], "label_width": labels.shape[1], **sums}


def make(folder: Any, model: nn.Module, library: Any = trainwright, **options: Any) -> Any:
    given = {"compute_metrics": shapes, "eval_dataset": reversals(), **options.pop("trainer", {})}
    args = library.Seq2SeqTrainingArguments(
        str(folder),
        **{
            "use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_steps": 4,
            "logging_steps": 1, "learning_rate": 1e-2, "per_device_eval_batch_size": 11, "predict_with_generate": True,
        }
        | options,
    )  # fmt: skip
    trainer = library.Seq2SeqTrainer(model, args, train_dataset=reversals(), **given)
    trainer.remove_callback(library.PrinterCallback)
    return trainer


GENERATING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as the model says": ({}, {}),
    "a length": ({"generation_max_length": 9}, {}),
    "beams": ({"generation_num_beams": 3, "generation_max_length": 12}, {}),
    "a length asked for": ({"generation_max_length": 9}, {"max_length": 30}),
    "new tokens asked for": ({}, {"max_new_tokens": 5}),
    "settings": ({"generation_config": GenerationConfig(max_new_tokens=12, decoder_start_token_id=0, **SPECIAL)}, {}),
    "settings asked for": ({}, {"generation_config": GenerationConfig(max_length=25, do_sample=False, **SPECIAL)}),
}


@pytest.mark.parametrize("case", [case for case in GENERATING if case != "settings asked for"])
@pytest.mark.parametrize("model", [t5, decoder])
def test_tokens_are_those_of_transformers(case: str, model: Any, tmp_path: Path) -> None:
    options, asked = GENERATING[case]
    if model is decoder and not (options or asked):
        pytest.skip("theirs sets a length of 20, prompt included, once a first batch has shown that none is set")
    results = []
    for library in (transformers, trainwright):
        trainer = make(tmp_path, model(), library, eval_strategy="steps", eval_steps=2, **options)
        trainer.train()
        metrics = trainer.evaluate(**asked)
        outputs = [trainer.predict(reversals(5, labels, seed=8), **asked) for labels in (True, False)]
        results.append((metrics, *outputs))
    (their_metrics, *theirs), (metrics, *ours) = results
    assert metrics.keys() <= their_metrics.keys()
    for key in ("eval_loss", "eval_rows", "eval_width", "eval_label_width", "eval_sum"):
        assert metrics[key] == pytest.approx(their_metrics[key], abs=TOLERANCE), key
    for output, expected in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(output.predictions, expected.predictions)
        if expected.label_ids is None:
            assert output.label_ids is None
        else:
            np.testing.assert_array_equal(output.label_ids, expected.label_ids)
        assert output.metrics.keys() == expected.metrics.keys()


@pytest.mark.parametrize("case", GENERATING)
def test_generate_gets_the_settings_of_arguments_and_call(case: str, tmp_path: Path) -> None:
    """What reaches ``generate``."""
    options, asked = GENERATING[case]
    trainer, seen = make(tmp_path, t5(), **options), []
    generate = trainer.model.generate

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append({key: value for key, value in kwargs.items() if key not in ("input_ids", "attention_mask")})
        return generate(*args, **kwargs)

    trainer.model.generate = watched
    trainer.evaluate(**asked)
    expected = {
        "as the model says": {"max_length": 20},
        "a length": {"max_length": 9},
        "beams": {"max_length": 12, "num_beams": 3},
        "a length asked for": {"max_length": 30},
        "new tokens asked for": {"max_new_tokens": 5},
        "settings": {},
        "settings asked for": asked,
    }[case]
    assert seen == [expected]
    if case == "settings":
        assert trainer.model.generation_config.max_new_tokens == 12


def test_the_loss_alone_generates_nothing(tmp_path: Path) -> None:
    def refuse(**_: Any) -> Any:
        raise AssertionError("generated for nothing")

    as_ever = {"predict_with_generate": False, "trainer": {"compute_metrics": lambda prediction: {}}}
    for options in (as_ever, {"trainer": {"compute_metrics": None}}):
        trainer = make(tmp_path, t5(), **options)
        trainer.model.generate = refuse
        assert trainer.evaluate()["eval_loss"] > 0


def test_each_of_several_sets_is_judged_with_what_was_asked_for(tmp_path: Path) -> None:
    sets = {"a": reversals(5), "b": reversals(3)}
    metrics = make(tmp_path, t5(), trainer={"eval_dataset": sets}).evaluate(max_length=26)
    assert [metrics[f"eval_{name}_{what}"] for name in "ab" for what in ("rows", "width")] == [5, 26, 3, 26]


def test_several_texts_of_a_sample_are_all_kept(tmp_path: Path) -> None:
    config = GenerationConfig(max_length=10, num_beams=4, num_return_sequences=3, decoder_start_token_id=0, **SPECIAL)
    trainer = make(tmp_path, t5(), per_device_eval_batch_size=4)
    assert trainer.evaluate(generation_config=config)["eval_rows"] == 33


def test_what_a_collator_makes_of_the_labels_is_not_given_away(tmp_path: Path) -> None:
    with_decoder_inputs = [{**d, "decoder_input_ids": d["labels"].clamp(min=0)} for d in reversals(6)]
    trainer = make(tmp_path, t5(), generation_max_length=9)
    np.testing.assert_array_equal(
        trainer.predict(with_decoder_inputs).predictions, trainer.predict(reversals(6)).predictions
    )


class Dictating(nn.Module):
    """Writes more than its labels hold, and returns what ``generate`` may return."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.classifier()

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        return self.inner(x, None if labels is None else labels[:, 0])

    def generate(self, x: torch.Tensor, **kwargs: Any) -> Any:
        tokens = (1 + torch.arange(40)).repeat(len(x), 1)
        return transformers.utils.ModelOutput(sequences=tokens[:, : 30 + int(x[0, 0] > 0)])


def test_a_plain_module_may_generate_more_than_its_labels_hold(tmp_path: Path) -> None:
    data = [{"x": sample["x"], "labels": sample["labels"].repeat(3)} for sample in tiny.vectors(10)]
    trainer = make(tmp_path, Dictating(), per_device_eval_batch_size=2, trainer={"processing_class": Padding()})
    output = trainer.predict(data)
    assert output.predictions.shape == (10, 31)
    assert set(output.predictions[:, 30]) == {31, -100}
    assert (output.label_ids[:, 3:] == 7).all()
    assert "test_loss" in output.metrics


class Padding:
    pad_token_id = 7


def test_a_loss_of_ones_own_is_the_loss(tmp_path: Path) -> None:
    class Doubled(Seq2SeqTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            return (2 * loss, outputs) if return_outputs else 2 * loss

    plain = make(tmp_path, t5()).evaluate()["eval_loss"]
    args = Seq2SeqTrainingArguments(str(tmp_path), use_cpu=True, predict_with_generate=True)
    doubled = Doubled(t5(), args, eval_dataset=reversals(), compute_metrics=shapes)
    assert doubled.evaluate()["eval_loss"] == pytest.approx(2 * plain)


def test_generation_settings_may_be_an_object_a_mapping_a_file_or_a_folder(tmp_path: Path) -> None:
    """An object, a mapping, a file or a folder: all the same; the model of every run gets them."""
    config = GenerationConfig(max_new_tokens=6, num_beams=2, **SPECIAL)
    config.save_pretrained(tmp_path / "folder")
    forms = (config, config.to_dict(), str(tmp_path / "folder"), tmp_path / "folder" / "generation_config.json")
    for form in forms:
        trainer = make(tmp_path, None, generation_config=form, max_steps=1, trainer={"model_init": t5})
        for _ in range(2):
            loaded = trainer.model.generation_config
            assert (loaded.max_new_tokens, loaded.num_beams) == (6, 2)
            assert loaded is not config
            trainer.train()
    saved = trainwright.Seq2SeqTrainingArguments.from_dict(trainer.args.to_dict())
    assert saved.generation_config == str(forms[-1])


def test_a_mapping_changes_what_the_model_says(tmp_path: Path) -> None:
    settings = make(tmp_path, t5(), generation_config={"max_new_tokens": 6}).model.generation_config
    assert (settings.max_new_tokens, settings.decoder_start_token_id, settings.eos_token_id) == (6, 0, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"generation_config": GenerationConfig(do_sample=False, top_p=0.9)},
            "generation_config: GenerationConfig is invalid: - `top_p`: `do_sample` is not set",
        ),
        ({"model": tiny.Classifier()}, r"predict_with_generate: Classifier has no generate\(\)"),
    ],
)
def test_what_cannot_be_generated_with_is_refused_at_once(changes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        make(tmp_path, changes.pop("model", None) or t5(), **changes)


def test_arguments_without_generation_are_refused(tmp_path: Path) -> None:
    args = trainwright.TrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(UserError, match="args: Seq2SeqTrainer takes Seq2SeqTrainingArguments, not TrainingArguments"):
        Seq2SeqTrainer(t5(), args)


def test_texts_without_a_padding_token_are_refused(tmp_path: Path) -> None:
    model = decoder()
    model.config.pad_token_id = None
    trainer = make(tmp_path, model)
    with pytest.raises(
        UserError, match="predict_with_generate: there is no token to pad the texts with; set pad_token"
    ):
        trainer.evaluate(max_new_tokens=3)


def test_samples_of_like_length_are_trained_together_when_asked(tmp_path: Path) -> None:
    def spread(**options: Any) -> float:
        """The mean difference of lengths within a batch."""
        lengths = torch.randint(2, 30, (256,), generator=torch.Generator().manual_seed(0)).tolist()
        data = [{"input_ids": [5] * length, "labels": [5, 1]} for length in lengths]
        args = Seq2SeqTrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=4, **options)
        trainer = Seq2SeqTrainer(t5(), args, lambda samples: samples, data)
        batches = [[len(sample["input_ids"]) for sample in batch] for batch in trainer.get_train_dataloader()]
        assert sorted(length for batch in batches for length in batch) == sorted(lengths)
        return float(np.mean([max(batch) - min(batch) for batch in batches]))

    assert spread(sortish_sampler=True) < spread() / 4


def on_two_ranks(folder: str) -> Any:
    """Ranks whose texts differ in length, and one of which has a sample less."""
    trainer = make(folder, t5(), per_device_eval_batch_size=2)
    trainer.model.generate = Shortened(trainer.model.generate)
    metrics, output = trainer.evaluate(), trainer.predict(reversals(5))
    kept = {key: value for key, value in metrics.items() if "second" not in key and "time" not in key}
    return kept, output.predictions.tolist(), output.label_ids.tolist()


class Shortened:
    """Texts whose length depends on what they are of."""

    def __init__(self, generate: Any) -> None:
        self.generate = generate

    def __call__(self, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        texts = self.generate(input_ids=input_ids, **{**kwargs, "max_length": 24})
        filled = nn.functional.pad(texts, (0, 30 - texts.shape[1]), value=5)
        return filled[:, : 22 + int(input_ids[0, 0]) % 8]


def test_two_ranks_judge_as_one_does(tmp_path: Path) -> None:
    alone, together = on_two_ranks(str(tmp_path)), in_world(2, "trainer.test_seq2seq:on_two_ranks", str(tmp_path))
    assert together[0] == together[1]
    metrics, texts, labels = together[0]
    assert metrics["eval_rows"] == 11
    assert metrics == pytest.approx(alone[0], abs=1e-6)
    assert texts == alone[1]
    assert labels == alone[2]
