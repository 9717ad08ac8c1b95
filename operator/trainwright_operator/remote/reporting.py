"""``trainwright report``: a run in brief, for a person, a page or a program."""

from __future__ import annotations

import argparse
from datetime import datetime

from trainwright_operator.remote.cluster import Cluster
from trainwright_operator.remote.command import DONE, command, show
from trainwright_operator.remote.history import read_curves
from trainwright_operator.remote.jobs import find_job
from trainwright_operator.remote.page import to_html
from trainwright_operator.remote.rendering import to_markdown, to_screen
from trainwright_operator.remote.summary import summarize


@command
def main(cluster: Cluster, options: argparse.Namespace) -> int:
    job = find_job(cluster, options.name)
    summary = summarize(job, datetime.now().astimezone(), read_curves(cluster, job))
    if options.format == "json":
        print(summary.to_json(), end="")
    elif options.format == "md":
        print(to_markdown(summary), end="")
    elif options.format == "html":
        print(to_html(summary), end="")
    else:
        show(to_screen(summary))
    return DONE
