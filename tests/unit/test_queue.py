"""The keyed queue: deduplication, one holder a key, delays, backoff."""

import asyncio

import pytest

from trainwright_operator.cluster.queue import LAST_BACKOFF_SECONDS, KeyedQueue


class Clock:
    """Seconds that only a test moves."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def queue(clock):
    return KeyedQueue(now=clock, jitter=lambda: 1.0)


LOOP = asyncio.new_event_loop()


def take(queue):
    """The key that is due now; fails when none is."""
    return LOOP.run_until_complete(asyncio.wait_for(queue.get(), 1))


def nothing_due(queue):
    try:
        LOOP.run_until_complete(asyncio.wait_for(queue.get(), 0.01))
    except TimeoutError:
        return True
    return False


def test_a_burst_of_events_is_one_run(queue):
    for _ in range(100):
        queue.add("job")
    assert len(queue) == 1
    assert take(queue) == "job"
    assert nothing_due(queue)


def test_keys_come_in_the_order_of_their_due_time(queue, clock):
    queue.add("late", after=5)
    queue.add("soon", after=1)
    queue.add("now")
    clock.time += 10
    assert [take(queue) for _ in range(3)] == ["now", "soon", "late"]


def test_a_head_start_goes_before_what_has_waited_less_long(queue, clock):
    queue.add("waits for long")
    clock.time += 10
    queue.add("waits", after=0.25)
    clock.time += 1
    queue.add("new", after=-5)
    queue.add("newer", after=-5)
    assert [take(queue) for _ in range(4)] == ["waits for long", "new", "newer", "waits"]


def test_a_key_that_is_held_keeps_its_head_start(queue, clock):
    queue.add("job")
    take(queue)
    queue.add("job", after=-5)
    queue.add("other")
    clock.time += 1
    queue.done("job")
    assert take(queue) == "job"


def test_an_earlier_time_wins_and_a_later_one_changes_nothing(queue, clock):
    queue.add("job", after=60)
    queue.add("job")
    queue.add("job", after=30)
    assert take(queue) == "job"
    queue.done("job")
    clock.time += 100
    assert nothing_due(queue)


def test_a_key_that_is_held_is_given_to_nobody_else_and_runs_once_more_after(queue):
    queue.add("job")
    take(queue)
    queue.add("job")
    queue.add("job")
    assert nothing_due(queue)
    queue.done("job")
    assert take(queue) == "job"
    queue.done("job")
    assert nothing_due(queue)


def test_failures_back_off_doubling_up_to_a_limit_and_success_forgets_them(queue, clock):
    queue.add("job")
    waits = []
    for _ in range(14):
        take(queue)
        queue.done("job", failed=True)
        waits.append(queue._due["job"] - clock.time)
        clock.time += waits[-1]
    assert waits[:4] == [0.25, 0.5, 1.0, 2.0]
    assert waits[-1] == LAST_BACKOFF_SECONDS
    take(queue)
    queue.done("job")
    queue.add("job")
    take(queue)
    queue.done("job", failed=True)
    assert queue._due["job"] - clock.time == 0.25


def test_what_comes_while_a_key_fails_is_not_left_to_the_backoff(queue, clock):
    queue.add("job")
    for _ in range(12):
        take(queue)
        queue.done("job", failed=True)
        clock.time += LAST_BACKOFF_SECONDS
    take(queue)
    queue.add("job", after=-15)
    queue.done("job", failed=True)
    assert queue._due["job"] - clock.time == 0.25


def test_a_worker_may_ask_to_come_back_later(queue, clock):
    queue.add("job")
    take(queue)
    queue.done("job", after=30)
    assert nothing_due(queue)
    clock.time += 30
    assert take(queue) == "job"


def test_a_forgotten_key_is_not_given_out(queue):
    queue.add("job")
    queue.forget("job")
    assert nothing_due(queue)


def test_a_waiting_worker_wakes_when_a_key_comes():
    async def scene():
        queue = KeyedQueue()
        worker = asyncio.create_task(queue.get())
        await asyncio.sleep(0.01)
        queue.add("job")
        return await asyncio.wait_for(worker, 1)

    assert asyncio.run(scene()) == "job"
