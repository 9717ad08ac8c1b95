"""Finds out why a job is not running, and how to fix it.

It starts from the operator's conditions, and adds what the user may read and the operator may not: claims, quotas, and
the taints and labels behind a message of the scheduler.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from trainwright_operator.api.names import Condition, Reason
from trainwright_operator.core import display
from trainwright_operator.core.fixes import fixes_for
from trainwright_operator.core.policy import Phase
from trainwright_operator.core.states import condition, status_of, up_to_date
from trainwright_operator.core.times import read_time

Object = Mapping[str, Any]

UNSEEN_AFTER = timedelta(seconds=10)
QUIET_AFTER = timedelta(minutes=10)
WAITING = frozenset({Phase.PENDING.value, "Queued", Phase.STARTING.value, Phase.RESTARTING.value})
OPERATOR = (
    "check that the operator runs and serves this namespace: "
    "kubectl get pods -A -l app.kubernetes.io/name=trainwright-operator"
)


@dataclass(frozen=True)
class Facts:
    """What was read from the cluster; None if it could not be read."""

    job: Object
    now: datetime
    pods: Sequence[Object] = ()
    events: Sequence[Object] | None = ()
    claims: Sequence[Object] | None = ()
    quotas: Sequence[Object] | None = ()
    pools: Sequence[Object] | None = ()
    hidden: tuple[str, ...] = field(default=())
    unread: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        return str(self.job["metadata"]["name"])


@dataclass(frozen=True)
class Finding:
    what: str
    fix: str = ""


def diagnose(facts: Facts) -> list[Finding]:
    """The findings, most likely cause first; empty for a job that runs well or has succeeded."""
    if facts.job["metadata"].get("deletionTimestamp"):
        return list(_unseen(facts))
    return [*_unseen(facts), *_state(facts), *_not_finite(facts), *_claims(facts), *_quotas(facts)]


def _unseen(facts: Facts) -> Iterator[Finding]:
    meta = facts.job["metadata"]
    if meta.get("deletionTimestamp"):
        holders = ", ".join(meta.get("finalizers") or ()) or "none"
        fix = f"their owners have to remove them: kubectl -n {_namespace(facts)} get tj {facts.name} -o yaml"
        yield Finding(f"it is being deleted, and waits for its finalizers: {holders}", fix)
        return
    if up_to_date(facts.job):
        return
    created = read_time(facts.job["metadata"].get("creationTimestamp")) or facts.now
    if not facts.job.get("status"):
        if facts.now - created >= UNSEEN_AFTER:
            yield Finding("no operator has reconciled this job since it was created", OPERATOR)
    else:
        yield Finding("the operator has not seen the latest change of its spec", OPERATOR)


def _state(facts: Facts) -> Iterator[Finding]:
    state = status_of(facts.job)["state"]
    if state == Phase.FAILED:
        yield from _failed(facts)
    elif state == Phase.SUSPENDED:
        patch = '{"spec":{"suspend":false}}'
        fix = f"resume it: kubectl -n {_namespace(facts)} patch tj {facts.name} --type merge -p '{patch}'"
        yield Finding("it is suspended", fix)
    elif state == Phase.RUNNING:
        yield from _apart(facts) or list(_quiet(facts))
    else:
        yield from _held(facts)


_FAILED = {
    Reason.BAD_CONFIGURATION: "correct it in a manifest with a new metadata.name: the spec cannot change",
    Reason.BAD_DATA: "correct the data, then apply the manifest under a new metadata.name",
    Reason.TOO_MANY_RESTARTS: "fix the cause, then raise spec.maxRestarts: it resumes from its latest checkpoint",
    Reason.DEADLINE_EXCEEDED: "raise spec.activeDeadlineSeconds: it resumes from its latest checkpoint",
}


def _failed(facts: Facts) -> Iterator[Finding]:
    holding = condition(facts.job, Condition.FAILED) or {}
    attempts = status_of(facts.job).get("attempts") or ()
    logs = f"trainwright logs {facts.name} --attempt {attempts[-1]['attempt']}" if attempts else ""
    fix = "; ".join(part for part in (logs, _FAILED.get(holding.get("reason", ""), "")) if part)
    yield Finding(f"it has failed: {holding.get('message', '')}", fix)


def _apart(facts: Facts) -> list[Finding]:
    """Running pods that have not completed the rendezvous."""
    holding = condition(facts.job, Condition.RUNNING) or {}
    if holding.get("reason") != Reason.PODS_NOT_MET:
        return []
    what, _, check = holding["message"].partition("; check ")
    logs = f"trainwright logs {facts.name}"
    return [Finding(what, f"check {check}; {logs}" if check else logs)]


def _quiet(facts: Facts) -> Iterator[Finding]:
    last_push = read_time((status_of(facts.job).get("progress") or {}).get("lastUpdateTime"))
    if last_push and facts.now - last_push >= QUIET_AFTER:
        minutes = int((facts.now - last_push).total_seconds() // 60)
        fix = f"check the logs: trainwright logs {facts.name} --follow; spec.hangTimeoutSeconds says when a hang ends"
        yield Finding(f"it runs, but has reported no progress for {minutes} minutes", fix)


def _not_finite(facts: Facts) -> Iterator[Finding]:
    what, _, fix = display.not_finite(status_of(facts.job)).partition(": ")
    if what:
        yield Finding(what, f"{fix}; trainwright logs {facts.name} names the first step")


def _held(facts: Facts) -> Iterator[Finding]:
    """What blocks the job according to the operator, with a fix if the message has none."""
    order = (Condition.STALLED, Condition.QUEUED, Condition.RESTARTING, Condition.RECONCILING)
    holding = next((one for kind in order if (one := condition(facts.job, kind))), None)
    if holding is None:
        return
    reason, message = holding["reason"], holding["message"]
    if reason == Reason.POOL_NOT_FOUND:
        yield Finding(message, _pools(facts))
    elif found := fixes_for(message):
        yield Finding(message.removesuffix(f"; {'; '.join(found)}"), "; ".join(found))
    elif reason == Reason.INVALID_SPEC:
        yield Finding(message, "an older release accepted it: correct it in a manifest with a new metadata.name")
    else:
        yield Finding(message)


def _pools(facts: Facts) -> str:
    if facts.pools is None:
        return ""
    names = sorted(pool["metadata"]["name"] for pool in facts.pools)
    return f"the pools are {', '.join(names)} and cpu" if names else "the only pool is cpu"


# What the operator may not read


def claim_names(job: Object) -> list[str]:
    """The PersistentVolumeClaims of the pods, the output's first."""
    spec = job["spec"]
    volumes = [spec.get("output") or {}, *((spec.get("podTemplate") or {}).get("volumes") or ())]
    found = [(volume.get("persistentVolumeClaim") or {}).get("claimName") for volume in volumes]
    return list(dict.fromkeys(name for name in found if name))


def _claims(facts: Facts) -> Iterator[Finding]:
    if facts.claims is None or status_of(facts.job)["state"] not in WAITING:
        return
    known = {claim["metadata"]["name"]: claim for claim in facts.claims}
    for name in claim_names(facts.job):
        if name not in known:
            yield Finding(f"its PersistentVolumeClaim {name} does not exist", "create it in this namespace")
        elif (phase := (known[name].get("status") or {}).get("phase")) == "Lost":
            yield Finding(f"its PersistentVolumeClaim {name} has lost its volume ({phase})", "use another claim")


def _quotas(facts: Facts) -> Iterator[Finding]:
    """Quotas of the namespace, if pods were refused."""
    holding = condition(facts.job, Condition.QUEUED)
    if not holding or holding["reason"] != Reason.PODS_REFUSED:
        return
    for quota in facts.quotas or ():
        status = quota.get("status") or {}
        hard, used = status.get("hard") or {}, status.get("used") or {}
        shown = ", ".join(f"{name} {used.get(name, '0')} of {limit}" for name, limit in sorted(hard.items()))
        fix = "wait until other pods end, request less, or have the quota raised"
        yield Finding(f"quota {quota['metadata']['name']}: {shown} used", fix)


def _namespace(facts: Facts) -> str:
    return str(facts.job["metadata"].get("namespace", "default"))
