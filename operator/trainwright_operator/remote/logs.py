"""``trainwright logs``: what the ranks of an attempt printed, in one stream."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from trainwright_operator.remote.cluster import Cluster
from trainwright_operator.remote.command import DONE, command
from trainwright_operator.remote.errors import RemoteError
from trainwright_operator.remote.following import Follower
from trainwright_operator.remote.jobs import find_job, find_pods
from trainwright_operator.remote.loglines import Line, Source, merged, printer, sources
from trainwright_operator.remote.podlogs import chosen, lines


@command
def main(cluster: Cluster, options: argparse.Namespace) -> int:
    if options.follow:
        return Follower(cluster, options).run()
    job = find_job(cluster, options.name)
    found = chosen(sources(find_pods(cluster, job)), options)
    for source in found:
        if source.note:
            print(f"{source.pod}: {source.note}", file=sys.stderr)
    show = printer(found, timestamps=options.timestamps, alone=options.rank is not None)
    for line in merged(_logs(cluster, [one for one in found if one.started], options.tail)):
        if options.rank in (None, line.rank):
            print(show(line))
    return DONE


def _logs(cluster: Cluster, started: list[Source], tail: int | None) -> list[Iterator[Line]]:
    """The log of each pod. One that cannot be read ends with a note, for the others can; the last one raises."""
    left = {source.pod for source in started}

    def readable(source: Source) -> Iterator[Line]:
        try:
            yield from lines(cluster, source, tail=tail)
        except RemoteError as error:
            left.discard(source.pod)
            if not left:
                raise RemoteError(f"{source.pod}: {error}") from None
            print(f"{source.pod}: {error}", file=sys.stderr)

    return [readable(source) for source in started]
