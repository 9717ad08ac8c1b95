"""Which pod an attempt ended by, and what follows: tables of cases, and what a real cluster gave, moment by moment."""

from __future__ import annotations

from datetime import timedelta

import pytest

import fixtures
from builders import make_job
from scene import START
from trainwright.contract import Termination
from trainwright_operator.api.spec import parse_job
from trainwright_operator.core.causes import cause_of, explain
from trainwright_operator.core.history import Cause, History, Outcome, Record
from trainwright_operator.core.observe import Attempt, End, Job, JobState, Observed, Pod, Wait, observe
from trainwright_operator.core.policy import SETTLE, Phase, Verdict, decide
from trainwright_operator.core.times import read_time


def at(seconds: float):
    return START + timedelta(seconds=seconds)


def pod(index: int, code: int | None = None, ended: float = 0, *, asked: float | None = None, marked: str = "", **end):
    """A pod that ended with ``code`` at a time, was asked to end at another, and may be marked as disrupted."""
    return Pod(
        name=f"p{index}",
        attempt=1,
        index=index,
        ready=code is None,
        end=None if code is None else End(code, at(ended), **end),
        disruption=Wait(marked, "") if marked else None,
        deletion_requested=None if asked is None else at(asked),
        deletion_due=None if asked is None else at(asked + 30),
    )


CAUSES = {
    "all at work": ([pod(0), pod(1)], None),
    "all done": ([pod(0, 0), pod(1, 0)], None),
    "one crashed, its peer was taken down": ([pod(0, 143, 11, asked=10), pod(1, 1, 10)], ("p1", "Failed", "Error")),
    "the peer went within the same second": ([pod(0, 143, 10, asked=10), pod(1, 1, 10)], ("p1", "Failed", "Error")),
    "a crash before its peer is asked": ([pod(0, 1, 9), pod(1, asked=10)], ("p0", "Failed", "Error")),
    "evicted": ([pod(0, 143, 12, asked=10, marked="Evict"), pod(1, 1, 11)], ("p0", "Disrupted", "Evict")),
    "evicted, and its peer crashed first": (
        [pod(0, marked="Taint", asked=9), pod(1, 1, 8)],
        ("p0", "Disrupted", "Taint"),
    ),
    "deleted by hand, saved": ([pod(0, 143, 14, asked=10), pod(1, 143, 14)], ("p0", "Disrupted", "Preempted")),
    "deleted, peer crashed on it": (
        [pod(0, 137, 40, asked=10), pod(1, 1, 12)],
        ("p0", "Disrupted", "PodDeleted"),
    ),
    "stopped on request, and nobody tells of one": (
        [pod(0, 143, 10), pod(1, 143, 10)],
        ("p0", "Disrupted", "UnexplainedStop"),
    ),
    "bad data beats the peer's broken pipe": ([pod(0, 1, 9), pod(1, 65, 10)], ("p1", "Failed", "BadData")),
    "hang": ([pod(0, 124, 9), pod(1, 143, 10, asked=9)], ("p0", "Failed", "Hang")),
    "killed beats the peer that missed it": ([pod(0, 1, 9), pod(1, 137, 9)], ("p1", "Failed", "Error")),
    "out of memory": ([pod(0, 1, 9), pod(1, 137, 9, reason="OOMKilled")], ("p1", "Failed", "OOMKilled")),
    "could not be started": ([pod(0, 128, 1, reason="StartError")], ("p0", "Failed", "StartError")),
    "never ran": ([Pod("p0", 1, end=End(None, None, "NodeAffinity"))], ("p0", "Failed", "NodeAffinity")),
}


@pytest.mark.parametrize(("pods", "expected"), CAUSES.values(), ids=CAUSES)
def test_the_cause_of_an_end_is_found_among_the_pods(pods, expected):
    cause = cause_of(Attempt(1, (Job("j", 1, completions=2),), tuple(pods)))
    assert (cause and (cause.pod, cause.outcome.value, cause.reason)) == expected


KNOWN = {
    "an eviction outlives its pod": (Cause(Outcome.DISRUPTED, "Evict", pod="p9", time=at(10)), [pod(1, 1, 9)], "Evict"),
    "a deletion outlives its pod": (Cause(Outcome.DISRUPTED, "PodDeleted", time=at(8)), [pod(1, 1, 9)], "PodDeleted"),
    "an earlier failure is still found": (Cause(Outcome.DISRUPTED, "PodDeleted", time=at(10)), [pod(1, 1, 9)], "Error"),
    "what was stopped stays stopped": (Cause(Outcome.STOPPED, "Suspended", time=at(10)), [pod(1, 65, 11)], "Suspended"),
    "bad data is found late": (Cause(Outcome.FAILED, "Error", exit_code=1, time=at(8)), [pod(1, 65, 11)], "BadData"),
}


@pytest.mark.parametrize(("known", "pods", "reason"), KNOWN.values(), ids=KNOWN)
def test_what_was_recorded_before_counts_as_well(known, pods, reason):
    assert cause_of(Attempt(1, (), tuple(pods)), known).reason == reason


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (End(1, None, message="Traceback\n  ...\nValueError: boom\n"), "ValueError: boom"),
        (End(1, None, word=Termination("Error", 1, error="loss is nan")), "loss is nan"),
        (End(1, None, message='{"reason":"Error","exit_code":1}', word=Termination("Error", 1)), "exit code 1"),
        (End(1, None, message="\x1b[1;31mRuntimeError\x1b[0m: out of \x07luck\r\n"), "RuntimeError: out of luck"),
        (End(1, None, word=Termination("Error", 1, error="two\n lines\x1b]0;title")), "two lines0;title"),
        (End(1, None, word=Termination("Error", 1, error="\n")), "exit code 1"),
        (End(139, None), "exit code 139 (SIGSEGV)"),
        (End(255, None), "exit code 255"),
        (End(143, None), "stopped on request"),
        (End(None, None), "the container never ran"),
    ],
)
def test_an_end_is_described_in_one_line(end, words):
    assert explain(end) == words


# What follows an ended attempt


def after(*outcomes: str, codes: int | None = None, each: float = 60, ago: float = 3600, **spec):
    """The verdict on a job whose attempts ended so: each after ``each`` seconds, the last ``ago`` seconds before."""
    records = []
    for number, outcome in enumerate(outcomes, 1):
        end = START - timedelta(seconds=ago)
        cause = Cause(Outcome(outcome), "Error", "boom", exit_code=codes)
        records.append(Record(number, end - timedelta(seconds=each), end, cause, max_steps=200))
    counted = sum(outcome == "Failed" for outcome in outcomes[:-1])
    history = History(tuple(records), counted=counted, started=START - timedelta(days=1) if records else None)
    job = make_job()
    for key, value in spec.items():
        job = job.with_(f"spec.{key}", value)
    return decide(job.build(), history, Observed(), START)


FOLLOWS = {
    "new": (after(), Phase.STARTING, 1),
    "failed once": (after("Failed"), Phase.RESTARTING, 2),
    "failed as often as allowed": (after("Failed", "Failed", "Failed"), Phase.RESTARTING, 4),
    "failed too often": (after("Failed", "Failed", "Failed", "Failed"), Phase.FAILED, None),
    "disrupted for ever": (after(*["Disrupted"] * 9), Phase.RESTARTING, 10),
    "disruptions beside failures": (after("Failed", "Disrupted", "Failed", "Disrupted", "Failed"), Phase.RESTARTING, 6),
    "no restart allowed": (after("Failed", maxRestarts=0), Phase.FAILED, None),
    "no restart allowed, disrupted": (after("Disrupted", maxRestarts=0), Phase.RESTARTING, 2),
    "bad configuration": (after("Failed", codes=64), Phase.FAILED, None),
    "bad data": (after("Failed", codes=65), Phase.FAILED, None),
    "succeeded": (after("Succeeded"), Phase.SUCCEEDED, None),
    "succeeded, suspended too late": (after("Succeeded", suspend=True), Phase.SUCCEEDED, None),
    "suspended": (after("Failed", suspend=True), Phase.SUSPENDED, None),
    "suspended for good": (after("Failed", codes=64, suspend=True), Phase.FAILED, None),
    "resumed": (after("Stopped"), Phase.STARTING, 2),
    "deadline is over": (after("Failed", activeDeadlineSeconds=3600), Phase.FAILED, None),
    "deadline is not over": (after("Failed", activeDeadlineSeconds=100_000), Phase.RESTARTING, 2),
    "just failed twice": (after("Failed", "Failed", ago=3), Phase.RESTARTING, None),
    "just failed after long work": (after("Failed", "Failed", each=1200, ago=3), Phase.RESTARTING, 3),
}


@pytest.mark.parametrize(("verdict", "phase", "start"), FOLLOWS.values(), ids=FOLLOWS)
def test_the_end_of_an_attempt_decides_what_follows(verdict, phase, start):
    assert (verdict.phase, verdict.start) == (phase, start)


def test_a_backoff_says_when_and_looks_again_then():
    verdict = after("Failed", "Failed", ago=3)
    assert verdict.again == timedelta(seconds=7)
    assert verdict.message.endswith("attempt 3 starts at 2026-01-01T00:00:12Z")


@pytest.mark.parametrize("state", [JobState.ACTIVE, JobState.ENDING, JobState.FAILED])
def test_when_one_slice_fails_the_others_are_stopped(state):
    jobs = (Job("a", 1, 0, state=state), Job("b", 1, 1))
    attempt = Attempt(1, jobs, (pod(0, 1, 3), pod(1)))
    history = History((Record(1, START),), started=START, running=True)
    verdict = decide(make_job().build(), history, Observed((attempt,)), at(5))
    assert verdict.stop == (state is not JobState.ACTIVE)


# What a real cluster gave


def last_change(moment: fixtures.Moment):
    """The newest time that anything of the moment was written at: when the operator would look at the latest."""
    times = [moment.job["metadata"]["creationTimestamp"]]
    for obj in (moment.job, *moment.pods):
        times += [one["lastTransitionTime"] for one in obj["status"].get("conditions") or ()]
        for container in obj["status"].get("containerStatuses") or ():
            times += [state["finishedAt"] for state in container["state"].values() if "finishedAt" in state]
    return max(map(read_time, times))


def play(case: str, **spec) -> dict[str, Verdict]:
    """The verdict at each recorded moment, each knowing what the one before wrote; ``settled`` follows the last."""
    stored = fixtures.training_job(case)
    stored["metadata"]["namespace"] = "default"
    stored["spec"] |= spec
    job, moments = parse_job(stored), fixtures.load(case)
    begun = read_time(next(iter(moments.values())).job["metadata"]["creationTimestamp"])
    history, verdicts = History((Record(0, begun),), started=begun), {}
    for name, moment in [*moments.items(), ("settled", list(moments.values())[-1])]:
        now = last_change(moment) + (SETTLE if name == "settled" else timedelta(0))
        verdicts[name] = decide(job, history, observe(job, [moment.job], moment.pods, moment.events), now)
        history = verdicts[name].history
    return verdicts


RUNNING, RESTARTING = Phase.RUNNING, Phase.RESTARTING
STORIES = {
    # case: phase at each moment; outcome, reason and exit code that the attempt is recorded with; the attempt to start
    "succeeded": ([RUNNING, Phase.SUCCEEDED], ("Succeeded", "TrainingCompleted", None), None),
    "termination-message": ([Phase.SUCCEEDED], ("Succeeded", "TrainingCompleted", None), None),
    "failed": ([RUNNING, RUNNING, RESTARTING], ("Failed", "Error", 1), 1),
    "bad-configuration": ([Phase.FAILED], ("Failed", "BadConfiguration", 64), None),
    "killed": ([RUNNING, RESTARTING], ("Failed", "Error", 137), 1),
    "out-of-memory": ([RESTARTING], ("Failed", "OOMKilled", 137), 1),
    "deleted": ([RUNNING, RUNNING, RUNNING, RESTARTING], ("Disrupted", "PodDeleted", None), 1),
    "deleted-exits-0": ([RUNNING, RUNNING], None, None),
    "evicted": ([RUNNING, RUNNING, RESTARTING], ("Disrupted", "EvictionByEvictionAPI", 143), 1),
    "drained": ([RUNNING, RUNNING, RESTARTING], ("Disrupted", "EvictionByEvictionAPI", 143), 1),
    "node-lost": ([*[RUNNING] * 4, RESTARTING], ("Disrupted", "DeletionByTaintManager", None), 1),
    "suspended": ([RUNNING, Phase.STARTING, Phase.STARTING, RUNNING], None, None),
    "unschedulable": ([Phase.STARTING], None, None),
    "image-missing": ([Phase.STARTING] * 2, None, None),
}


@pytest.mark.parametrize("case", STORIES)
def test_a_recorded_attempt_is_judged_moment_by_moment(case):
    phases, ended, next_attempt = STORIES[case]
    *seen, settled = play(case).values()
    assert [verdict.phase for verdict in seen] == phases
    record = settled.history.records[0]
    cause = record.cause if record.end else None
    assert (cause and (cause.outcome.value, cause.reason, cause.exit_code)) == ended
    assert settled.start == next_attempt


def test_every_recorded_case_has_a_story():
    assert set(fixtures.cases()) == set(STORIES)


@pytest.mark.parametrize("case", ["failed", "killed", "out-of-memory"])
def test_a_recorded_failure_is_the_last_where_no_restart_is_allowed(case):
    settled = play(case, maxRestarts=0)["settled"]
    assert (settled.phase, settled.start, settled.reason) == (Phase.FAILED, None, "TooManyRestarts")


@pytest.mark.parametrize("case", ["evicted", "drained", "node-lost", "deleted"])
def test_a_recorded_disruption_is_never_counted(case):
    settled = play(case, maxRestarts=0)["settled"]
    assert (settled.phase, settled.start, settled.history.counted) == (Phase.RESTARTING, 1, 0)


@pytest.mark.parametrize(("case", "moment"), [("failed", "failing"), ("deleted", "failing"), ("node-lost", "failing")])
def test_what_is_left_of_a_recorded_attempt_is_stopped_once_it_is_decided(case, moment):
    before, decided = (play(case)[name] for name in ("running", moment))
    assert (before.stop, decided.stop) == (False, True)


def test_pods_that_go_because_their_job_was_suspended_are_no_cause_of_anything():
    """Else a failure after the Job went on would be taken for what came before it."""
    assert all(verdict.history.open.cause is None for verdict in play("suspended").values())


def test_a_job_at_work_is_stopped_by_suspend_and_stays_so():
    verdicts = play("suspended", suspend=True)
    assert {(verdict.phase, verdict.stop) for verdict in verdicts.values()} == {(Phase.STOPPING, True)}
    assert verdicts["settled"].history.open.cause.outcome is Outcome.STOPPED
