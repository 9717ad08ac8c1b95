"""What a change of a job's status adds to the operator's counters."""

from datetime import UTC, datetime

import pytest

from trainwright_operator.api.names import Reason
from trainwright_operator.cluster.metrics import RESTART_REASONS, Metrics
from trainwright_operator.core.causes import BY_HAND, FOLLOWED, GIVEN_UP, UNEXPLAINED

NOW = datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
CREATED = {"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}}


def ended(number, outcome, reason):
    return {"attempt": number, "outcome": outcome, "reason": reason, "endTime": "2026-01-01T00:00:30Z"}


FAILED, EVICTED = ended(1, "Failed", "OOMKilled"), ended(1, "Disrupted", "EvictionByEvictionAPI")
MANY = [ended(number, "Failed", "Error") for number in range(3, 13)]
CASES = {
    "the first attempt": ([], [{"attempt": 1}], {}),
    "an attempt goes on": ([{"attempt": 1}], [{"attempt": 1}], {}),
    "one ends, and the next is yet to come": ([{"attempt": 1}], [FAILED], {}),
    "a failure": ([FAILED], [FAILED, {"attempt": 2}], {"OOMKilled": 1.0}),
    "a disruption": ([EVICTED], [EVICTED, {"attempt": 2}], {"EvictionByEvictionAPI": 1.0}),
    "a job that was resumed": (
        [ended(1, "Stopped", "Suspended")],
        [ended(1, "Stopped", "Suspended"), {"attempt": 2}],
        {},
    ),
    "more attempts than the status keeps": (MANY, [*MANY[1:], {"attempt": 13}], {"Error": 1.0}),
}


@pytest.mark.parametrize("name", CASES)
def test_restarts_are_counted_by_reason(name):
    before, after, wanted = CASES[name]
    metrics = Metrics()
    metrics.transition({**CREATED, "status": {"attempts": before}}, {"attempts": after}, NOW)
    (family,) = [one for one in metrics.registry.collect() if one.name == "trainwright_job_restarts"]
    counted = {one.labels["reason"]: one.value for one in family.samples if one.name.endswith("_total")}
    assert {reason: count for reason, count in counted.items() if count} == wanted
    assert wanted.keys() <= set(RESTART_REASONS), "exposed before it happens"


def test_what_jobs_of_a_namespace_may_count_is_exposed_as_0_before_it_is_counted():
    metrics = Metrics()
    job, pool = {"metadata": {"namespace": "lab"}}, {"spec": {"price": {"perAcceleratorHour": 2, "currency": "USD"}}}
    metrics.count_jobs([{**job, "metadata": {"namespace": "lab", "name": "gpt"}}], [pool, {"spec": {}}])
    before = samples(metrics)
    spent = {"goodput": {"seconds": {"stepping": 3.0}}, "acceleratorSeconds": 6.0}
    metrics.transition(job, {**spent, "cost": [{"currency": "USD", "amount": 0.1, "lost": 0.0}]}, NOW)
    grown = {name for name, value in samples(metrics).items() if value}
    assert {name for name, _ in grown} == {
        f"trainwright_{name}_total" for name in ("job_life_seconds", "accelerator_seconds", "accelerator_cost")
    }
    assert {before.get(name) for name in grown} == {0}


def samples(metrics):
    counters = [one for one in metrics.registry.collect() if one.type == "counter"]
    return {
        (one.name, tuple(one.labels.items())): one.value
        for family in counters
        for one in family.samples
        if one.name.endswith("_total")
    }


def test_the_times_to_ready_pods_and_to_the_first_step_are_measured_from_the_apply():
    metrics = Metrics()
    ready = {"conditions": [{"type": "PodsReady", "status": "True"}]}
    metrics.transition(CREATED, ready, NOW)
    metrics.transition({**CREATED, "status": ready}, {**ready, "progress": {"step": 3}}, NOW)
    told = {
        name: metrics.registry.get_sample_value(f"trainwright_job_{name}_seconds_sum")
        for name in ("pods_ready", "first_step")
    }
    assert told == {"pods_ready": 60.0, "first_step": 60.0}


def test_the_account_of_a_job_is_added_up_over_its_status_writes():
    metrics = Metrics()
    job = {"metadata": {"namespace": "lab", "name": "gpt"}}
    statuses = [
        {"goodput": {"seconds": seconds, "lostAcceleratorSeconds": lost, "percent": percent},
         "acceleratorSeconds": held,
         "cost": [{"currency": "USD", "amount": held / 100, "lost": lost / 100}]}
        for seconds, lost, held, percent in [
            ({"starting": 10.0}, 80.0, 80.0, None), ({"starting": 10.0, "stepping": 30.0}, 80.0, 320.0, 75),
            ({"starting": 9.0, "stepping": 60.0}, 72.0, 552.0, 86),
        ]
    ]  # fmt: skip
    for before, after in zip([{}, *statuses], statuses, strict=False):
        metrics.transition({**job, "status": before}, after, NOW)
    metrics.count_jobs([{**job, "status": statuses[-1]}])

    def value(metric, **labels):
        return metrics.registry.get_sample_value(f"trainwright_{metric}", {"namespace": "lab", **labels})

    assert value("job_life_seconds_total", cause="stepping") == 60
    assert value("job_life_seconds_total", cause="starting") == 10
    assert (value("accelerator_seconds_total"), value("accelerator_lost_seconds_total")) == (552, 80)
    assert value("accelerator_cost_total", currency="USD") == pytest.approx(5.52)
    assert value("accelerator_lost_cost_total", currency="USD") == pytest.approx(0.8)
    assert value("job_goodput_ratio", name="gpt") == 0.86
    metrics.count_jobs([{**job, "status": {**statuses[-1], "completionTime": "2026-01-01T00:00:00Z"}}])
    assert value("job_goodput_ratio", name="gpt") is None


def test_every_disruption_that_the_operator_names_is_exposed_before_it_happens():
    assert UNEXPLAINED | FOLLOWED | BY_HAND | GIVEN_UP | {Reason.NODE_LEAVING} <= set(RESTART_REASONS)
