"""Packing: documents of any length become blocks of one length, so that no position of a batch is padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class Packer:
    """Concatenates tokens and cuts them into blocks of ``block_size``; for a batched ``map``.

    What a batch leaves over goes to the next one, so that only the tokens after the very last block are dropped. Where
    batches must not depend on each other (a stream that resumes in its middle), ``carry=False`` drops it at each batch.
    """

    def __init__(self, block_size: int, carry: bool = True) -> None:
        self.block_size = block_size
        self.carry = carry
        self.rest = np.empty(0, dtype=np.int32)

    def __call__(self, documents: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
        """Token ids of each document to blocks of shape (blocks, block_size), int32."""
        tokens = np.concatenate([self.rest, *(np.asarray(ids, dtype=np.int32) for ids in documents)])
        whole = len(tokens) // self.block_size * self.block_size
        self.rest = tokens[whole:] if self.carry else self.rest
        return tokens[:whole].reshape(-1, self.block_size)


class DocumentEncoder:
    """Texts to token ids, with the tokenizer's special tokens around a document, not around each piece of it.

    A document that the tokenizer would not end gets the end-of-sequence token, so that a model learns where texts end.
    """

    def __init__(self, tokenizer: Any, column: str, max_length: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.column = column
        self.max_length = max_length
        self.prefix, self.suffix = _around(tokenizer)

    def __call__(self, batch: Mapping[str, list[Any]]) -> list[list[int]]:
        """Token ids of each row, at most ``max_length``. Without the columns first and last, rows are documents."""
        texts = [text or "" for text in batch[self.column]]
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        whole = [True] * len(texts)
        firsts, lasts = batch.get("first", whole), batch.get("last", whole)
        rows = zip(encoded["input_ids"], firsts, lasts, strict=True)
        return [(self.prefix * first + ids + self.suffix * last)[: self.max_length] for ids, first, last in rows]


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Special tokens before and after a text: what the tokenizer adds by itself, and at least eos after it."""
    alone = tokenizer("")["input_ids"]
    starts = {tokenizer.bos_token_id, tokenizer.cls_token_id}
    prefix = alone[:1] if alone and alone[0] in starts and alone != [tokenizer.eos_token_id] else []
    suffix = alone[len(prefix) :] or ([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])
    return prefix, suffix
