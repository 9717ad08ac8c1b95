"""Assigns columns to roles: by the manifest, else the first column with one of the usual names, in the order below.

A role without a column is an error, which lists the columns of the data.

The classes are read from the data; ``num_labels``, ``id2label`` and the label ids of the model follow from them. Names
are sorted, so that every rank and every attempt assigns the same ids. Integers that already number the classes from 0
are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trainwright.contract import DataError, UserError
from trainwright.nearest import did_you_mean, some

USUAL_NAMES = {
    "text": ("text", "content", "sentence", "sentence1", "premise", "question", "document", "article", "body", "code"),
    "textPair": ("text_pair", "textPair", "sentence2", "hypothesis", "text2"),
    "label": ("label", "labels", "class", "category", "target", "sentiment"),
    "source": ("source", "input", "text", "article", "document", "dialogue", "question", "src"),
    "target": ("target", "output", "summary", "highlights", "answer", "translation", "tgt"),
    "tokens": ("tokens", "words"),
    "tags": ("tags", "ner_tags", "labels", "pos_tags", "label"),
}
CHATS = ("messages", "conversations", "conversation", "chosen")
"""The usual names for columns of chats, which are not text."""
OPTIONAL = frozenset({"textPair"})
PLACE = "spec.dataset.columns"


def assign(roles: Sequence[str], stated: Mapping[str, str], columns: Sequence[str]) -> dict[str, str]:
    """Role to column; an optional role without a column is left out."""
    for role in stated:
        if role not in roles:
            raise UserError(
                f"{PLACE}.{role}: this task has no such role{did_you_mean(role, roles)}; its roles: {some(roles)}"
            )
    found = {role: _column(role, stated.get(role), columns, set(stated.values())) for role in roles}
    return {role: column for role, column in found.items() if column is not None}


def check_evaluation(assigned: Mapping[str, str], columns: Sequence[str]) -> None:
    """Raises :class:`DataError` if the evaluation rows lack a column that training uses."""
    for role, column in assigned.items():
        if column not in columns:
            raise DataError(
                f"{PLACE}.{role}: the evaluation rows have no column {column!r}, only {some(columns)}; "
                "use the same names for training and evaluation"
            )


def _column(role: str, stated: str | None, columns: Sequence[str], taken: set[str]) -> str | None:
    if stated is not None:
        if stated not in columns:
            hint = did_you_mean(stated, columns)
            raise DataError(f"{PLACE}.{role}: the data has no column {stated!r}{hint}; its columns: {some(columns)}")
        return stated
    free = [column for column in columns if column not in taken]
    usual = next((name for name in USUAL_NAMES[role] if name in free), None)
    if usual is None and role == "text" and (chats := [name for name in CHATS if name in free]):
        raise DataError(holds_chats(chats[0]))
    if usual is None and role == "text" and len(free) == 1:
        return free[0]
    if usual is None and role not in OPTIONAL:
        raise DataError(
            f"{PLACE}.{role}: no column has a usual name for it ({', '.join(USUAL_NAMES[role])}); "
            f"set it to one of these: {some(columns)}"
        )
    return usual


def holds_chats(column: str) -> str:
    return (
        f"{PLACE}.text: column {column!r} holds chats, but a task trains on text; convert each chat to one text with "
        "the tokenizer's apply_chat_template in a column 'text', or train with your own script (spec.script)"
    )


MOST_CLASSES = 10_000


@dataclass(frozen=True)
class Labels:
    """``names[i]`` is the name of class i, ``values[i]`` its value in the data."""

    values: tuple[Any, ...]
    names: tuple[str, ...]

    @cached_property
    def ids(self) -> Mapping[Any, int]:
        """Value in the data to class id."""
        return {value: index for index, value in enumerate(self.values)}


def read_labels(splits: Iterable[Any], column: str, role: str) -> Labels:
    """The classes of all splits. Raises :class:`DataError` for missing, mixed, fractional or too many labels."""
    datasets = [rows for rows in splits if rows is not None]
    if names := _declared(datasets[0], column):
        _check_declared(datasets, column, role, len(names))
        return Labels(tuple(range(len(names))), tuple(names))
    place = f"{PLACE}.{role}"
    values = set().union(*(_distinct(rows, column, place, role == "tags") for rows in datasets))
    _check(values, column, place)
    return _numbered(values)


def _declared(rows: Any, column: str) -> list[str] | None:
    """The class names that the dataset declares (a ClassLabel, or a list of it)."""
    feature = rows.features[column] if rows.features else None
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return list(names) if names else None


def _check_declared(datasets: list[Any], column: str, role: str, count: int) -> None:
    """Rejects labels out of range, because test splits on the hub use -1 for hidden labels."""
    for rows in datasets:
        found = _distinct(rows, column, f"{PLACE}.{role}", role == "tags")
        if foreign := [value for value in found if not 0 <= value < count]:
            raise DataError(
                f"{PLACE}.{role}: column {column!r} has the label {min(foreign)}, but {count} classes from 0; "
                "use a split whose labels are public"
            )


def _distinct(rows: Any, column: str, place: str, nested: bool) -> set[Any]:
    """The distinct values of a column of scalars, or of lists if ``nested``; computed in Arrow, without Python rows."""
    import pyarrow as pa
    import pyarrow.compute as compute

    values = rows.with_format("arrow")[column]
    values = values if isinstance(values, pa.ChunkedArray | pa.Array) else values[:]
    if nested:
        values = _flat(values, column, place)
    if pa.types.is_nested(values.type):
        raise DataError(f"{place}: column {column!r} holds lists or records; this task takes one label a row")
    distinct = set(compute.unique(values).to_pylist())
    if any(value is None or value != value for value in distinct):
        empty = compute.sum(compute.is_null(values, nan_is_null=True)).as_py()
        raise DataError(f"{place}: column {column!r} is empty in {empty} rows; label these rows or remove them")
    return distinct


def _flat(values: Any, column: str, place: str) -> Any:
    import pyarrow as pa
    import pyarrow.compute as compute

    if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
        raise DataError(f"{place}: column {column!r} holds {values.type}; this task takes a list of tags in each row")
    return compute.list_flatten(values)


def _check(values: set[Any], column: str, place: str) -> None:
    kinds = {type(value).__name__ for value in values}
    if len(kinds) > 1:
        raise DataError(
            f"{place}: column {column!r} mixes labels of several types ({', '.join(sorted(kinds))}); use one"
        )
    if fraction := next((v for v in sorted(values) if isinstance(v, float) and not v.is_integer()), None):
        raise DataError(f"{place}: column {column!r} holds {fraction}, which is not a class; this task needs classes")
    if len(values) < 2:
        raise DataError(f"{place}: column {column!r} has only one label ({next(iter(values))!r}); there must be two")
    if len(values) > MOST_CLASSES:
        raise DataError(f"{place}: column {column!r} has {len(values)} different labels; is it the right column?")


def _numbered(values: set[Any]) -> Labels:
    ordered = sorted(values)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in ordered):
        if ordered[0] >= 0 and ordered[-1] < 2 * len(ordered):
            ordered = list(range(int(ordered[-1]) + 1))
        return Labels(tuple(ordered), tuple(f"{value:g}" for value in ordered))
    return Labels(tuple(ordered), tuple(str(value) for value in ordered))
