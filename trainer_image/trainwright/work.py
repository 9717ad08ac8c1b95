"""How much a run computes: tokens and floating point operations, counted from shapes on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Work:
    """Counts for one call of ``train`` what this rank's micro-batches hold.

    The counts are plain integers. ranks add them up only when something is logged or saved.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.main_input = getattr(trainer.model, "main_input_name", "input_ids")
        self.count: Callable[[Any], None] = self._decide

    def _decide(self, batch: Any) -> None:
        """The first micro-batch shows what there is to count."""
        main = batch.get(self.main_input) if hasattr(batch, "get") else None
        if self.trainer.overrides("floating_point_ops"):
            self.count = self._ask
        elif not isinstance(main, torch.Tensor):
            self.count = _nothing
        else:
            self.flos_per_element = self.trainer.floating_point_ops({self.main_input: main}) // main.numel()
            self.count = self._elements if main.is_floating_point() else self._tokens
        self.count(batch)

    def _ask(self, batch: Any) -> None:
        self.trainer.current_flos += float(self.trainer.floating_point_ops(batch))

    def _elements(self, batch: Any) -> None:
        self.trainer.current_flos += self.flos_per_element * batch[self.main_input].numel()

    def _tokens(self, batch: Any) -> None:
        tokens = batch[self.main_input].numel()
        self.trainer.state.local_tokens += tokens
        self.trainer.current_flos += self.flos_per_element * tokens


def _nothing(batch: Any) -> None:
    pass


def sum_over_ranks(value: float, device: torch.device) -> float:
    """The sum of a number that every rank has."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
    torch.distributed.all_reduce(total)
    return total.item()
