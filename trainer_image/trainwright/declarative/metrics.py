"""What an evaluation says beside the loss: accuracy and macro F1 for classes, token accuracy for tags, perplexity."""

from __future__ import annotations

import math
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
    """The mean over the classes that occur, in either, of 2 TP / (2 TP + FP + FN)."""
    scores = []
    for name in np.union1d(guesses, labels):
        hits = np.sum((guesses == name) & (labels == name))
        scores.append(2 * hits / (np.sum(guesses == name) + np.sum(labels == name)))
    return float(np.mean(scores))


def likeliest(logits: Any, labels: Any) -> Any:
    """The class of each logit vector: what is gathered from the ranks is one id, not a score for every class."""
    return _first(logits).argmax(dim=-1)


def perplexity(loss: float) -> float:
    """e to the loss, infinite where that is too large for a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output
