"""``trainwright plan``: prints what the operator would create, and how that differs from another plan."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainwright.contract import UserError
from trainwright_operator.api import crd, manifest, names
from trainwright_operator.api.manifest import Document
from trainwright_operator.api.names import Condition
from trainwright_operator.api.spec import TrainingJob, parse_job
from trainwright_operator.commands import difference, overriding, replicas
from trainwright_operator.commands.loading import InvalidManifests, Loaded, load, on_pool, pool_of
from trainwright_operator.core.observe import Observed
from trainwright_operator.core.placement.pools import BUILTIN, choose, place
from trainwright_operator.core.plan import Plan, plan

DONE, DOES_NOT_FIT, INVALID = 0, 1, 2
Object = dict[str, Any]


def main(options: Namespace) -> int:
    try:
        loaded = load([options.file], options.pools)
        if options.pool:
            loaded = on_pool(loaded, options.pool)
        if options.set:
            loaded = _with_changes(loaded, options.set)
        if options.memory:
            return _print_memory(loaded)
        objects = planned(loaded)
        if options.diff:
            for other in options.diff:
                _print_difference(options, loaded, objects, other)
            return DONE
        advice = list(_advice(loaded))
    except InvalidManifests as invalid:
        for line in invalid.lines:
            print(line, file=sys.stderr)
        return INVALID
    _print(objects, options.output)
    for line in advice:
        print(line, file=sys.stderr)
    return DONE


def _with_changes(loaded: Loaded, changes: overriding.Changes) -> Loaded:
    documents = tuple(overriding.overridden(document, changes) for document in loaded.documents)
    return replace(loaded, jobs=tuple(parse_job(one.content) for one in documents), documents=documents)


def _print_memory(loaded: Loaded) -> int:
    from rich.console import Group

    from trainwright.declarative.diagnosis import Unreachable
    from trainwright_operator.commands.memory import Report
    from trainwright_operator.terminal import show

    fits = True
    for job, document in zip(loaded.jobs, loaded.documents, strict=True):
        pool = pool_of(job, document, loaded.pools)
        try:
            report = Report(job, pool)
            show(Group(*report.parts()))
        except (UserError, Unreachable) as error:
            raise InvalidManifests([f"{document.source}: {error}"]) from None
        fits = fits and report.fits
    return DONE if fits else DOES_NOT_FIT


def planned(loaded: Loaded) -> list[Object]:
    """The children of the first attempt of every job; :class:`InvalidManifests` if a job cannot be planned."""
    pairs = zip(loaded.jobs, loaded.documents, strict=True)
    return [child for job, document in pairs for child in _children(job, loaded, document)]


def _children(job: TrainingJob, loaded: Loaded, document: Document) -> list[Object]:
    pool = pool_of(job, document, loaded.pools)
    found = plan(job, pool, Observed(), datetime.now(UTC))
    if problem := _obstacle(found):
        raise InvalidManifests([f"{document.place('spec.accelerator.pool')}: {problem}"])
    if not found.apply:
        print(f"{document.source}: {job.name} is {found.status.get('state')}: nothing is created", file=sys.stderr)
    return [_printable(child, job) for child in found.apply]


def _advice(loaded: Loaded) -> Iterator[str]:
    """For jobs that were planned. The memory is left to ``--memory``: it needs torch and the model's configuration."""
    for job, document in zip(loaded.jobs, loaded.documents, strict=True):
        placed = place(job, pool_of(job, document, loaded.pools))
        if value := replicas.advised(job.spec.training_arguments, placed):
            yield f"{document.source}: {replicas.sentence(value, placed, 'plan --memory says whether it fits')}"


def _obstacle(found: Plan) -> str | None:
    """Why nothing can be created until the user fixes something."""
    stalled = (
        one
        for one in found.status.get("conditions", ())
        if one["type"] == Condition.STALLED and one["status"] == "True"
    )
    return next((one["message"] for one in stalled), None)


def _printable(child: Object, job: TrainingJob) -> Object:
    """Without an owner if the job has no uid, because an API server rejects that."""
    if job.uid:
        return child
    return {**child, "metadata": {key: value for key, value in child["metadata"].items() if key != "ownerReferences"}}


def _print(objects: list[Object], form: str) -> None:
    if form == "yaml":
        print(manifest.write(*objects), end="")
    elif len(objects) == 1:
        print(json.dumps(objects[0], indent=2))
    else:
        print(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}, indent=2))


def _print_difference(options: Namespace, loaded: Loaded, objects: list[Object], other: str) -> None:
    """Print the difference from the plan of ``other``, a manifest or the name of a pool."""
    colour = difference.coloured()
    if not Path(other).exists() and other in {**BUILTIN, **loaded.pools}:
        lines = _between_pools(loaded, objects, other)
    else:
        lines = _between_manifests(options, loaded, objects, other)
    for line in lines:
        print(difference.paint(line, colour))


def _between_pools(loaded: Loaded, objects: list[Object], other: str) -> Iterator[str]:
    """The difference field by field, from pool ``other`` to the pools of the jobs."""
    own = ", ".join(dict.fromkeys(pool.name for job in loaded.jobs if (pool := choose(job, loaded.pools))))
    yield f"from pool {other} to pool {own}"
    yield from difference.lines(planned(on_pool(loaded, other)), objects)


def _between_manifests(options: Namespace, loaded: Loaded, objects: list[Object], file: str) -> Iterator[str]:
    """A unified diff from the plan of the other manifest; prints which changes a cluster would refuse."""
    from difflib import unified_diff

    other = load([file], options.pools)
    before, after = (_readable(each).splitlines() for each in (planned(other), objects))
    yield from unified_diff(before, after, file, options.file, n=3, lineterm="")
    for line in _refused_changes(loaded, other):
        print(line, file=sys.stderr)


def _readable(objects: list[Object]) -> str:
    """YAML with the resolved job as fields instead of one long line, and without hashes."""
    return manifest.write(*map(_with_resolved_job, objects))


def _with_resolved_job(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_resolved_job(item) for item in value]
    if not isinstance(value, dict):
        return value
    readable = {key: _with_resolved_job(item) for key, item in value.items() if key != names.ANNOTATION_HASH}
    if isinstance(resolved := value.get(names.ANNOTATION_RESOLVED_JOB), str):
        readable[names.ANNOTATION_RESOLVED_JOB] = json.loads(resolved)
    return readable


def _refused_changes(new: Loaded, old: Loaded) -> Iterator[str]:
    former = {(job.namespace, job.name): document for job, document in zip(old.jobs, old.documents, strict=True)}
    for job, document in zip(new.jobs, new.documents, strict=True):
        if before := former.get((job.namespace, job.name)):
            for problem in crd.change_problems(document.content, before.content):
                yield f"{document.place(problem.path)}: {problem}"
