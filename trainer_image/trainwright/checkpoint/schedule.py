"""The state of a schedule, for a run whose optimizer keeps other empty groups of parameters than the one that saved it.

A schedule has a value for each group. The Trainer's optimizers have a group for parameters that decay and one for those
that do not, which may be empty, as under adapters. An engine of DeepSpeed leaves empty groups out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def fitted(state: Mapping[str, Any], saved: Sequence[int], own: Mapping[str, Any], places: Sequence[int]) -> Any:
    """The saved ``state`` with one value for each group of this run.

    Args:
        saved: Which of the groups that were saved have parameters.
        own: The state of this run's schedule, from which empty groups have their values.
        places: Which of this run's groups have parameters.
    """
    there, here = len(state.get("base_lrs", ())), len(own.get("base_lrs", ()))
    if there == here or len(saved) != len(places):
        return state
    fits = dict(state)
    for key, values in state.items():
        if isinstance(values, list) and len(values) == there and isinstance(own.get(key), list):
            fits[key] = list(own[key])
            for place, number in zip(places, saved, strict=True):
                fits[key][place] = values[number]
    return fits
