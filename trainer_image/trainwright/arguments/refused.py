"""Arguments whose effect is not built yet: setting one raises ``NotImplementedError`` that names it.

Nothing is ever accepted and ignored. Whoever builds an effect deletes its line here and proves the effect in
``tests/unit/test_fields_proved.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import Problem, shown
from .fields import FIELDS


@dataclass(frozen=True)
class Refusal:
    """Why a field's effect is not there, and which values beside its default are built (for lists: elements)."""

    reason: str
    built: tuple[Any, ...] = ()


_HUB = Refusal("uploading to the Hub is not built yet; upload the output folder after the run")
_TRACKERS = Refusal("no experiment tracker is built yet; the log is in trainer_state.json and in the status")
_SHARDING = Refusal("sharding over processes is not built yet; train data parallel")

REFUSED: dict[str, Refusal] = {
    "fsdp": Refusal(_SHARDING.reason, (False, "")),
    "fsdp_config": _SHARDING,
    "deepspeed": _SHARDING,
    "parallelism_config": _SHARDING,
    "push_to_hub": _HUB,
    "hub_token": _HUB,
    "hub_private_repo": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "report_to": Refusal(_TRACKERS.reason, ("none",)),
    "project": _TRACKERS,
    "trackio_space_id": _TRACKERS,
    "trackio_bucket_id": _TRACKERS,
    "trackio_static_space_id": Refusal(_TRACKERS.reason, (False,)),
}
"""Field, or setting of a field after a point -> why it is refused when set to anything but its default."""


def refusals(values: Mapping[str, Any]) -> list[Problem]:
    """One problem for each of ``values`` (field -> value) that asks for an effect that is not built."""
    return [
        Problem(name, f"{shown(name, value)} is not supported: {refusal.reason}")
        for name, refusal in REFUSED.items()
        if not _built(name, value := _value(values, name), refusal)
    ]


def _value(values: Mapping[str, Any], name: str) -> Any:
    field, _, setting = name.partition(".")
    value = values.get(field)
    return getattr(value, setting, None) if setting else value


def _built(name: str, value: Any, refusal: Refusal) -> bool:
    default = FIELDS[name].default if name in FIELDS else None
    if value is None or value == default or any(value == built for built in refusal.built):
        return True
    return isinstance(value, list) and all(element in refusal.built for element in value)
