"""How torch's gradient scaler and DeepSpeed's loss scaler for fp16 go on from each other.

Both lower the scale after an overflow and raise it after so many steps without one. Only the scale and the number of
such steps change hands: factors and intervals are those of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def for_torch(saved: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """The state of torch's scaler that goes on from DeepSpeed's; ``fresh`` if that one was fixed, or had none.

    Args:
        saved: The values of DeepSpeed's ``DynamicLossScaler``.
        fresh: The state of a new scaler.
    """
    if not (saved and fresh):
        return dict(fresh)
    steps = saved["cur_iter"] - saved["last_overflow_iter"] - 1
    return {**fresh, "scale": float(saved["cur_scale"]), "_growth_tracker": steps % fresh["growth_interval"]}


def for_engine(saved: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The values of DeepSpeed's ``DynamicLossScaler`` that goes on from torch's after ``steps`` steps.

    Args:
        saved: The state of torch's scaler.
    """
    if not saved:
        return {}
    overflow = steps - 1 - saved["_growth_tracker"]
    return {"cur_iter": steps, "cur_scale": saved["scale"], "last_overflow_iter": overflow}
