"""Which architectures the sweep goes through, by task, and which of them stand for all in the short form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers.models.auto import modeling_auto as auto

from sweep.architectures import (
    BEGIN,
    CONTRAST,
    EXPERTS,
    IMAGE,
    NORM,
    PAD,
    SOUND,
    STAGES,
    SUMMED,
    TEXT,
    VISION,
    VOCABULARY,
    Architecture,
)

SHORT = (
    "GPT2LMHeadModel", "LlamaForCausalLM", "BertForSequenceClassification", "T5ForConditionalGeneration",
    "ViTForImageClassification", "Wav2Vec2ForCTC",
)  # fmt: skip
"""One of each kind: labels shifted by a model without a loss type; the count taken; dropped; an encoder with a decoder;
the count taken for a class; a loss that is no cross entropy."""


def as_they_are(names: str) -> dict[str, dict[str, Any]]:
    """Model types that need nothing besides."""
    return {name: {} for name in names.split()}


NARROW = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
T5 = {"feed_forward_proj": "relu", "decoder_start_token_id": BEGIN}
WINDOWS = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 4}
PYRAMID = {"depths": [1, 1], "hidden_sizes": [16, 16], "num_attention_heads": [1, 2], "sr_ratios": [2, 1]} | {
    "num_encoder_blocks": 2, "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2],
}  # fmt: skip

CAUSAL: dict[str, dict[str, Any]] = as_they_are(
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi phi3 olmo2 cohere glm4 granite starcoder2 stablelm "
    "falcon gpt_neox gpt_bigcode bloom mpt opt xglm biogpt mixtral qwen3_moe olmoe gpt_oss jetmoe rwkv "
    "nemotron persimmon smollm3 modernbert-decoder openai-gpt roberta electra xlnet "
    "lfm2 minimax"
) | {
    "gpt2": {},
    "mamba": {"lora": {"target_modules": ["in_proj", "x_proj"]}},
    "falcon_mamba": {"lora": {"target_modules": ["in_proj", "x_proj"]}},
    "deepseek_v2": {"lora": {"lora_dropout": 0.0}},
    "bert": {"is_decoder": True},
    "gpt_neo": {"attention_types": [[["global"], 2]], "window_size": 4},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
    "ctrl": {"dff": 32},
    "bart": {}, "marian": {}, "trocr": {}, "xlm": {},
    "whisper": {"max_target_positions": 64, "max_source_positions": 64},
    "deepseek_v3": NARROW | {
        "head_dim": 8, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "lora": {"lora_dropout": 0.0},
    },
    "mamba2": {
        "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "expand": 2,
        "lora": {"target_modules": ["in_proj"]},
    },
}  # fmt: skip

MASKED: dict[str, dict[str, Any]] = as_they_are(
    "albert bert camembert convbert deberta deberta-v2 distilbert electra ernie esm eurobert fnet funnel gte "
    "layoutlm mobilebert modernbert mpnet nomic_bert rembert roberta roberta-prelayernorm roformer squeezebert "
    "xlm xlm-roberta nystromformer esmc"
) | {
    "longformer": {"attention_window": 4},
}  # fmt: skip

SEQ2SEQ: dict[str, dict[str, Any]] = as_they_are(
    "bart blenderbot blenderbot-small m2m_100 marian mbart mvp pegasus pegasus_x plbart prophetnet "
    "seamless_m4t"
) | {
    "t5": T5, "mt5": T5, "umt5": T5, "longt5": T5 | {"local_radius": 4},
    "led": {"attention_window": 4, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64},
}  # fmt: skip

CLASSIFICATION = as_they_are(
    "albert bart bert deberta-v2 distilbert electra gemma gpt2 llama mistral modernbert opt qwen2 qwen3 "
    "roberta xlnet"
) | {"t5": T5, "canine": {"num_hash_buckets": 16}}  # fmt: skip
TOKENS = as_they_are(
    "bert bloom deberta-v2 distilbert electra gemma2 gpt2 llama mpnet roberta xlm-roberta"
) | {"big_bird": {"attention_type": "original_full"}}  # fmt: skip
ANSWERS = as_they_are(
    "albert bart bert deberta distilbert electra gpt2 llama mobilebert roberta splinter"
)  # fmt: skip
CHOICES = as_they_are(
    "albert bert convbert distilbert electra mpnet roberta roformer"
)  # fmt: skip

IMAGES: dict[str, dict[str, Any]] = {
    **as_they_are("vit deit beit data2vec-vision dinov2 dinov2_with_registers vit_msn ijepa"),
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "convnextv2": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "swin": WINDOWS, "swinv2": WINDOWS,
    "poolformer": {
        "hidden_sizes": [8, 16], "depths": [1, 1], "num_encoder_blocks": 2, "patch_sizes": [7, 3], "strides": [4, 2],
        "padding": [2, 1],
    },
    "pvt": PYRAMID | {"sequence_reduction_ratios": [2, 1], "patch_sizes": [4, 2]},
    "segformer": PYRAMID,
    "focalnet": {
        "embed_dim": 16, "depths": [1, 1], "hidden_sizes": [16, 32], "focal_levels": [1, 1], "focal_windows": [3, 3],
    },
    "bit": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "num_groups": 4},
    "clip": {"vision_config": VISION, "text_config": TEXT},
    "siglip": {"vision_config": VISION, "text_config": TEXT},
    "resnet": STAGES | {"varies": NORM},
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8, "varies": NORM},
    "mobilenet_v2": {"depth_multiplier": 0.25, "min_depth": 8, "varies": NORM},
}  # fmt: skip

SPEECH: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("wav2vec2", "hubert", "unispeech", "unispeech-sat", "wavlm"), SOUND),
    "data2vec-audio": SOUND | {"num_conv_pos_embeddings": 1, "conv_pos_kernel_size": 3},
    "sew": SOUND | {"squeeze_factor": 2},
    "sew-d": SOUND | {"squeeze_factor": 2, "max_position_embeddings": 64, "position_buckets": 8},
    "wav2vec2-conformer": SOUND | {"varies": NORM},
}  # fmt: skip

TOGETHER: dict[str, dict[str, Any]] = {
    "git": {**TEXT, "vision_config": VISION, "lora": {"target_modules": ["query", "value"]}},
    "blip": {"text_config": TEXT | {"encoder_hidden_size": 32, "sep_token_id": 2}, "vision_config": VISION},
    "llava": {
        "text_config": {"model_type": "llama", **TEXT}, "vision_config": {"model_type": "clip_vision_model", **VISION},
        "image_token_index": IMAGE, "vision_feature_select_strategy": "default", "vision_feature_layer": -1,
    },
    "vipllava": {
        "text_config": {"model_type": "llama", **TEXT}, "vision_config": {"model_type": "clip_vision_model", **VISION},
        "image_token_index": IMAGE, "vision_feature_layers": [-1, -2],
    },
    "paligemma": {
        "text_config": {"model_type": "gemma", **TEXT}, "image_token_index": IMAGE,
        "vision_config": {"model_type": "siglip_vision_model", **VISION}, "projection_dim": 32, "hidden_size": 32,
    },
    "gemma3": {
        "text_config": TEXT, "vision_config": VISION, "image_token_index": IMAGE, "mm_tokens_per_image": 4,
    },
    "pix2struct": {
        "text_config": {
            "vocab_size": VOCABULARY, "hidden_size": 32, "d_kv": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2,
            "pad_token_id": PAD, "eos_token_id": 2, "decoder_start_token_id": BEGIN,
        },
        "vision_config": {
            "hidden_size": 32, "patch_embed_hidden_size": 48, "d_ff": 32, "d_kv": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "seq_len": 4,
        },
    },
    "vision-encoder-decoder": {
        "encoder": {"model_type": "vit", **VISION}, "pad_token_id": PAD, "decoder_start_token_id": BEGIN,
        "decoder": {
            "model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": VOCABULARY, "n_positions": 64,
            "add_cross_attention": True,
        },
    },
}  # fmt: skip

LISTED = (
    Architecture("causal", "mixtral", "MixtralForCausalLM, router loss", {"output_router_logits": True}, EXPERTS),
    Architecture("causal", "qwen3_moe", "Qwen3MoeForCausalLM, router loss", {"output_router_logits": True}, EXPERTS),
    Architecture("ctc", "wav2vec2", "Wav2Vec2ForCTC, summed", SOUND | {"ctc_loss_reduction": "sum"}, SUMMED),
    Architecture("pairs", "clip", "CLIPModel", {"vision_config": VISION, "text_config": TEXT}, CONTRAST),
    Architecture("pairs", "siglip", "SiglipModel", {"vision_config": VISION, "text_config": TEXT}, CONTRAST),
)
"""Lines of their own for losses that depend on who is in the batch."""

TASKS = {
    "causal": (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, CAUSAL),
    "masked": (auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, MASKED),
    "seq2seq": (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, SEQ2SEQ),
    "classification": (auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, CLASSIFICATION),
    "tokens": (auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, TOKENS),
    "answers": (auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES, ANSWERS),
    "choices": (auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES, CHOICES),
    "image": (auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, IMAGES),
    "ctc": (auto.MODEL_FOR_CTC_MAPPING_NAMES, SPEECH),
    "image-text": (auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, TOGETHER),
}


def architectures(names: list[str] | None = None) -> list[Architecture]:
    """All of them, or those whose task and name hold one of ``names``."""
    every = [*_lines(), *LISTED]
    return every if not names else [one for one in every if any(name in one.key for name in names)]


def _lines() -> Iterator[Architecture]:
    for task, (classes, kinds) in TASKS.items():
        for kind, said in kinds.items():
            name, settings = classes[kind], dict(said)
            besides = {key: settings.pop(key) for key in ("varies", "lora") if key in settings}
            yield Architecture(task, kind, name if isinstance(name, str) else name[0], settings, **besides)


def short() -> list[Architecture]:
    every = {one.name: one for one in architectures()}
    return [every[name] for name in SHORT]
