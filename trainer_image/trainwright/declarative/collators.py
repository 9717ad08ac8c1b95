"""Collators of the language models: stacked blocks or padded rows, with the labels each objective wants.

Padding is masked by position, never by token: where pad and eos are one token, eos is still learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

IGNORED = -100


def _padded(rows: Sequence[dict[str, Any]], pad: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Token ids of shape (rows, longest), and the attention mask, or None when no row needs padding."""
    ids = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
    lengths = {len(row) for row in ids}
    if len(lengths) == 1:
        return torch.stack(ids), None
    batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad)
    mask = torch.arange(batch.shape[1]) < torch.tensor([len(row) for row in ids])[:, None]
    return batch, mask.long()


class CausalCollator:
    """The labels are the tokens themselves; the model shifts them."""

    def __init__(self, tokenizer: Any) -> None:
        self.pad = tokenizer.pad_token_id or 0

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """``{"input_ids", "labels"}``, and ``attention_mask`` where there is padding."""
        ids, mask = _padded(rows, self.pad)
        if mask is None:
            return {"input_ids": ids, "labels": ids.clone()}
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}


class MaskedCollator:
    """BERT's objective: of each sequence 15% of the tokens are predicted; special tokens are never among them."""

    def __init__(self, tokenizer: Any) -> None:
        from transformers import DataCollatorForLanguageModeling

        self.pad = tokenizer.pad_token_id or 0
        self.special = torch.tensor(tokenizer.all_special_ids)
        self.masking = DataCollatorForLanguageModeling(tokenizer, mlm=True)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """``{"input_ids", "attention_mask", "labels"}``; labels are -100 but at the predicted tokens."""
        ids, mask = _padded(rows, self.pad)
        mask = torch.ones_like(ids) if mask is None else mask
        untouched = torch.isin(ids, self.special) | (mask == 0)
        inputs, labels = self.masking.torch_mask_tokens(ids.clone(), special_tokens_mask=untouched)
        return {"input_ids": inputs, "attention_mask": mask, "labels": labels}
