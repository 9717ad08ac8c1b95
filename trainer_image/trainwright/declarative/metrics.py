"""Metrics besides the loss: accuracy and F1 of classes and tags, similarity of texts, perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

IGNORED = -100


def classification_metrics(prediction: Any) -> dict[str, float]:
    """``prediction`` has class ids and label ids of shape (examples,)."""
    guesses, labels = _first(prediction.predictions), prediction.label_ids
    return {"accuracy": float((guesses == labels).mean()), "f1_macro": macro_f1(guesses, labels)}


def tagging_metrics(prediction: Any) -> dict[str, float]:
    """``prediction`` has tag ids of shape (examples, tokens); tokens labelled -100 do not count."""
    guesses, labels = _first(prediction.predictions), prediction.label_ids
    counted = labels != IGNORED
    guesses, labels = guesses[counted], labels[counted]
    return {"accuracy": float((guesses == labels).mean()), "f1_macro": macro_f1(guesses, labels)}


def macro_f1(guesses: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """The mean of 2 TP / (2 TP + FP + FN) over the classes that occur in guesses or labels."""
    scores = []
    for name in np.union1d(guesses, labels):
        hits = np.sum((guesses == name) & (labels == name))
        scores.append(2 * hits / (np.sum(guesses == name) + np.sum(labels == name)))
    return float(np.mean(scores))


def text_metrics(tokenizer: Any) -> Callable[[Any], dict[str, float]]:
    """Compares the texts of generated tokens, of shape (examples, longest), with the texts of the labels."""

    def compute(prediction: Any) -> dict[str, float]:
        written, wanted = (_texts(tokenizer, ids) for ids in (_first(prediction.predictions), prediction.label_ids))
        pairs = list(zip(written, wanted, strict=True))
        return {
            "exact_match": float(np.mean([text == target for text, target in pairs])),
            "rouge_l": float(np.mean([rouge_l(text.split(), target.split()) for text, target in pairs])),
        }

    return compute


def _texts(tokenizer: Any, ids: np.ndarray[Any, Any]) -> list[str]:
    filled = np.where(ids == IGNORED, tokenizer.pad_token_id or 0, ids)
    return [text.strip() for text in tokenizer.batch_decode(filled, skip_special_tokens=True)]


def rouge_l(written: Sequence[str], wanted: Sequence[str]) -> float:
    """F1 of the longest common subsequence of two lists of words (Lin, 2004); 1 for two empty lists."""
    common = [0] * (len(wanted) + 1)
    for word in written:
        before = common
        common = [0]
        for column, other in enumerate(wanted):
            common.append(before[column] + 1 if word == other else max(common[-1], before[column + 1]))
    total = len(written) + len(wanted)
    return 2 * common[-1] / total if total else 1.0


def most_likely(logits: Any, labels: Any) -> Any:
    """The class id of each logit vector, so that the ranks gather one id instead of a score for every class."""
    return _first(logits).argmax(dim=-1)


def perplexity(loss: float) -> float:
    """e to the loss; infinite if too large for a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output
