"""Models of transformers for a task: saved weights, or new ones from a configuration that matches the tokenizer."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trainwright.contract import UserError
from trainwright.declarative.columns import Labels
from trainwright.declarative.diagnosis import error_for, first_line
from trainwright.declarative.manifest import ModelSpec
from trainwright.nearest import did_you_mean, some

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SOURCE, CHANGES = "spec.model.source", "spec.model.fromConfig"
AUTO_CLASSES = {
    "CausalLM": "AutoModelForCausalLM",
    "MaskedLM": "AutoModelForMaskedLM",
    "Seq2SeqLM": "AutoModelForSeq2SeqLM",
    "SequenceClassification": "AutoModelForSequenceClassification",
    "TokenClassification": "AutoModelForTokenClassification",
}
SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


def load_config(spec: ModelSpec, task: str) -> PreTrainedConfig:
    """The configuration of ``spec``; raises :class:`UserError` if there is none or it does not support ``task``."""
    config = _base_config(spec)
    _check_task(config, task, spec)
    if task == "CausalLM" and getattr(config, "is_decoder", None) is False and not config.is_encoder_decoder:
        config.is_decoder = True  # an encoder would see the token that it should predict
    return config


def build_model(
    spec: ModelSpec,
    config: PreTrainedConfig,
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    labels: Labels | None,
    in_shards: bool = False,
) -> PreTrainedModel:
    """The model with its weights in float32, or in ``spec.dtype``; its embeddings hold every token of the tokenizer.

    Args:
        in_shards: Make it without values where possible, so that each rank reads or initialises only its shards.
    """
    if labels is not None:
        config.id2label = dict(enumerate(labels.names))
        config.label2id = {name: index for index, name in enumerate(labels.names)}
    auto = _auto_class(task)
    fresh = spec.from_config is not None
    if fresh:
        follow_tokenizer(config, tokenizer, spec.from_config)
    try:
        model = _without_values(auto, config, spec, len(tokenizer)) if in_shards else None
        if model is None:
            model = _fresh(auto, config, spec) if fresh else _saved(auto, config, spec)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise error_for(error, f"{CHANGES if fresh else SOURCE}: {first_line(error)}") from error
    if len(tokenizer) > cast(Any, model.get_input_embeddings()).num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    if model.config.get_text_config().pad_token_id is None:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model


def positions(model: PreTrainedModel) -> int | None:
    """The longest sequence for which the model has positions; None if it has no such limit.

    Learned positions that start after the padding index, as in RoBERTa, are fewer by that offset.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            table: Any = module
            return int(table.num_embeddings - table.padding_idx - 1)
    bound: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return bound


def _base_config(spec: ModelSpec) -> PreTrainedConfig:
    from transformers import CONFIG_MAPPING

    if _is_model_type(spec):
        kind = CONFIG_MAPPING[spec.source]
        return _changed(kind(), {}, spec.from_config or {})
    config = _saved_config(spec)
    if not spec.from_config:
        return config
    saved, _ = type(config).get_config_dict(spec.source, revision=spec.revision)
    return _changed(config, saved, spec.from_config)


def _is_model_type(spec: ModelSpec) -> bool:
    """Whether ``source`` is an architecture of transformers and not a folder; it then needs no download."""
    from transformers import CONFIG_MAPPING

    return spec.from_config is not None and spec.source in CONFIG_MAPPING and not os.path.exists(spec.source)


def _saved_config(spec: ModelSpec) -> PreTrainedConfig:
    from transformers import AutoConfig

    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            spec.source, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
        return config
    except (OSError, ValueError, ImportError) as error:
        raise error_for(error, f"{SOURCE}: {_why_no_model(spec, error)}") from error


def _changed(config: PreTrainedConfig, stated: Mapping[str, Any], changes: Mapping[str, Any]) -> PreTrainedConfig:
    """A new configuration from ``stated`` and ``changes``, so that the values that the class derives are updated."""
    known = {f.name for f in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else set()
    known |= {*config.attribute_map, *config.to_dict()}
    for key in changes:
        if key not in known:
            raise UserError(
                f"{CHANGES}.{key}: a configuration of {config.model_type!r} has no such key{did_you_mean(key, known)}"
            )
    try:
        return type(config).from_dict({**stated, **_renamed(config, changes)})
    except Exception as error:  # the validators of huggingface_hub raise their own types
        raise UserError(_invalid_value(error)) from error


def _renamed(config: PreTrainedConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    return {config.attribute_map.get(key, key): value for key, value in changes.items()}


def _invalid_value(error: Exception) -> str:
    match = re.search(r"field '(\w+)':?\s*(?:\w+: )?(.*)", str(error), re.DOTALL)
    if match is None:
        return f"{CHANGES}: {first_line(error)}"
    reason = re.sub(r"^Field '\w+' ", "", " ".join(match[2].split()))
    return f"{CHANGES}.{match[1]}: {reason}"


def _why_no_model(spec: ModelSpec, error: Exception) -> str:
    from transformers import CONFIG_MAPPING

    source = spec.source
    if source.startswith((".", "/", "~")) or os.path.exists(source):
        known = "holds no model that transformers can load" if os.path.isdir(source) else "is not a folder in this pod"
        return f"{source!r} {known}; check the path, and that its volume is mounted"
    hint = did_you_mean(source, CONFIG_MAPPING.keys())
    if spec.from_config is None and source in CONFIG_MAPPING:
        hint = "; for new weights of this model type set fromConfig, which may be {}"
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return f"there is no folder {source!r}, and an offline job downloads nothing{hint}"
    return f"{source!r} is not a folder, not a model type of transformers, and as a hub id: {first_line(error)}{hint}"


def _auto_class(task: str) -> Any:
    import transformers

    return getattr(transformers, AUTO_CLASSES[task])


def _check_task(config: PreTrainedConfig, task: str, spec: ModelSpec) -> None:
    if spec.trust_remote_code and getattr(config, "auto_map", None):
        return
    fitting = [name for name in AUTO_CLASSES if type(config) in _auto_class(name)._model_mapping]
    if task not in fitting:
        can = f"it supports {some(fitting)}" if fitting else "it supports none of the tasks"
        raise UserError(f"spec.task: a model of type {config.model_type!r} does not support {task}; {can}")


def follow_tokenizer(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, stated: Any) -> None:
    """Sets the vocabulary size and the special tokens of new weights from the tokenizer, unless the manifest does."""
    text = config.get_text_config()
    if "vocab_size" not in stated:
        text.vocab_size = len(tokenizer)
    elif text.vocab_size < len(tokenizer):
        raise UserError(
            f"{CHANGES}.vocab_size: {text.vocab_size} is less than the tokenizer's {len(tokenizer)}; leave it out"
        )
    starts_with_pad = getattr(config, "decoder_start_token_id", None) in (None, text.pad_token_id)
    for name in SPECIAL_IDS:
        if name not in stated:
            setattr(text, name, getattr(tokenizer, name))
    if config.is_encoder_decoder and "decoder_start_token_id" not in stated:
        start = None if starts_with_pad else tokenizer.bos_token_id
        config.decoder_start_token_id = tokenizer.pad_token_id if start is None else start


def new_model(spec: ModelSpec, config: PreTrainedConfig, task: str) -> PreTrainedModel:
    """The model of ``config`` with new weights, even where the job loads saved ones."""
    return _fresh(_auto_class(task), config, spec)


def _fresh(auto: Any, config: PreTrainedConfig, spec: ModelSpec) -> PreTrainedModel:
    import torch

    dtype = None if spec.dtype in (None, "auto") else getattr(torch, str(spec.dtype))
    fresh: PreTrainedModel = auto.from_config(
        config, dtype=dtype or torch.float32, trust_remote_code=spec.trust_remote_code
    )
    return fresh


def _saved(auto: Any, config: PreTrainedConfig, spec: ModelSpec) -> PreTrainedModel:
    saved: PreTrainedModel = auto.from_pretrained(
        spec.source,
        config=config,
        revision=spec.revision,
        dtype=spec.dtype or "float32",
        trust_remote_code=spec.trust_remote_code,
        ignore_mismatched_sizes=True,  # a head for another number of labels is initialised again
    )
    return saved


def _without_values(auto: Any, config: PreTrainedConfig, spec: ModelSpec, tokens: int) -> PreTrainedModel | None:
    """The model without the values of its parameters; None if it has to be made whole.

    That is so if its embeddings must grow, its own code makes it, or its files hold other tensors than the model.
    """
    import torch

    from trainwright.arguments.errors import ModelError
    from trainwright.checkpoint.deferred import deferred_weights, read_from
    from trainwright.checkpoint.gathered import conversion_of

    saved = spec.from_config is None
    if config.get_text_config().vocab_size < tokens or spec.trust_remote_code or (saved and spec.dtype == "auto"):
        return None
    generator = torch.get_rng_state()
    try:
        with deferred_weights():
            model = _fresh(auto, config, spec)
        if not saved:
            return model
        folder = _folder_of(spec)
        if conversion_of(model) is None and not read_from(model, folder):
            _take_generation_config(model, folder)
            model.config.name_or_path = spec.source
            return model
    except (ModelError, UserError):
        pass
    torch.set_rng_state(generator)
    return None


def _folder_of(spec: ModelSpec) -> Path:
    if os.path.isdir(spec.source):
        return Path(spec.source)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(spec.source, revision=spec.revision, allow_patterns=["*.safetensors", "*.json"]))


def _take_generation_config(model: PreTrainedModel, folder: Path) -> None:
    from transformers import GenerationConfig

    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
