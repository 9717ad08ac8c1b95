"""``trainwright validate``."""

from __future__ import annotations

import sys
from argparse import Namespace

from trainwright_operator.api import names
from trainwright_operator.api.manifest import Document
from trainwright_operator.api.spec import parse_job
from trainwright_operator.commands import loading
from trainwright_operator.core import elastic

DONE, INVALID = 0, 2


def main(options: Namespace) -> int:
    checked = loading.check(options.files)
    misfits = list(loading.misfits(checked))
    wrong = [document for document, _ in misfits]
    if not options.quiet:
        for document in checked.documents:
            if document not in wrong:
                print(_valid(document))
    mistakes = [*checked.mistakes, *(line for _, line in misfits)]
    for mistake in mistakes:
        print(mistake, file=sys.stderr)
    return INVALID if mistakes else DONE


def _valid(document: Document) -> str:
    content = document.content
    metadata = content["metadata"]
    said = f"{document.source}: {content['kind']} {metadata.get('name') or metadata['generateName']} is valid"
    return f"{said}{_sizes(document)}"


def _sizes(document: Document) -> str:
    """With how many nodes an elastic job may train, and how often it then accumulates."""
    if document.content["kind"] != names.JOB_KIND:
        return ""
    job = parse_job(document.content)
    if not elastic.asked(job):
        return ""
    steps = {size: elastic.sized(job, size).spec.training_arguments for size in elastic.sizes(job)}
    shown = [
        f"{size} (gradientAccumulationSteps {it.get('gradient_accumulation_steps', 1)})" for size, it in steps.items()
    ]
    return f"; it may train on {' or '.join(shown)} nodes"
