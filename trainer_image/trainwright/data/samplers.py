"""A torch sampler for users who order the samples themselves, by the name that Hugging Face gave it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from trainwright.data.sampling import LengthGrouped, lengths_of


class LengthGroupedSampler(Sampler[int]):
    """Random, but neighbours are about equally long; see :class:`trainwright.data.sampling.LengthGrouped`.

    Args:
        batch_size: Samples of one optimizer step on a rank.
        dataset: What is measured if there are no ``lengths``, by each sample's ``model_input_name``.
        lengths: One per sample.
        model_input_name: ``"input_ids"`` by default.
        generator: Where the permutation is drawn from; None for torch's default generator.

    Raises:
        ValueError: Neither dataset nor lengths are given.
    """

    def __init__(
        self,
        batch_size: int,
        dataset: Any = None,
        lengths: Sequence[int] | torch.Tensor | None = None,
        model_input_name: str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if dataset is None and lengths is None:
            raise ValueError("LengthGroupedSampler: give it the dataset or the lengths of its samples")
        if lengths is None:
            lengths = lengths_of(dataset, "", model_input_name or "input_ids")
        self.batch_size, self.generator = batch_size, generator
        self.lengths = lengths.tolist() if isinstance(lengths, torch.Tensor) else list(lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(LengthGrouped(self.lengths, self.batch_size, self.generator).indices(epoch=0))
