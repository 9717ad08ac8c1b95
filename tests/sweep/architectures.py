"""The architectures of the sweep: classes of transformers, made tiny from their configurations, with random weights.

A table by task. What most configurations call alike is made small in one place; a line of the table says what an
architecture needs besides, and, where its loss depends on who is in the batch, why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY, LENGTH, CLASSES, PIXELS, SIGNAL = 64, 10, 4, 32, 240
PAD, BEGIN, END, IMAGE = 0, 1, 2, 3
LABELLED = ("classification", "tokens", "image")
"""Tasks whose model is told the number of classes."""

SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "embedding_size", "dim", "emb_dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim"), 32),
    **dict.fromkeys(("hidden_dim", "d_inner", "d_model"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "num_encoder_attention_heads"), 2),
    **dict.fromkeys(("num_decoder_attention_heads",), 2),
    **dict.fromkeys(("head_dim", "d_kv", "d_head", "q_lora_rank", "kv_lora_rank", "moe_intermediate_size"), 16),
    **dict.fromkeys(("v_head_dim", "shared_expert_intermediate_size", "rotary_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "patch_size"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    "num_experts_per_tok": 2, "type_vocab_size": 2, "vocab_size": VOCABULARY, "image_size": PIXELS,
    "pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END, "decoder_start_token_id": BEGIN,
    "forced_eos_token_id": None, "forced_bos_token_id": None,
}  # fmt: skip

TEXT = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2} | {
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "head_dim": 16,
    "pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END,
}  # fmt: skip
VISION = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2} | {
    "image_size": PIXELS, "patch_size": 16,
}  # fmt: skip
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "out_features": None, "stage_names": None}
SOUND = {
    "conv_dim": (16, 16), "conv_kernel": (6, 4), "conv_stride": (4, 4), "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2, "ctc_loss_reduction": "mean", "num_feat_extract_layers": 2,
}  # fmt: skip

NORM = "batch norm: statistics of a micro-batch; an adapter's checkpoint has none of the running ones"
CONTRAST = "contrastive: every sample of the micro-batch is a negative of the others"
EXPERTS = "an auxiliary loss over the experts that the tokens of a micro-batch chose"
SUMMED = "its own loss is the sum over a micro-batch, not the mean"


@dataclass(frozen=True)
class Architecture:
    """One line of the sweep.

    Attributes:
        task: What the data are like; see :mod:`sweep.data`.
        kind: The model type of transformers.
        name: The class, with what is special about this line.
        settings: Of the configuration, over :data:`SMALL`.
        varies: Why the loss depends on who is in the batch; empty where it must not.
        lora: Of the adapter's configuration, where ``peft`` cannot put one on every linear layer.
    """

    task: str
    kind: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    varies: str = ""
    lora: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What no other line has."""
        return f"{self.task} {self.name}"

    @property
    def class_name(self) -> str:
        return self.name.partition(",")[0]

    def model(self, seed: int = 0, dropout: float = 0.0) -> nn.Module:
        """In evaluation mode, as ``from_pretrained`` hands it out."""
        torch.manual_seed(seed)
        configuration = self.configuration()
        set_dropout(configuration, dropout)
        configuration.use_cache = False  # as the Trainer sets it where it finds the configuration
        model: nn.Module = getattr(transformers, self.class_name)(configuration)
        return model.eval()

    def configuration(self) -> Any:
        cls = CONFIG_MAPPING[self.kind]
        plain = cls().to_dict()
        own = {key: cls.attribute_map.get(key, key) for key in SMALL}
        small = {
            key: value
            for key, value in SMALL.items()
            if own[key] in plain and not isinstance(plain[own[key]], list | tuple)
        }
        labels = {"num_labels": CLASSES, "classifier_dropout": 0.0} if self.task in LABELLED else {}
        return cls(**{**small, **labels, **self.settings})


def set_dropout(configuration: Any, share: float) -> None:
    """Every dropout of a configuration and of those within it; without any, nothing else is random either."""
    for key, value in vars(configuration).items():
        if isinstance(value, transformers.PretrainedConfig):
            set_dropout(value, share)
        elif "layerdrop" in key and share:
            continue  # as the model has it: some (Pegasus-X) fail without a layer
        elif "drop" in key and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(configuration, key, type(value)(share))
        elif not share and ("jitter" in key or key in ("mask_time_prob", "mask_feature_prob", "mask_time_length")):
            setattr(configuration, key, type(value)(key == "mask_time_length"))
