"""Explain in one line why a step failed because of its data. This runs only after the model raised an error.

torch names neither the column nor the value ("index out of range in self"). Therefore the batch is searched for invalid
values: token ids outside the vocabulary, class numbers outside the model's classes, dtypes that the model cannot use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from trainwright.contract import DataError, UserError

IGNORE_INDEX = -100


def raise_explained(error: Exception, model: nn.Module, batch: Any, label_names: list[str]) -> None:
    """Raise the error that :func:`explain` returns, if any."""
    explained = explain(error, model, batch, label_names)
    if explained is not None:
        raise explained from error


def explain(error: Exception, model: nn.Module, batch: Any, label_names: list[str]) -> UserError | None:
    """Return a clearer error than ``error``, or None if the batch is not the cause."""
    if isinstance(error, UserError | torch.OutOfMemoryError) or not isinstance(batch, Mapping):
        return None
    if (words := _missing_padding(error, model)) is not None:
        return UserError(words)
    if (words := _no_tensors(error, batch)) is not None:
        return DataError(words)
    tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor) and value.numel()}
    if any(tensor.device.type != "cpu" for tensor in tensors.values()):
        return None  # after a failed device assertion its tensors cannot be read
    for name, tensor in tensors.items():
        is_label = name in label_names
        words = _label_problem(error, tensor, model) if is_label else _token_problem(error, name, tensor, model)
        if words is not None:
            return DataError(f"{name}: {words}")
    return _type_problem(error, tensors, model)


def _missing_padding(error: Exception, model: nn.Module) -> str | None:
    """Detect a missing padding token: decoders that classify a sequence use its last token before the padding."""
    if "padding token" not in str(error):
        return None
    return (
        f"model: {type(model).__name__} judges a text by its last token that is no padding, and its config has no "
        "pad_token_id; set model.config.pad_token_id = tokenizer.pad_token_id (where that is None, set "
        "tokenizer.pad_token = tokenizer.eos_token before)"
    )


def _no_tensors(error: Exception, batch: Mapping[str, Any]) -> str | None:
    """Detect lists and arrays in place of tensors, from a collator that makes no tensors."""
    found = re.search(r"must be (?:Tensor|tuple of Tensors), not ([\w.]+)", str(error))
    kind = found.group(1).rpartition(".")[2] if found else None
    name = next((name for name, value in batch.items() if type(value).__name__ == kind), None)
    if name is None:
        return None
    return f"data_collator: {name} is a {kind} in the batch, and the model takes tensors; make it one by torch.tensor"


def _token_problem(error: Exception, name: str, tensor: torch.Tensor, model: nn.Module) -> str | None:
    if not name.endswith("input_ids"):
        return None
    if tensor.is_floating_point():
        return f"its values are {_type_of(tensor)}, and token numbers must be integers (int64); convert the column"
    size = _vocabulary(model) if _is_of_range(error) else None
    beyond = None if size is None else _outside(tensor, size)
    if size is None or beyond is None:
        return None
    return (
        f"the batch holds the token number {beyond}, and the model's vocabulary has {size} (0 to {size - 1}); use the "
        "tokenizer that belongs to the model, or make room with model.resize_token_embeddings"
    )


def _label_problem(error: Exception, tensor: torch.Tensor, model: nn.Module) -> str | None:
    if (words := _shape_problem(error, tensor)) is not None:
        return words
    if tensor.is_floating_point():
        expects_classes = any(kind in str(error) for kind in ("Long", "long", "int64"))
        kind = f"its values are {_type_of(tensor)}, and the loss takes class numbers (int64); convert the column"
        return kind if expects_classes else None
    size = _classes(model) if _is_of_range(error) else None
    beyond = _outside(tensor, size, ignored=IGNORE_INDEX) if size is not None else None
    if size is not None and beyond is not None:
        return (
            f"the batch holds the class {beyond}, and the model has {size} (0 to {size - 1}, {IGNORE_INDEX} for none); "
            "number the classes from 0, or build the model with num_labels as large as their number"
        )
    if "out of bounds" in str(error):
        return (
            f"{str(error).splitlines()[0].rstrip('.')}, where the loss takes class numbers from 0 to the number of the "
            f"model's outputs less one (or {IGNORE_INDEX} for none); number the classes so, or widen the model's output"
        )
    return None


def _shape_problem(error: Exception, labels: torch.Tensor) -> str | None:
    """Detect labels whose shape or dtype does not fit the loss."""
    said, shape = str(error), f"its shape in the batch is {tuple(labels.shape)}"
    if "multi-target not supported" in said or ("batch_size" in said and "target" in said):
        return f"{shape}, and the loss takes one class number for each output; give every sample one, not a list"
    if "Target size" in said and "must be the same as input size" in said:
        return f"{shape}, and the loss takes a number for each output of the model; give every sample so many"
    if not labels.is_floating_point() and ("class probabilities" in said or "can't be cast" in said):
        return (
            f"its values are {_type_of(labels)}, and a loss over several classes at once takes float32 (0.0 and 1.0); "
            "convert the column, or give one class number a sample"
        )
    return None


_WORDS = {
    torch.float64: ("Double", "double"), torch.float32: ("Float", "float"), torch.bfloat16: ("BFloat16",),
    torch.float16: ("Half",), torch.uint8: ("Byte", "unsigned char"), torch.int64: ("Long", "long int", "int64_t"),
}  # fmt: skip
"""The names of dtypes in torch's messages, in C++ and in Python."""


def _type_problem(error: Exception, tensors: Mapping[str, torch.Tensor], model: nn.Module) -> UserError | None:
    """Detect dtypes that the model cannot use: NumPy's floats have 64 bits, pixels have 8."""
    if not any(sign in str(error) for sign in ("dtype", "should be the same", "scalar type")):
        return None
    computes = next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), None)
    for name, tensor in tensors.items():
        words = _WORDS.get(tensor.dtype, ())
        if tensor.dtype != computes and any(re.search(rf"\b{word}\b", str(error)) for word in words):
            types = f"its values are {_type_of(tensor)}, and the model computes in {str(computes).partition('.')[2]}"
            mend = "convert the column"
            if computes in (torch.bfloat16, torch.float16) and tensor.dtype == torch.float32:
                mend = "load the model in float32 and set bf16, or convert the column"
            return DataError(f"{name}: {types}; {mend}")
    return None


def _is_of_range(error: Exception) -> bool:
    return isinstance(error, IndexError) or "out of range" in str(error) or "out of bounds" in str(error)


def _type_of(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _outside(tensor: torch.Tensor, size: int, ignored: int | None = None) -> int | None:
    """Return a value that is not in 0 .. size - 1, if any."""
    wrong = (tensor < 0) | (tensor >= size)
    if ignored is not None:
        wrong &= tensor != ignored
    return int(tensor[wrong][0]) if wrong.any() else None


def _vocabulary(model: nn.Module) -> int | None:
    try:
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return getattr(embeddings, "num_embeddings", None)


def _classes(model: nn.Module) -> int | None:
    """Return the number of classes: the vocabulary of a language model, the labels of a classifier."""
    speaks = getattr(model, "can_generate", lambda: False)() or "MaskedLM" in type(model).__name__
    size = _vocabulary(model) if speaks else getattr(getattr(model, "config", None), "num_labels", None)
    return size if isinstance(size, int) and size > 1 else None
