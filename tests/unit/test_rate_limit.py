"""When progress may be written: each job's interval, and a budget for all of them without bursts."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from trainwright_operator.cluster.rate_limit import Pace

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_the_first_progress_of_a_job_is_written_at_once():
    assert Pace(15, 50).wait("job", START) == 0


def test_the_next_waits_for_the_interval():
    pace = Pace(15, 50)
    pace.written("job", START)
    assert pace.wait("job", at(5)) == pytest.approx(10)
    assert pace.wait("job", at(15)) == 0


def test_a_first_turn_may_be_asked_to_lie_a_while_away():
    pace = Pace(15, 50)
    assert pace.wait("job", START, least=3) == pytest.approx(3)
    assert pace.wait("job", at(2), least=3) == pytest.approx(1), "its turn is kept"
    pace.written("other", START)
    assert pace.wait("other", START, least=3) == pytest.approx(15)


def test_a_turn_is_kept_however_often_it_is_asked_for():
    pace = Pace(15, 2)
    waits = [pace.wait(job, START) for job in "abcde" * 3]
    assert waits == [pytest.approx(turn) for turn in (0, 0.5, 1, 1.5, 2)] * 3


@pytest.mark.parametrize(("jobs", "budget"), [(100, 10.0), (2000, 50.0), (3, 0.5)])
def test_a_crowd_that_comes_due_together_is_spread_over_the_budget(jobs, budget):
    pace = Pace(15, budget)
    turns = [pace.wait(job, START) for job in range(jobs)]
    span = max(1.0, 1 / budget)
    assert max(Counter(int(turn / span) for turn in turns).values()) <= budget * span
    assert max(turns) <= jobs / budget


def test_a_crowd_goes_on_at_the_pace_of_the_budget():
    """Each writes at its turn and asks again: over a long time the budget is used, and never exceeded."""
    pace, jobs, written = Pace(1, 10), range(50), Counter()
    due = {job: pace.wait(job, START) for job in jobs}
    for tick in range(400):
        now = tick / 10
        for job in jobs:
            if due[job] <= now:
                pace.written(job, at(now))
                written[int(now)] += 1
                due[job] = now + pace.wait(job, at(now))
    assert max(written.values()) <= 2 * 10, "turns of one second may be used a moment into the next"
    assert sum(written.values()) == pytest.approx(400, rel=0.05)


def test_what_is_forgotten_begins_anew():
    pace = Pace(15, 50)
    pace.written("job", START)
    pace.forget("job")
    assert pace.wait("job", at(1)) == 0


def test_past_seconds_are_not_kept():
    pace = Pace(0, 1)
    for second in range(1000):
        pace.wait(second, at(second))
        pace.written(second, at(second))
    assert len(pace._taken) <= 2
