"""The Prometheus metrics of the operator. Names follow Prometheus' rules: base units, ``_total`` for counters."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from trainwright_operator.api.names import Reason
from trainwright_operator.api.status import GOODPUT_CAUSES
from trainwright_operator.core.avoidance import blamed
from trainwright_operator.core.causes import EVICTED
from trainwright_operator.core.history import Outcome, Record
from trainwright_operator.core.times import read_time

SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30)
WAITS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
RESTART_REASONS = (
    *(Reason.ERROR, Reason.HANG, Reason.UNKNOWN, Reason.IMAGE_MISMATCH, Reason.JOB_DEADLINE, "OOMKilled", EVICTED),
    *(Reason.PREEMPTED, Reason.POD_DELETED, Reason.NODE_LEAVING, Reason.JOB_DELETED),
    *(Reason.PODS_GONE, Reason.CONTAINER_LOST),
    *(Reason.PEER_LOST, Reason.PEER_STOPPED, Reason.UNEXPLAINED_STOP),
    *(Reason.GANG_INCOMPLETE, Reason.ATTEMPT_INCOMPLETE, Reason.SHRUNK, Reason.GROWN),
    *("EvictionByEvictionAPI", "PreemptionByScheduler", "TerminationByKubelet"),
    *("DeletionByTaintManager", "DeletionByPodGC"),
)
"""Those that the operator and Kubernetes have; what a container runtime adds is counted as well."""


class Metrics:
    """A registry per instance, so that two operators in one test do not share counters.

    A counter is exposed with 0 before it first counts, where its labels are known: Prometheus sees no increase in the
    first value of a series.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._of_the_operator(self.registry)
        self._of_jobs(self.registry)
        self._of_accelerators(self.registry)

    def _of_the_operator(self, own: CollectorRegistry) -> None:
        self.reconcile_seconds = Histogram(
            "trainwright_reconcile_duration_seconds", "Time of one reconcile.", buckets=SECONDS, registry=own
        )
        self.reconcile_errors = Counter("trainwright_reconcile_errors_total", "Reconciles that failed.", registry=own)
        self.queue_depth = Gauge("trainwright_queue_depth", "Keys that are waiting for a worker.", registry=own)
        self.api_requests = Counter(
            "trainwright_api_requests_total",
            "Requests to the API server by verb and code; code 0 means no response.",
            ["verb", "code"],
            registry=own,
        )
        self.progress_pushes = Counter(
            "trainwright_progress_pushes_total", "Progress pushes of pods by result.", ["result"], registry=own
        )
        self.progress_serving = Gauge(
            "trainwright_progress_serving", "1 while this replica serves the progress endpoint.", registry=own
        )
        self.leading = Gauge("trainwright_leading", "1 while this replica is the leader.", registry=own)

    def _of_jobs(self, own: CollectorRegistry) -> None:
        self.jobs = Gauge("trainwright_jobs", "TrainingJobs by state.", ["state"], registry=own)
        self.restarts = Counter(
            "trainwright_job_restarts_total",
            "Restarts, by the reason why the previous attempt or round ended.",
            ["reason"],
            registry=own,
        )
        for reason in RESTART_REASONS:
            self.restarts.labels(reason)
        self.node_failures = Counter(
            "trainwright_node_failures_total",
            "Attempts that ended because of a pod on this node that failed first, or because the node was lost.",
            ["node"],
            registry=own,
        )
        self.pods_seconds = Histogram(
            "trainwright_job_pods_ready_seconds",
            "From a job's creation to all pods ready.",
            buckets=WAITS,
            registry=own,
        )
        self.first_step_seconds = Histogram(
            "trainwright_job_first_step_seconds",
            "From a job's creation to its first reported step.",
            buckets=WAITS,
            registry=own,
        )
        self.life_seconds = Counter(
            "trainwright_job_life_seconds_total",
            "Seconds of the life of jobs by what they went to; docs/goodput.md defines the causes.",
            ["namespace", "cause"],
            registry=own,
        )
        self.goodput = Gauge(
            "trainwright_job_goodput_ratio",
            "The share of the life of a job at work that was spent in steps, suspension apart.",
            ["namespace", "name"],
            registry=own,
        )
        self.slowest = Gauge(
            "trainwright_job_slowest_rank_ratio",
            "Of a job at work with a slow rank: its own time in a step, by the median of the other ranks.",
            ["namespace", "name"],
            registry=own,
        )

    def _of_accelerators(self, own: CollectorRegistry) -> None:
        self.accelerator_seconds = Counter(
            "trainwright_accelerator_seconds_total",
            "Accelerators that jobs held, times seconds.",
            ["namespace"],
            registry=own,
        )
        self.accelerator_seconds_lost = Counter(
            "trainwright_accelerator_lost_seconds_total",
            "Of these, what was not spent in steps.",
            ["namespace"],
            registry=own,
        )
        self.cost = Counter(
            "trainwright_accelerator_cost_total",
            "What the accelerators cost, in the currency of the label, at the price of the pool.",
            ["namespace", "currency"],
            registry=own,
        )
        self.cost_lost = Counter(
            "trainwright_accelerator_lost_cost_total",
            "Of that, what was not spent in steps.",
            ["namespace", "currency"],
            registry=own,
        )

    def api_request(self, verb: str, code: int) -> None:
        self.api_requests.labels(verb, code).inc()

    def count_jobs(self, jobs: Iterable[Mapping[str, Any]], pools: Iterable[Mapping[str, Any]] = ()) -> None:
        """Computes gauges when metrics are read, so that they cost nothing in between."""
        jobs = list(jobs)
        currencies = {price["currency"] for pool in pools if (price := pool["spec"].get("price"))}
        for namespace in {job["metadata"]["namespace"] for job in jobs}:
            self._expose(namespace, currencies)
        states = Count((job.get("status") or {}).get("state", "Pending") for job in jobs)
        self.goodput.clear()
        self.slowest.clear()
        for job in jobs:
            status, meta = job.get("status") or {}, job["metadata"]
            if "completionTime" not in status and (percent := (status.get("goodput") or {}).get("percent")) is not None:
                self.goodput.labels(meta["namespace"], meta["name"]).set(percent / 100)
            if status.get("state") == "Running" and (slow := status.get("slowest")):
                self.slowest.labels(meta["namespace"], meta["name"]).set(slow["factor"])
        self.jobs.clear()
        for state, count in states.items():
            self.jobs.labels(state).set(count)

    def transition(self, job: Mapping[str, Any], after: Mapping[str, Any], now: datetime) -> None:
        """Record a status write: restarts by reason, the time to ready pods and to the first step."""
        before = job.get("status") or {}
        if ended := _restarted(before.get("attempts") or [], after.get("attempts") or []):
            self.restarts.labels(ended.get("reason", "Unknown")).inc()
        for node in _failed_on(before.get("attempts") or [], after.get("attempts") or []):
            self.node_failures.labels(node).inc()
        self._spent(job["metadata"].get("namespace", ""), before, after)
        for reason in _restarted_in_place(before.get("attempts") or [], after.get("attempts") or []):
            self.restarts.labels(reason).inc()
        created = read_time(job["metadata"].get("creationTimestamp"))
        if created is None:
            return
        age = max(0.0, (now - created).total_seconds())
        if _holds(after, "PodsReady") and not any(one["type"] == "PodsReady" for one in before.get("conditions") or ()):
            self.pods_seconds.observe(age)
        if _step(after) and not _step(before):
            self.first_step_seconds.observe(age)

    def _expose(self, namespace: str, currencies: Iterable[str]) -> None:
        for cause in GOODPUT_CAUSES:
            self.life_seconds.labels(namespace, cause)
        self.accelerator_seconds.labels(namespace)
        self.accelerator_seconds_lost.labels(namespace)
        for currency in currencies:
            self.cost.labels(namespace, currency)
            self.cost_lost.labels(namespace, currency)

    def _spent(self, namespace: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Add what the account of a job grew by; counters cannot follow a correction downwards."""
        known, new = ((one.get("goodput") or {}) for one in (before, after))
        former = known.get("seconds") or {}
        for cause, seconds in (new.get("seconds") or {}).items():
            self.life_seconds.labels(namespace, cause).inc(max(0.0, seconds - former.get(cause, 0.0)))
        held = after.get("acceleratorSeconds", 0.0) - before.get("acceleratorSeconds", 0.0)
        lost = new.get("lostAcceleratorSeconds", 0.0) - known.get("lostAcceleratorSeconds", 0.0)
        if held or lost:
            self.accelerator_seconds.labels(namespace).inc(max(0.0, held))
            self.accelerator_seconds_lost.labels(namespace).inc(max(0.0, lost))
        paid = {one["currency"]: one for one in before.get("cost") or ()}
        for one in after.get("cost") or ():
            currency, earlier = one["currency"], paid.get(one["currency"]) or {}
            self.cost.labels(namespace, currency).inc(max(0.0, one["amount"] - earlier.get("amount", 0.0)))
            self.cost_lost.labels(namespace, currency).inc(max(0.0, one["lost"] - earlier.get("lost", 0.0)))


def _failed_on(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[str]:
    """The nodes of attempts that have ended since."""
    known = {entry["attempt"] for entry in before if "endTime" in entry}
    new = [
        Record.from_dict({"startTime": "", **entry})
        for entry in after
        if "endTime" in entry and entry["attempt"] not in known
    ]
    return [node for record in new if (node := blamed(record))]


def _restarted(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The attempt that was restarted; a resumed or extended job is not a restart."""
    if len(after) < 2 or (before and before[-1]["attempt"] == after[-1]["attempt"]):
        return None
    return after[-2] if after[-2].get("outcome") in (Outcome.FAILED, Outcome.DISRUPTED) else None


def _restarted_in_place(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The reason of each new restart in place; of those whose rounds are not known any more, the first one's."""
    known = {entry["attempt"]: entry.get("restartsInPlace", 0) for entry in before}
    for entry in after:
        rounds = {one["round"]: one.get("reason", "Unknown") for one in entry.get("rounds") or ()}
        for number in range(known.get(entry["attempt"], 0) + 1, entry.get("restartsInPlace", 0) + 1):
            yield rounds.get(number, "Unknown")


def _holds(status: Mapping[str, Any], condition: str) -> bool:
    return any(one["type"] == condition and one["status"] == "True" for one in status.get("conditions") or ())


def _step(status: Mapping[str, Any]) -> int:
    return int((status.get("progress") or {}).get("step") or 0)
