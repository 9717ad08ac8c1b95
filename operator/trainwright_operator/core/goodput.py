"""Where the time of a job went, and what it cost: ``goodput``, ``acceleratorSeconds`` and ``cost`` of the status.

The account begins when the job was created, and each second enters it once, under one cause. So the sum of the seconds
says how far it reaches. Between attempts, and until pods run, the state of the job is the cause. What an attempt does
is measured by the trainer, whose clock counts from its start and is sent with every push: a lost push loses nothing.
From its last measurement to the end of the attempt it was ``idle``.

Clocks of pods and operators may differ or be set. No time of a pod is compared with one of the operator, only
durations; where those disagree by more than :data:`TOLERANCE` seconds, the account says by how much, and nothing in it
is ever below zero. What nobody measured is ``unmeasured``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from trainwright.contract import CLOCK_CAUSES
from trainwright_operator.api.names import Condition
from trainwright_operator.api.status import GOODPUT_CAUSES, MAX_CURRENCIES
from trainwright_operator.core import display
from trainwright_operator.core.times import read_time, write_time

Status = dict[str, Any]

TOLERANCE = 10.0
"""Seconds that a report may be on its way; a larger difference means that a clock was set, or that a pod was frozen."""
_LONGEST = 3650 * 86_400.0
_FREE = frozenset({"queued", "waiting", "suspended"})
"""While these go on, the job holds no accelerators. Pods that have room while others wait for it are left out."""
_OPEN = ""
"""In place of a cause: the trainer of the attempt at work may still report what this time was spent on."""


@dataclass(frozen=True)
class Terms:
    """What an account follows from, beside the status."""

    created: datetime | None = None
    accelerators: Callable[[], int] = lambda: 0
    """Those of the attempt at work, or about to start; asked for when an attempt begins."""
    price: float | None = None
    """Of an accelerator for an hour."""
    currency: str = ""
    scripted: bool = False
    """The job trains with a script, which may report nothing."""


def percent_of(goodput: Mapping[str, Any]) -> int | None:
    """The share of the job's life that was spent in steps, suspension apart; None before the first step.

    Where part of it is unmeasured, it is at least this much.
    """
    seconds = goodput.get("seconds") or {}
    life = sum(seconds.values()) - seconds.get("suspended", 0)
    return int(100 * seconds["stepping"] / life) if life > 0 and "stepping" in seconds else None


def is_partial(goodput: Mapping[str, Any]) -> bool:
    """Whether more than 1 % of the job's life was not measured."""
    seconds = goodput.get("seconds") or {}
    return bool(seconds.get("unmeasured", 0) > 0.01 * sum(seconds.values()))


def columns(status: Mapping[str, Any]) -> dict[str, str]:
    """The columns GOODPUT and COST; a key is absent while nothing is known of it."""
    goodput, found = status.get("goodput") or {}, {}
    if (percent := goodput.get("percent")) is not None:
        found["goodput"] = f"{'≥' if is_partial(goodput) else ''}{percent}%"
    if costs := status.get("cost"):
        found["cost"] = " + ".join(money(one["amount"], one["currency"]) for one in costs)[:64]
    return found


def rows(status: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Cause, time, share of the life without suspension, and what the cause means; in the order of the schema."""
    seconds = (status.get("goodput") or {}).get("seconds") or {}
    life = sum(seconds.values()) - seconds.get("suspended", 0)
    return [
        (cause, _amount(seconds[cause]), "" if cause == "suspended" else f"{100 * seconds[cause] / life:.1f}%", about)
        for cause, about in GOODPUT_CAUSES.items()
        if cause in seconds
    ]


def facts(status: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of name and value about goodput and cost; empty before the first step."""
    goodput, found = status.get("goodput") or {}, []
    if (percent := goodput.get("percent")) is not None:
        found.append(("goodput", f"{'at least ' if is_partial(goodput) else ''}{percent}% of the job's life was steps"))
    if held := status.get("acceleratorSeconds"):
        found.append(("held", f"accelerators for {held / 3600:,.3g} hours, all together"))
    for one in status.get("cost") or ():
        cost, lost = (money(one[name], one["currency"]) for name in ("amount", "lost"))
        found.append(("cost", f"{cost}, of which {lost} went to other than steps"))
    if before := goodput.get("stepsBefore"):
        found.append(("unknown", f"what steps 1 to {before} took, which the first checkpoint held already"))
    if skew := goodput.get("skewSeconds"):
        found.append(("unknown", f"{_amount(skew)}, by which the clocks of pods and operator contradicted each other"))
    return found


def _amount(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < 60 else display.duration(round(seconds))


def money(amount: float, currency: str) -> str:
    """``1,240.50 USD``; of less than 0.10, two digits that are not 0."""
    digits = 2 if amount >= 0.1 or amount <= 0 else min(6, 1 - math.floor(math.log10(amount)))
    return f"{amount:,.{digits}f} {currency}"


# What a trainer measured


def merge_clock(status: Mapping[str, Any], attempt: int, clock: Any, received: datetime | None) -> Status:
    """``status`` with the clock of the attempt at work (:attr:`trainwright.contract.Progress.clock`).

    ``received`` is when its push arrived; None for a final word.
    """
    account, measured = _Account.of(status), _measured(clock)
    if account is None or not measured:
        return dict(status)
    is_first = account.clock.get("attempt") != attempt
    last = {} if is_first else account.clock["seconds"]
    added = {cause: measured.get(cause, 0.0) - last.get(cause, 0.0) for cause in CLOCK_CAUSES}
    if received is not None:
        upto = account.at(received) - _duration(clock.get("open"))
        gap = upto - account.reach - sum(added.values())
        if is_first and gap > 0:
            account.add("starting", gap)
        elif gap > TOLERANCE:
            account.skew += gap
            account.add("unmeasured", gap)
        elif gap < -TOLERANCE:
            account.skew -= gap
            added = _scaled(added, max(0.0, upto - account.reach))
    for cause, seconds in added.items():
        account.add(cause, seconds)
    step, first = int(_duration(clock.get("step"))), int(_duration(clock.get("first")))
    if is_first and attempt == 1 and first:
        account.steps_before = first
    account.save = max(account.save, _duration(clock.get("save")))
    late = received is None and (is_first or account.clock.get("late", False))
    account.clock = {"attempt": attempt, "step": step, "first": first, "seconds": measured}
    if late:
        account.clock["late"] = True
    return account.written(status)


def merge_unclocked(status: Mapping[str, Any], attempt: int, received: datetime) -> Status:
    """``status`` with a push of a trainer that trains without a clock."""
    account = _Account.of(status)
    if account is None or account.clock.get("attempt") == attempt:
        return dict(status)
    account.advance("unmeasured", account.at(received))
    return account.written(status)


def _measured(clock: Any) -> dict[str, float]:
    if not isinstance(clock, Mapping):
        return {}
    return {cause: seconds for cause in CLOCK_CAUSES if (seconds := _duration(clock.get(cause))) > 0}


def _duration(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value <= _LONGEST else 0.0


def _scaled(added: Mapping[str, float], room: float) -> dict[str, float]:
    """Positive amounts that together fit into ``room``."""
    positive = {cause: max(0.0, seconds) for cause, seconds in added.items()}
    total = sum(positive.values())
    return {cause: seconds * room / total for cause, seconds in positive.items()} if total else positive


# What the operator sees


def accounted(before: Mapping[str, Any], after: Status, terms: Terms, now: datetime) -> Status:
    """``after`` with its account, which changes only when the cause does, or an attempt begins or ends.

    ``before`` is the status last written, with what trainers have reported since.
    """
    account = _Account.of(before)
    if account is None and "completionTime" in before and "completionTime" in after:
        return after  # it ended before there were accounts
    created = terms.created or (account.since if account else now)
    clocked = account.clock.get("attempt") if account else None
    is_new = account is None or account.since != created
    if account is None or is_new:
        account = _opened(before, created, now)
    if is_new or _moment(before, clocked) != _moment(after, clocked):
        _settle(account, before, after, terms, now)
        account.accelerators = terms.accelerators() if _at_work(after) else 0
    status = account.written({**after, "cost": before.get("cost") or []})
    if costs := _costs(status, terms):
        status["cost"] = costs
    else:
        del status["cost"]
    if shown := columns(status):
        status["display"] = {**status["display"], **shown}
    return status


def _opened(before: Mapping[str, Any], created: datetime, now: datetime) -> _Account:
    """A new account. Of what happened before, nothing is known but that something did."""
    account, record = _Account(created), _newest(before)
    if record:
        begun = read_time(record["startTime"]) if _at_work(before) else now
        account.advance("unmeasured", account.at(begun or now))
    return account


def _moment(status: Mapping[str, Any], clocked: int | None) -> tuple[Any, ...]:
    record = _newest(status) or {}
    return _cause(status, clocked), record.get("attempt"), record.get("endTime"), status.get("completionTime")


def _settle(
    account: _Account, before: Mapping[str, Any], after: Mapping[str, Any], terms: Terms, now: datetime
) -> None:
    """Account for the time since ``before`` was seen."""
    former, newest = _newest(before), _newest(after)
    cause, known = _cause(before, account.clock.get("attempt")), former["attempt"] if former else 0
    is_other = newest is not None and newest["attempt"] != known
    if newest and is_other:
        missed = newest["attempt"] > known + 1 or cause == _OPEN
        account.advance("unmeasured" if missed else cause, account.at(read_time(newest["startTime"]) or now))
        cause = _OPEN
    if newest and "endTime" in newest and (is_other or (former and "endTime" not in former)):
        _end(account, newest, cause, before, terms)
        cause = _cause(after, None) if "completionTime" not in after else "waiting"
    if cause != _OPEN:
        account.advance(cause, account.at(read_time(after.get("completionTime")) or now))
    if "completionTime" in after:
        account.fit(account.at(read_time(after["completionTime"]) or now))


def _end(account: _Account, record: Mapping[str, Any], cause: str, before: Mapping[str, Any], terms: Terms) -> None:
    """Account for an attempt up to its end. Nobody knows what a script did that reported nothing."""
    if cause == _OPEN and account.clock.get("attempt") == record["attempt"]:
        cause = "unmeasured" if account.clock.get("late") else "idle"
    elif cause == _OPEN:
        has_run = before.get("state") in ("Running", "Stopping")
        cause = "unmeasured" if terms.scripted and has_run else "starting"  # our trainer would have sent its clock
    account.advance(cause, account.at(read_time(record["endTime"]) or account.since))


def _cause(status: Mapping[str, Any], clocked: int | None) -> str:
    """What time is spent on from when this status was seen."""
    record, state = _newest(status), status.get("state")
    queued: Mapping[str, Any] = next(
        (one for one in status.get("conditions") or () if one["type"] == Condition.QUEUED), {}
    )
    is_queued = queued.get("status") == "True"
    if "completionTime" in status or state == "Suspended":
        return "suspended"  # a job that was extended after its end was at rest
    if not _at_work(status):
        return "queued" if is_queued else "waiting"
    if record and is_queued and record["attempt"] != clocked and "outcome" not in record:
        return "queued" if queued.get("reason") == "SchedulingGated" else "waiting"
    return _OPEN


def _at_work(status: Mapping[str, Any]) -> bool:
    record = _newest(status)
    return record is not None and "endTime" not in record


def _newest(status: Mapping[str, Any]) -> Mapping[str, Any] | None:
    attempts = status.get("attempts") or ()
    return attempts[-1] if attempts else None


class _Account:
    """The seconds by cause while they are changed."""

    def __init__(self, since: datetime) -> None:
        self.since = since
        self.seconds: dict[str, float] = {}
        self.held = self.lost = self.skew = self.save = 0.0
        self.accelerators = 0
        self.steps_before: int | None = None
        self.clock: Status = {}

    @staticmethod
    def of(status: Mapping[str, Any]) -> _Account | None:
        goodput = status.get("goodput") or {}
        since = read_time(goodput.get("since"))
        if since is None:
            return None
        account = _Account(since)
        account.seconds = dict(goodput.get("seconds") or {})
        account.held, account.lost = status.get("acceleratorSeconds", 0.0), goodput.get("lostAcceleratorSeconds", 0.0)
        account.skew, account.accelerators = goodput.get("skewSeconds", 0.0), goodput.get("accelerators", 0)
        account.save = goodput.get("longestSaveSeconds", 0.0)
        account.steps_before, account.clock = goodput.get("stepsBefore"), goodput.get("clock") or {}
        return account

    @property
    def reach(self) -> float:
        """How far the account goes, in seconds after its beginning."""
        return sum(self.seconds.values())

    def at(self, time: datetime) -> float:
        return (time - self.since).total_seconds()

    def add(self, cause: str, seconds: float) -> None:
        """``seconds`` below 0 correct an older measurement."""
        known = self.seconds.get(cause, 0.0)
        self.seconds[cause] = max(0.0, known + seconds)
        if cause not in _FREE:
            held = (self.seconds[cause] - known) * self.accelerators
            self.held += held
            self.lost += 0.0 if cause == "stepping" else held

    def advance(self, cause: str, upto: float) -> None:
        """Add what is missing up to ``upto``, if anything is."""
        if upto > self.reach:
            self.add(cause, upto - self.reach)

    def fit(self, end: float) -> None:
        """Let the account end at ``end``, which a clock that was set back may have left behind."""
        total = self.reach
        if total > max(end, 0.0):
            self.skew += total - end if total - end > TOLERANCE else 0.0
            scale = max(end, 0.0) / total
            self.seconds = {cause: seconds * scale for cause, seconds in self.seconds.items()}
            self.held, self.lost = self.held * scale, self.lost * scale

    def written(self, status: Mapping[str, Any]) -> Status:
        """``status`` with this account."""
        seconds = {cause: round(self.seconds.get(cause, 0.0), 3) for cause in GOODPUT_CAUSES}
        goodput: Status = {
            "since": write_time(self.since),
            "seconds": {cause: one for cause, one in seconds.items() if one > 0},
            "accelerators": self.accelerators or None,
            "lostAcceleratorSeconds": round(max(0.0, self.lost), 3) or None,
            "skewSeconds": round(self.skew, 3) or None,
            "stepsBefore": self.steps_before,
            "longestSaveSeconds": self.save or None,
            "clock": self.clock or None,
        }
        goodput["percent"] = percent_of(goodput)
        kept = {key: value for key, value in goodput.items() if value is not None}
        held = round(max(0.0, self.held), 3)
        return {**status, "goodput": kept, **({"acceleratorSeconds": held} if held else {})}


# What it costs

_COUNTED = ("amount", "lost", "acceleratorSeconds", "lostAcceleratorSeconds")


def _costs(status: Mapping[str, Any], terms: Terms) -> list[Status]:
    """The cost by currency. What no entry has counted yet is counted at the price that the pool has now."""
    costs = {one["currency"]: dict(one) for one in status.get("cost") or ()}
    lost_in_all = (status.get("goodput") or {}).get("lostAcceleratorSeconds", 0.0)
    held = status.get("acceleratorSeconds", 0.0) - sum(one["acceleratorSeconds"] for one in costs.values())
    lost = lost_in_all - sum(one["lostAcceleratorSeconds"] for one in costs.values())
    if terms.price is not None and (held or lost):
        one = costs.setdefault(terms.currency, dict.fromkeys(_COUNTED, 0.0) | {"currency": terms.currency})
        added = (held * terms.price / 3600, lost * terms.price / 3600, held, lost)
        one |= {name: round(max(0.0, one[name] + more), 6) for name, more in zip(_COUNTED, added, strict=True)}
    return list(costs.values())[:MAX_CURRENCIES]
