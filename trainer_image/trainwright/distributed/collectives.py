"""Gather nested tensors over ranks and batches, in the order of the samples, and pad different lengths.

A nest is a tensor, or a tuple, list or mapping of nests. Rows are along the first dimension. Ranks may have different
numbers of rows, or none; if other dimensions differ, shorter tensors are padded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from trainwright.contract import UserError
from trainwright.distributed.ranks import Ranks

PADDING = -100
"""The value that losses and Hugging Face's metrics ignore as "no label"."""
HELD_BYTES = 1 << 20
"""Bytes to concatenate before one copy, large enough that many small batches cost one call."""


def map_leaves(change: Callable[[Any], Any], nest: Any) -> Any:
    """Return the same nest with ``change`` applied to every leaf; None stays None."""
    if isinstance(nest, torch.Tensor):  # the most frequent case first
        return change(nest)
    if nest is None:
        return None
    if isinstance(nest, tuple | list):
        values = [map_leaves(change, value) for value in nest]
        return type(nest)(*values) if hasattr(nest, "_fields") else type(nest)(values)
    if isinstance(nest, Mapping):
        return {key: map_leaves(change, value) for key, value in nest.items()}
    return change(nest)


def leaves(nest: Any) -> list[Any]:
    """Return the leaves in order, without None."""
    if isinstance(nest, torch.Tensor):
        return [nest]
    found: list[Any] = []
    map_leaves(found.append, nest)
    return found


def with_leaves(nest: Any, values: Sequence[Any]) -> Any:
    """Return the same nest with ``values`` as leaves."""
    remaining = iter(values)
    return map_leaves(lambda _: next(remaining), nest)


def detach(nest: Any) -> Any:
    return map_leaves(_detached, nest)


def _detached(leaf: Any) -> Any:
    return leaf.detach() if getattr(leaf, "requires_grad", False) else leaf


def bytes_of(nest: Any) -> int:
    """Return the bytes of all tensors and arrays."""
    if isinstance(nest, torch.Tensor):
        return nest.nbytes
    return sum([getattr(leaf, "nbytes", 0) for leaf in leaves(nest)])


def batch_size_of(nest: Any) -> int | None:
    """Return the rows of the first tensor that has any."""
    first = next(iter(nest.values()), None) if isinstance(nest, dict) else nest
    if isinstance(first, torch.Tensor) and first.ndim:  # the most frequent case
        return first.shape[0]
    sizes = (leaf.shape[0] for leaf in leaves(nest) if isinstance(leaf, torch.Tensor | np.ndarray) and leaf.ndim)
    return next(sizes, None)


def to_numpy(leaf: Any) -> np.ndarray:
    """Copy to the host; convert bfloat16, which NumPy lacks, to float32."""
    if isinstance(leaf, torch.Tensor):
        leaf = leaf.detach().cpu()
        return np.asarray((leaf.float() if leaf.dtype == torch.bfloat16 else leaf).numpy())
    return np.asarray(leaf)


def as_rows(leaf: Any) -> torch.Tensor:
    """Convert a leaf to a tensor with at least one dimension.

    Raises:
        UserError: The leaf is not a tensor, an array or a number.
    """
    if isinstance(leaf, torch.Tensor):
        return leaf if leaf.ndim else leaf.reshape(1)
    if isinstance(leaf, np.ndarray | int | float | bool | np.generic):
        row: torch.Tensor = torch.atleast_1d(torch.as_tensor(leaf))
        return row
    raise UserError(
        f"evaluation: the model returns a {type(leaf).__name__}, which cannot be gathered; name its key in ignore_keys "
        "(or in config.keys_to_ignore_at_inference), or set eval_use_gather_object"
    )


def pad_to(tensor: torch.Tensor, shape: Sequence[int], value: float = PADDING) -> torch.Tensor:
    """Pad ``tensor`` at the end of each dimension to ``shape`` with ``value`` (booleans with False)."""
    if tuple(tensor.shape) == tuple(shape):
        return tensor
    padded = tensor.new_full(tuple(shape), _fill_for(tensor.dtype, value))
    padded[tuple(slice(size) for size in tensor.shape)] = tensor
    return padded


def _fill_for(dtype: torch.dtype, value: float) -> Any:
    if dtype == torch.bool:
        return False
    return 0 if not dtype.is_signed else value


def pad_across_ranks(nest: Any, ranks: Ranks, dim: int = 1) -> Any:
    """Pad every leaf in ``dim`` to its longest length over all ranks; a rank without samples passes None."""
    if ranks.world_size == 1:
        return nest
    mine = [leaf.shape[dim] if leaf.ndim > dim else 0 for leaf in leaves(nest)]
    longest = [max(sizes) for sizes in zip(*(sizes for sizes in ranks.gather(mine) if sizes), strict=True)]

    def pad(leaf: torch.Tensor, size: int) -> torch.Tensor:
        if leaf.ndim <= dim:
            return leaf
        return pad_to(leaf, (*leaf.shape[:dim], size, *leaf.shape[dim + 1 :]))

    return with_leaves(nest, [pad(leaf, size) for leaf, size in zip(leaves(nest), longest, strict=False)])


def gather_rows(nest: Any, ranks: Ranks, device: torch.device) -> Any:
    """Return the rows of all ranks, in the order of the ranks, on every rank. A rank without rows passes None.

    Raises:
        UserError: The nests of the ranks cannot be concatenated.
    """
    nest = map_leaves(as_rows, nest)
    if ranks.world_size == 1:
        return nest
    views = ranks.gather(
        None if nest is None else (_outline(nest), [(leaf.shape, leaf.dtype) for leaf in leaves(nest)])
    )
    seen = next((view for view in views if view is not None), None)
    if seen is None:
        return None
    outline, kinds = seen
    mine: list[Any] = leaves(nest) if nest is not None else [None] * len(kinds)
    shapes = [[None if view is None else view[1][index][0] for view in views] for index in range(len(kinds))]
    gathered = [_gather_leaf(leaf, shapes[index], kinds[index][1], device, ranks) for index, leaf in enumerate(mine)]
    return with_leaves(outline, gathered)


def _outline(nest: Any) -> Any:
    """Return the structure of the nest without tensors, small enough to send."""
    return map_leaves(lambda _: 0, nest)


def _gather_leaf(
    leaf: torch.Tensor | None, shapes: list[torch.Size | None], dtype: torch.dtype, device: torch.device, ranks: Ranks
) -> torch.Tensor:
    known = [shape for shape in shapes if shape is not None]
    if len({len(shape) for shape in known}) > 1:
        raise UserError(f"evaluation: the ranks return tensors of different dimensions ({known}); pad them alike")
    largest = [max(sizes) for sizes in zip(*known, strict=True)]
    mine = leaf if leaf is not None else torch.empty([0] * len(largest), dtype=dtype)
    sent = pad_to(mine.to(device=device, dtype=dtype), largest).contiguous()
    received = zip(ranks.gather_tensors(sent), shapes, strict=True)
    return torch.cat([part[: shape[0]] for part, shape in received if shape is not None])


def sum_over_ranks(value: float, ranks: Ranks, device: torch.device) -> float:
    """Return the sum of ``value`` over all ranks."""
    if ranks.world_size == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
    ranks.sum(total)
    return float(total.item())


def gather_objects(nest: Any, ranks: Ranks) -> Any:
    """Like :func:`gather_rows`, for any object that can be pickled: leaves other than tensors become lists."""
    nest = map_leaves(lambda leaf: leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf, nest)
    parts = [part for part in ranks.gather(nest) if part is not None]
    if not parts:
        return None
    columns = zip(*(leaves(part) for part in parts), strict=True)
    return with_leaves(parts[0], [_join_objects(column) for column in columns])


def _join_objects(parts: Sequence[Any]) -> Any:
    if not all(isinstance(part, torch.Tensor | np.ndarray) for part in parts):
        return list(parts)
    tensors = [as_rows(part) for part in parts]
    inner = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    return torch.cat([pad_to(tensor, (tensor.shape[0], *inner)) for tensor in tensors])


class Rows:
    """Collects the rows of one leaf in one array, allocated for all rows if their number is known.

    Args:
        expected: Rows to allocate at the start; the array grows if there are more.
    """

    def __init__(self, expected: int = 0) -> None:
        self._expected = expected
        self._array: np.ndarray | None = None
        self._filled = 0

    def add(self, rows: np.ndarray) -> None:
        if self._array is None:
            capacity = max(self._expected, len(rows))
            self._array = np.empty((capacity, *rows.shape[1:]), dtype=rows.dtype)
        self._make_room(rows)
        if rows.shape[1:] != self._array.shape[1:]:
            self._array[self._filled : self._filled + len(rows)] = _numpy_fill(self._array.dtype)
        place = (slice(self._filled, self._filled + len(rows)), *(slice(size) for size in rows.shape[1:]))
        self._array[place] = rows
        self._filled += len(rows)

    def _make_room(self, rows: np.ndarray) -> None:
        array = self._array
        assert array is not None
        if rows.ndim != array.ndim:
            raise UserError(
                f"evaluation: batches of {array.ndim} and of {rows.ndim} dimensions cannot be put together; return "
                "tensors of the same dimensions for every batch, or set eval_do_concat_batches to false"
            )
        inner = [max(sizes) for sizes in zip(array.shape[1:], rows.shape[1:], strict=True)]
        needed, capacity = self._filled + len(rows), len(array)
        if needed > capacity or tuple(inner) != array.shape[1:]:
            capacity = capacity if needed <= capacity else max(needed, capacity * 3 // 2)
            grown = np.empty((capacity, *inner), dtype=array.dtype)
            if grown.shape[1:] != array.shape[1:]:
                grown[: self._filled] = _numpy_fill(array.dtype)
            grown[(slice(self._filled), *(slice(size) for size in array.shape[1:]))] = array[: self._filled]
            self._array = grown

    def take(self) -> np.ndarray:
        """Return the array, shortened in place to its rows, because a copy would need twice the memory."""
        assert self._array is not None
        self._array.resize((self._filled, *self._array.shape[1:]), refcheck=False)
        return self._array


def _numpy_fill(dtype: np.dtype) -> Any:
    return PADDING if np.issubdtype(dtype, np.signedinteger) or np.issubdtype(dtype, np.inexact) else 0


class Collector:
    """Collects the nests of all batches on the host, as one nest of arrays or as a list of nests.

    Args:
        concatenate: Concatenate the batches; else keep a list with one nest per batch.
        every: Batches to keep on the device before they move to the host; None for all batches.
        expected: Total number of rows, if known.
    """

    def __init__(self, concatenate: bool, every: int | None, expected: int = 0) -> None:
        self._concatenate = concatenate
        self._every = every
        self._expected = expected
        self._held: list[Any] = []
        self._bytes = 0
        self._on_host: bool | None = None
        self._nest: Any = None
        self._columns: list[Rows] = []
        self._batches: list[Any] = []

    def add(self, nest: Any) -> None:
        """Add one batch. On the host, small batches are concatenated before they are copied into the array."""
        if self._on_host is None:
            self._on_host = all(not isinstance(part, torch.Tensor) or part.is_cpu for part in leaves(nest))
        self._held.append(nest)
        self._bytes += bytes_of(nest)
        is_full = self._bytes >= HELD_BYTES if self._on_host else len(self._held) == self._every
        if is_full:
            self._flush()

    def _flush(self) -> None:
        held, self._held, self._bytes = self._held, [], 0
        batches = [leaves(nest) for nest in held]
        if self._concatenate and all(
            isinstance(part, torch.Tensor | np.ndarray) for parts in batches for part in parts
        ):
            if self._nest is None and held:
                self._nest, self._columns = _outline(held[0]), [Rows(self._expected) for _ in batches[0]]
            self._append(batches)
        else:
            self._batches += [map_leaves(_numpy_or_as_is, nest) for nest in held]

    def _append(self, batches: list[list[Any]]) -> None:
        for column, parts in zip(self._columns, zip(*batches, strict=True), strict=bool(batches)):
            for rows in _joined(parts):
                column.add(rows)

    def take(self) -> Any:
        """Return the collected nest; None if nothing was added."""
        self._flush()
        if self._nest is not None:
            return with_leaves(self._nest, [column.take() for column in self._columns])
        return self._batches or None


def _joined(parts: Sequence[Any]) -> list[np.ndarray]:
    """Concatenate batches of equal shape and type; keep others separate."""
    rows = [as_rows(part) for part in parts]
    first = rows[0]
    if len(rows) > 1 and all(row.shape[1:] == first.shape[1:] and row.dtype == first.dtype for row in rows):
        rows = [torch.cat(rows)]
    return [to_numpy(row) for row in rows]


def _numpy_or_as_is(leaf: Any) -> Any:
    return to_numpy(leaf) if isinstance(leaf, torch.Tensor) else leaf
