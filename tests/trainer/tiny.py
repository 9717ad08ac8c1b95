"""Small models and data, made in milliseconds and alike for everyone who asks with the same seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Classifier(nn.Module):
    """A plain module by the contract: a tuple, the loss first when there are labels."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.hidden = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(16)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        logits = self.head(self.dropout(torch.relu(self.norm(self.hidden(x)))))
        return (logits,) if labels is None else (nn.functional.cross_entropy(logits, labels), logits)


def classifier(seed: int = 0, dropout: float = 0.1) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(dropout)


def gpt2(seed: int = 0) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 32, "n_positions": 16}
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    model.loss_type = "ForCausalLM"  # what it computes; unsaid, transformers' Trainer counts a target too many in a row
    return model


def bert(seed: int = 0) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(**sizes, vocab_size=32, num_labels=4, max_position_embeddings=16))


def masked_bert(seed: int = 0) -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(seed)
    return BertForMaskedLM(BertConfig(**sizes, vocab_size=32, max_position_embeddings=16))


def t5(seed: int = 0) -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"num_layers": 1, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "vocab_size": 32}
    torch.manual_seed(seed)
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, dropout_rate=0.0))


def vectors(samples: int = 70, seed: int = 1) -> list[dict[str, Any]]:
    """Points in 8 dimensions whose class, one of 4, can be learned."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 8, generator=generator)
    labels = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    return [{"x": x[i], "labels": labels[i]} for i in range(samples)]


def texts(samples: int = 40, seed: int = 1, length: int = 12) -> list[dict[str, Any]]:
    """Token sequences that count up; a different number of their labels is padding."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, 32, (samples, 1), generator=generator)
    ids = (starts + torch.arange(length)) % 32
    labels = ids.clone()
    for row, label in enumerate(labels):
        label[length - row % 5 :] = -100
    return [{"input_ids": ids[i], "labels": labels[i]} for i in range(samples)]


def sentences(samples: int = 40, seed: int = 1) -> list[dict[str, Any]]:
    """Token sequences with a class of 4: what their first token tells."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 32, (samples, 10), generator=generator)
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[0] % 4} for row in ids]


def lopsided(samples: int = 40, seed: int = 1) -> list[dict[str, Any]]:
    """Texts of which no label is a target but in every eighth batch of four, from the first on."""
    return [
        {**sample, "labels": sample["labels"] if i % 8 < 4 else torch.full_like(sample["labels"], -100)}
        for i, sample in enumerate(texts(samples, seed))
    ]
