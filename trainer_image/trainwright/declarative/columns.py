"""Which column plays which role: what the manifest says, else the first of the usual names, in the order written here.

A role that nothing fits is an error that lists the columns there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainwright.contract import DataError, UserError
from trainwright.declarative.nearest import did_you_mean, some

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
"""The usual names for turns of a dialogue, which are no text."""
OPTIONAL = frozenset({"textPair"})
PLACE = "spec.dataset.columns"


def assign(roles: Sequence[str], stated: Mapping[str, str], columns: Sequence[str]) -> dict[str, str]:
    """Role to column, for every role but an optional one that nothing fits."""
    for role in stated:
        if role not in roles:
            raise UserError(
                f"{PLACE}.{role}: this task has no such role{did_you_mean(role, roles)}; its roles: {some(roles)}"
            )
    found = {role: _column(role, stated.get(role), columns, set(stated.values())) for role in roles}
    return {role: column for role, column in found.items() if column is not None}


def check_evaluation(assigned: Mapping[str, str], columns: Sequence[str]) -> None:
    """The rows to evaluate on must have the columns that training found."""
    for role, column in assigned.items():
        if column not in columns:
            raise DataError(
                f"{PLACE}.{role}: the rows to evaluate on have no column {column!r}; theirs: {some(columns)}; "
                "both need the same names"
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
            f"say which of these it is: {some(columns)}"
        )
    return usual


def holds_chats(column: str) -> str:
    return (
        f"{PLACE}.text: column {column!r} holds chats, and a task trains on text; write each chat as one text by the "
        "tokenizer's apply_chat_template into a column 'text', or train in a script of your own (spec.script)"
    )
