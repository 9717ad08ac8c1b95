"""Resolves a source in the manifest to a list of files of one format, or to a dataset on the hub.

    corpus.txt   /data/*.jsonl.gz   /data/   s3://bucket/part-*.parquet   stdlib://*.py   rajpurkar/squad

``stdlib://`` is the source code of Python's standard library: real text that every machine and every image has.
"""

from __future__ import annotations

import glob
import os
import re
import sysconfig
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trainwright.contract import DataError
from trainwright.declarative.diagnosis import error_for, first_line
from trainwright.nearest import did_you_mean, some

STDLIB = "stdlib://"
FORMATS = {
    "text": (".txt", ".text", ".md", ".rst", ".py", ".log", ".html", ".xml", ".tex"),
    "json": (".json", ".jsonl", ".ndjson"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet", ".pq"),
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
FORMAT_OF = {suffix: name for name, suffixes in FORMATS.items() for suffix in suffixes}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """Files of one format, in a fixed order, or (``format == "hub"``) the id of a dataset on the hub."""

    format: str
    files: tuple[str, ...] = ()
    hub_id: str | None = None


def resolve(source: str | Sequence[str], format: str | None, place: str) -> Source:
    """Find the files; raises :class:`DataError` for ``place`` if there are none or their format is unclear."""
    if isinstance(source, str) and _on_the_hub(source, format):
        return Source("hub", hub_id=source)
    patterns = [source] if isinstance(source, str) else list(source)
    files = [file for pattern in patterns for file in _files(pattern, format, place)]
    return Source(format or _common_format(files, place), tuple(files))


def _on_the_hub(source: str, format: str | None) -> bool:
    if format is not None or os.path.exists(source):
        return format == "hub"
    return bool(HUB_ID.fullmatch(source)) and format_of(source) is None


def format_of(file: str) -> str | None:
    """The format by the file's name, without its compression: ``a.csv.gz`` is csv."""
    path = PurePosixPath(file.split("?")[0])
    suffix = path.suffix.lower()
    return FORMAT_OF.get(PurePosixPath(path.stem).suffix.lower() if suffix in COMPRESSED else suffix)


def _files(pattern: str, format: str | None, place: str) -> list[str]:
    if pattern.startswith(STDLIB):
        return _stdlib_files(pattern.removeprefix(STDLIB), place)
    if "://" in pattern:
        return _remote_files(pattern, place)
    if os.path.isdir(pattern):
        return _files_in_folder(Path(pattern), format, place)
    if os.path.isfile(pattern):
        return [pattern]
    matches = sorted(file for file in glob.glob(pattern, recursive=True) if os.path.isfile(file))
    return matches or _nothing(pattern, place)


def _nothing(pattern: str, place: str) -> list[str]:
    folder = Path(pattern).parent
    if glob.has_magic(pattern):
        raise DataError(f"{place}: no file matches {pattern!r}; check the pattern, and that its volume is mounted")
    if not folder.exists():
        raise DataError(f"{place}: no folder {str(folder)!r} in this pod; check the path, and the volume's mount")
    neighbours = [str(folder / name) for name in sorted(os.listdir(folder))]
    raise DataError(f"{place}: no file or folder {pattern!r}{did_you_mean(pattern, neighbours)}; check the path")


def _stdlib_files(pattern: str, place: str) -> list[str]:
    root = Path(sysconfig.get_path("stdlib"))
    foreign = {"site-packages", "dist-packages"}
    found = sorted(root.glob(pattern or "*.py"))
    files = [str(f) for f in found if f.is_file() and not foreign & set(f.relative_to(root).parts)]
    if not files:
        raise DataError(f"{place}: no file of Python's standard library matches {pattern!r}; try {STDLIB}*.py")
    return files


def _remote_files(pattern: str, place: str) -> list[str]:
    if not glob.has_magic(pattern.split("?")[0]) or pattern.startswith(("http://", "https://")):
        return [pattern]
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(pattern)
        matches = sorted(system.unstrip_protocol(name) for name in system.glob(path))
    except (ValueError, ImportError, OSError) as error:
        raise error_for(error, f"{place}: cannot list {pattern!r}: {first_line(error)}", DataError) from error
    if not matches:
        raise DataError(f"{place}: no object matches {pattern!r}; check the pattern and the credentials")
    return matches


def _files_in_folder(folder: Path, format: str | None, place: str) -> list[str]:
    """The files of the given format; without one, all data files."""
    every = sorted(path for path in folder.rglob("*") if path.is_file())
    shown = [str(p) for p in every if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    files = [file for file in shown if format_of(file) is not None and format in (None, format_of(file))]
    if not files:
        wanted = f"{format} file" if format else "data file (text, json, csv, parquet)"
        raise DataError(f"{place}: the folder {str(folder)!r} holds no {wanted}; use a pattern of files")
    return files


def _common_format(files: Sequence[str], place: str) -> str:
    counts = Counter(format_of(file) for file in files)
    setting = f"{place.rsplit('.', 1)[0]}.format"
    if None in counts:
        unclear = next(file for file in files if format_of(file) is None)
        raise DataError(f"{setting}: is unclear from the name {unclear!r}; set it to one of {', '.join(FORMATS)}")
    if len(counts) > 1:
        found = some(f"{count} {name}" for name, count in counts.most_common())
        raise DataError(f"{place}: matches files of several formats ({found}); narrow the pattern, or set {setting}")
    return str(next(iter(counts)))
