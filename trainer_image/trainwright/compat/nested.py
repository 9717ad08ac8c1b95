"""Functions on nests of tensors, under the names of transformers, for users' own metrics and evaluation loops.

A nest is a tensor or an array, or a tuple, list or mapping of nests. Rows are along the first dimension.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from trainwright.arguments.enums import ParallelMode
from trainwright.distributed.collectives import (
    PADDING,
    batch_size_of,
    detach,
    leaves,
    map_leaves,
    to_numpy,
    with_leaves,
)
from trainwright.distributed.ranks import Ranks


def atleast_1d(tensor_or_array: Any) -> Any:
    """The same values with at least one dimension."""
    is_tensor = isinstance(tensor_or_array, torch.Tensor)
    return torch.atleast_1d(tensor_or_array) if is_tensor else np.atleast_1d(tensor_or_array)


def torch_pad_and_concatenate(
    tensor1: torch.Tensor, tensor2: torch.Tensor, padding_index: float = PADDING
) -> torch.Tensor:
    """The rows of both; the one that is shorter in the second dimension is padded."""
    first, second = torch.atleast_1d(tensor1), torch.atleast_1d(tensor2)
    if first.dim() == 1:
        return torch.cat((first, second))
    longest = max(first.shape[1], second.shape[1])
    return torch.cat([_lengthened(part, longest, padding_index) for part in (first, second)])


def _lengthened(rows: torch.Tensor, longest: int, padding: float) -> torch.Tensor:
    inner = [0, 0] * (rows.dim() - 2)  # torch names the dimensions from the last one
    return torch.nn.functional.pad(rows, (*inner, 0, longest - rows.shape[1]), value=padding)


def numpy_pad_and_concatenate(array1: Any, array2: Any, padding_index: float = PADDING) -> Any:
    """Like :func:`torch_pad_and_concatenate`, for arrays."""
    first, second = np.atleast_1d(array1), np.atleast_1d(array2)
    if first.ndim == 1:
        return np.concatenate((first, second))
    longest = max(first.shape[1], second.shape[1])
    return np.concatenate([expand_like(part, longest, padding_index) for part in (first, second)])


def expand_like(arrays: Any, new_seq_length: int, padding_index: float = PADDING) -> Any:
    """Padded to ``new_seq_length`` in the second dimension."""
    widths = [(0, 0), (0, new_seq_length - arrays.shape[1]), *([(0, 0)] * (arrays.ndim - 2))]
    return np.pad(arrays, widths, constant_values=padding_index)


class NestError(TypeError, AssertionError):
    """Two nests differ in structure."""


def nested_concat(tensors: Any, new_tensors: Any, padding_index: float = PADDING) -> Any:
    """The rows of both nests, which must have the same structure; shorter ones are padded in the second dimension."""
    olds, news = leaves(tensors), leaves(new_tensors)
    if type(tensors) is not type(new_tensors) or len(olds) != len(news):
        raise NestError(f"nested_concat: a {type(tensors).__name__} and a {type(new_tensors).__name__} do not match")
    joined = [
        (torch_pad_and_concatenate if isinstance(old, torch.Tensor) else numpy_pad_and_concatenate)(
            old, new, padding_index
        )
        for old, new in zip(olds, news, strict=True)
    ]
    return with_leaves(tensors, joined)


def find_batch_size(tensors: Any) -> int | None:
    """The number of rows of the first tensor; None if no tensor has rows."""
    return batch_size_of(tensors)


def nested_numpify(tensors: Any) -> Any:
    """Arrays on the host; bfloat16 becomes float32, because NumPy lacks it."""
    return map_leaves(to_numpy, tensors)


def nested_detach(tensors: Any) -> Any:
    """Detached from the autograd graph."""
    return detach(tensors)


def nested_truncate(tensors: Any, limit: int) -> Any:
    """The first ``limit`` rows."""
    return map_leaves(lambda leaf: leaf[:limit], tensors)


def nested_new_like(arrays: Any, num_samples: int, padding_index: float = PADDING) -> Any:
    """A nest of the same structure with ``num_samples`` rows of padding."""
    return map_leaves(lambda leaf: np.full_like(leaf, padding_index, shape=(num_samples, *leaf.shape[1:])), arrays)


def distributed_concat(tensor: Any, num_total_examples: int | None = None) -> Any:
    """The first ``num_total_examples`` rows of all ranks, each of which must have the same number of rows."""

    def gather(leaf: torch.Tensor) -> torch.Tensor:
        mine = torch.atleast_1d(leaf).contiguous()
        return torch.cat(Ranks.current().gather_tensors(mine))[:num_total_examples]

    return map_leaves(gather, tensor)


def distributed_broadcast_scalars(
    scalars: list[int | float],
    num_total_examples: int | None = None,
    device: torch.device | None = torch.device("cuda"),  # noqa: B008 - the default of transformers
) -> torch.Tensor:
    """The numbers of all ranks."""
    rows: torch.Tensor = distributed_concat(torch.tensor(scalars, device=device), num_total_examples)
    return rows


def nested_gather(tensors: Any, parallel_mode: Any, name: str | None = None) -> Any:
    """The rows of all ranks if there are several; see :func:`distributed_concat`."""
    return distributed_concat(tensors) if parallel_mode == ParallelMode.DISTRIBUTED else tensors


class EvalLoopContainer:
    """Collects the nests of an evaluation loop.

    Args:
        do_nested_concat: Concatenate the nests; otherwise they are kept as a list.
        padding_index: The padding of shorter rows.
    """

    def __init__(self, do_nested_concat: bool = True, padding_index: int = PADDING) -> None:
        self.do_nested_concat, self.padding_index = do_nested_concat, padding_index
        self.tensors: Any = None
        self.arrays: Any = None

    def add(self, tensors: Any) -> None:
        """Adds the nest of tensors of one batch."""
        self.tensors = self._joined(self.tensors, tensors if self.do_nested_concat else [tensors])

    def to_cpu_and_numpy(self) -> None:
        """Moves all added tensors to the host."""
        if self.tensors is not None:
            self.arrays, self.tensors = self._joined(self.arrays, nested_numpify(self.tensors)), None

    def get_arrays(self) -> Any:
        """Everything that was added, as arrays; None if nothing was."""
        self.to_cpu_and_numpy()
        return self.arrays

    def _joined(self, before: Any, more: Any) -> Any:
        if before is None:
            return more
        return nested_concat(before, more, self.padding_index) if self.do_nested_concat else before + more
