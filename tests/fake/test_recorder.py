"""Events are written behind the work: in order, the more slowly the slower the API server, and never in its way."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime

import pytest

from builders import make_job
from fake.virtual_time import run
from trainwright_operator.cluster.client import ApiError
from trainwright_operator.cluster.recorder import MAX_WAITING, Recorder, record
from trainwright_operator.core.events import Event

JOB = make_job("train").manifest()
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Slow:
    """An API server that takes ``seconds`` for each Event, and refuses those whose reason is Bad."""

    def __init__(self, seconds):
        self.seconds, self.written = seconds, []

    async def create(self, _, event):
        await asyncio.sleep(self.seconds)
        if event["reason"] == "Bad":
            raise ApiError(403, "Forbidden", "exceeded quota")
        self.written.append((event["reason"], asyncio.get_running_loop().time()))
        return event


def told(recorder, *reasons):
    for reason in reasons:
        recorder.tell(JOB, Event("Normal", reason, "words"), NOW)


async def at_work(recorder, seconds):
    with suppress(TimeoutError):
        await asyncio.wait_for(recorder.run(), seconds)


@pytest.mark.parametrize(("takes", "times"), [(0.1, [0.1, 0.6, 1.1]), (2.0, [2.0, 12.0, 22.0])])
def test_a_slow_server_is_asked_the_more_seldom(takes, times):
    async def play():
        api = Slow(takes)
        recorder = Recorder(api, "me")
        told(recorder, "A", "B", "C")
        await at_work(recorder, 60)
        assert [reason for reason, _ in api.written] == ["A", "B", "C"]
        assert [time for _, time in api.written] == pytest.approx(times)

    run(play())


def test_one_that_is_refused_is_logged_and_the_next_one_written(caplog):
    async def play():
        api = Slow(0)
        recorder = Recorder(api, "me")
        told(recorder, "Bad", "B")
        await at_work(recorder, 1)
        assert [reason for reason, _ in api.written] == ["B"]

    run(play())
    assert caplog.messages == ["event of default/train not written: 403 Forbidden: exceeded quota"]


@pytest.mark.parametrize(("takes", "written"), [(0.1, 3), (0.4, 2), (60, 0)])
def test_what_waits_at_the_end_is_written_within_a_second(takes, written):
    async def play():
        api = Slow(takes)
        recorder = Recorder(api, "me")
        told(recorder, "A", "B", "C")
        await recorder.flush()
        assert len(api.written) == written
        assert asyncio.get_running_loop().time() <= 1.0

    run(play())


def test_a_note_is_cut_where_the_api_server_counts_its_bytes():
    note = record(JOB, Event("Normal", "Told", "内存不足" * 200), NOW, "me")["note"]
    assert 1020 <= len(note.encode()) <= 1024
    assert note.startswith("内存不足")


def test_there_is_an_end_to_what_waits():
    async def play():
        recorder = Recorder(Slow(0), "me")
        told(recorder, *["A"] * (MAX_WAITING + 5))
        await recorder.flush()
        assert len(recorder._api.written) == MAX_WAITING

    run(play())
