"""Small models of each kind, with data: all are trained without dropout, and alike for everyone who asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

Data = list[dict[str, torch.Tensor]]
VOCABULARY, LENGTH, SAMPLES = 64, 12, 64


class Kind(NamedTuple):
    model: Callable[[], nn.Module]
    data: Callable[[], Data]


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=VOCABULARY))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=4, n_embd=32, n_head=4, vocab_size=VOCABULARY, n_positions=16)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return GPT2LMHeadModel(config)


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(**sizes, **off, vocab_size=VOCABULARY, num_labels=4, max_position_embeddings=16)
    return BertForSequenceClassification(config)


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"num_layers": 2, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "vocab_size": VOCABULARY}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, dropout_rate=0.0))


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return ViTForImageClassification(ViTConfig(**sizes, **off, image_size=8, patch_size=4, num_labels=4))


def mixtral() -> nn.Module:
    """Without the auxiliary loss, which is a mean over each rank's own tokens."""
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": False}
    return MixtralForCausalLM(MixtralConfig(**sizes, **experts, num_key_value_heads=2, vocab_size=VOCABULARY))


def texts() -> Data:
    ids = torch.randint(1, VOCABULARY, (SAMPLES, LENGTH), generator=_generator())
    lengths = torch.randint(4, LENGTH, (SAMPLES,), generator=_generator())
    padding = torch.arange(LENGTH)[None] >= lengths[:, None]  # so that the ranks have different numbers of targets
    return [{"input_ids": row, "labels": row.masked_fill(pad, -100)} for row, pad in zip(ids, padding, strict=True)]


def sentences() -> Data:
    return [{"input_ids": text["input_ids"], "labels": torch.tensor(i % 4)} for i, text in enumerate(texts())]


def pictures() -> Data:
    pixels = torch.randn(SAMPLES, 3, 8, 8, generator=_generator())
    return [{"pixel_values": picture, "labels": torch.tensor(i % 4)} for i, picture in enumerate(pixels)]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


KINDS = {
    "Llama": Kind(llama, texts),
    "GPT-2": Kind(gpt2, texts),
    "BERT": Kind(bert, sentences),
    "T5": Kind(t5, texts),
    "ViT": Kind(vit, pictures),
    "Mixtral": Kind(mixtral, texts),
}
