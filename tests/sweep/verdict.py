"""What is promised, as one pure function: from the figures of an architecture to its line of the table.

The same global batch gives the same loss and gradient norm at once, accumulated and over ranks, where its micro-batches
have the same number of targets. Where they have not, each weighs as much as it has targets, whether the model takes
their count or drops it: the same again. Each counts as one only where the model has no place for a count, and where a
sample is one target (a class, an answer) of a model that does not take it. An evaluation weighs its batches by their
samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sweep.architectures import Architecture
from sweep.data import BY_TARGET

TOLERANCE = 1e-5
NOT_HERE, NO_PLACE = "-", "no place"
BY_TARGETS, BY_BATCHES = "targets", "batches"
HEADINGS = (
    "architecture", "task", "count", "accumulated", "2 ranks", "ragged", "2 ranks, ragged", "model's own",
    "eval, ragged", "modes", "plain", "lora", "held", "notes",
)  # fmt: skip


@dataclass
class Line:
    """A line of the table.

    Attributes:
        cells: By heading.
        broken: What of the promise does not hold; the reason of those that are listed stands in the notes instead.
    """

    cells: dict[str, str]
    broken: list[str] = field(default_factory=list)

    def put(self, heading: str, text: str, holds: bool = True) -> None:
        self.cells[heading] = text if holds else f"{text} !"
        if not holds:
            self.broken.append(f"{heading}: {text}")


def judged(architecture: Architecture, alone: Any, ranks: Any, resumed: dict[str, Any]) -> Line:
    """The line of an architecture; a text instead of figures says why there are none."""
    line = Line(dict.fromkeys(HEADINGS, NOT_HERE) | {"architecture": architecture.name, "task": architecture.task})
    line.cells["notes"] = architecture.varies
    for figures in dict.fromkeys(one for one in (alone, ranks) if isinstance(one, str)):
        line.broken.append(figures)
    if isinstance(alone, dict) and isinstance(ranks, list):
        line.cells["count"] = alone["even"]["own"]["count"]
        _put_even(line, architecture, alone["even"], [rank["even"] for rank in ranks])
        _put_ragged(line, architecture, alone["ragged"], [rank["ragged"] for rank in ranks if "ragged" in rank])
    _put_resumed(line, resumed)
    if line.broken:
        line.cells["notes"] = "; ".join(filter(None, [line.cells["notes"], *line.broken]))
    return line


def apart(one: float, other: float) -> float:
    """How far two numbers are apart, relative to the larger; infinite where one is no number."""
    if one == other:
        return 0.0
    distance = abs(one - other) / max(abs(one), abs(other))
    return distance if distance == distance else float("inf")


def steps_apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest distance of two runs, over losses and gradient norms of all steps."""
    if len(one["loss"]) != len(other["loss"]):
        return float("inf")
    return max(apart(a, b) for key in ("loss", "norm") for a, b in zip(one[key], other[key], strict=True))


def _put_even(line: Line, architecture: Architecture, alone: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    own, at_once, accumulated = alone["own"], alone["at once"], alone["accumulated"]
    ways = {
        "accumulated": steps_apart(at_once, accumulated),
        "2 ranks": max(steps_apart(at_once, rank) for rank in ranks),
    }
    for heading, distance in ways.items():
        line.put(heading, f"{distance:.0e}", bool(architecture.varies) or distance <= TOLERANCE)
    if architecture.varies and max(ways.values()) <= TOLERANCE:
        line.broken.append("it is listed as one that depends on its micro-batch, and does not")
    evaluated = own["eval by sample"] if architecture.varies else own["eval"]
    judgements = [
        at_once["eval"],
        accumulated["eval"],
        *([] if architecture.varies else (rank["eval"] for rank in ranks)),
    ]
    farthest = max(
        apart(at_once["loss"][0], own["loss"]),
        apart(at_once["norm"][0], own["norm"]),
        *(apart(one, evaluated) for one in judgements),
    )
    line.put("model's own", f"{farthest:.0e}", farthest <= TOLERANCE)


def _put_ragged(line: Line, architecture: Architecture, alone: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    if architecture.varies:
        return
    own, at_once = alone["own"], alone["at once"]
    one_each = own["count"] == "taken" and architecture.task != "answers"  # which have two, and neither is counted
    counted = own["count"] != NO_PLACE if architecture.task in BY_TARGET else one_each
    runs = {"ragged": ([alone["accumulated"]], "mean of 4"), "2 ranks, ragged": (ranks, "mean of 2")}
    for heading, (seen, mean) in runs.items():
        if seen:
            line.put(heading, *weighed(at_once, seen, own[mean], counted))
    found = apart(at_once["loss"][0], own["loss"])
    if found > TOLERANCE:
        line.broken.append(f"model's own, ragged: {found:.0e}")
    distance = max(apart(one["eval"], own["eval by sample"]) for one in (at_once, alone["accumulated"]))
    line.put("eval, ragged", f"{distance:.0e}", distance <= TOLERANCE)


def weighed(at_once: dict[str, Any], runs: Iterable[dict[str, Any]], mean: float, counted: bool) -> tuple[str, bool]:
    """How micro-batches with different numbers of targets weigh, with whether that is what is promised."""
    runs = list(runs)
    distance = max(steps_apart(at_once, run) for run in runs)
    if distance <= TOLERANCE:
        return f"{BY_TARGETS} {distance:.0e}", True
    if not counted and all(apart(run["loss"][0], mean) <= TOLERANCE for run in runs):
        return BY_BATCHES, True
    return f"{distance:.0e}", False


def _put_resumed(line: Line, resumed: dict[str, Any]) -> None:
    ways = {way: seen for way, seen in resumed.items() if isinstance(seen, dict)}
    line.broken += [f"{way}: {seen}" for way, seen in resumed.items() if isinstance(seen, str)]
    wrong = sum(len(seen["modes"]) for seen in ways.values())
    called = all(all(seen["calls"].values()) for seen in ways.values())
    line.put("modes", "right" if not wrong else f"{wrong} wrong", not wrong and called)
    for way, seen in ways.items():
        differing = len(seen["differing"])
        same = not differing and seen["history"]
        line.put(way, "same" if same else f"{differing} differ" if differing else "log differs", same)
    if not resumed["held as plain"] and line.cells["count"] != NO_PLACE:  # which a user's module may have
        line.broken.append("held: its figures are not those of the plain model")


WIDTHS = {"architecture": 36, "task": 14, "eval, ragged": 12, "ragged": 13, "2 ranks, ragged": 15, "plain": 9}


def row(cells: dict[str, str]) -> str:
    """A line of text; the notes come last, as long as they are."""
    return "  ".join(cells[name].ljust(WIDTHS.get(name, max(len(name), 7))) for name in HEADINGS).rstrip()
