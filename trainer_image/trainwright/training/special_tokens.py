"""Copy the special tokens of a tokenizer into the configuration of a model."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)


def align_special_tokens(model: Any, processing_class: Any) -> None:
    """Set the tokenizer's EOS, BOS and PAD ids in the model's configuration and generation configuration.

    Tokens that the tokenizer does not define stay unchanged. A model can have several EOS tokens: one is added, none
    removed.
    """
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    config = getattr(model, "config", None)
    if config is None or not hasattr(tokenizer, "eos_token_id"):
        return
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    configs = [c for c in (config, getattr(model, "generation_config", None)) if c is not None]
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None and any(token not in _ids(getattr(c, name, None)) for c in configs):
            logger.warning("the model's %s becomes the tokenizer's, %d", name, token)
            for place, c in enumerate(configs):
                _set(c, name, token, several=name == "eos_token_id", keeps=place > 0)


def _ids(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _set(config: Any, name: str, token: int, several: bool, keeps: bool) -> None:
    present = getattr(config, name, None)
    if several and (keeps or isinstance(present, list)):
        setattr(config, name, [token, *(other for other in _ids(present) if other not in (None, token))])
    else:
        setattr(config, name, token)
