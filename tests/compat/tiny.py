"""Models, tokenizers and rows for the libraries' cases, made on the spot: no download, a few thousand weights."""

from __future__ import annotations

from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

CHAT = (
    "{% for message in messages %}<{{ message['role'] }}>{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] }}</s>{% endgeneration %}{% else %}{{ message['content'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = ("<pad>", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]", "[UNK]")
WORDS = ("red", "blue", "green", "small", "large", "round", "cold", "warm", "stone", "river", "cloud", "bird")


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", unk_token="[UNK]", model_max_length=64,
    )  # fmt: skip
    made.chat_template = CHAT
    return made


def make(folder: Path) -> None:
    """``folder`` with a causal model, a reward model, an encoder and a classifier, each with its tokenizer."""
    torch.manual_seed(0)
    words = tokenizer()
    small = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    llama = LlamaConfig(
        **small, num_attention_heads=2, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    bert = BertConfig(**small, num_attention_heads=2, max_position_embeddings=64, pad_token_id=0)
    llama_reward, bert_one = llama.from_dict({**llama.to_dict(), "num_labels": 1}), bert.from_dict(bert.to_dict())
    bert_one.num_labels = 1
    made = {
        "causal": LlamaForCausalLM(llama),
        "reward": LlamaForSequenceClassification(llama_reward),
        "encoder": BertModel(bert),
        "cross": BertForSequenceClassification(bert_one),
    }
    for name, model in made.items():
        model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)


def phrase(number: int, length: int = 3) -> str:
    return " ".join(WORDS[(number * 7 + place * 5 + number // 3) % len(WORDS)] for place in range(length))


def texts(count: int = 24) -> Dataset:
    """Of 2 to 5 words."""
    return Dataset.from_dict({"text": [phrase(number, 2 + number % 4) for number in range(count)]})


def completions(count: int = 24) -> Dataset:
    """Prompts, and what shall follow."""
    prompts = [f"{phrase(row)}:" for row in range(count)]
    return Dataset.from_dict(
        {"prompt": prompts, "completion": [f" {phrase(row + 5, 1 + row % 3)}" for row in range(count)]}
    )


def conversations(count: int = 24) -> Dataset:
    def said(row: int) -> list[dict[str, str]]:
        answer = phrase(row + 3, 1 + row % 3)
        return [{"role": "user", "content": phrase(row)}, {"role": "assistant", "content": answer}]

    return Dataset.from_dict({"messages": [said(row) for row in range(count)]})


def preferences(count: int = 24) -> Dataset:
    rows = range(count)
    return Dataset.from_dict(
        {
            "prompt": [f"{phrase(row)}:" for row in rows],
            "chosen": [f" {phrase(row + 1, 2)}" for row in rows],
            "rejected": [f" {phrase(row + 2, 1 + row % 3)}" for row in rows],
        }
    )


def judged(count: int = 24) -> Dataset:
    rows = completions(count)
    return rows.add_column("label", [row % 2 == 0 for row in range(count)])


def pairs(count: int = 24) -> Dataset:
    rows = range(count)
    return Dataset.from_dict({"anchor": [phrase(row) for row in rows], "positive": [phrase(row + 1) for row in rows]})


def scored(count: int = 24) -> Dataset:
    rows = range(count)
    return Dataset.from_dict(
        {
            "sentence1": [phrase(row) for row in rows],
            "sentence2": [phrase(row * 5 + 1) for row in rows],
            "score": [(row % 5) / 4 for row in rows],
        }
    )


def labelled(count: int = 16) -> Dataset:
    rows = range(count)
    return Dataset.from_dict({"text": [phrase(row) for row in rows], "label": [row % 2 for row in rows]})
