"""Tokenizers: saved ones from a folder or the hub, and a byte-level one that needs no file.

The byte-level vocabulary has 260 tokens: ``<|pad|>`` 0, ``<|bos|>`` 1, ``<|eos|>`` 2, ``<|mask|>`` 3, then the bytes
from 4. An untrained model with it starts at a loss of ln(260) = 5.56. It is saved like any fast tokenizer, so that
``AutoTokenizer`` can load it from the output.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trainwright.declarative.diagnosis import error_for, first_line
from trainwright.declarative.manifest import BYTES, ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD, BOS, EOS, MASK = "<|pad|>", "<|bos|>", "<|eos|>", "<|mask|>"
SPECIAL = (PAD, BOS, EOS, MASK)
PLACE = "spec.model.tokenizer"


def load_tokenizer(spec: ModelSpec, template: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of ``spec``; for ``template`` see :func:`byte_tokenizer`.

    Raises :class:`UserError` if there is none, for example for new weights of a model type.
    """
    if spec.tokenizer == BYTES:
        return byte_tokenizer(template)
    from transformers import AutoTokenizer

    where = spec.tokenizer or spec.source
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            where,
            revision=spec.revision if spec.tokenizer is None else None,
            trust_remote_code=spec.trust_remote_code,
        )
    except Exception as error:  # hub, file and format errors of many kinds
        raise error_for(error, f"{PLACE}: {_why(spec, where, error)}") from error
    return _with_pad_token(tokenizer)


def byte_tokenizer(template: str | None = None) -> PreTrainedTokenizerBase:
    """``template`` is ``"both"`` (bos text eos, as for encoders), ``"end"`` (text eos, as for T5) or None."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *_byte_characters()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if template is not None:
        start = f"{BOS} " if template == "both" else ""
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start}$A {EOS}",
            pair=f"{start}$A {EOS} $B:1 {EOS}:1",
            special_tokens=[(token, vocabulary[token]) for token in (BOS, EOS)],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        mask_token=MASK,
        cls_token=BOS,
        sep_token=EOS,
        model_input_names=["input_ids", "attention_mask"],
    )


def _byte_characters() -> list[str]:
    """The printable character for each byte, 0 to 255, as in byte-level BPE since GPT-2."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _with_pad_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Uses eos as the padding token if there is none, as in GPT-2; the collators mask padding by position."""
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _why(spec: ModelSpec, where: str, error: Exception) -> str:
    hint = f"set it to a folder or a hub id, or to {BYTES!r}, which needs no file"
    if spec.tokenizer is None and spec.from_config is not None and not os.path.isdir(where):
        return f"new weights of {where!r} have no tokenizer; {hint}"
    if os.path.isdir(where):
        return f"the folder {where!r} holds no tokenizer; {hint}"
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return f"there is no folder {where!r}, and an offline job downloads nothing; {hint}"
    return f"cannot load {where!r} ({first_line(error)}); {hint}"
