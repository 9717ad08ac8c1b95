"""``trainwright validate``."""

from __future__ import annotations

import sys
from argparse import Namespace

from trainwright_operator.api.manifest import Document
from trainwright_operator.commands import loading

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
    return f"{document.source}: {content['kind']} {metadata.get('name') or metadata['generateName']} is valid"
