"""What the architectures are trained on: random, and alike for everyone who asks for the same samples.

In an even set every micro-batch of a size has the same number of targets; in a ragged one it has not. Where a sample is
one target, that means a last micro-batch that is smaller than the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import default_collate

from sweep.architectures import BEGIN, CLASSES, END, IMAGE, LENGTH, PIXELS, SIGNAL, VOCABULARY, Architecture

IGNORED = -100
BY_TARGET = ("causal", "masked", "seq2seq", "tokens", "ctc", "image-text")
"""Tasks in which a sample may have several targets."""
CHOICES = 3
PATCHES = (PIXELS // 16) ** 2


def samples(architecture: Architecture, count: int, ragged: bool = False, seed: int = 1) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    one = globals()[f"_{architecture.task.replace('-', '_')}"]
    data = [one(architecture, generator) for _ in range(count)]
    if ragged and architecture.task in BY_TARGET:
        for number, sample in enumerate(data):
            sample["labels"] = _fewer(sample["labels"].clone(), number)
    return data


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch; pairs have no labels, and their loss is asked for by name."""
    batch = default_collate(rows)
    pairs = "labels" not in batch and "pixel_values" in batch
    return {**batch, "return_loss": True} if pairs else batch


def _fewer(labels: torch.Tensor, number: int) -> torch.Tensor:
    """Less of the end, and of every second sample the beginning too, as where a prompt is no target."""
    targets = (labels != IGNORED).nonzero().flatten()
    keep = max(1, len(targets) - number % 4 * len(targets) // 4)
    labels[targets[keep:]] = IGNORED
    if number % 2 and keep > 2:
        labels[targets[: keep // 2]] = IGNORED
    return labels


def _ids(generator: torch.Generator, length: int = LENGTH) -> torch.Tensor:
    ids = torch.randint(IMAGE + 1, VOCABULARY, (length,), generator=generator)
    ids[0], ids[-1] = BEGIN, END
    return ids


def _number(generator: torch.Generator, below: int) -> torch.Tensor:
    return torch.randint(0, below, (), generator=generator)


def _text(generator: torch.Generator) -> dict[str, Any]:
    ids = _ids(generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _causal(_: Architecture, generator: torch.Generator) -> dict[str, Any]:
    sample = _text(generator)
    return {**sample, "labels": sample["input_ids"].clone()}


def _masked(_: Architecture, generator: torch.Generator) -> dict[str, Any]:
    sample = _text(generator)
    labels = torch.full_like(sample["input_ids"], IGNORED)
    places = torch.randperm(LENGTH - 2, generator=generator)[:4] + 1
    labels[places] = sample["input_ids"][places]
    return {**sample, "labels": labels}


def _seq2seq(_: Architecture, generator: torch.Generator) -> dict[str, Any]:
    return {**_text(generator), "labels": _ids(generator, LENGTH - 2)}


def _classification(_: Architecture, generator: torch.Generator) -> dict[str, Any]:
    return {**_text(generator), "labels": _number(generator, CLASSES)}


def _tokens(_: Architecture, generator: torch.Generator) -> dict[str, Any]:
    return {**_text(generator), "labels": torch.randint(0, CLASSES, (LENGTH,), generator=generator)}


def _answers(_: Architecture, generator: torch.Generator) -> dict[str, Any]:
    places = {"start_positions": _number(generator, LENGTH), "end_positions": _number(generator, LENGTH)}
    return {**_text(generator), **places}


def _choices(_: Architecture, generator: torch.Generator) -> dict[str, Any]:
    ids = torch.stack([_ids(generator) for _ in range(CHOICES)])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": _number(generator, CHOICES)}


def _picture(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(3, PIXELS, PIXELS, generator=generator)


def _image(_: Architecture, generator: torch.Generator) -> dict[str, Any]:
    return {"pixel_values": _picture(generator), "labels": _number(generator, CLASSES)}


def _ctc(_: Architecture, generator: torch.Generator) -> dict[str, Any]:
    labels = torch.randint(IMAGE + 1, VOCABULARY, (4,), generator=generator)
    return {"input_values": torch.randn(SIGNAL, generator=generator), "labels": labels}


def _pairs(_: Architecture, generator: torch.Generator) -> dict[str, Any]:
    return {**_text(generator), "pixel_values": _picture(generator)}


def _image_text(architecture: Architecture, generator: torch.Generator) -> dict[str, Any]:
    """A picture and its caption; where the model wants them, placeholders for the parts of the picture come first."""
    caption = _ids(generator)
    if architecture.kind == "pix2struct":
        patches = torch.randn(PATCHES, 50, generator=generator)
        patches[:, :2] = torch.arange(PATCHES)[:, None] % 2 + 1
        return {"flattened_patches": patches, "labels": caption}
    if architecture.kind == "vision-encoder-decoder":
        return {"pixel_values": _picture(generator), "labels": caption}
    places = torch.full((PATCHES if "image_token_index" in architecture.settings else 0,), IMAGE)
    ids = torch.cat([places, caption])
    labels = torch.cat([torch.full_like(places, IGNORED), caption])
    sample = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    if architecture.kind in ("paligemma", "gemma3"):
        sample["token_type_ids"] = (ids == IMAGE).long()
    return {**sample, "pixel_values": _picture(generator)}
