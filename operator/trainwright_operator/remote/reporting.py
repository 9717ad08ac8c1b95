"""``trainwright report``: summarizes a run as text, Markdown or JSON, or writes a page and pictures of its curves.

A run is a job in the cluster, with what rank 0 printed as long as its pods exist, or an output folder on this machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

from trainwright.contract import UserError
from trainwright_operator.remote.cluster import Cluster, RemoteError, connect
from trainwright_operator.remote.command import DONE, INVALID, show
from trainwright_operator.remote.jobs import find_job, find_pods
from trainwright_operator.remote.loglines import lines, sources
from trainwright_operator.remote.rendering import to_markdown, to_screen
from trainwright_operator.report.page import page
from trainwright_operator.report.reading import rows_of_lines
from trainwright_operator.report.run import Run, holds_run, read_folder, read_job
from trainwright_operator.report.series import BUCKETS
from trainwright_operator.report.summary import Curve, Summary, with_curves
from trainwright_operator.report.writing import Read, read_all, watch, write_images, write_page


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
    return partial(_read_remote, name, cluster)


def _read_remote(name: str, cluster: Callable[[], Cluster], axis: str, buckets: int) -> Run:
    job = find_job(cluster(), name)
    return read_job(job, rows_of_lines(_printed(cluster(), job)), datetime.now().astimezone(), axis, buckets)


def _printed(cluster: Cluster, job: dict[str, Any]) -> Iterator[str]:
    """The lines of rank 0 of all attempts whose pods exist; none if their logs cannot be read."""
    try:
        for leader in [one for one in sources(find_pods(cluster, job)) if one.has(0) and one.started]:
            yield from (line.text for line in lines(cluster, leader, tail=None) if line.rank == 0)
    except RemoteError:
        return


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
