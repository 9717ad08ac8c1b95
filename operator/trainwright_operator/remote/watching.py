"""``trainwright watch``: follows jobs until all have finished."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from contextlib import closing

from trainwright_operator.api.names import JOB_KIND
from trainwright_operator.core.states import failed, finished
from trainwright_operator.remote.board import Board, board
from trainwright_operator.remote.cluster import Cluster, Object, RemoteError
from trainwright_operator.remote.command import DONE, FAILED, command
from trainwright_operator.remote.feed import Key, snapshots
from trainwright_operator.remote.jobs import find_job, jobs_path
from trainwright_operator.terminal import Terminal


@command
def main(cluster: Cluster, options: argparse.Namespace) -> int:
    if options.names and options.all_namespaces:
        raise RemoteError("--all-namespaces watches every job; remove the names, or give --namespace instead")
    namespace = None if options.all_namespaces else cluster.namespace
    for name in options.names:
        find_job(cluster, name)
    wide = options.output == "wide"
    with closing(board(Terminal(), namespaced=options.all_namespaces, wide=wide)) as shown:
        watch = Watch(shown, {(cluster.namespace, name) for name in options.names})
        query = {"fieldSelector": f"metadata.name={options.names[0]}"} if len(options.names) == 1 else {}
        for jobs in snapshots(cluster, jobs_path(namespace), shown.say, **query):
            watch.look(jobs)
            if watch.over:
                break
    if not watch.seen and not watch.lost:
        raise RemoteError(f"no {JOB_KIND} in {f'namespace {namespace}' if namespace else 'any namespace'}")
    return FAILED if watch.failed else DONE


class Watch:
    """The watched jobs, and whether any has failed.

    Named jobs always count; without names only jobs that had not finished when the watch started.
    """

    def __init__(self, shown: Board, wanted: Collection[Key]) -> None:
        self._board, self._wanted = shown, frozenset(wanted)
        self._old: set[Key] | None = None
        self.seen: dict[Key, Object] = {}
        self.lost: set[Key] = set()

    @property
    def over(self) -> bool:
        return all(finished(job) for job in self.seen.values())

    @property
    def failed(self) -> set[Key]:
        """The jobs that failed or were deleted before they finished."""
        return {key for key, job in self.seen.items() if failed(job) and key not in (self._old or ())} | self.lost

    def look(self, jobs: Mapping[Key, Object]) -> None:
        """Show what changed."""
        current = {key: jobs[key] for key in sorted(jobs) if not self._wanted or key in self._wanted}
        if self._old is None:
            self._old = set() if self._wanted else {key for key, job in current.items() if finished(job)}
        self._old -= {key for key, job in current.items() if not finished(job)}
        for key in sorted(self.seen.keys() - current.keys()):
            self._board.gone(key)
            if not finished(self.seen[key]):
                self.lost.add(key)
        for key, job in current.items():
            if self.seen.get(key) != job:
                self._board.update(key, self.seen.get(key), job)
        self.seen = current
