"""``trainwright prove``: trains a job here twice, undisturbed and disturbed by faults, and compares the ends.

It tries the promise that whatever dies, the run goes on by itself and ends with the weights of an undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainwright.contract import UserError
from trainwright_operator.api.manifest import Document
from trainwright_operator.api.spec import AcceleratorPool, TrainingJob
from trainwright_operator.core.placement.pools import place
from trainwright_operator.core.times import read_time
from trainwright_operator.local import command, comparing
from trainwright_operator.local.comparing import Alike
from trainwright_operator.local.faults import KINDS, Fault, Gang, Strike, Striker, choose
from trainwright_operator.local.live import Lines
from trainwright_operator.terminal import Terminal

DONE, FAILED = 0, 1
UNDISTURBED, DISTURBED, FILE = "undisturbed", "disturbed", "proof.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    command.add_arguments(parser, "runs/NAME-proof")
    parser.add_argument("--faults", type=_positive, default=3, metavar="N", help="how many faults (default: 3)")
    parser.add_argument("--seed", type=int, metavar="N", help="choose the same faults again (default: a new seed)")
    parser.add_argument(
        "--kinds", metavar="KIND,...", type=_kinds, default=tuple(KINDS), help=f"of {', '.join(KINDS)} (default: all)"
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1")
    return int(text)


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} must be one of {', '.join(KINDS)}")
    return kinds


def main(options: argparse.Namespace) -> int:
    """0 if the job ended as an undisturbed one, 1 if it did not or failed, 2 if it cannot run here."""
    return command.refused_in_lines(lambda: _Proof(*command.read(options), options).run())


class _Interrupted(Exception):
    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.code = 128 + signum


@dataclass(frozen=True)
class _Ended:
    """How a run ended. ``orphans`` are the processes that it left."""

    status: Mapping[str, Any]
    strikes: list[Strike]
    missed: list[Fault]
    orphans: list[int]

    @property
    def succeeded(self) -> bool:
        return bool(self.status["state"] == "Succeeded")


class _Proof:
    def __init__(
        self, document: Document, job: TrainingJob, pool: AcceleratorPool, options: argparse.Namespace
    ) -> None:
        restarts = max(job.spec.max_restarts, options.faults)  # the faults are ours, and count for nothing
        self._job = replace(job, spec=replace(job.spec, max_restarts=restarts))
        self._document, self._pool, self._options = document, pool, options
        self._folder = Path(options.output or Path("runs") / f"{job.name}-proof").absolute()
        self._seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1_000_000)

    def run(self) -> int:
        try:
            first = self._train(UNDISTURBED, [])
            if not first.succeeded:
                _say(f"the undisturbed run failed, so there is nothing to compare with: {_why(first.status)}")
                return FAILED
            faults = choose(self._seed, _steps(first.status), self._options.faults, self._options.kinds)
            _clear(self._folder / DISTURBED)
            second = self._train(DISTURBED, faults)
        except _Interrupted as interrupted:
            return interrupted.code
        return self._judge(second)

    def _train(self, name: str, faults: list[Fault]) -> _Ended:
        output = self._folder / name
        with command.prepared(self._document, self._job, self._pool, self._options, output) as made:
            if made.is_trained:
                _say(f"{output} is already trained")
                return _Ended(made.job.status, [], [], [])
            show = _Shown(f"{self._job.name}, {name}")
            scratch = made.setup.scratch
            striker = Striker(faults, scratch, self._ranks(), show.attempt, lambda: _kept(output), show.say)
            with striker if faults else nullcontext():
                status, received = command.train(made, show)
            if received:
                raise _Interrupted(received[0])
            return _Ended(status, striker.strikes, striker.left, sorted(Gang(scratch).processes()))

    def _ranks(self) -> int:
        planned = place(self._job, self._pool)
        return planned.nodes * planned.slices * planned.per_node

    def _judge(self, ended: _Ended) -> int:
        one, other = self._folder / UNDISTURBED, self._folder / DISTURBED
        alike = [comparing.weights(one, other), comparing.losses(one, other)]
        problems = list(_problems(ended, alike))
        print("\n".join(_table(ended)))
        for each in alike:
            print(f"{each.what:<15}{each}")
        accounted, life = _account(ended.status)
        percent = (ended.status.get("goodput") or {}).get("percent", 0)
        print(f"{'goodput':<15}{percent}%; {accounted:.1f} of {life:.1f} s accounted for")
        print(f"{'processes':<15}{'none left' if not ended.orphans else f'left: {ended.orphans}'}")
        print(f"{'seed':<15}{self._seed}; --seed {self._seed} chooses the same faults again")
        self._save(ended, alike, problems)
        if problems:
            print(f"NOT PROVED: {'; '.join(problems)}")
            return FAILED
        count = len(ended.strikes)
        print(f"PROVED: {count} {'fault' if count == 1 else 'faults'}, and the end of an undisturbed run")
        return DONE

    def _save(self, ended: _Ended, alike: list[Alike], problems: list[str]) -> None:
        found = {
            "seed": self._seed,
            "strikes": [asdict(strike) for strike in ended.strikes],
            "compared": {each.what: {"identical": each.same, "of": each.total} for each in alike},
            "attempts": ended.status.get("attempts", []),
            "problems": problems,
        }
        (self._folder / FILE).write_text(json.dumps(found, indent=1) + "\n")


def _problems(ended: _Ended, alike: list[Alike]) -> Iterator[str]:
    if not ended.succeeded:
        yield f"the disturbed run failed: {_why(ended.status)}"
    for each in alike:
        if not each.holds:
            yield str(each)
    if ended.orphans:
        yield f"{len(ended.orphans)} processes were left"
    if not ended.strikes:
        yield "the run ended before any fault could be brought about; train more steps"
    for record in ended.status.get("attempts", ())[:-1]:
        if not record.get("reason"):
            yield f"attempt {record['attempt']} is not explained"
    accounted, life = _account(ended.status)
    if abs(accounted - life) > max(1.0, 0.01 * life):
        yield f"the goodput accounts for {accounted:.1f} s of {life:.1f} s"


def _account(status: Mapping[str, Any]) -> tuple[float, float]:
    """The seconds that the goodput accounts for, and those of the job's life; times are whole seconds."""
    goodput = status.get("goodput") or {}
    since, end = read_time(goodput.get("since")), read_time(status.get("completionTime"))
    life = (end - since).total_seconds() if since and end else 0.0
    return float(sum(goodput.get("seconds", {}).values())), life


def _table(ended: _Ended) -> Iterator[str]:
    yield f"{'STEP':<7}{'FAULT':<34}{'STEPS AGAIN AFTER':<19}{'TRAINED AGAIN':<15}WHAT THE STATUS SAYS"
    records = {record["attempt"]: record for record in ended.status.get("attempts", ())}
    rounds = {number: iter(record.get("rounds", ())) for number, record in records.items()}
    for strike in ended.strikes:
        what = {"rank": "killed", "pod": "killed", "stop": "asked to stop", "pause": "stood still"}
        fault = f"{strike.victim} {what.get(strike.fault.kind, 'asked to stop, then killed')}"
        after = f"{strike.seconds:.1f} s" if strike.seconds is not None else "no step was left"
        again = "-" if strike.kept is None or strike.fault.kind == "pause" else f"{max(0, strike.step - strike.kept)}"
        ended_round = next(rounds.get(strike.attempt, iter(())), None) if strike.fault.kind == "rank" else None
        said = (
            _said_of_round(strike.attempt, ended_round)
            if ended_round
            else _said(records.get(strike.attempt) if strike.fault.kind != "pause" else None)
        )
        yield f"{strike.step:<7}{fault:<34}{after:<19}{again:<15}{said}"
    for missed in ended.missed:
        yield f"{missed.step:<7}none: the run ended too soon"


def _said_of_round(attempt: int, ended: Mapping[str, Any]) -> str:
    """Of a fault after which the ranks were restarted in place."""
    code = f", exit code {ended['exitCode']}" if "exitCode" in ended else ""
    return f"attempt {attempt}, round {ended['round']}: {ended['reason']}{code}"


def _said(record: Mapping[str, Any] | None) -> str:
    if record is None or record.get("outcome") == "Succeeded":
        return "nothing: the attempt went on"
    code = f", exit code {record['exitCode']}" if "exitCode" in record else ""
    return f"attempt {record['attempt']} {record['outcome']}: {record['reason']}{code}"


class _Shown(Lines):
    """Lines of a run, and the number of its attempt."""

    def __init__(self, name: str) -> None:
        super().__init__(name, Terminal(highlight=False, stderr=True))
        self._number = 1

    def show(self, status: Mapping[str, Any], events: Any) -> None:
        self._number = max((record["attempt"] for record in status.get("attempts", ())), default=1)
        super().show(status, events)

    def attempt(self) -> int:
        return self._number

    def say(self, text: str) -> None:
        self._print(text)


def _steps(status: Mapping[str, Any]) -> int:
    steps = int((status.get("progress") or {}).get("step") or 0)
    if steps < 2:
        raise UserError("prove needs a job that trains with the Trainer for at least two steps; this one reports none")
    return steps


def _kept(output: Path) -> int:
    """The step of the newest checkpoint, 0 without one."""
    newest = next(reversed(comparing.checkpoints(output)), None)
    return int(newest.name.rpartition("-")[2]) if newest is not None else 0


def _clear(folder: Path) -> None:
    """Remove what an earlier proof left; never a folder that holds anything else."""
    if folder.exists():
        if not (folder / "trainingjob.yaml").is_file() and any(folder.iterdir()):
            raise UserError(f"{folder}: holds files of something else; choose another --output")
        shutil.rmtree(folder)


def _why(status: Mapping[str, Any]) -> str:
    failed = next((one for one in status["conditions"] if one["type"] == "Failed" and one["status"] == "True"), None)
    return f"{failed['reason']}: {failed['message']}" if failed else f"it is {status['state']}"


def _say(line: str) -> None:
    print(f"prove: {line}", file=sys.stderr)
