"""Options that several commands share; light, because every start of the command line imports it."""

from __future__ import annotations

import argparse


def add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        type=pair,
        help="change a field for this command, such as spec.trainingArguments.maxSteps=20; repeatable",
    )


def pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be written NAME=VALUE")
    return name, value
