"""docs/pools.md says what is planned: every generation, every variable of a TPU's pods; its sources."""

from __future__ import annotations

import re
from pathlib import Path

from pool_cases import CASES, planned
from trainwright_operator.api.topology import GENERATIONS
from trainwright_operator.core.placement.pools import VENDORS

DOCS = Path(__file__).parents[2] / "docs"
MANUAL = (DOCS / "pools.md").read_text()


def rows(first: str) -> list[list[str]]:
    """The rows of the table whose first heading is this."""
    below = MANUAL.split(f"| {first} |")[1].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in below]
    return cells[: next(index for index, line in enumerate(below) if not line.startswith("|"))]


def test_the_manual_has_every_vendor_with_its_resource() -> None:
    documented = {row[0].strip("`"): row[1] for row in rows("vendor")}
    assert list(documented) == list(VENDORS)
    assert all(f"`{vendor.resource or 'cpu'}`" in documented[name] for name, vendor in VENDORS.items())


def test_the_manual_has_every_generation_with_its_hosts() -> None:
    told = {row[0].strip("`"): (row[1].strip("`"), row[2], int(row[3]), int(row[4])) for row in rows("`generation`")}
    hosts = {name: ", ".join(map(str, one.chips_per_host)) for name, one in GENERATIONS.items()}
    assert told == {
        name: (one.accelerator, " or ".join(hosts[name].rsplit(", ", 1)), one.axes, one.devices_per_chip)
        for name, one in GENERATIONS.items()
    }


def test_the_manual_has_every_variable_of_a_tpu_pod() -> None:
    told = {name for row in rows("variable") for name in re.findall(r"`(\w+)`", row[0])}
    set_ = set()
    for case in CASES.values():
        for job in planned(case) if case.image.startswith("tpu") else []:
            set_ |= {one["name"] for one in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    on_cpu = planned(CASES["cpu, one rank"])[0]["spec"]["template"]["spec"]["containers"][0]["env"]
    assert told == set_ - {one["name"] for one in on_cpu} - {"TRAINWRIGHT_FIRST_NODE_RANK"}


def test_every_number_of_the_manual_has_its_source() -> None:
    text, _, sources = MANUAL.partition("## Sources")
    cited = {int(number) for number in re.findall(r"\[(\d+)\]", text)}
    assert cited == {int(number) for number in re.findall(r"^(\d+)\. ", sources, re.M)}
