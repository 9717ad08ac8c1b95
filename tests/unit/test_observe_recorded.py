"""What is observed of Jobs and Pods that a real cluster gave: each recorded moment, in the policy's terms."""

from __future__ import annotations

import pytest

import fixtures
from trainwright_operator.api.spec import parse_job
from trainwright_operator.core.observe import Attempt, JobState, observe

ACTIVE, ENDING, COMPLETE, FAILED = JobState.ACTIVE, JobState.ENDING, JobState.COMPLETE, JobState.FAILED

# For each moment: the Job's state, the ended pods' exit codes by index, why one was disrupted, why one waits.
MOMENTS = {
    ("succeeded", "one pod done"): (ACTIVE, {0: 0}, set(), set()),
    ("succeeded", "complete"): (COMPLETE, {0: 0, 1: 0}, set(), set()),
    ("failed", "running"): (ACTIVE, {}, set(), set()),
    ("failed", "failing"): (ENDING, {0: 1}, set(), set()),
    ("failed", "failed"): (FAILED, {0: 1}, set(), set()),
    ("bad-configuration", "failed"): (FAILED, {0: 64}, set(), set()),
    ("killed", "failed"): (FAILED, {1: 137}, set(), set()),
    ("out-of-memory", "failed"): (FAILED, {0: 137}, set(), set()),
    ("deleted", "terminating"): (ACTIVE, {}, set(), set()),
    ("deleted-exits-0", "counted as done"): (ACTIVE, {0: 0}, set(), set()),
    ("evicted", "terminating"): (ACTIVE, {}, {"EvictionByEvictionAPI"}, set()),
    ("evicted", "failed"): (FAILED, {0: 143}, {"EvictionByEvictionAPI"}, set()),
    ("drained", "terminating"): (ACTIVE, {}, {"EvictionByEvictionAPI"}, set()),
    ("suspended", "suspending"): (ACTIVE, {}, set(), set()),
    ("suspended", "suspended"): (ACTIVE, {}, set(), set()),
    ("suspended", "resumed"): (ACTIVE, {}, set(), set()),
    ("unschedulable", "waiting"): (ACTIVE, {}, set(), {"Unschedulable"}),
    ("image-missing", "refused"): (ACTIVE, {}, set(), {"ErrImagePull"}),
    ("image-missing", "backing off"): (ACTIVE, {}, set(), {"ImagePullBackOff"}),
    ("node-lost", "not ready"): (ACTIVE, {}, set(), set()),
    ("node-lost", "terminating"): (ACTIVE, {}, {"DeletionByTaintManager"}, set()),
    ("node-lost", "failing"): (ENDING, {}, {"DeletionByTaintManager"}, set()),
    ("node-lost", "failed, node back"): (FAILED, {}, set(), set()),
    ("termination-message", "complete"): (COMPLETE, {0: 0, 1: 0}, set(), set()),
}


def attempt(case: str, moment: str) -> Attempt:
    recorded = fixtures.load(case)[moment]
    job = parse_job(fixtures.training_job(case))
    (found,) = observe(job, [recorded.job], recorded.pods, recorded.events).attempts
    return found


@pytest.mark.parametrize(("case", "moment"), MOMENTS)
def test_a_recorded_moment_is_observed_as_it_was(case: str, moment: str) -> None:
    found = attempt(case, moment)
    state, codes, disruptions, waits = MOMENTS[case, moment]
    assert found.jobs[0].state is state
    assert {pod.index: pod.end.exit_code for pod in found.pods if pod.end} == codes
    assert {pod.disruption.reason for pod in found.pods if pod.disruption} == disruptions
    assert {pod.wait.reason for pod in found.pods if pod.wait} == waits


def test_a_termination_message_is_the_final_word() -> None:
    word = attempt("termination-message", "complete").pods[0].end.word
    assert word is not None
    assert (word.reason, word.step, word.metrics) == ("Completed", 20, {"loss": 1.5})


def test_a_bad_configuration_brings_its_error() -> None:
    word = attempt("bad-configuration", "failed").pods[0].end.word
    assert word is not None
    assert word.error == "trainingArguments.learningRate: negative"


def test_a_pod_out_of_memory_says_so() -> None:
    assert attempt("out-of-memory", "failed").pods[0].end.reason == "OOMKilled"


def test_a_pod_deleted_by_hand_is_no_disruption() -> None:
    (asked,) = [pod for pod in attempt("deleted", "terminating").pods if pod.deletion_requested]
    assert asked.disruption is None


def test_every_case_that_is_recorded_is_looked_at() -> None:
    assert set(fixtures.cases()) - {case for case, _ in MOMENTS} == set()
