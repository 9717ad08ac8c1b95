"""Random arguments for tests: any subset of the fields whose effect is built, each with a value of its own kind."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from trainwright.arguments.fields import FIELDS, FieldInfo

_SECRET = "hub_token"
"""It is never written to a file."""
SETTABLE = {name: info for name, info in FIELDS.items() if name != _SECRET and info.kind != "opaque"}


def value_of(info: FieldInfo) -> st.SearchStrategy[Any]:
    share = st.integers(1, 99).map(lambda hundredths: hundredths / 100)
    by_kind: dict[str, st.SearchStrategy[Any]] = {
        "bool": st.booleans(),
        "int": st.integers(int(info.minimum or 0), 1000),
        "float": st.floats(0, 0.99) if info.maximum or info.exclusive_maximum else st.integers(0, 1000) | share,
        "str": st.just("a=1") if info.pattern else st.text(min_size=1),
        "object": st.dictionaries(st.text(), st.integers()),
        "list[str]": st.lists(st.text()),
        "bool|enum": st.booleans(),
        "bool|str": st.text(),
        "str|list[str]": st.just([]),
        "object|path": st.just({"even_batches": False}),
        "enum": st.nothing(),
    }
    if info.choices and info.kind in ("enum", "list[str]"):
        chosen = st.sampled_from(info.choices)
        return chosen if info.kind == "enum" else st.lists(chosen)
    return by_kind[info.kind]


@st.composite
def some_arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Few enough at once that most draws fit together."""
    names = draw(st.lists(st.sampled_from(sorted(SETTABLE)), max_size=10, unique=True))
    return {name: draw(value_of(SETTABLE[name])) for name in names}
