"""Restarts the ranks of a gang in place: the launchers stop them, meet again over the store of node 0, and start anew.

After a failure that a retry may survive, every launcher answers how the round ended on its node once the last of its
ranks is gone. Node 0 decides: a new round if every launcher has answered, no pod is to stop, the first failure allows
it, and the budget (``maxRestarts``) is not used up. Otherwise all launchers end, and the operator decides about a new
attempt. A launcher that does not answer is gone or stuck, so then there is no new round either.

Every round has a store of its own, on a port that node 0 chooses. So nothing that was said in an earlier round, such as
"stop" or "done", reaches the ranks of a later one. The launchers keep the first store, to decide over it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from trainwright.contract import (
    ENV_FAILURES_IN_A_ROW,
    ENV_RESTARTS_LEFT,
    HEALTHY_SECONDS,
    PERMANENT,
    ExitCode,
    RoundEnd,
    backoff_seconds,
    restarts_in_place,
)
from trainwright.launch.rendezvous import Place
from trainwright.launch.supervisor import Finding, Stop, Supervisor
from trainwright.launch.verdict import Failure

ANSWER_SECONDS = 20.0
"""How long node 0 waits for the answers of the other launchers after its own ranks have ended."""
DECISION_SECONDS = ANSWER_SECONDS + 10.0
"""How long the others wait for its decision."""
_POLL_SECONDS = 0.02


class Gang(Protocol):
    """Where the launchers meet."""

    base: Any
    """The store of the first round."""

    def renew(self, port: int = 0) -> int:
        """Opens the store of the next round; returns its port."""
        ...


@dataclass(frozen=True)
class Answer:
    """How a round ended on one node. ``leaves``: its pod was asked to stop, or has nothing left to do."""

    failure: Failure
    secondary: bool = False
    time: float = 0.0
    leaves: bool = False

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "failure": {**asdict(self.failure), "by": None}})

    @staticmethod
    def from_json(text: str | bytes) -> Answer:
        data = json.loads(text)
        failure = {name: value for name, value in data["failure"].items() if name != "by"}
        return Answer(**{**data, "failure": Failure(**failure)})


def first_cause(answers: Mapping[int, Answer]) -> tuple[int, Failure]:
    """The node and the failure that ended the round: a permanent one, else the earliest that explains itself."""

    def order(node: int) -> tuple[bool, bool, float]:
        answer = answers[node]
        return answer.failure.code not in PERMANENT, answer.secondary, answer.time

    node = min(answers, key=order)
    failure = answers[node].failure
    return (failure.node if failure.node is not None else node), failure


class Rounds:
    """The rounds of an attempt: the number of this one, how those before it ended, and what is left of the budget."""

    def __init__(
        self, place: Place, environment: Mapping[str, str], stop: Stop, report: Callable[[int, list[RoundEnd]], None]
    ) -> None:
        self.number = 1
        self.ended: list[RoundEnd] = []
        self._place, self._stop, self._report = place, stop, report
        self._left = _number(environment, ENV_RESTARTS_LEFT)
        self._row = _number(environment, ENV_FAILURES_IN_A_ROW)
        self._began = time.monotonic()

    @property
    def restarts(self) -> bool:
        """Whether another round is allowed."""
        return self._left > 0

    def go_on(self, supervisor: Supervisor, gang: Gang) -> bool:
        """Whether the ranks start again. Called when all ranks of this node have ended; returns after the backoff."""
        finding = supervisor.finding()
        if not self.restarts or finding.failure.code == ExitCode.DONE:
            return False
        ended = time.time()
        if not supervisor.clear():
            return False  # a process that cannot be killed: a new attempt has other pods
        try:
            end = self._agree(finding, supervisor.last_step(), gang)
        except (RuntimeError, ValueError, TypeError, KeyError):  # node 0 is gone, or of another release
            return False
        if end is None:
            return False
        supervisor.close()
        self._advance(end, [supervisor.noticed or ended, ended, time.time()])
        return True

    def _agree(self, finding: Finding, step: int, gang: Gang) -> RoundEnd | None:
        """How the round ended if another one follows, the same on every node; None if all leave."""
        key, store = f"round-{self.number}", gang.base
        answer = Answer(finding.failure, finding.secondary, finding.time, self._leaves(finding.failure))
        store.set(f"{key}/answer/{self._place.node_rank}", answer.to_json())
        if self._place.node_rank == 0:
            end = self._decide(key, store, step)
            store.set(f"{key}/next", json.dumps({"end": asdict(end), "port": gang.renew()} if end else None))
            return end
        decision = self._await_decision(key, store, answer)
        if decision is None:
            return None
        gang.renew(decision["port"])
        return RoundEnd(**decision["end"])

    def _leaves(self, failure: Failure) -> bool:
        return self._stop.requested or failure.code in (ExitCode.PREEMPTED, ExitCode.DONE)

    def _decide(self, key: str, store: Any, step: int) -> RoundEnd | None:
        waited_for = [f"{key}/answer/{node}" for node in range(self._place.nodes)]
        deadline = time.monotonic() + ANSWER_SECONDS
        while not store.check(waited_for):
            if self._stop.requested or time.monotonic() > deadline:
                return None
            time.sleep(_POLL_SECONDS)
        answers = {node: Answer.from_json(store.get(name)) for node, name in enumerate(waited_for)}
        node, failure = first_cause(answers)
        leaves = self._stop.requested or any(answer.leaves for answer in answers.values())
        if leaves or not restarts_in_place(failure.code) or self._fails_again(node):
            return None
        return RoundEnd(self.number, int(failure.code), time.time(), failure.error, failure.rank, node, step or None)

    def _fails_again(self, node: int) -> bool:
        """Whether this node of several failed first twice in a row, and soon: a new attempt may get another one."""
        last = self.ended[-1].node if self.ended and self._place.nodes > 1 else None
        return last == node and time.monotonic() - self._began < HEALTHY_SECONDS

    def _await_decision(self, key: str, store: Any, answer: Answer) -> dict[str, Any] | None:
        deadline, said = time.monotonic() + DECISION_SECONDS, answer.leaves
        while not store.check([f"{key}/next"]):
            if time.monotonic() > deadline:
                return None
            if self._stop.requested and not said:
                said = True
                store.set(f"{key}/answer/{self._place.node_rank}", replace(answer, leaves=True).to_json())
            time.sleep(_POLL_SECONDS)
        decision: dict[str, Any] | None = json.loads(store.get(f"{key}/next"))
        return decision

    def _advance(self, end: RoundEnd, times: list[float]) -> None:
        worked = time.monotonic() - self._began
        self._row = 1 if worked >= HEALTHY_SECONDS else self._row + 1
        delay = backoff_seconds(self._row)
        self.ended.append(end)
        self.number += 1
        self._left -= 1
        if self._place.node_rank == 0:
            self._log(end, delay, times)
            self._report(self.number, self.ended)
        until = time.monotonic() + delay
        while time.monotonic() < until and not self._stop.requested:  # the ranks of the new round obey the stop
            time.sleep(0.1)
        self._began = time.monotonic()

    def _log(self, end: RoundEnd, delay: float, times: list[float]) -> None:
        noticed, ended, met = times
        where = f" on node {end.node}" if self._place.nodes > 1 else ""
        wait = f" in {delay:.0f} s" if delay else ""
        print(
            f"trainwright: round {end.round} ended{where}: {end.error or f'exit code {end.code}'}; the ranks of "
            f"round {self.number} start in the same pods{wait} (stopped {ended - noticed:.2f} s and met "
            f"{met - noticed:.2f} s after it was noticed; {self._left} restart{'s' * (self._left != 1)} left)",
            file=sys.stderr,
            flush=True,
        )


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "0")
    return int(text) if text.isdecimal() else 0
