"""Rows to features: the function of each task for a batched ``map``.

Each takes ``{column: values}`` of a batch of rows and returns ``{feature: values}``, whose number may differ.

Packing turns documents of any length into blocks of one length, so that a batch has no padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainwright.contract import DataError
from trainwright.declarative.columns import Labels, holds_chats
from trainwright.declarative.metrics import IGNORED

Batch = Mapping[str, list[Any]]
Featurize = Callable[[Batch], dict[str, Any]]
COLUMNS = "spec.dataset.columns"


@dataclass(frozen=True)
class Recipe:
    """Everything that the features depend on, besides the rows."""

    tokenizer: Any
    columns: Mapping[str, str]
    block_size: int | None
    max_length: int | None
    labels: Labels | None = None
    streaming: bool = False


def language(recipe: Recipe) -> Featurize:
    """Packed blocks, or rows of at most ``max_length`` tokens if there is no block size."""
    encoder = DocumentEncoder(recipe.tokenizer, recipe.columns["text"], recipe.max_length)

    def encode(batch: Batch) -> list[list[int]]:
        _strings(batch, recipe.columns, "text")
        return encoder(batch)

    if recipe.block_size is None:
        return lambda batch: {"input_ids": encode(batch)}
    pack = Packer(recipe.block_size, carry=not recipe.streaming)
    return lambda batch: {"input_ids": pack(encode(batch))}


def sequence_classification(recipe: Recipe) -> Featurize:
    """The tokens of one or two texts, and the class id."""
    tokenizer, columns, ids = recipe.tokenizer, recipe.columns, recipe.labels.ids if recipe.labels else {}

    def featurize(batch: Batch) -> dict[str, Any]:
        texts = [_strings(batch, columns, role) for role in ("text", "textPair") if role in columns]
        encoded = dict(tokenizer(*texts, truncation=recipe.max_length is not None, max_length=recipe.max_length))
        return {**encoded, "labels": [ids[value] for value in batch[columns["label"]]]}

    return featurize


def sequence_to_sequence(recipe: Recipe) -> Featurize:
    """The tokens of the source, and those of the target as labels."""
    tokenizer, columns = recipe.tokenizer, recipe.columns
    limits = {"truncation": recipe.max_length is not None, "max_length": recipe.max_length}

    def featurize(batch: Batch) -> dict[str, Any]:
        encoded = dict(tokenizer(_strings(batch, columns, "source"), **limits))
        targets = tokenizer(text_target=_strings(batch, columns, "target"), **limits)
        return {**encoded, "labels": targets["input_ids"]}

    return featurize


def token_classification(recipe: Recipe) -> Featurize:
    """The tokens of the words; the first token of each word is labelled with its tag, the others are ignored."""
    tokenizer, columns, ids = recipe.tokenizer, recipe.columns, recipe.labels.ids if recipe.labels else {}
    limits = {"truncation": recipe.max_length is not None, "max_length": recipe.max_length}

    def featurize(batch: Batch) -> dict[str, Any]:
        words, tags = batch[columns["tokens"]], batch[columns["tags"]]
        _check_tagged(words, tags)
        encoded = tokenizer(words, is_split_into_words=True, **limits)
        aligned = [_aligned(encoded.word_ids(row), [ids[tag] for tag in tags[row]]) for row in range(len(words))]
        return {**dict(encoded), "labels": aligned}

    return featurize


def _aligned(word_of_token: list[int | None], tags: list[int]) -> list[int]:
    previous = [None, *word_of_token]
    return [
        tags[word] if word is not None and word != before else IGNORED
        for word, before in zip(word_of_token, previous, strict=False)
    ]


def _strings(batch: Batch, columns: Mapping[str, str], role: str) -> list[str]:
    values = batch[columns[role]]
    wrong = next((value for value in values if value is not None and not isinstance(value, str)), None)
    if isinstance(wrong, list) and wrong and isinstance(wrong[0], dict):
        raise DataError(holds_chats(columns[role]))
    if wrong is not None:
        raise DataError(
            f"{COLUMNS}.{role}: column {columns[role]!r} holds {type(wrong).__name__}, not text; use another column"
        )
    return ["" if value is None else value for value in values]


def _check_tagged(words: list[Any], tags: list[Any]) -> None:
    for row, (sentence, marks) in enumerate(zip(words, tags, strict=True)):
        if not isinstance(sentence, list) or not isinstance(marks, list):
            raise DataError(f"{COLUMNS}.tokens: each row must hold a list of words, and a list of as many tags")
        if len(sentence) != len(marks):
            raise DataError(
                f"{COLUMNS}.tags: {len(marks)} tags for {len(sentence)} words, in row {row} of a batch, "
                f"which begins {' '.join(map(str, sentence[:4]))!r}; every word needs one tag"
            )


class Packer:
    """Concatenates tokens and cuts them into blocks of ``block_size``, for a batched ``map``.

    The remaining tokens of a batch are carried over to the next one, so only those after the last block are dropped.
    For a stream that may resume in the middle, batches must be independent: ``carry=False`` drops them in each batch.
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
    """Texts to token ids, with the tokenizer's special tokens around each document, not around each of its pieces.

    If the tokenizer adds no token at the end, a document ends with the end-of-sequence token, so that a model learns
    where texts end.
    """

    def __init__(self, tokenizer: Any, column: str, max_length: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.column = column
        self.max_length = max_length
        self.prefix, self.suffix = _around(tokenizer)

    def __call__(self, batch: Mapping[str, list[Any]]) -> list[list[int]]:
        """Token ids of each row, at most ``max_length``. Without the columns first and last, each row is a document."""
        texts = [text or "" for text in batch[self.column]]
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        whole = [True] * len(texts)
        firsts, lasts = batch.get("first", whole), batch.get("last", whole)
        rows = zip(encoded["input_ids"], firsts, lasts, strict=True)
        return [(self.prefix * first + ids + self.suffix * last)[: self.max_length] for ids, first, last in rows]


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer adds before and after a text; at least eos after it."""
    alone = tokenizer("")["input_ids"]
    starts = {tokenizer.bos_token_id, tokenizer.cls_token_id}
    prefix = alone[:1] if alone and alone[0] in starts and alone != [tokenizer.eos_token_id] else []
    suffix = alone[len(prefix) :] or ([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])
    return prefix, suffix
