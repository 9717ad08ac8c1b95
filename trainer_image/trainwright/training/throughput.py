"""Count the tokens and floating point operations of a run, from shapes on the host."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from trainwright.distributed.collectives import sum_over_ranks

logger = logging.getLogger(__name__)


class Work:
    """Counts tokens and operations of this rank's micro-batches, for one call of ``train``.

    Counts from shapes are plain integers; they are summed over ranks only before a log or a checkpoint.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.main_input = getattr(trainer.model, "main_input_name", "input_ids")
        self.kind = trainer.args.include_num_input_tokens_seen
        self.flos_per_element = 0
        self.count: Callable[[Any], Any] = self._decide
        self._unseen: Any = 0

    def _decide(self, batch: Any) -> None:
        """Decide from the first micro-batch what to count."""
        main = batch.get(self.main_input) if hasattr(batch, "get") else None
        steps = []
        if self.trainer._overrides("floating_point_ops"):
            steps.append(self._ask)
        elif isinstance(main, torch.Tensor):
            self.flos_per_element = self.trainer.floating_point_ops({self.main_input: main}) // max(1, main.numel())
            steps.append(self._elements if main.is_floating_point() else self._tokens)
        if self.trainer._overrides("_track_num_input_tokens"):
            steps.append(self.trainer._track_num_input_tokens)
        elif self.kind != "no":
            steps.append(self.see if isinstance(main, torch.Tensor) else self._nothing_to_see)
        self.count = steps[0] if len(steps) == 1 else lambda batch: [step(batch) for step in steps]
        self.count(batch)

    def _ask(self, batch: Any) -> None:
        self.trainer.current_flos += float(self.trainer.floating_point_ops(batch))

    def _elements(self, batch: Any) -> None:
        self.trainer.current_flos += self.flos_per_element * batch[self.main_input].numel()

    def _tokens(self, batch: Any) -> None:
        tokens = batch[self.main_input].numel()
        self.trainer.state.local_tokens += tokens
        self.trainer.current_flos += self.flos_per_element * tokens

    def see(self, batch: Any) -> None:
        """Count the input tokens of one micro-batch, if enabled."""
        if self.kind != "no":
            self._unseen = self._unseen + self._tokens_in(batch)

    def _tokens_in(self, batch: Any) -> Any:
        """Return the number of all tokens, or of tokens without padding: by the mask, else by the padding token."""
        main = batch[self.main_input]
        if self.kind == "all":
            return main.numel()
        if "attention_mask" in batch:
            return batch["attention_mask"].sum()
        padding = getattr(self.trainer.processing_class, "pad_token_id", None)
        return main.numel() if padding is None else (main != padding).sum()

    def _nothing_to_see(self, batch: Any) -> None:
        logger.warning("include_num_input_tokens_seen: the batch has no %s, nothing is counted", self.main_input)
        self.kind, self.count = "no", self._decide

    def settle(self) -> None:
        """Add the counts of all ranks to the state; all ranks must call this."""
        if self.trainer.args.include_num_input_tokens_seen != "no":
            seen, self._unseen = int(self._unseen), 0
            seen_by_all = sum_over_ranks(seen, self.trainer._strategy.data, self.trainer.args.device)
            self.trainer.state.num_input_tokens_seen += int(seen_by_all)
