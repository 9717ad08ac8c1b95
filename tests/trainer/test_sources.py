"""Where the rows are: patterns, folders, formats, and the errors for what is not there."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from trainwright.contract import DataError, UserError
from trainwright.declarative.columns import assign
from trainwright.declarative.diagnosis import Unreachable
from trainwright.declarative.manifest import DatasetSpec
from trainwright.declarative.reading import read_splits
from trainwright.declarative.sources import format_of, resolve

PLACE = "spec.dataset.source"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
    (tmp_path / "b.txt").write_text("four\n")
    (tmp_path / "rows.csv").write_text("text,label\nx,no\ny,yes\nz,no\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.jsonl").write_text('{"text": "p"}\n{"text": "q"}\n')
    (tmp_path / "sub" / ".hidden.jsonl").write_text("not for us")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / ".cache")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", "text"),
        ("a.TXT.gz", "text"),
        ("x/y.jsonl.zst", "json"),
        ("s3://bucket/part-0.parquet", "parquet"),
        ("https://host/data.csv?version=2", "csv"),
        ("a.gz", None),
        ("README", None),
    ],
)
def test_the_format_follows_from_the_name_of_the_file(name: str, expected: str | None) -> None:
    assert format_of(name) == expected


@pytest.mark.parametrize(
    ("source", "format", "files"),
    [
        ("a.txt", "text", ["a.txt"]),
        ("*.txt", "text", ["a.txt", "b.txt"]),
        (["b.txt", "a.txt"], "text", ["b.txt", "a.txt"]),
        ("sub", "json", ["sub/c.jsonl"]),
        ("**/*.jsonl", "json", ["sub/c.jsonl"]),
    ],
)
def test_a_source_may_be_a_file_a_pattern_a_list_or_a_folder(
    folder: Path, source: str, format: str, files: list[str]
) -> None:
    found = resolve(source, None, PLACE)
    assert (found.format, list(found.files)) == (format, files)


def test_hub_ids_are_no_paths(folder: Path) -> None:
    assert resolve("rajpurkar/squad", None, PLACE).hub_id == "rajpurkar/squad"
    assert resolve("imdb", None, PLACE).hub_id == "imdb"
    assert resolve("sub", "json", PLACE).hub_id is None


def test_the_standard_library_is_a_source() -> None:
    names = {Path(file).name for file in resolve("stdlib://*.py", None, PLACE).files}
    assert {"ast.py", "typing.py", "zipapp.py"} <= names
    assert not any("site-packages" in file for file in resolve("stdlib://**/__init__.py", None, PLACE).files)


@pytest.mark.parametrize(
    ("source", "format", "words"),
    [
        ("*.parquet", None, ["no file matches '*.parquet'"]),
        ("a.text", None, ["no file or folder 'a.text'", "did you mean a.txt?"]),
        ("missing/c.txt", None, ["no folder 'missing'"]),
        ("stdlib://*.rs", None, ["standard library", "*.rs"]),
        ("*", None, ["several formats", "2 text", "1 csv"]),
        (".", "parquet", ["holds no parquet file"]),
    ],
)
def test_a_source_that_matches_no_file_is_refused_in_one_line(
    folder: Path, source: str, format: str | None, words: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        resolve(source, format, PLACE)
    message = str(caught.value)
    assert message.startswith(PLACE)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_unknown_format_asks_for_the_field(folder: Path) -> None:
    Path("data.bin").write_text("x")
    with pytest.raises(DataError, match=r"^spec\.dataset\.format: is unclear from the name 'data\.bin'"):
        resolve("data.bin", None, PLACE)


def read(whole_documents: bool = False, **fields: object):
    return read_splits(DatasetSpec(**fields), whole_documents=whole_documents, seed=7)


def test_text_is_lines_or_documents(folder: Path) -> None:
    assert read(source="*.txt").train["text"][:] == ["one", "two", "three", "four"]
    documents = read(source="*.txt", whole_documents=True).train
    assert documents["text"][:] == ["one\ntwo\n\nthree\n", "four\n"]
    assert documents["last"][:] == [True, True]


def test_long_documents_come_in_pieces_that_join_to_the_file(folder: Path) -> None:
    text = "".join(f"line {number} é\n" for number in range(20_000))
    Path("long.txt").write_text(text, encoding="utf-8")
    rows = read(source="long.txt", whole_documents=True).train
    assert len(rows) > 2
    assert "".join(rows["text"][:]) == text
    assert [rows["first"][0], *rows["last"][-2:]] == [True, False, True]
    assert sum(rows["first"][:]) == sum(rows["last"][:]) == 1


def test_a_changed_file_is_read_anew(folder: Path) -> None:
    assert read(source="b.txt").train["text"][:] == ["four"]
    Path("b.txt").write_text("five and more\n")
    assert read(source="b.txt").train["text"][:] == ["five and more"]


def test_compressed_text_is_read_and_files_are_streamed(folder: Path) -> None:
    with gzip.open("z.txt.gz", "wt") as stream:
        stream.write("deep\nblue\n")
    assert read(source="z.txt.gz").train["text"][:] == ["deep", "blue"]
    streamed = read(source="*.txt", streaming=True, max_train_samples=2).train
    assert [row["text"] for row in streamed] == ["one", "two"]


def test_validation_fraction_is_drawn_by_the_seed(folder: Path) -> None:
    Path("many.txt").write_text("".join(f"{number}\n" for number in range(100)))
    spec = DatasetSpec(source="many.txt", validation_fraction=0.2, max_eval_samples=15)
    first, second = (read_splits(spec, whole_documents=False, seed=1) for _ in range(2))
    other = read_splits(spec, whole_documents=False, seed=2)
    assert len(first.train) == 80
    assert len(first.eval) == 15
    assert first.eval["text"][:] == second.eval["text"][:] != other.eval["text"][:]
    assert not set(first.train["text"]) & set(first.eval["text"])


def test_splits_of_files_are_slices(folder: Path) -> None:
    splits = read(source="rows.csv", split="train[:2]", eval_split="train[2:]")
    assert splits.train["text"][:] == ["x", "y"]
    assert splits.eval["text"][:] == ["z"]


def test_evaluation_may_have_a_source_of_its_own(folder: Path) -> None:
    splits = read(source="a.txt", eval_source="b.txt")
    assert splits.eval["text"][:] == ["four"]


def write(name: str, content: str | bytes) -> None:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", "", ["holds no rows"]),
        ("blank.txt", "\n \n", ["holds no rows"]),
        ("empty.csv", "", ["empty.csv", "is empty"]),
        ("header.csv", "text,label\n", ["holds no rows"]),
        ("latin.txt", "caf\xe9\n".encode("latin-1"), ["latin.txt, line 1", "0xe9", "UTF-8"]),
        ("bad.jsonl", '{"a": 1}\n{"a": \n', ["bad.jsonl, line 2", "not JSON"]),
        ("list.jsonl", '{"a": 1}\n[1, 2]\n', ["list.jsonl, line 2", "not a JSON object"]),
        ("array.json", '[{"a": 1},\n {"a": }]', ["array.json, line 2", "not JSON"]),
        ("wide.csv", "a,b\n1,2\n1,2,3\n", ["wide.csv, line 3", "3 fields, but the header has 2"]),
        ("no.parquet", "PAR0", ["no.parquet", "not a parquet file"]),
        ("torn.txt.gz", b"\x1f\x8b\x08\x00garbage", ["torn.txt.gz", "cannot read"]),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(
    folder: Path, name: str, content: str | bytes, words: list[str]
) -> None:
    write(name, content)
    with pytest.raises(DataError) as caught:
        read(source=name, whole_documents=name.startswith("latin"))
    message = str(caught.value)
    assert message.startswith(PLACE)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"source": "b.txt", "validation_fraction": 0.5}, ["validationFraction", "leaves none"]),
        ({"source": "a.txt", "validation_fraction": 0.5, "eval_split": "train"}, ["validationFraction", "only one"]),
        ({"source": "a.txt", "validation_fraction": 0.5, "streaming": True}, ["validationFraction", "streamed"]),
        ({"source": "a.txt", "split": "test"}, ["spec.dataset.split", "one split, 'train'"]),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(folder: Path, fields: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read(**fields)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("roles", "stated", "columns", "expected"),
    [
        (("text",), {}, ("text", "id"), {"text": "text"}),
        (("text",), {}, ("id", "content"), {"text": "content"}),
        (("text",), {}, ("poem",), {"text": "poem"}),
        (("text",), {"text": "id"}, ("text", "id"), {"text": "id"}),
        (
            ("text", "textPair", "label"),
            {},
            ("premise", "hypothesis", "label"),
            {"text": "premise", "textPair": "hypothesis", "label": "label"},
        ),
        (("text", "textPair", "label"), {"label": "text"}, ("text", "body"), {"text": "body", "label": "text"}),
        (("source", "target"), {}, ("article", "summary"), {"source": "article", "target": "summary"}),
    ],
)
def test_columns_are_found_by_their_usual_names(
    roles: tuple[str, ...], stated: dict[str, str], columns: tuple[str, ...], expected: dict[str, str]
) -> None:
    assert assign(roles, stated, columns) == expected


@pytest.mark.parametrize(
    ("stated", "columns", "words"),
    [
        ({"text": "bdy"}, ("body", "id"), ["columns.text", "no column 'bdy'", "did you mean body?", "body, id"]),
        ({}, ("a", "b"), ["columns.text", "set it to one of these: a, b"]),
        (
            {},
            ("messages",),
            ["columns.text", "'messages' holds chats", "apply_chat_template in a column 'text', or tr"],
        ),
        ({}, ("id", "conversations"), ["columns.text", "'conversations' holds chats"]),
        ({"txet": "a"}, ("a",), ["columns.txet", "did you mean text?"]),
    ],
)
def test_columns_that_do_not_fit_are_refused_with_a_suggestion(
    stated: dict[str, str], columns: tuple[str, ...], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        assign(("text",), stated, columns)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("source", "format"), [("http://127.0.0.1:9/rows.csv", "csv"), ("http://127.0.0.1:9/words.txt", "text")]
)
def test_a_store_that_cannot_be_reached_is_no_mistake(folder: Path, source: str, format: str) -> None:
    """Another attempt may reach it; a mistake would end the job for good."""
    with pytest.raises(Unreachable) as caught:
        read(source=source, format=format)
    assert not isinstance(caught.value, UserError)
    assert str(caught.value).startswith(PLACE)
    assert source in str(caught.value)
