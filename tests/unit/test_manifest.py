"""YAML by kubectl's rules, with lines; and what is written is read alike by kubectl and by PyYAML."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trainwright_operator.api.manifest import Document, ManifestError, join, plain, read, write


def one(text: str) -> Document:
    (document,) = read(text, "job.yaml")
    return document


SCALARS: dict[str, Any] = {
    # numbers that PyYAML takes for text
    "3e-4": 3e-4,
    "5e-05": 5e-05,
    "1e5": 100_000,
    "1E5": 100_000,
    "+.5": 0.5,
    "08": 8,
    # text that PyYAML takes for a number, a date or a value
    "1:30": "1:30",
    "190:20:30": "190:20:30",
    "2024-01-01": "2024-01-01",
    "=": "=",
    # booleans, of YAML 1.1
    "y": True,
    "On": True,
    "YES": True,
    "n": False,
    "no": False,
    "OFF": False,
    "yEs": "yEs",
    # bases
    "010": 8,
    "0o10": 8,
    "0x1F": 31,
    "-0b11": -3,
    "1_000": 1000,
    "0x": "0x",
    "0b2": "0b2",
    # JSON's own numbers
    "2.0": 2,
    "-0.0": 0,
    "1e20": 10**20,
    "1e21": 1e21,
    "9223372036854775807": 2**63 - 1,
    "9223372036854775808": float(2**63),
    # nothing
    "~": None,
    "Null": None,
    "none": "none",
    # text
    "e5": "e5",
    "-": "-",
    "1.2.3": "1.2.3",
    "v1": "v1",
    "1e400x": "1e400x",
}


@pytest.mark.parametrize(("text", "value"), SCALARS.items(), ids=SCALARS)
def test_a_plain_scalar_means_what_it_means_to_kubectl(text: str, value: Any) -> None:
    found = plain(text)
    assert (found, type(found)) == (value, type(value))


def test_quotes_and_tags_make_text() -> None:
    assert one("a: ['no', \"3e-4\", !!str no, !!int 3]").content["a"] == ["no", "3e-4", "no", 3]


def test_keys_are_text() -> None:
    assert one("on: 1\n2: b\n1.5: c").content == {"true": 1, "2": "b", "1.5": "c"}


def test_anchors_are_expanded_and_merge_keys_merged() -> None:
    text = "base: &b {x: 1, y_: 2}\nmore: &m {x: 9, z: 3}\none: {<<: *b, x: 5}\ntwo: {<<: [*m, *b]}\nsame: *b"
    content = one(text).content
    assert content["one"] == {"x": 5, "y_": 2}
    assert content["two"] == {"x": 9, "y_": 2, "z": 3}
    assert content["same"] == content["base"]


def test_empty_documents_are_skipped() -> None:
    assert [document.content for document in read("---\na: 1\n---\n---\n# nothing\n---\nb: 2\n", "x")] == [
        {"a": 1},
        {"b": 2},
    ]


def test_a_list_is_its_items() -> None:
    first, second = read("kind: List\nitems:\n- kind: A\n  x: 1\n- kind: B\n  y_:\n    z: 2\n", "x")
    assert (first.content, second.content) == ({"kind": "A", "x": 1}, {"kind": "B", "y_": {"z": 2}})
    assert (first.line_of("x"), second.line_of("y_.z"), second.line_of("missing")) == (4, 7, 5)


def test_json_is_yaml() -> None:
    assert one('{"a": [1, 2.5, "no", null, true]}').content == {"a": [1, 2.5, "no", None, True]}


@pytest.mark.parametrize("value", ["gpt \U0001f680 run", "\\ud83d\\ude80", "\\\U0001f680\U0001f680", "\ufffd"])
def test_json_escapes_a_character_in_two_halves(value: str) -> None:
    (document,) = read(json.dumps({"name": value}), "job.json")
    assert document.content == {"name": value}


def test_half_a_character_is_refused() -> None:
    with pytest.raises(ManifestError, match="is not YAML"):
        list(read('{"name": "\\ud83d"}', "job.json"))


def test_every_field_has_its_line() -> None:
    document = one("spec:\n  env:\n  - name: A\n    value: x\n  - name: B\n  model: {source: gpt2}\n")
    places = {"spec": 1, "spec.env": 2, "spec.env[0].value": 4, "spec.env[1]": 5, "spec.model.source": 6}
    assert {path: document.line_of(path) for path in places} == places


def test_what_is_not_there_has_the_line_of_what_is_around_it() -> None:
    document = one("a: 1\nspec:\n  env:\n  - name: A\n")
    assert document.place("spec.env[0].value.x") == "job.yaml:4"
    assert document.place("other") == "job.yaml:1"


def test_a_key_that_stands_twice_is_told_with_its_line() -> None:
    document = one("a:\n  b: 1\n  c: 2\n  b: 3\n")
    assert document.duplicates == (("a.b", 4),)


def test_a_path_is_written_with_dots_and_indices() -> None:
    assert join(join(join("", "spec"), "env"), 0) == "spec.env[0]"


MISTAKES = {
    "unclosed": ("a: [1", "did not find expected ',' or ']'"),
    "colons": ("a: b: c", "mapping values are not allowed in this context"),
    "tab": ("a:\n\t- b", "indent with spaces, not tabs"),
    "alias of nothing": ("a: *b", "undefined alias"),
    "alias of itself": ("a: &x [*x]", "an alias refers to an object that contains it"),
    "not a number": ("a: .nan", ".nan is not a number in JSON"),
    "infinite": ("a: 1e999", "larger than any number"),
    "a list for a key": ("? [a]\n: 1", "a key must be text"),
    "no key": ("~: 1", "a key is empty"),
    "a merge of text": ("<<: x", "<< takes a mapping"),
    "control characters": ("a: \x00", "control characters"),
    "endless aliases": (
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(
            f"{b}: &{b} [{','.join(f'*{a}' * 1 for _ in range(9))}]\n"
            for a, b in zip("abcdefg", "bcdefgh", strict=True)
        ),
        "too many values",
    ),
}


@pytest.mark.parametrize(("text", "said"), MISTAKES.values(), ids=MISTAKES)
def test_text_that_is_no_manifest_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ManifestError) as error:
        list(read(text, "job.yaml"))
    assert said in str(error.value)
    assert str(error.value).startswith("job.yaml:")
    assert "\n" not in str(error.value)


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False).filter(lambda number: not number.is_integer()),
        st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12),
        st.sampled_from([*SCALARS, "", " ", "a: b", "- x", "#", "&a", "*a", "<<", "line\nline\n", "x\n\n"]),
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab-_.~1", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(json_values)
def test_what_is_written_is_read_back_by_us_and_by_pyyaml(value: Any) -> None:
    text = write({"value": value})
    assert one(text).content == {"value": value}
    assert yaml.safe_load(text) == {"value": value}


def test_no_is_written_in_quotes_and_keys_keep_their_order() -> None:
    assert write({"b": "no", "a": 3e-05}) == 'b: "no"\na: 3.0e-05\n'


def test_several_documents_are_set_apart() -> None:
    assert write({"a": 1}, {"b": 2}) == "---\na: 1\n---\nb: 2\n"
