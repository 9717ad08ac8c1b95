"""Rows for training and evaluation, as Datasets of ``datasets``: read, split and limited by the manifest.

Reading is deterministic: the same files, seed and limits give the same rows in the same order on every rank.

For plain text, each file is a document. Long files are read in pieces that end at a line end, so that a corpus of any
size needs little memory and a validation split has enough rows; ``first`` and ``last`` mark the ends of a document.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, TypeAlias

import numpy as np

from trainwright.contract import DataError, UserError
from trainwright.declarative.diagnosis import Unreachable, error_for, explain, first_line
from trainwright.declarative.manifest import DatasetSpec
from trainwright.declarative.sources import Source, resolve
from trainwright.nearest import did_you_mean, some

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Rows: TypeAlias = "Dataset | IterableDataset"

PLACE = "spec.dataset"
NO_ROWS = "corresponds to no data"
"""Part of the message of datasets for a split without rows."""


class Splits(NamedTuple):
    """The rows for training and for evaluation."""

    train: Rows
    eval: Rows | None


def read_splits(spec: DatasetSpec, *, whole_documents: bool, seed: int) -> Splits:
    """Rows of text files are documents if ``whole_documents`` (for packing), else lines.

    Raises :class:`DataError` with the field and the file if there is no data or it cannot be read.
    """
    _check_conflicts(spec)
    train = _read(spec, spec.source, spec.split, f"{PLACE}.source", whole_documents)
    evaluation: Rows | None = None
    if spec.eval_source or spec.eval_split:
        place = f"{PLACE}.evalSource" if spec.eval_source else f"{PLACE}.evalSplit"
        evaluation = _read(spec, spec.eval_source or spec.source, spec.eval_split, place, whole_documents)
    elif spec.validation_fraction is not None:
        train, evaluation = _hold_out(train, spec.validation_fraction, seed)
    return Splits(_first(train, spec.max_train_samples), _first(evaluation, spec.max_eval_samples))


def _check_conflicts(spec: DatasetSpec) -> None:
    if spec.validation_fraction is None:
        return
    if spec.eval_source or spec.eval_split:
        raise UserError(f"{PLACE}.validationFraction: evalSource or evalSplit gives the data already; set only one")
    if spec.streaming:
        raise UserError(f"{PLACE}.validationFraction: a streamed dataset cannot be split; set evalSource")


def _read(spec: DatasetSpec, where: Any, split: str | None, place: str, whole_documents: bool) -> Rows:
    source = resolve(where, spec.format, place)
    try:
        rows = _open(spec, source, split, place, whole_documents)
    except (UserError, Unreachable):
        raise
    except Exception as error:  # the readers raise the errors of their file formats
        if NO_ROWS not in str(error):
            raise explain(error, source.format, source.files, place) from error
        rows = None
    if rows is None or (not spec.streaming and len(rows) == 0):
        raise DataError(f"{place}: {where!r} holds no rows; check that the files are not empty")
    return rows


def _open(spec: DatasetSpec, source: Source, split: str | None, place: str, whole_documents: bool) -> Rows:
    from datasets import load_dataset

    if source.format == "hub":
        return _from_hub(spec, source, split or "train", place)
    if source.format == "text":
        rows = _text(source, place, whole_documents, spec.streaming)
    else:
        options = {"sep": "\t"} if source.format == "csv" and ".tsv" in source.files[0] else {}
        files = list(source.files)
        rows = load_dataset(source.format, data_files=files, split="train", streaming=spec.streaming, **options)
    return rows if split in (None, "train") else _slice(rows, split, place)


def _text(source: Source, place: str, whole_documents: bool, streaming: bool) -> Rows:
    from datasets import Dataset, Features, IterableDataset, Value

    reader = documents if whole_documents else lines
    flags = {"first": Value("bool"), "last": Value("bool")} if whole_documents else {}
    features = Features({"text": Value("large_string"), **flags})
    arguments = {"files": list(source.files), "place": place}
    if streaming:
        return IterableDataset.from_generator(reader, features=features, gen_kwargs=arguments)
    identity = fingerprint(reader.__name__, *map(_identity, source.files))
    return Dataset.from_generator(reader, features=features, gen_kwargs=arguments, fingerprint=identity)


def _identity(file: str) -> str:
    """Identifies the contents of a file: by size and time, or by the key of a remote file system."""
    if "://" not in file:
        stat = os.stat(file)
        return f"{os.path.abspath(file)} {stat.st_size} {stat.st_mtime_ns}"
    import fsspec

    system, path = fsspec.core.url_to_fs(file)
    return f"{file} {system.ukey(path)}"


def fingerprint(*parts: Any) -> str:
    """A name for prepared data, which is equal in all ranks and attempts that would prepare the same."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def _from_hub(spec: DatasetSpec, source: Source, split: str, place: str) -> Rows:
    from datasets import get_dataset_split_names, load_dataset

    hub_id = source.hub_id
    try:
        return load_dataset(hub_id, spec.name, split=split, revision=spec.revision, streaming=spec.streaming)
    except Exception as error:
        reason = first_line(error)
        if "split" in reason.lower():
            names = get_dataset_split_names(hub_id, spec.name, revision=spec.revision)
            reason = f"has no split {split!r}; its splits: {some(names)}{did_you_mean(split, names)}"
        message = f"{place}: {hub_id!r} is not a file or folder here, and as a dataset on the hub: {reason}"
        raise error_for(error, message, DataError) from error


def _slice(rows: Rows, split: str, place: str) -> Rows:
    """Part of the rows of files, in the hub's notation: ``train[:10%]``."""
    from datasets import IterableDataset, ReadInstruction

    setting = f"{PLACE}.evalSplit" if "eval" in place else f"{PLACE}.split"
    if isinstance(rows, IterableDataset):
        raise UserError(f"{setting}: a streamed dataset cannot be sliced; use separate files")
    try:
        parts = ReadInstruction.from_spec(split).to_absolute({"train": len(rows)})
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"{setting}: files have one split, 'train', and {split!r} is not a part of it; use, say, 'train[:90%]'"
        ) from error
    ranges = [range(part.from_ or 0, len(rows) if part.to is None else part.to) for part in parts]
    return rows.select([index for indices in ranges for index in indices])


def _hold_out(rows: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Draws rows for evaluation with the seed; both parts keep the order of the files."""
    count = max(1, round(len(rows) * fraction))
    if count >= len(rows):
        raise DataError(
            f"{PLACE}.validationFraction: {fraction} of {len(rows)} rows leaves none to train on; set evalSource"
        )
    order = np.random.default_rng(seed).permutation(len(rows))
    held, kept = np.sort(order[:count]), np.sort(order[count:])
    name = fingerprint(rows._fingerprint, fraction, seed)
    return rows.select(kept, new_fingerprint=f"{name}t"), rows.select(held, new_fingerprint=f"{name}e")


def _first(rows: Any, limit: int | None) -> Any:
    if rows is None or limit is None:
        return rows
    return rows.take(limit) if not hasattr(rows, "__len__") else rows.select(range(min(limit, len(rows))))


PIECE = 1 << 16
"""The minimum length of a piece in characters; it is extended to the end of its last line."""
LONGEST_LINE = 1 << 20


def documents(files: list[str], place: str) -> Iterator[dict[str, Any]]:
    """Rows ``{"text", "first", "last"}``: a piece, and whether it is the first and the last one of its document."""
    for file in files:
        with _opened(file, place) as stream:
            piece, first = _piece(stream), True
            while piece:
                following = _piece(stream)
                yield {"text": piece, "first": first, "last": not following}
                piece, first = following, False


def lines(files: list[str], place: str) -> Iterator[dict[str, Any]]:
    """Rows ``{"text": line}`` without the line end; blank lines are skipped."""
    for file in files:
        with _opened(file, place) as stream:
            yield from ({"text": line.rstrip("\n")} for line in stream if not line.isspace())


def _piece(stream: TextIO) -> str:
    text = stream.read(PIECE)
    return text if text.endswith("\n") else text + stream.readline(LONGEST_LINE)


@contextmanager
def _opened(file: str, place: str) -> Iterator[TextIO]:
    import fsspec

    try:
        with fsspec.open(file, "rt", encoding="utf-8-sig", compression="infer") as stream:
            yield stream
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: {_undecodable(file)}; save the file as UTF-8 text") from error
    except (OSError, EOFError, ValueError, ImportError) as error:
        raise error_for(error, f"{place}: cannot read {file!r}: {first_line(error)}", DataError) from error


def _undecodable(file: str) -> str:
    """Finds the line that is not UTF-8, because the decoder only reports a position in its buffer."""
    import fsspec

    with fsspec.open(file, "rb", compression="infer") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"{file}, line {number}: byte 0x{line[error.start]:02x} is not UTF-8"
    return f"{file}: is not UTF-8"
