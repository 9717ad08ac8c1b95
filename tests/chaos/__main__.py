"""Brings faults about by a seed, and prints what became of every job; ends with 1 where a promise does not hold.

    cd tests && python -m chaos --seed 1 --faults 100 --jobs 20 [--only trained-3]

Half of the jobs are real processes that train, on this machine, and get a third of the faults; the other half are
pods on simulated nodes, with the real control plane. What was found is kept in a folder of runs/ for the numbers given:
the same command goes on where it was interrupted, and `--only` replays one of its lines.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from chaos import control_plane, plan, processes
from cluster import programs
from cluster.paths import CHECKOUT

FORM = "{:<14}{:>8}  {:<46}{:>8}  {}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--only", help="replay this line, such as trained-3")
    options = parser.parse_args()
    folder = CHECKOUT / "runs" / f"chaos-{options.seed}-{options.faults}-{options.jobs}"
    findings = plan.Findings(folder / "found")
    lines = _lines(options, folder)
    if options.only and options.only not in lines:
        parser.error(f"--only {options.only}: there is {', '.join(lines)}")
    print(FORM.format("LINE", "SECONDS", "FAULTS", "PROBLEMS", ""), flush=True)
    found: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        for name, run in lines.items():
            if options.only not in (None, name):
                continue
            known = findings.read(name) if options.only is None else None
            if known is None:
                began = time.monotonic()
                known = run(stack)
                known["took"] = round(time.monotonic() - began)
                findings.write(name, known)
            found[name] = known
            print(_row(name, known), flush=True)
    return _conclude(found)


def _lines(options: argparse.Namespace, folder: Path) -> dict[str, Callable[[ExitStack], dict[str, Any]]]:
    """What is to be done, by name."""
    jobs, faults = options.jobs - options.jobs // 2, -(-options.faults // 3)
    lines: dict[str, Callable[[ExitStack], dict[str, Any]]] = {
        f"trained-{job.number}": lambda stack, job=job: processes.proved(job, folder)  # type: ignore[misc]
        for job in plan.trained(options.seed, jobs, faults)
    }
    if absent := programs.missing(programs.CONTROL_PLANE):
        print(f"no jobs on simulated nodes, because {', '.join(absent)} are not built: make cluster-tools")
        return lines
    started: list[control_plane.Chaos] = []

    def simulate(stack: ExitStack, round_: plan.Simulated) -> dict[str, Any]:
        if not started:
            started.append(stack.enter_context(control_plane.chaos(folder / "control-plane")))
        return started[0].round(round_)

    rounds = plan.simulated(options.seed, options.jobs // 2, options.faults - faults)
    return lines | {f"simulated-{one.number}": lambda stack, one=one: simulate(stack, one) for one in rounds}  # type: ignore[misc]


def _kinds(found: dict[str, Any]) -> Counter[str]:
    return Counter([strike["fault"]["kind"] for strike in found.get("strikes", ())] + list(found.get("faults", ())))


def _row(name: str, found: dict[str, Any]) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(_kinds(found).items()))
    head, *others = [kinds[at : at + 45] for at in range(0, len(kinds), 45)] or [""]
    first = FORM.format(name, found["took"], head, len(found["problems"]) or "none", "; ".join(found["problems"]))
    return "\n".join([first.rstrip(), *(FORM.format("", "", other, "", "").rstrip() for other in others)])


def _span(seconds: list[float]) -> str:
    return f"{seconds[0]:.1f} to {seconds[-1]:.1f} s, median {statistics.median(seconds):.1f} s"


def _conclude(found: dict[str, dict[str, Any]]) -> int:
    strikes = [strike for one in found.values() for strike in one.get("strikes", ())]
    totals = sum((_kinds(one) for one in found.values()), Counter[str]())
    print(f"\n{sum(totals.values())} faults:")
    for kind, count in sorted(totals.items()):
        mine = sorted(one["seconds"] for one in strikes if one["fault"]["kind"] == kind and one["seconds"] is not None)
        print(f"  {count:>4}  {kind}" + (f"; steps again after {_span(mine)}" if mine else ""))
    compared = [one["compared"] for one in found.values() if "compared" in one]
    alike = sum(all(part["identical"] == part["of"] > 0 for part in one.values()) for one in compared)
    problems = sum(len(one["problems"]) for one in found.values())
    print(f"weights and logs identical in {alike} of {len(compared)} trainings; {problems} problems")
    return 1 if problems or not found else 0


if __name__ == "__main__":
    sys.exit(main())
