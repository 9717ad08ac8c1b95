"""``trainwright report``: summarizes a run as text, Markdown or JSON, or writes a page and pictures of its curves.

A run is a job in the cluster, with what rank 0 printed as long as its pods exist, or an output folder on this machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

from trainwright.contract import UserError
from trainwright_operator.api.names import CONTAINER, LABEL_ATTEMPT
from trainwright_operator.remote.cluster import Cluster, RemoteError, connect
from trainwright_operator.remote.command import DONE, INVALID, show
from trainwright_operator.remote.jobs import find_job, find_pods
from trainwright_operator.remote.loglines import lines, sources
from trainwright_operator.remote.rendering import to_markdown, to_screen
from trainwright_operator.report.page import page
from trainwright_operator.report.reading import rows_of_lines
from trainwright_operator.report.run import Run, holds_run, read_folder, read_job, speed_of
from trainwright_operator.report.series import BUCKETS
from trainwright_operator.report.summary import Curve, Summary, with_curves
from trainwright_operator.report.writing import Read, read_all, watch, write_images, write_page

_NODES = 8
"""Nodes that are named."""
_OF_DEVICE = ("device", "driver", "torch", "cuda", "nccl", "rocm", "rccl", "torchXla", "torchTpu", "topology")


def main(options: argparse.Namespace) -> int:
    try:
        return _report(options)
    except (RemoteError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return INVALID


def _report(options: argparse.Namespace) -> int:
    _check(options)
    cluster = cache(lambda: connect(options.kubeconfig, options.context, options.namespace))
    readers = [_reader(name, cluster) for name in options.names]
    if options.html is None and options.png is None:
        return _print(readers, options.format or "text")
    if options.watch:
        print(f"writing {options.html} until the runs finish; Ctrl-C stops", file=sys.stderr)
    runs = watch(readers, Path(options.html)) if options.watch else read_all(readers)
    if options.html is not None:
        write_page(runs, Path(options.html))
        print(options.html)
    if options.png is not None:
        for path in write_images(runs, Path(options.png), options.svg):
            print(path)
    return DONE


def _check(options: argparse.Namespace) -> None:
    writes = options.html is not None or options.png is not None
    if options.watch and options.html is None:
        raise UserError("--watch: it updates a page; add --html FILE")
    if options.svg and options.png is None:
        raise UserError("--svg: it is written into the folder of --png; add --png FOLDER")
    if options.format is not None and writes:
        raise UserError("--format: it prints a summary; leave it out with --html and --png")
    if len(options.names) > 1 and not writes and options.format != "html":
        raise UserError("several runs are compared on a page; add --html FILE")


def _reader(name: str, cluster: Callable[[], Cluster]) -> Read:
    """A folder if the name is a path, or that of a folder with a run; else a job in the cluster."""
    folder, is_path = Path(name), "/" in name or name == "."
    if name and folder.is_dir() and (is_path or holds_run(folder)):
        return partial(read_folder, folder)
    if is_path and name != ".":
        raise UserError(f"{name}: there is no such folder")
    return _Remote(name, cluster)


class _Remote:
    """Reads a job in the cluster. The status has the latest throughput alone, so that of earlier reads is kept."""

    def __init__(self, name: str, cluster: Callable[[], Cluster]) -> None:
        self._name, self._cluster = name, cluster
        self._speeds: dict[int, dict[str, Any]] = {}

    def __call__(self, axis: str, buckets: int) -> Run:
        job = find_job(self._cluster(), self._name)
        pods, printed = self._pods(job), _Printed()
        rows = rows_of_lines(printed.lines(self._cluster(), pods))
        run = read_job(job, rows, datetime.now().astimezone(), axis, buckets)
        run.environment = environment_of(pods, printed.device)
        if row := speed_of((job.get("status") or {}).get("progress") or {}):
            self._speeds[row["step"]] = row
        for step in sorted(self._speeds):
            run.curves.add(self._speeds[step])
        return run

    def _pods(self, job: dict[str, Any]) -> list[dict[str, Any]]:
        try:
            return find_pods(self._cluster(), job)
        except RemoteError:
            return []


class _Printed:
    """What rank 0 printed. ``device`` is what it said of its accelerator, once its lines are read."""

    def __init__(self) -> None:
        self.device: dict[str, Any] = {}

    def lines(self, cluster: Cluster, pods: list[dict[str, Any]]) -> Iterator[str]:
        """Of all attempts whose pods exist; no lines if the logs cannot be read."""
        try:
            for leader in [one for one in sources(pods) if one.has(0) and one.started]:
                for line in lines(cluster, leader, tail=None):
                    if line.rank == 0:
                        if line.text.startswith('{"event": "device"'):
                            self._note(line.text)
                        yield line.text
        except RemoteError:
            return

    def _note(self, text: str) -> None:
        with suppress(ValueError):
            self.device = json.loads(text)


def environment_of(pods: list[dict[str, Any]], device: dict[str, Any]) -> dict[str, str]:
    """The image and the nodes of the latest attempt, and what rank 0 said of its accelerator."""
    newest = max((_attempt(pod) for pod in pods), default=0)
    mine = [pod for pod in pods if _attempt(pod) == newest]
    images = {one.get("image") for pod in mine for one in pod["spec"]["containers"] if one["name"] == CONTAINER}
    nodes = sorted({pod["spec"]["nodeName"] for pod in mine if pod["spec"].get("nodeName")})
    more = f" and {len(nodes) - _NODES} more" if len(nodes) > _NODES else ""
    found = {"image": ", ".join(sorted(filter(None, images))), "nodes": ", ".join(nodes[:_NODES]) + more}
    found |= {name: str(device[name]) for name in _OF_DEVICE if name in device}
    if isinstance(memory := device.get("memoryBytes"), int):
        found["memory"] = f"{memory / 1e9:.0f} GB"
    return {name: value for name, value in found.items() if value}


def _attempt(pod: dict[str, Any]) -> int:
    return int((pod["metadata"].get("labels") or {}).get(LABEL_ATTEMPT, 0))


def _print(readers: list[Read], form: str) -> int:
    if form == "html":
        print(page(read_all(readers), datetime.now().astimezone()), end="")
        return DONE
    summary = _summary(readers[0]("epoch", BUCKETS))
    if form == "json":
        print(summary.to_json(), end="")
    elif form == "md":
        print(to_markdown(summary), end="")
    else:
        show(to_screen(summary))
    return DONE


def _summary(run: Run) -> Summary:
    if run.summary is None:
        raise UserError(f"{run.source}: is not the output of a TrainingJob; add --html FILE or --png FOLDER")
    losses: dict[str, Curve] = {
        name: run.curves.series[name].points() for name in ("loss", "eval_loss") if name in run.curves.series
    }
    return with_curves(run.summary, losses)
