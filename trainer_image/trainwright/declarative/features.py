"""Rows to features: for each task, the function that a batched ``map`` applies.

Each takes ``{column: values}`` of a batch of rows and gives ``{feature: values}``, not always as many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainwright.contract import DataError
from trainwright.declarative.columns import holds_chats
from trainwright.declarative.labels import Labels
from trainwright.declarative.metrics import IGNORED
from trainwright.declarative.packing import DocumentEncoder, Packer

Batch = Mapping[str, list[Any]]
Featurize = Callable[[Batch], dict[str, Any]]
COLUMNS = "spec.dataset.columns"


@dataclass(frozen=True)
class Recipe:
    """What turns rows into features: everything that the features depend on beside the rows."""

    tokenizer: Any
    columns: Mapping[str, str]
    block_size: int | None
    max_length: int | None
    labels: Labels | None = None
    streaming: bool = False


def language(recipe: Recipe) -> Featurize:
    """Packed blocks, or rows of at most ``max_length`` tokens where there is no block size."""
    encoder = DocumentEncoder(recipe.tokenizer, recipe.columns["text"], recipe.max_length)

    def encode(batch: Batch) -> list[list[int]]:
        _strings(batch, recipe.columns, "text")
        return encoder(batch)

    if recipe.block_size is None:
        return lambda batch: {"input_ids": encode(batch)}
    pack = Packer(recipe.block_size, carry=not recipe.streaming)
    return lambda batch: {"input_ids": pack(encode(batch))}


def sequence_classification(recipe: Recipe) -> Featurize:
    """The text, or both texts, and the class id."""
    tokenizer, columns, ids = recipe.tokenizer, recipe.columns, recipe.labels.ids if recipe.labels else {}

    def featurize(batch: Batch) -> dict[str, Any]:
        texts = [_strings(batch, columns, role) for role in ("text", "textPair") if role in columns]
        encoded = dict(tokenizer(*texts, truncation=recipe.max_length is not None, max_length=recipe.max_length))
        return {**encoded, "labels": [ids[value] for value in batch[columns["label"]]]}

    return featurize


def sequence_to_sequence(recipe: Recipe) -> Featurize:
    """The source's tokens, and the target's as labels."""
    tokenizer, columns = recipe.tokenizer, recipe.columns
    limits = {"truncation": recipe.max_length is not None, "max_length": recipe.max_length}

    def featurize(batch: Batch) -> dict[str, Any]:
        encoded = dict(tokenizer(_strings(batch, columns, "source"), **limits))
        targets = tokenizer(text_target=_strings(batch, columns, "target"), **limits)
        return {**encoded, "labels": targets["input_ids"]}

    return featurize


def token_classification(recipe: Recipe) -> Featurize:
    """The words' tokens; the first token of a word carries its tag, the others none."""
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
            f"{COLUMNS}.{role}: column {columns[role]!r} holds {type(wrong).__name__}, not text; say another column"
        )
    return ["" if value is None else value for value in values]


def _check_tagged(words: list[Any], tags: list[Any]) -> None:
    for row, (sentence, marks) in enumerate(zip(words, tags, strict=True)):
        if not isinstance(sentence, list) or not isinstance(marks, list):
            raise DataError(f"{COLUMNS}.tokens: must hold a list of words in each row, and tags a list of as many tags")
        if len(sentence) != len(marks):
            raise DataError(
                f"{COLUMNS}.tags: {len(marks)} tags for {len(sentence)} words, in row {row} of a batch, "
                f"which begins {' '.join(map(str, sentence[:4]))!r}; every word needs one tag"
            )
