"""No rank holds the whole of a model under ZeRO 3 while it starts."""

from __future__ import annotations

import pytest

from trainer.world import in_world
from zero import starts

pytest.importorskip("deepspeed", reason="DeepSpeed has an environment of its own: make deepspeed")
SPARE = 200e6


def test_a_rank_starts_with_its_parts_and_a_layer() -> None:
    """Made whole, a model of 1.1 GB is on each rank before it is partitioned."""
    whole, parts = (in_world(2, "zero.starts:starts", without_values, longest=900) for without_values in (False, True))
    for one, other in zip(whole, parts, strict=True):
        for name, seen in (("made whole", one), ("without values", other)):
            print(name, {key: f"{value / 1e9:.3f} GB" for key, value in seen.items() if key != "loss"})
        part, spare = other["model"] / 2, other["layer"] + SPARE
        assert other["model"] > 1e9
        assert other["partitioned"] < part + spare < one["partitioned"]
        assert other["start"] < starts.HELD * part + 4 * starts.BUCKET + spare
        assert other["loss"] == one["loss"]
