"""``trainwright run``: trains a manifest on this machine, with the same plan and policy as in a cluster.

The differences: pods are processes, mounts are folders, the rendezvous uses loopback, and this Python replaces the
image. ``OMP_NUM_THREADS`` follows from the CPU request of a pod, not from this machine, because results depend on it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwright import extras
from trainwright.contract import UserError
from trainwright_operator.api.manifest import Document
from trainwright_operator.api.pods import PodTemplate
from trainwright_operator.api.spec import AcceleratorPool, TrainingJob, parse_job
from trainwright_operator.commands import overriding
from trainwright_operator.commands.loading import InvalidManifests, Loaded, load, on_pool, pool_of
from trainwright_operator.commands.options import add_set, pair
from trainwright_operator.core.history import History
from trainwright_operator.core.placement.pools import place
from trainwright_operator.core.policy import target_raised
from trainwright_operator.local import devices

if TYPE_CHECKING:
    from trainwright_operator.local.live import Screen
    from trainwright_operator.local.output import OutputFolder
    from trainwright_operator.local.run import Runner, Setup

DONE, FAILED, INVALID = 0, 1, 2
MODEL_FILES = (
    "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip
MAX_SAMPLE_LINES = 30
_NO_RESULTS = ("_runtime", "_per_second", "learning_rate", "grad_norm")
"""Metrics of the training process rather than of its result."""


def add_arguments(parser: argparse.ArgumentParser, output: str = "runs/NAME") -> None:
    parser.add_argument("file", metavar="FILE", help="the manifest of one TrainingJob, or - for standard input")
    parser.add_argument("--output", metavar="DIR", help=f"the output folder (default: {output})")
    parser.add_argument(
        "--volume",
        metavar="NAME=DIR",
        action="append",
        default=[],
        type=pair,
        help="the folder to use for a volume of podTemplate.volumes; repeatable",
    )
    parser.add_argument(
        "--config-map",
        metavar="NAME=DIR",
        action="append",
        default=[],
        type=pair,
        help="the folder to use for the ConfigMap of spec.script; repeatable",
    )
    add_set(parser)
    parser.add_argument("--pool", metavar="NAME", help="run on this pool instead of the manifest's; cpu always exists")
    parser.add_argument(
        "--pools", metavar="FILE", action="append", default=[], help="manifests of AcceleratorPools; repeatable"
    )


def main(options: argparse.Namespace) -> int:
    """0 if the job succeeded, 1 if it failed, 2 if it cannot run; 130 after Ctrl-C, 143 after SIGTERM."""
    return refused_in_lines(lambda: _run(*read(options), options))


def refused_in_lines(run: Callable[[], int]) -> int:
    """The exit code of ``run``; what the user must fix is printed, a line each, and makes it 2."""
    try:
        return run()
    except InvalidManifests as invalid:
        for line in invalid.lines:
            print(line, file=sys.stderr)
    except UserError as error:
        print(f"trainwright: {error}", file=sys.stderr)
    return INVALID


def read(options: argparse.Namespace) -> tuple[Document, TrainingJob, AcceleratorPool]:
    loaded = load([options.file], options.pools)
    if options.pool:
        loaded = on_pool(loaded, options.pool)
    if len(loaded.jobs) != 1:
        names = ", ".join(job.name for job in loaded.jobs)
        raise UserError(f"{options.file}: holds {len(loaded.jobs)} TrainingJobs ({names}); run takes one")
    document = overriding.overridden(loaded.documents[0], options.set)
    job = _on_this_machine(parse_job(document.content))
    _check_packages(job)
    return document, job, _pool(job, document, loaded)


def _check_packages(job: TrainingJob) -> None:
    """A script may not need these packages; if it does, its own import fails."""
    if job.spec.script is None and (line := extras.missing(*extras.packages("trainer"), "transformers", "datasets")):
        raise UserError(line)


def _on_this_machine(job: TrainingJob) -> TrainingJob:
    """Pods always use the network of this machine, even if the pool forbids the host network."""
    template = replace(job.spec.pod_template, host_network=False)
    return replace(job, spec=replace(job.spec, pod_template=template))


def _pool(job: TrainingJob, document: Document, loaded: Loaded) -> AcceleratorPool:
    """The pool of the job; raises if it does not fit the job or this machine."""
    pool = pool_of(job, document, loaded.pools)
    try:
        devices.check(pool, place(job, pool))
    except UserError as error:
        raise InvalidManifests([f"{document.place('spec.accelerator.pool')}: {error}"]) from None
    return pool


@dataclass(frozen=True)
class Prepared:
    """A job that can be trained here, with its open output folder."""

    document: Document
    job: TrainingJob
    setup: Setup
    folder: OutputFolder

    @property
    def is_trained(self) -> bool:
        return self.job.status.get("state") == "Succeeded" and not _raised(self.job)


@contextlib.contextmanager
def prepared(
    document: Document, job: TrainingJob, pool: AcceleratorPool, options: argparse.Namespace, output: Path
) -> Iterator[Prepared]:
    """Open the output, and continue what an earlier run of the job left there."""
    from trainwright_operator.local.output import OutputFolder, status_to_continue, uid_of
    from trainwright_operator.local.run import Setup

    volumes, config_maps = _folders(options.volume), _folders(options.config_map)
    with OutputFolder(output) as folder, tempfile.TemporaryDirectory(prefix="trainwright-run-") as scratch:
        prior = folder.prior()
        status = status_to_continue(document, prior, folder, datetime.now().astimezone())
        uid = uid_of(document.content, prior, output)
        job = replace(job, uid=uid, status=status, generation=(status.get("observedGeneration") or 0) + 1)
        yield Prepared(document, job, Setup(pool, output, Path(scratch), volumes, config_maps), folder)


def _run(document: Document, job: TrainingJob, pool: AcceleratorPool, options: argparse.Namespace) -> int:
    output = Path(options.output or Path("runs") / job.name).absolute()
    with prepared(document, job, pool, options, output) as made:
        if made.is_trained:
            print(f"{job.name} is already trained; use another --output to start again, or raise maxSteps to continue")
            return _conclude(job, made.job.status, output, [])
        final, received = train(made)
    _report(job, output)
    return _conclude(job, final, output, received)


def _report(job: TrainingJob, output: Path) -> None:
    """Write the page of the run; where it is comes before the run's end is told, which stays the last line."""
    from trainwright_operator.report.writing import write_beside

    if (written := write_beside(output)) is not None:
        print(f"{job.name}: report in {written}", file=sys.stderr)


def train(made: Prepared, show: Screen | None = None) -> tuple[dict[str, Any], list[int]]:
    """Train to the end; returns the final status, and the signals that were received.

    Args:
        show: By default a live table in a terminal, and lines in a pipe.
    """
    from trainwright_operator.local import packages
    from trainwright_operator.local.run import Runner

    job, setup = made.job, made.setup
    _note(job, setup.pool, setup.output)
    if requirements := (job.spec.script or {}).get("requirements"):
        setup = replace(setup, packages=packages.install(job, setup, requirements))
    made.folder.save_environment(setup.pool.name)
    keeper = _Keeper(made.folder, made.document, job, show)
    runner = Runner(job, setup, keeper.on_status)
    try:
        with _stopped_by_signals(runner) as received:
            return runner.run(), received
    finally:
        keeper.close(runner.status)


def _raised(job: TrainingJob) -> bool:
    """Whether the spec of a finished job asks for more steps or epochs than it was trained for."""
    last = History.of(job.status).last
    return last is not None and target_raised(job.spec, last)


class _Keeper:
    """Shows every status, and saves it on changes of state, attempts or checkpoint."""

    def __init__(self, folder: OutputFolder, document: Document, job: TrainingJob, show: Screen | None) -> None:
        from trainwright_operator.local.live import screen
        from trainwright_operator.terminal import Terminal

        metadata = {**document.content["metadata"], "namespace": job.namespace, "uid": job.uid}
        self._content = {**document.content, "metadata": {**metadata, "generation": job.generation}}
        self._folder, self._screen = folder, show or screen(job.name, Terminal(highlight=False))
        self._saved: tuple[Any, ...] = ()

    def on_status(self, status: dict[str, Any], events: Any) -> None:
        self._screen.show(status, events)
        self._folder.note_speed(status.get("progress") or {})
        news = (status["state"], status.get("attempts"), status.get("checkpoint"))
        if news != self._saved:
            self._folder.save(self._content, status)
            self._saved = news

    def close(self, status: dict[str, Any]) -> None:
        self._screen.close()
        if "state" in status:
            self._folder.save(self._content, status)


@contextlib.contextmanager
def _stopped_by_signals(runner: Runner) -> Iterator[list[int]]:
    """Ctrl-C, SIGTERM and SIGHUP stop the run gracefully; yields the list of received signals."""
    received: list[int] = []

    def stop(signum: int, frame: object) -> None:
        received.append(signum)
        if len(received) == 1:
            print("\nstopping: saving a checkpoint first; interrupt again to kill", file=sys.stderr)
        runner.stop()

    former = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield received
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)


def _folders(pairs: list[tuple[str, str]]) -> dict[str, Path]:
    folders = {name: Path(folder).absolute() for name, folder in pairs}
    for name, folder in folders.items():
        if not folder.is_dir():
            raise UserError(f"{name}={folder}: the folder does not exist")
    return folders


def _note(job: TrainingJob, pool: AcceleratorPool, output: Path) -> None:
    planned = place(job, pool)
    pods, ranks = planned.nodes * planned.slices, planned.per_node
    wanted, cores = pods * ranks * planned.threads, os.cpu_count() or 1
    print(f"{job.name}: {_count(pods, 'pod')} of {_count(ranks, 'rank')}, logs in {output / 'logs'}", file=sys.stderr)
    if wanted > cores:
        print(f"{job.name}: plans {wanted} threads on {_count(cores, 'core')}; they share the cores", file=sys.stderr)
    for ignored in _ignored(job.spec.pod_template):
        print(f"{job.name}: podTemplate.{ignored}", file=sys.stderr)


def _ignored(template: PodTemplate) -> Iterator[str]:
    """The settings of podTemplate that a local run ignores."""
    if template.env_from:
        yield "envFrom is not read here; set its variables in your environment"
    if template.init_containers:
        yield f"initContainers are not run here ({_names(template.init_containers)}); do their work first"
    if template.sidecars:
        yield f"sidecars are not run here ({_names(template.sidecars)}); start what the trainer needs"
    if template.dns_config:
        yield "dnsConfig is not used here; this machine's resolver is used"
    if template.runtime_class_name:
        yield f"runtimeClassName ({template.runtime_class_name}) is not used here"


def _names(containers: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(one["name"] for one in containers)


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _conclude(job: TrainingJob, status: Mapping[str, Any], output: Path, received: list[int]) -> int:
    state = status["state"]
    sys.stdout.flush()
    if state == "Succeeded":
        print("\n".join(_summary(job, status, output)))
        return DONE
    if state == "Failed":
        why = next(one for one in status["conditions"] if one["type"] == "Failed")
        print(
            f"trainwright: {job.name} failed: {why['reason']}: {why['message']}{_log(status, output)}", file=sys.stderr
        )
        return FAILED
    if not received:
        print(f"trainwright: {job.name}: spec.suspend is true, so nothing was run; remove it", file=sys.stderr)
        return FAILED
    checkpoint = (status.get("checkpoint") or {}).get("path")
    saved = f"saved {output / checkpoint}; " if checkpoint else ""
    print(f"trainwright: {job.name} stopped: {saved}run the same command to continue", file=sys.stderr)
    return 128 + received[0]


def _log(status: Mapping[str, Any], output: Path) -> str:
    pod = next((entry["pod"] for entry in reversed(status.get("attempts") or []) if "pod" in entry), None)
    return f" (log: {output / 'logs' / pod}.log)" if pod else ""


def _summary(job: TrainingJob, status: Mapping[str, Any], output: Path) -> Iterator[str]:
    shown, metrics = status["display"], {one["name"]: one["value"] for one in status.get("metrics") or ()}
    yield f"{job.name} succeeded" + (f" at step {shown['step']}" if "step" in shown else "")
    yield from (f"  model    {folder}" for folder in models(output))
    yield f"  output   {output}"
    yield f"  status   {output / 'trainingjob.yaml'}"
    yield f"  logs     {output / 'logs'}"
    metrics = {name: value for name, value in metrics.items() if not name.endswith(_NO_RESULTS)}
    if metrics:
        yield "  metrics  " + "  ".join(f"{name} {value}" for name, value in metrics.items())
    if (sample := output / "samples.txt").is_file():
        lines = sample.read_text(errors="replace").rstrip().splitlines()
        yield "  sample"
        yield from (f"    {line}" for line in lines[:MAX_SAMPLE_LINES])
        if len(lines) > MAX_SAMPLE_LINES:
            yield f"    ... ({len(lines) - MAX_SAMPLE_LINES} more lines in {sample})"


def models(output: Path) -> list[Path]:
    """At most four folders of the output that hold a model, the output itself first; checkpoints are skipped."""
    folders = [output, *sorted(one for depth in ("*", "*/*") for one in output.glob(depth) if one.is_dir())]
    found = [one for one in folders if any((one / name).is_file() for name in MODEL_FILES)]
    return [one for one in found if not any(part.startswith("checkpoint-") for part in one.parts)][:4]
