"""From a list of samples to a batch: Hugging Face's default collators, and wrappers for any collator.

Nothing here imports transformers; tokenizers are used through their ``pad``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from trainwright.contract import DataError, UserError

Collate = Callable[[list[Any]], Any]


def default_data_collator(features: list[Any], return_tensors: str = "pt") -> dict[str, Any]:
    """Stack each key of dict-like samples; ``label`` (a number) or ``label_ids`` (a list) becomes ``labels``.

    The first sample determines the keys; strings and None are omitted.

    Args:
        features: Mappings, or objects with attributes.
        return_tensors: ``"pt"`` for torch tensors, ``"np"`` for NumPy arrays.
    """
    if return_tensors not in ("pt", "np"):
        raise ValueError(f"return_tensors: {return_tensors!r} is not known; choose 'pt' or 'np'")
    stack = partial(_stack_column, _stack_torch if return_tensors == "pt" else _stack_numpy)
    samples = _as_mappings(features)
    first = samples[0]
    batch = {}
    label = next((key for key in ("label", "label_ids") if first.get(key) is not None), None)
    if label is not None:
        batch["labels"] = stack(samples, label, as_label=True)
    for key, value in first.items():
        if key not in ("label", "label_ids") and value is not None and not isinstance(value, str):
            batch[key] = stack(samples, key, as_label=False)
    return batch


def _as_mappings(features: list[Any]) -> Sequence[Mapping[str, Any]]:
    first = features[0]
    if isinstance(first, Mapping):
        return features
    if not hasattr(first, "__dict__"):
        raise DataError(
            f"train_dataset or eval_dataset: a sample is a {type(first).__name__}; make samples mappings from the "
            "names of the model's arguments to their values, or give a data_collator that makes a batch of them"
        )
    return [vars(sample) for sample in features]


def _stack_column(stack: Any, samples: Sequence[Mapping[str, Any]], key: str, as_label: bool) -> Any:
    try:
        return stack([sample[key] for sample in samples], as_label=as_label)
    except KeyError:
        lacking = next(sample for sample in samples if key not in sample)
        raise DataError(
            f"data_collator: a sample lacks the column {key!r} that the first one has (it has {_words(lacking)}); give "
            "every sample the same columns"
        ) from None
    except (TypeError, ValueError, RuntimeError) as error:
        kinds, why = _words({type(sample[key]).__name__ for sample in samples}), (str(error).splitlines() or [""])[0]
        raise DataError(
            f"data_collator: the column {key!r} cannot be stacked ({why}; its values are {kinds}); make them numbers "
            "of one shape, or give a data_collator that pads them"
        ) from error


def _stack_torch(values: list[Any], as_label: bool) -> torch.Tensor:
    first = values[0]
    if isinstance(first, torch.Tensor) and not (as_label and first.ndim == 0):
        return torch.stack(values)
    if isinstance(first, np.ndarray) and not as_label:
        return torch.from_numpy(np.stack(values))
    if as_label:
        return torch.tensor(values, dtype=torch.long if _is_integer(first) else torch.float)
    return torch.tensor(values)


def _stack_numpy(values: list[Any], as_label: bool) -> np.ndarray:
    first = values[0]
    if isinstance(first, np.ndarray) and not (as_label and first.ndim == 0):
        return np.stack(values)
    if as_label:
        return np.array(values, dtype=np.int64 if _is_integer(first) else np.float32)
    return np.array(values)


def _is_integer(label: Any) -> bool:
    """Whether a label, or the first of a list of labels, is a class number."""
    if isinstance(label, Sequence | np.ndarray) and np.ndim(label):
        label = label[0]
    label = label.item() if isinstance(label, torch.Tensor) else label
    return isinstance(label, int | np.integer)


@dataclass
class DefaultDataCollator:
    """:func:`default_data_collator` as an object that remembers ``return_tensors``."""

    return_tensors: str = "pt"

    def __call__(self, features: list[Any], return_tensors: str | None = None) -> dict[str, Any]:
        return default_data_collator(features, return_tensors or self.return_tensors)


@dataclass
class DataCollatorWithPadding:
    """Pad the samples of a batch to one length with a tokenizer; ``label`` or ``label_ids`` becomes ``labels``.

    ``padding``, ``max_length``, ``pad_to_multiple_of`` and ``return_tensors`` are those of the tokenizer's ``pad``.
    """

    tokenizer: Any
    padding: bool | str = True
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        batch = self._pad(features)
        for name in ("label", "label_ids"):
            if name in batch:
                batch["labels"] = batch.pop(name)
        return batch

    def _pad(self, features: list[dict[str, Any]]) -> Any:
        """Pad without the warning of fast tokenizers, which does not apply to samples that are already tokens."""
        told = getattr(self.tokenizer, "deprecation_warnings", {})
        before = told.get("Asking-to-pad-a-fast-tokenizer", False)
        told["Asking-to-pad-a-fast-tokenizer"] = True
        try:
            return self.tokenizer.pad(
                features,
                padding=self.padding,
                max_length=self.max_length,
                pad_to_multiple_of=self.pad_to_multiple_of,
                return_tensors=self.return_tensors,
            )
        finally:
            told["Asking-to-pad-a-fast-tokenizer"] = before


def default_collator_for(processing_class: Any) -> Collate:
    """Return a collator that pads with the tokenizer if there is one; else the collator that stacks."""
    return DataCollatorWithPadding(processing_class) if hasattr(processing_class, "pad") else default_data_collator


class KeepColumns:
    """Drop the columns that the model does not take from every sample, then collate.

    If there is nothing to drop, this costs one comparison of keys per batch.
    """

    def __init__(self, collate: Collate, columns: Collection[str], model_name: str) -> None:
        self._collate = collate
        self._columns = frozenset(columns)
        self._model_name = model_name

    def __call__(self, features: list[Any]) -> Any:
        first = features[0]
        if isinstance(first, dict) and not first.keys() <= self._columns:
            if self._columns.isdisjoint(first):
                raise no_columns_left(first, self._columns, self._model_name)
            features = [self._used(sample) for sample in features]
        return self._collate(features)

    def _used(self, sample: Any) -> Any:
        if not isinstance(sample, dict):
            return sample
        return {key: value for key, value in sample.items() if key in self._columns}


def no_columns_left(columns: Collection[str], accepted: Collection[str], model_name: str) -> DataError:
    return DataError(
        f"remove_unused_columns: {model_name}.forward takes none of the columns {_words(columns)} "
        f"(it takes {_words(accepted)}); rename the columns, or set remove_unused_columns to false and let the "
        "data collator make the model's inputs"
    )


class GuardedCollate:
    """A collator whose errors describe its input. It can be pickled if the wrapped collator can."""

    def __init__(self, collate: Collate) -> None:
        self._collate = collate

    def __call__(self, features: list[Any]) -> Any:
        try:
            return self._collate(features)
        except UserError:
            raise
        except Exception as error:
            words = (str(error).splitlines() or [""])[0]
            raise DataError(
                f"data_collator: {_name(self._collate)} failed on {len(features)} samples of {_describe(features[0])}: "
                f"{type(error).__name__}: {words}; give samples of equal shapes or a data_collator that pads them"
            ) from error


def _name(collate: Any) -> str:
    inner = getattr(collate, "_collate", collate)
    return getattr(inner, "__name__", type(inner).__name__)


def _describe(sample: Any) -> str:
    return f"the keys {_words(sample)}" if isinstance(sample, Mapping) else f"type {type(sample).__name__}"


def _words(names: Collection[str]) -> str:
    return ", ".join(sorted(map(str, names))) or "(none)"
