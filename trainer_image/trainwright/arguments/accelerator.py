"""How batches are distributed to processes: the value of ``accelerator_config``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from .errors import Mistake
from .names import not_one_of


@dataclass
class AcceleratorConfig:
    """Settings of ``accelerate``, under Hugging Face's names.

    ``split_batches``: each batch is split into one part for each process, instead of one batch for each process.
    ``dispatch_batches``: the main process reads the data and sends batches to the others (default: only for streams).
    ``even_batches``: the last batch is filled from the start of the data, so that all processes get equally many.
    ``use_seedable_sampler``: the order only depends on the seed and the epoch. ``non_blocking``: copies to the device
    do not block; they never do. ``gradient_accumulation_kwargs``: ``num_steps``, another name of
    ``gradient_accumulation_steps``, and ``sync_each_batch``: ranks reduce gradients after each micro-batch, not only
    after the last one of a step. ``use_configured_state``: keep an existing process group and device.
    """

    split_batches: bool = False
    dispatch_batches: bool | None = None
    even_batches: bool = True
    use_seedable_sampler: bool = True
    non_blocking: bool = False
    gradient_accumulation_kwargs: dict[str, Any] | None = None
    use_configured_state: bool = False

    @classmethod
    def of(cls, value: Any) -> AcceleratorConfig:
        """From a mapping, the path of a JSON file, or a config of transformers. Raises :class:`Mistake`."""
        if isinstance(value, cls):
            value.gradient_accumulation_kwargs = _accumulation(value.gradient_accumulation_kwargs)
            _check(vars(value))
            return value
        if isinstance(value, type):
            raise Mistake(f"is the class {value.__name__}; give an instance of it or a mapping", NotImplementedError)
        if isinstance(value, str):
            value = _read(value)
        settings = dict(value if isinstance(value, Mapping) else value.to_dict())
        if "gradient_accumulation_kwargs" in settings:
            settings["gradient_accumulation_kwargs"] = _accumulation(settings["gradient_accumulation_kwargs"])
        _check(settings)
        return cls(**settings)

    @classmethod
    def from_json_file(cls, json_file: str) -> AcceleratorConfig:
        """Raises :class:`Mistake` if the file cannot be read or is not valid."""
        return cls.of(str(json_file))

    def to_dict(self) -> dict[str, Any]:
        """As in transformers: ``use_configured_state`` concerns the running program and is only included if set."""
        settings = asdict(self)
        if not self.use_configured_state:
            del settings["use_configured_state"]
        return settings


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            settings = json.load(file)
    except OSError as error:
        raise Mistake(f"cannot read the file {path!r}: {error.strerror}", type(error)) from None
    except ValueError as error:
        raise Mistake(f"the file {path!r} is not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise Mistake(f"the file {path!r} must hold a JSON object")
    return settings


def _check(settings: Mapping[str, Any]) -> None:
    known = {field.name: field.type for field in fields(AcceleratorConfig)}
    for key, value in settings.items():
        if key not in known:
            raise Mistake(f"{key!r} {not_one_of(key, known)}", TypeError)
        if key == "gradient_accumulation_kwargs":
            _check_accumulation(key, value)
        elif not (isinstance(value, bool) or (value is None and key == "dispatch_batches")):
            raise Mistake(f"{key} must be true or false, not {value!r}")


_ELSEWHERE = {
    "adjust_scheduler": "the schedule steps once an optimizer step, as its length is counted; leave it out",
    "sync_with_dataloader": "the last step of an epoch takes the batches that are left; leave it out",
}
"""Settings of accelerate's accumulation -> what the loop does instead, because it counts the batches of a step."""


def _accumulation(value: Any) -> Any:
    """accelerate's ``GradientAccumulationPlugin`` as a mapping of the fields that differ from the defaults."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    settings = {field.name: (getattr(value, field.name), field.default) for field in fields(value)}
    return {name: said for name, (said, default) in settings.items() if said != default}


def _check_accumulation(key: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise Mistake(f"{key} must be a mapping, not {value!r}")
    for name, setting in value.items():
        whole = isinstance(setting, int) and not isinstance(setting, bool) and setting > 0
        if name in _ELSEWHERE:
            raise Mistake(f"{key}: {name} is not supported: {_ELSEWHERE[name]}")
        if name not in ("num_steps", "sync_each_batch"):
            raise Mistake(f"{key}: {name!r} {not_one_of(name, ('num_steps', 'sync_each_batch'))}")
        if name == "num_steps" and not whole:
            raise Mistake(f"{key}: num_steps must be a whole number above 0, not {setting!r}")
        if name == "sync_each_batch" and not isinstance(setting, bool):
            raise Mistake(f"{key}: sync_each_batch must be true or false, not {setting!r}")
