"""Which pods' logs are meant, and how one is read."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from trainwright_operator.remote.cluster import Cluster
from trainwright_operator.remote.errors import RemoteError
from trainwright_operator.remote.jobs import core_path
from trainwright_operator.remote.loglines import Line, Source, read


def lines(
    cluster: Cluster, source: Source, *, tail: int | None, follow: bool = False, since: str = ""
) -> Iterator[Line]:
    """The last ``tail`` lines or all, or those after the time ``since``; ``follow`` waits for more while it runs."""
    query = {"timestamps": "true", "follow": str(follow).lower(), "container": source.container}
    if since:
        query["sinceTime"] = since
    elif tail is not None:
        query["tailLines"] = str(tail)
    path = core_path(cluster.namespace, "pods", source.pod, "log")
    made = (read(source, text) for text in cluster.lines(path, **query))
    return (line for line in made if line.time > since)


def chosen(found: list[Source], options: argparse.Namespace) -> list[Source]:
    """The pods that the options mean; :class:`RemoteError` with those that there are."""
    if not found:
        raise RemoteError(
            f"{options.name} has no pods yet, or no more; `trainwright describe {options.name}` tells why"
        )
    attempts = sorted({source.attempt for source in found})
    attempt = attempts[-1] if options.attempt is None else options.attempt
    if options.previous:
        attempt = max((one for one in attempts if one < attempts[-1]), default=attempts[-1] - 1)
    of_attempt = [source for source in found if source.attempt == attempt]
    if not of_attempt:
        listed = ", ".join(map(str, attempts))
        raise RemoteError(f"attempt {attempt} has no pods; there are pods of attempt {listed}")
    of_rank = [source for source in of_attempt if options.rank is None or source.has(options.rank)]
    if not of_rank:
        last = max(source.first + source.ranks for source in of_attempt) - 1
        raise RemoteError(f"attempt {attempt} has no pod of rank {options.rank}; its ranks are 0 to {last}")
    return of_rank
