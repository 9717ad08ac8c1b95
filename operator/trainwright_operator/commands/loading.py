"""Loads manifest files: TrainingJobs and AcceleratorPools are validated, other resources are ignored."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainwright.nearest import nearest
from trainwright_operator.api import crd, manifest, names
from trainwright_operator.api.manifest import Document, ManifestError
from trainwright_operator.api.spec import AcceleratorPool, TrainingJob, parse_job, parse_pool
from trainwright_operator.core.placement.pools import BUILTIN, choose, place
from trainwright_operator.core.placement.resources import check_resources
from trainwright_operator.core.placement.vendor import PoolError

SUFFIXES = (".yaml", ".yml", ".json")
STDIN = "-"


class InvalidManifests(ValueError):
    """The problems, one line each: file, line, field, problem and fix."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = tuple(lines)
        super().__init__("\n".join(self.lines))


@dataclass
class Checked:
    """The valid documents, and one line for each problem of the others."""

    documents: list[Document] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[Document]:
        return [document for document in self.documents if document.content["kind"] == kind]


@dataclass(frozen=True)
class Loaded:
    """Jobs in the order of the files, and pools by name."""

    jobs: tuple[TrainingJob, ...]
    pools: dict[str, AcceleratorPool]
    documents: tuple[Document, ...]
    """The documents of the jobs, in the same order."""


def load(paths: Iterable[str], pool_paths: Iterable[str] = ()) -> Loaded:
    """The jobs of ``paths`` and the pools of both; :class:`InvalidManifests` for any problem, or without a job."""
    paths = list(paths)
    checked, extra = check(paths), check(pool_paths)
    if mistakes := checked.mistakes + extra.mistakes:
        raise InvalidManifests(mistakes)
    jobs = checked.of_kind(names.JOB_KIND)
    if not jobs:
        raise InvalidManifests([f"{', '.join(map(source, paths))}: holds no {names.JOB_KIND}"])
    pools = [parse_pool(one.content) for one in checked.of_kind(names.POOL_KIND) + extra.of_kind(names.POOL_KIND)]
    return Loaded(tuple(parse_job(one.content) for one in jobs), {pool.name: pool for pool in pools}, tuple(jobs))


def on_pool(loaded: Loaded, name: str) -> Loaded:
    """The same jobs with ``spec.accelerator.pool`` set to ``name``."""
    moved = []
    for document in loaded.documents:
        content = copy.deepcopy(document.content)
        content["spec"]["accelerator"] = {**(content["spec"].get("accelerator") or {}), "pool": name}
        if problems := crd.all_problems(content):
            raise InvalidManifests(f"--pool {name}: {problem}" for problem in problems)
        moved.append(replace(document, content=content))
    return Loaded(tuple(parse_job(one.content) for one in moved), loaded.pools, tuple(moved))


def pool_of(job: TrainingJob, document: Document, pools: Mapping[str, AcceleratorPool]) -> AcceleratorPool:
    """The pool of a job; raises :class:`InvalidManifests` if it is unknown or does not fit the job."""
    pool = choose(job, pools)
    if pool is None:
        where, known = document.place("spec.accelerator.pool"), ", ".join({**BUILTIN, **pools})
        wanted = job.spec.accelerator.pool
        raise InvalidManifests(
            [
                f"{where}: spec.accelerator.pool: pool {wanted!r} is not known here ({known}); "
                "give its manifest with --pools"
            ]
        )
    try:
        place(job, pool)
    except PoolError as error:
        raise InvalidManifests([f"{document.place(error.path)}: {error}"]) from None
    return pool


def misfits(checked: Checked) -> Iterator[tuple[Document, str]]:
    """A message for each job that does not fit its pool (if the pool is given too) or does not fit any pool."""
    pools = {pool.name: pool for pool in (parse_pool(one.content) for one in checked.of_kind(names.POOL_KIND))}
    for document in checked.of_kind(names.JOB_KIND):
        job = parse_job(document.content)
        try:
            if choose(job, pools) is not None:
                pool_of(job, document, pools)
            else:
                stated = job.spec.pod_template.resources
                check_resources(stated.get("requests") or {}, stated.get("limits") or {})
        except InvalidManifests as invalid:
            yield from ((document, line) for line in invalid.lines)
        except PoolError as error:
            yield document, f"{document.place(error.path)}: {error}"


def check(paths: Iterable[str]) -> Checked:
    """Read and validate all files, and collect the problems of all of them."""
    checked, paths = Checked(), list(paths)
    for path in paths:
        try:
            for file in _files(path):
                _check_file(file, checked, insist=file == path)
        except ManifestError as error:
            checked.mistakes.append(str(error))
    if paths and not checked.documents and not checked.mistakes:
        kinds = " or ".join(crd.SCHEMAS)
        checked.mistakes.append(f"{', '.join(map(source, paths))}: holds no {kinds} of {names.API_VERSION}")
    return checked


def _check_file(file: str, checked: Checked, *, insist: bool) -> None:
    try:
        documents = list(manifest.read(text(file), source(file)))
    except ManifestError as error:
        checked.mistakes.append(str(error))
        return
    for document in documents:
        if _is_ours(document.content, insist):
            mistakes = list(problem_lines(document))
            checked.mistakes += mistakes
            checked.documents += [] if mistakes else [document]


def problem_lines(document: Document) -> Iterator[str]:
    """One line for each problem of a document, in line order."""
    found = [(line, f"{path}: appears twice; keep one of them") for path, line in document.duplicates]
    found += [(document.line_of(problem.path) or 0, str(problem)) for problem in crd.all_problems(document.content)]
    for line, text in sorted(found, key=lambda pair: pair[0]):
        yield f"{document.source}:{line}: {text}" if line else f"{document.source}: {text}"


def _is_ours(content: Any, insist: bool) -> bool:
    """Files may hold other resources. A misspelled group or kind of ours is a problem, not another resource."""
    if not isinstance(content, dict):
        return insist
    version = content.get("apiVersion")
    if isinstance(version, str):
        group = version.partition("/")[0]
        return group.startswith("trainwright") or nearest(group, [names.GROUP]) is not None
    kind = content.get("kind")
    return insist or (isinstance(kind, str) and nearest(kind, crd.SCHEMAS) is not None)


def _files(path: str) -> list[str]:
    """A folder means all manifests below it, except hidden ones."""
    if not path:
        raise ManifestError("the file name is empty; give a file, a folder, or - for standard input")
    if path == STDIN or not Path(path).is_dir():
        return [path]
    below = (file for file in sorted(Path(path).rglob("*")) if file.suffix in SUFFIXES and file.is_file())
    shown = [str(file) for file in below if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not shown:
        raise ManifestError(f"{path}: the folder holds no {', '.join(SUFFIXES)} file")
    return shown


def text(file: str) -> str:
    try:
        content = sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise ManifestError(f"{file}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ManifestError(f"{source(file)}: is not UTF-8 text") from None


def source(file: str) -> str:
    return "<stdin>" if file == STDIN else file
