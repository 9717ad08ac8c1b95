"""The promise of the sweep: kept by one architecture of each kind (``make sweep`` has all); its judge can say no."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest

from sweep.architectures import Architecture
from sweep.processes import swept_here
from sweep.table import architectures, short
from sweep.verdict import judged


def test_one_of_each_kind_keeps_the_promise() -> None:
    lines = swept_here(short())
    assert {line.cells["architecture"]: line.broken for line in lines if line.broken} == {}
    assert len(lines) == 6


def test_every_line_of_the_table_is_another_one_and_the_table_is_long() -> None:
    every = architectures()
    assert len({one.key for one in every}) == len(every)
    assert len({one.class_name for one in every}) >= 80


RUN = {"eval": 4.0, "loss": [4.0, 3.0], "norm": [1.0, 1.5]}
OWN = {
    "eval": 4.0,
    "eval by sample": 4.0,
    "loss": 4.0,
    "mean of 4": 4.1,
    "mean of 2": 4.2,
    "count": "taken",
    "norm": 1.0,
}
WAY: dict[str, Any] = {"differing": [], "history": True, "modes": [], "calls": {True: 8, False: 4}}
RIGHT: dict[str, Any] = {
    "alone": {kind: {"own": OWN, "at once": RUN, "accumulated": RUN} for kind in ("even", "ragged")},
    "ranks": [{"even": RUN, "ragged": RUN}] * 2,
    "resumed": {"plain": WAY, "lora": WAY, "held": WAY, "held as plain": True},
}
LLAMA = Architecture("causal", "llama", "LlamaForCausalLM")


def put(figures: Any, path: Sequence[Any], value: Any) -> Any:
    """A copy of the figures with another value at a place."""
    key, *rest = path
    changed = copy.copy(figures)
    changed[key] = put(figures[key], rest, value) if rest else value
    return changed


def test_what_is_right_is_let_through() -> None:
    assert judged(LLAMA, **RIGHT).broken == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("alone", "even", "accumulated", "loss"), [12.0, 9.0], "accumulated: 7e-01"),
        (("alone", "even", "accumulated", "norm"), [1.0, 1.6], "accumulated: 6e-02"),
        (("alone", "even", "accumulated", "loss"), [4.0], "accumulated: inf"),
        (("alone", "even", "accumulated", "loss"), [4.0, float("nan")], "accumulated: inf"),
        (("ranks", 1, "even", "loss"), [8.0, 6.0], "2 ranks: 5e-01"),
        (("ranks", 1, "even", "eval"), 4.1, "model's own: 2e-02"),
        (("alone", "even", "own", "loss"), 4.4, "model's own: 9e-02"),
        (("alone", "even", "own", "norm"), 2.0, "model's own: 5e-01"),
        (("alone", "ragged", "accumulated", "loss"), [4.1, 3.0], "ragged: 2e-02"),
        (("alone", "ragged", "own", "loss"), 4.4, "model's own, ragged: 9e-02"),
        (("alone", "ragged", "at once", "eval"), 4.1, "eval, ragged: 2e-02"),
        (("resumed", "lora", "modes"), ["h.0 in training"], "modes: 1 wrong"),
        (("resumed", "held", "calls", False), 0, "modes: right"),
        (("resumed", "plain", "differing"), ["weight"], "plain: 1 differ"),
        (("resumed", "plain", "history"), False, "plain: log differs"),
        (("resumed", "held as plain"), False, "held: its figures are not those of the plain model"),
        (("alone",), "ValueError: no", "ValueError: no"),
        (("ranks",), "ValueError: no", "ValueError: no"),
        (("resumed", "lora"), "ValueError: no", "lora: ValueError: no"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(path: Any, value: Any, said: str) -> None:
    line = judged(LLAMA, **put(RIGHT, path, value))
    assert line.broken == [said]
    assert said in line.cells["notes"]


def test_a_line_that_is_listed_must_need_it() -> None:
    listed = Architecture("causal", "llama", "LlamaForCausalLM", varies="a reason")
    assert "does not" in judged(listed, **RIGHT).broken[0]
    varying = put(RIGHT, ("alone", "even", "accumulated", "loss"), [4.4, 3.0])
    assert judged(listed, **varying).broken == []
