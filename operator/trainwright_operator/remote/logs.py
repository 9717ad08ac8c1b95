"""``trainwright logs``: what the ranks of an attempt printed, in one stream."""

from __future__ import annotations

import argparse
import sys

from trainwright_operator.remote.cluster import Cluster
from trainwright_operator.remote.command import DONE, command
from trainwright_operator.remote.following import Follower
from trainwright_operator.remote.jobs import find_job, find_pods
from trainwright_operator.remote.loglines import merged, printer, sources
from trainwright_operator.remote.podlogs import chosen, lines


@command
def main(cluster: Cluster, options: argparse.Namespace) -> int:
    if options.follow:
        return Follower(cluster, options).run()
    job = find_job(cluster, options.name)
    found = chosen(sources(find_pods(cluster, job)), options)
    for source in found:
        if not source.started:
            print(f"{source.pod}: no log yet: {source.waiting}", file=sys.stderr)
    show = printer(found, timestamps=options.timestamps, alone=options.rank is not None)
    for line in merged(lines(cluster, one, tail=options.tail) for one in found if one.started):
        if options.rank in (None, line.rank):
            print(show(line))
    return DONE
