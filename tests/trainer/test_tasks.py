"""The five tasks on small models made from configurations: features, a loss that has a gradient, labels, saving."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from trainwright.contract import DataError, ResolvedJob, UserError
from trainwright.declarative.job import Parts, assemble
from trainwright.declarative.manifest import SampleSpec
from trainwright.declarative.metrics import classification_metrics, macro_f1, perplexity, rouge_l, tagging_metrics
from trainwright.declarative.models import positions
from trainwright.declarative.sample import write_samples
from trainwright.declarative.tokenizers import byte_tokenizer

SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "hidden_size": 16}
GPT2 = {"source": "gpt2", "fromConfig": {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 64}}
BERT = {"source": "bert", "fromConfig": {**SMALL, "max_position_embeddings": 64}}
ROBERTA = {"source": "roberta", "fromConfig": {**SMALL, "max_position_embeddings": 64}}
LLAMA = {"source": "llama", "fromConfig": {**SMALL, "max_position_embeddings": 64}}
T5 = {"source": "t5", "fromConfig": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}}
BART = {
    "source": "bart",
    "fromConfig": {
        "d_model": 16,
        **{f"{side}_layers": 1 for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": 16 for side in ("encoder", "decoder")},
        "max_position_embeddings": 64,
    },
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "lines.txt").write_text("".join(f"this is line {number}\n" for number in range(40)))
    write_rows(tmp_path / "classes.jsonl", [{"text": f"text {n}", "label": ["neg", "pos"][n % 2]} for n in range(12)])
    pair = {"premise": "one", "hypothesis": "two", "label": True}
    write_rows(tmp_path / "pairs.jsonl", [{**pair, "label": bool(n % 2)} for n in range(4)])
    write_rows(tmp_path / "tags.jsonl", [{"tokens": ["Ann", "is", "é"], "ner_tags": ["B-PER", "O", "O"]}] * 4)
    write_rows(tmp_path / "chats.jsonl", [{"messages": [{"role": "user", "content": "Hello"}], "id": "a"}] * 4)
    write_rows(tmp_path / "turns.jsonl", [{"source": "abc", "target": "cba" * (n + 1)} for n in range(3)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / ".cache")
    return tmp_path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def job(
    task: str, model: dict[str, Any], dataset: dict[str, Any], arguments: dict[str, Any] | None = None, **more: Any
) -> Parts:
    model = {"tokenizer": "bytes", **model}
    resolved = ResolvedJob("j", "default", "uid", 1, 1, 1, task=task, model=model, dataset=dataset, **more)
    said = {"eval_strategy": "no", "predict_with_generate": False, "metric_for_best_model": None}
    return assemble(
        resolved, SimpleNamespace(seed=42, max_steps=1, fsdp=None, deepspeed=None, **{**said, **(arguments or {})})
    )


def batch(parts: Parts, rows: int = 3) -> dict[str, torch.Tensor]:
    return parts.collator([parts.train[row] for row in range(rows)])


@pytest.mark.parametrize(
    ("task", "model", "data", "shape", "labels"),
    [
        ("CausalLM", GPT2, "lines.txt", (3, 64), None),
        ("CausalLM", LLAMA, "lines.txt", (3, 64), None),
        ("CausalLM", BERT, "lines.txt", (3, 64), None),
        ("MaskedLM", BERT, "lines.txt", (3, 64), None),
        ("MaskedLM", ROBERTA, "lines.txt", (3, 63), None),
        ("Seq2SeqLM", T5, "turns.jsonl", (3, 4), None),
        ("Seq2SeqLM", BART, "turns.jsonl", (3, 4), None),
        ("SequenceClassification", BERT, "classes.jsonl", (3, 9), {0: "neg", 1: "pos"}),
        ("SequenceClassification", GPT2, "classes.jsonl", (3, 8), {0: "neg", 1: "pos"}),
        ("SequenceClassification", BERT, "pairs.jsonl", (3, 9), {0: "False", 1: "True"}),
        ("TokenClassification", BERT, "tags.jsonl", (3, 9), {0: "B-PER", 1: "O"}),
    ],
)
def test_a_task_gives_batches_with_a_loss(
    task: str, model: dict[str, Any], data: str, shape: tuple[int, int], labels: dict[int, str] | None
) -> None:
    parts = job(task, model, {"source": data})
    inputs = batch(parts)
    loss = parts.model(**inputs).loss
    loss.backward()
    assert inputs["input_ids"].shape[0] == shape[0]
    assert math.isfinite(loss.item())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in parts.model.parameters())
    if task.endswith("LM"):
        assert inputs["input_ids"].shape == shape
    if labels is not None:
        assert parts.model.config.id2label == labels


def test_an_untrained_byte_model_starts_at_the_logarithm_of_its_vocabulary() -> None:
    parts = job("CausalLM", GPT2, {"source": "lines.txt"})
    assert parts.model.config.vocab_size == len(parts.tokenizer) == 260
    assert parts.model(**batch(parts)).loss.item() == pytest.approx(math.log(260), abs=0.1)


def test_the_same_seed_gives_the_same_weights_and_data() -> None:
    first, second = (job("CausalLM", GPT2, {"source": "lines.txt"}) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert torch.equal(first.train["input_ids"][:], second.train["input_ids"][:])


def test_packed_blocks_are_the_text() -> None:
    parts = job("CausalLM", GPT2, {"source": "lines.txt", "blockSize": 32})
    tokens = parts.train["input_ids"][:].flatten()
    text = Path("lines.txt").read_text()
    assert text.startswith(parts.tokenizer.decode(tokens, skip_special_tokens=True))
    assert len(text) - len(tokens) < 32


def test_max_length_alone_makes_each_line_an_example() -> None:
    parts = job("CausalLM", GPT2, {"source": "lines.txt", "maxLength": 10})
    assert len(parts.train) == 40
    assert parts.tokenizer.decode(parts.train[3]["input_ids"]) == "this is li"


def test_padding_is_no_target_but_eos_is() -> None:
    parts = job("CausalLM", GPT2, {"source": "lines.txt", "maxLength": 60})
    inputs = parts.collator([parts.train[1], parts.train[12]])
    short = inputs["labels"][0]
    assert inputs["attention_mask"][0].tolist() == [*[1] * (len(short) - 1), 0]
    assert short[-2:].tolist() == [parts.tokenizer.eos_token_id, -100]


def test_masking_spares_special_tokens_and_predicts_some_others() -> None:
    parts = job("MaskedLM", BERT, {"source": "lines.txt", "maxLength": 30})
    torch.manual_seed(0)
    inputs = parts.collator([parts.train[row] for row in range(40)])
    predicted = inputs["labels"] != -100
    assert 0.1 < predicted.float().sum() / inputs["attention_mask"].sum() < 0.2
    assert not torch.isin(inputs["labels"][predicted], torch.tensor([0, 1, 2, 3])).any()
    assert (inputs["input_ids"][:, 0] == parts.tokenizer.cls_token_id).all()


def test_a_word_is_tagged_at_its_first_token() -> None:
    parts = job("TokenClassification", BERT, {"source": "tags.jsonl"})
    #         bos  A  n    n    i  s    é:2 bytes  eos
    assert parts.train[0]["labels"] == [-100, 0, -100, -100, 1, -100, 1, -100, -100]


def test_pairs_are_told_apart_by_the_tokenizer() -> None:
    parts = job("SequenceClassification", BERT, {"source": "pairs.jsonl"})
    assert parts.tokenizer.decode(parts.train[0]["input_ids"]) == "<|bos|>one<|eos|>two<|eos|>"


def test_whole_numbers_keep_their_class_ids() -> None:
    write_rows(Path("stars.jsonl"), [{"text": "x", "label": n} for n in (3, 0, 1)])
    parts = job("SequenceClassification", BERT, {"source": "stars.jsonl"})
    assert parts.model.config.num_labels == 4
    assert parts.train["labels"][:] == [3, 0, 1]


def test_streamed_data_makes_the_same_blocks() -> None:
    data = {"source": "lines.txt", "blockSize": 32}
    streamed = job("CausalLM", GPT2, {**data, "streaming": True}).train
    blocks = torch.stack([row["input_ids"] for row in streamed])
    assert torch.equal(blocks, job("CausalLM", GPT2, data).train["input_ids"][:])


def test_prepared_data_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    job("CausalLM", GPT2, {"source": "lines.txt"})

    def never(*_: Any) -> None:
        raise AssertionError("the features were made a second time")

    monkeypatch.setattr("trainwright.declarative.features.Packer.__call__", never)
    assert len(job("CausalLM", GPT2, {"source": "lines.txt"}).train) > 0


def test_saved_model_and_tokenizer_load_by_their_folder(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parts = job("CausalLM", GPT2, {"source": "lines.txt"})
    for part in (parts.model, parts.tokenizer):
        part.save_pretrained(folder / "saved")
    tokenizer = AutoTokenizer.from_pretrained(folder / "saved")
    assert tokenizer("é <|eos|>")["input_ids"] == parts.tokenizer("é <|eos|>")["input_ids"]
    again = job("CausalLM", {"source": str(folder / "saved"), "tokenizer": None}, {"source": "lines.txt"})
    loaded = AutoModelForCausalLM.from_pretrained(folder / "saved")
    for expected, one, other in zip(
        parts.model.parameters(), again.model.parameters(), loaded.parameters(), strict=True
    ):
        assert torch.equal(expected, one)
        assert torch.equal(expected, other)


def test_embeddings_grow_to_the_tokenizer(folder: Path) -> None:
    parts = job("CausalLM", GPT2, {"source": "lines.txt"})
    parts.model.save_pretrained(folder / "saved")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder / "saved")
    grown = job("CausalLM", {"source": str(folder / "saved"), "tokenizer": None}, {"source": "lines.txt"}).model
    assert grown.get_input_embeddings().num_embeddings == grown.config.vocab_size == 261


def test_changes_to_a_saved_configuration_give_fresh_weights(folder: Path) -> None:
    parts = job("CausalLM", GPT2, {"source": "lines.txt"})
    parts.model.save_pretrained(folder / "saved")
    model = {"source": str(folder / "saved"), "fromConfig": {"num_hidden_layers": 2}}
    changed = job("CausalLM", model, {"source": "lines.txt"}).model
    assert (changed.config.n_layer, changed.config.n_embd) == (2, 16)


def test_a_model_has_the_dtype_that_is_asked_for_and_knows_its_positions() -> None:
    assert job("CausalLM", {**GPT2, "dtype": "bfloat16"}, {"source": "lines.txt"}).model.dtype == torch.bfloat16
    assert positions(job("MaskedLM", ROBERTA, {"source": "lines.txt"}).model) == 63
    assert positions(job("Seq2SeqLM", T5, {"source": "turns.jsonl"}).model) is None


@pytest.mark.parametrize(("task", "model", "data"), [("CausalLM", GPT2, "lines.txt"), ("Seq2SeqLM", T5, "turns.jsonl")])
def test_samples_are_reproducible_and_leave_the_generators_alone(
    folder: Path, task: str, model: dict[str, Any], data: str
) -> None:
    parts = job(task, model, {"source": data})
    before = torch.get_rng_state()
    spec = SampleSpec(prompts=("this", "", "x" * 200), max_new_tokens=5)
    texts = [write_samples(parts.model, parts.tokenizer, spec, 1, folder) for _ in range(2)]
    assert texts[0] == texts[1] == (folder / "samples.txt").read_text()
    assert torch.equal(before, torch.get_rng_state())
    assert "prompt 3" in texts[0]


def test_metrics_of_classification_tagging_and_perplexity_are_right() -> None:
    guesses, labels = np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2])
    assert classification_metrics(SimpleNamespace(predictions=guesses, label_ids=labels))["accuracy"] == 0.75
    assert macro_f1(guesses, labels) == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    tags = SimpleNamespace(predictions=np.array([[0, 1], [1, 1]]), label_ids=np.array([[0, -100], [1, 0]]))
    assert tagging_metrics(tags)["accuracy"] == pytest.approx(2 / 3)
    assert perplexity(2.0) == pytest.approx(math.e**2)
    assert perplexity(1e9) == math.inf


def rows(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": "x", "label": label} for label in labels]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (rows("a", None, "b", None), ["columns.label", "empty in 2 rows"]),
        (rows(0.5, 1.0), ["columns.label", "0.5", "not a class"]),
        (rows("a", "a"), ["columns.label", "only one label ('a')"]),
        (rows(["a"], ["b"]), ["columns.label", "lists"]),
        (rows({"a": 1}, {"a": 2}), ["columns.label", "records"]),
    ],
)
def test_labels_that_are_not_classes_are_refused(data: list[dict[str, Any]], words: list[str]) -> None:
    write_rows(Path("bad.jsonl"), data)
    with pytest.raises(DataError) as caught:
        job("SequenceClassification", BERT, {"source": "bad.jsonl"})
    assert all(word in str(caught.value) for word in words), caught.value


CAUSAL = {"task": "CausalLM", "model": GPT2, "dataset": {"source": "lines.txt"}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "CausalML"}, ["spec.task", "did you mean CausalLM?"]),
        ({"task": None}, ["spec.task", "is missing"]),
        ({"task": "MaskedLM"}, ["spec.task", "'gpt2' does not support MaskedLM", "CausalLM"]),
        ({"dataset": {}}, ["spec.dataset.source", "is missing"]),
        ({"dataset": {"source": "lines.txt", "blocksize": 3}}, ["spec.dataset.blocksize", "did you mean blockSize?"]),
        ({"dataset": {"source": "lines.txt", "blockSize": 128}}, ["spec.dataset.blockSize", "128", "positions for 64"]),
        ({"dataset": {"source": "lines.txt", "maxLength": 65}}, ["spec.dataset.maxLength", "65", "positions for 64"]),
        ({"dataset": {"source": "lines.txt", "columns": {"text": "txt"}}}, ["columns.text", "did you mean text?"]),
        ({"dataset": {"source": "chats.jsonl"}}, ["columns.text", "'messages' holds chats", "apply_chat_template"]),
        (
            {"dataset": {"source": "chats.jsonl", "columns": {"text": "messages"}}},
            ["columns.text", "'messages' holds chats", "apply_chat_template"],
        ),
        (
            {"arguments": {"eval_strategy": "steps", "metric_for_best_model": "f1"}},
            ["spec.trainingArguments.metricForBestModel: no evaluation gives f1; choose one of loss"],
        ),
        ({"model": {"source": "gpt2", "fromConfig": {}, "tokenizer": None}}, ["spec.model.tokenizer", "'bytes'"]),
        ({"model": {"source": "gtp2", "fromConfig": {}}}, ["spec.model.source", "did you mean gpt2?"]),
        ({"model": {"source": "./nowhere"}}, ["spec.model.source", "'./nowhere' is not a folder"]),
        (
            {"model": {"source": "gpt2", "fromConfig": {"n_layers": 1}}},
            ["fromConfig.n_layers", "did you mean n_layer"],
        ),
        ({"model": {"source": "gpt2", "fromConfig": {"n_layer": "x"}}}, ["fromConfig.n_layer", "int"]),
        ({"model": {"source": "gpt2", "fromConfig": {"n_embd": 10, "n_head": 3}}}, ["spec.model.fromConfig"]),
        ({"model": {"source": "gpt2", "fromConfig": {"vocab_size": 9}}}, ["fromConfig.vocab_size", "260"]),
        ({"dataset": {"source": "lines.txt", "streaming": True, "evalSplit": "x"}}, ["evalSplit", "streamed"]),
        ({"dataset": {"source": "lines.txt", "maxTrainSamples": 1, "blockSize": 64}, "task": "Other"}, ["spec.task"]),
    ],
)
def test_mistakes_are_told_in_one_line(change: dict[str, Any], words: list[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError) as caught:
        job(**{**CAUSAL, **change})
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("written", "wanted", "score"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("the cat", "the black cat sat", 2 * 2 / 6),
        ("sat cat the", "the cat sat", 2 * 1 / 6),
        ("", "the cat", 0.0),
        ("", "", 1.0),
    ],
)
def test_rouge_l_is_the_share_of_the_longest_common_sequence(written: str, wanted: str, score: float) -> None:
    assert rouge_l(written.split(), wanted.split()) == pytest.approx(score)
