"""Arguments as dictionaries and JSON, in the format of transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from typing import Any, Self

from trainwright.job import stated_arguments

from .errors import ArgumentError, Problem, hidden, refusal


class Serial:
    """Conversion to and from plain data."""

    def to_dict(self) -> dict[str, Any]:
        """Field -> plain value for JSON; tokens are replaced by placeholders such as ``<HUB_TOKEN>``."""
        return {
            field.name: hidden(field.name) if field.name.endswith("_token") else _plain(getattr(self, field.name))
            for field in fields(self)  # type: ignore[arg-type]
            if field.init
        }

    def to_json_string(self) -> str:
        """:meth:`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, default=str)

    def to_sanitized_dict(self) -> dict[str, Any]:
        """:meth:`to_dict` and the total batch sizes, as numbers, booleans and texts only."""
        values = {
            **self.to_dict(),
            "train_batch_size": self.train_batch_size,  # type: ignore[attr-defined]
            "eval_batch_size": self.eval_batch_size,  # type: ignore[attr-defined]
        }
        return {name: v if type(v) in (bool, int, float, str) else str(v) for name, v in values.items()}

    def _dict_dtype_to_str(self, d: dict[str, Any]) -> None:
        """Replace dtypes in ``d`` by their names, in place; for custom ``to_dict`` methods."""
        d.update(_plain(d))

    @classmethod
    def from_job(cls, **changes: Any) -> Self:
        """The ``spec.trainingArguments`` of this process's TrainingJob, updated with ``changes``.

        ``output_dir`` is the output of the job. Outside of a job, only ``changes`` are used.
        """
        return cls(**{**stated_arguments(), **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From :meth:`to_dict` of this class or of Hugging Face's. Raises :class:`ArgumentError`."""
        return cls(**values)

    @classmethod
    def from_json_string(cls, text: str) -> Self:
        """From :meth:`to_json_string`. Raises :class:`ArgumentError`, also if the text is not a JSON object."""
        return cls.from_dict(_object("JSON", text))

    @classmethod
    def from_json_file(cls, json_file: str) -> Self:
        """From a file that holds :meth:`to_json_string`. Raises :class:`ArgumentError` naming the file."""
        try:
            with open(json_file, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise refusal([Problem(str(json_file), f"cannot be read: {error}", type(error))]) from None
        return cls.from_dict(_object(str(json_file), text))


def _object(place: str, text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ArgumentError([Problem(place, f"is not JSON: {error}")]) from None
    if not isinstance(values, dict):
        raise ArgumentError([Problem(place, "must be a JSON object of arguments")])
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    if type(value).__module__ == "torch" and type(value).__name__ == "dtype":
        return str(value).removeprefix("torch.")  # JSON has no types
    return value.to_dict() if hasattr(value, "to_dict") and not isinstance(value, type) else value
