"""Who ended an attempt, seen or unseen: every way a pod can end, and what may be left of it when somebody looks."""

from __future__ import annotations

from datetime import timedelta

import pytest

from builders import make_job
from cluster.paths import CHECKOUT
from scene import START, Scene, running
from trainwright.contract import EndedBy, Termination
from trainwright_operator.core.causes import BY_HAND, FOLLOWED, UNEXPLAINED, cause_of
from trainwright_operator.core.history import Cause, Outcome
from trainwright_operator.core.observe import Attempt, End, Job, JobState, Pod, Wait
from trainwright_operator.core.policy import UNEXPLAINED_FREE

SCRIPT, SIGNAL, PEER, LOST = EndedBy.SCRIPT, EndedBy.SIGNAL, EndedBy.PEER, EndedBy.LOST
OLD = None
"""An image that does not say who ended it."""


def pod(index: int, code: int, ended: float, by: EndedBy | None, error: str | None = None, **change) -> Pod:
    word = Termination("x", code, error=error, ended_by=by)
    return Pod(f"p{index}", 1, index=index, end=End(code, at(ended), word=word, **change.pop("end", {})), **change)


def at(seconds: float):
    return START + timedelta(seconds=seconds)


def asked(seconds: float) -> dict:
    return {"deletion_requested": at(seconds), "deletion_due": at(seconds + 30)}


MARKED = {"disruption": Wait("EvictionByEvictionAPI", "evicting")}
DRAINED = MARKED | asked(10)
TAKEN_DOWN = asked(10)
"""By the Job controller, which fails the Job at 10 as well."""

ENDS = {
    # what is left of two pods: outcome and reason. The Job has failed at 10.
    # It ended by itself.
    "failed": ([pod(0, 1, 9, SCRIPT), pod(1, 143, 10, PEER, **TAKEN_DOWN)], "Failed Error"),
    "failed, its peer is gone": ([pod(0, 1, 9, SCRIPT)], "Failed Error"),
    "failed, then its node was drained": ([pod(0, 1, 9, SCRIPT, **DRAINED)], "Failed Error"),
    "failed, then somebody deleted it": ([pod(0, 1, 9, SCRIPT, **asked(30))], "Failed Error"),
    "failed, only the peer that it told is left": ([pod(1, 1, 10, PEER, "boom", **TAKEN_DOWN)], "Failed Error"),
    "bad data, only the peer that it told is left": ([pod(1, 65, 10, PEER, "no", **TAKEN_DOWN)], "Failed BadData"),
    "says stopped, and nobody asked": (
        [pod(0, 143, 9, SCRIPT, "by itself"), pod(1, 143, 9, PEER, "by itself")],
        "Failed Error",
    ),
    "says so, and its peer is taken down": (
        [pod(0, 143, 9, SCRIPT), pod(1, 143, 12, SIGNAL, **TAKEN_DOWN)],
        "Failed Error",
    ),
    "says so, then its node was drained": ([pod(0, 143, 9, SCRIPT, **DRAINED)], "Failed Error"),
    "says so, only the peer that it told is left": ([pod(1, 143, 10, PEER, "by itself", **TAKEN_DOWN)], "Failed Error"),
    "bad data, then its node was drained": ([pod(0, 65, 9, SCRIPT, **DRAINED)], "Failed BadData"),
    # A signal asked it.
    "evicted": ([pod(0, 143, 12, SIGNAL, **DRAINED), pod(1, 143, 12, PEER)], "Disrupted EvictionByEvictionAPI"),
    "evicted, could not save": ([pod(0, 74, 12, SIGNAL, **DRAINED)], "Disrupted EvictionByEvictionAPI"),
    "deleted": ([pod(0, 143, 12, SIGNAL, **asked(9)), pod(1, 143, 12, PEER)], "Disrupted Preempted"),
    "deleted, could not save": ([pod(0, 74, 12, SIGNAL, **asked(9)), pod(1, 1, 13, LOST)], "Disrupted PodDeleted"),
    "killed by hand from within": ([pod(0, 143, 9, SIGNAL), pod(1, 143, 10, PEER)], "Disrupted UnexplainedStop"),
    "killed by hand from within, its peer taken down": (
        [pod(0, 143, 9, SIGNAL), pod(1, 143, 12, SIGNAL, **TAKEN_DOWN)],
        "Disrupted UnexplainedStop",
    ),
    # A peer went first that nobody saw.
    "a peer was asked, and is gone": ([pod(1, 143, 12, PEER)], "Disrupted PodsGone"),
    "a peer was asked, and is gone; this one was taken down": (
        [pod(1, 143, 12, PEER, **TAKEN_DOWN)],
        "Disrupted PodsGone",
    ),
    "a peer is lost, and gone": ([pod(1, 1, 9, LOST, "closed by peer")], "Disrupted PodsGone"),
    "a peer is lost, and gone; this one was taken down": (
        [pod(1, 1, 10, LOST, "closed", **TAKEN_DOWN)],
        "Disrupted PodsGone",
    ),
    "this one was taken down, and still runs": (
        [Pod("p1", 1, index=1, ready=True, **TAKEN_DOWN)],
        "Disrupted PodsGone",
    ),
    "a peer is lost, and gone; this one was evicted": (
        [pod(1, 1, 9, LOST, **DRAINED)],
        "Disrupted EvictionByEvictionAPI",
    ),
    # Nobody is gone, and nobody tells.
    "the network broke": ([pod(0, 1, 9, LOST, "closed"), pod(1, 1, 9, LOST, "closed")], "Failed PeerLost"),
    "the node restarted": (
        [pod(0, 255, 9, OLD, end={"reason": "Unknown"}), pod(1, 1, 9, LOST)],
        "Disrupted ContainerLost",
    ),
    # An image that does not say who asked.
    "old: stopped": ([pod(0, 143, 9, OLD), pod(1, 143, 9, OLD)], "Disrupted UnexplainedStop"),
    "old: stopped, its peer taken down": (
        [pod(0, 143, 10, OLD), pod(1, 143, 12, OLD, **TAKEN_DOWN)],
        "Disrupted UnexplainedStop",
    ),
    "old: failed": ([pod(0, 1, 9, OLD), pod(1, 143, 12, OLD, **TAKEN_DOWN)], "Failed Error"),
    "old: deleted": ([pod(0, 143, 12, OLD, **asked(9)), pod(1, 143, 12, OLD)], "Disrupted Preempted"),
    "old: evicted": ([pod(0, 1, 12, OLD, **DRAINED), pod(1, 1, 11, OLD)], "Disrupted EvictionByEvictionAPI"),
    "old: a peer is gone": ([pod(1, 143, 12, OLD, **TAKEN_DOWN)], "Disrupted PodsGone"),
    "old: a peer is lost, and gone": (
        [pod(1, 1, 9, OLD, "RuntimeError: [gloo/pair.cc:547] Connection closed by peer [10.0.0.2]:45678")],
        "Disrupted PodsGone",
    ),
    "old: node 0 is gone": ([pod(1, 1, 9, OLD, "node 0 is gone: its pod ended without a word")], "Disrupted PodsGone"),
    "old: failed, and its peer is gone": ([pod(1, 1, 9, OLD, "ValueError: bad shape")], "Failed Error"),
    # The kubelet marks as evicted also what went over its own limit.
    "used too much": ([pod(0, 143, 9, SIGNAL, excess="Usage exceeds the limit.")], "Failed Evicted"),
    "a word that is no word": ([pod(0, 143, 9, [])], "Disrupted UnexplainedStop"),
    "a word that is none of ours": ([pod(0, 143, 9, "you")], "Disrupted UnexplainedStop"),
    # What ended well has no part in it.
    "done before its node was drained": ([pod(0, 0, 5, OLD, **DRAINED), pod(1, 1, 9, SCRIPT)], "Failed Error"),
}


@pytest.mark.parametrize(("pods", "expected"), ENDS.values(), ids=ENDS)
def test_an_end_is_judged_by_what_is_left_of_it(pods, expected):
    job = Job("j", 1, completions=2, state=JobState.FAILED, decided=at(10), failure="BackoffLimitExceeded")
    cause = cause_of(Attempt(1, (job,), tuple(pods)))
    assert f"{cause.outcome.value} {cause.reason}" == expected


SEEN = {
    # what was recorded of p0, what is left: reason
    "it was seen to fail before its node was drained": (
        Cause(Outcome.FAILED, "Error", pod="p0", exit_code=1, time=at(9)),
        [pod(0, 1, 9, OLD, **DRAINED)],
        "Error",
    ),
    "it was seen to be deleted before its peer was gone": (
        Cause(Outcome.DISRUPTED, "PodDeleted", pod="p0", time=at(10)),
        [pod(0, 143, 12, PEER, **TAKEN_DOWN)],
        "PodDeleted",
    ),
    "its peer turns out to be gone": (
        Cause(Outcome.FAILED, "PeerLost", pod="p0", exit_code=1, time=at(9)),
        [pod(0, 1, 9, LOST)],
        "PodsGone",
    ),
    "it turns out to have failed by itself": (
        Cause(Outcome.DISRUPTED, "PodDeleted", pod="p0", time=at(10)),
        [pod(0, 1, 12, PEER, "boom", **TAKEN_DOWN)],
        "Error",
    ),
    "the one that knew is gone": (Cause(Outcome.DISRUPTED, "PodsGone", pod="p0", time=at(9)), [], "PodsGone"),
}


@pytest.mark.parametrize(("known", "pods", "reason"), SEEN.values(), ids=SEEN)
def test_what_was_seen_counts_with_what_is_left(known, pods, reason):
    job = Job("j", 1, completions=2, state=JobState.FAILED, decided=at(10))
    assert cause_of(Attempt(1, (job,), tuple(pods)), known).reason == reason


# What follows


def taken_away(scene: Scene, *indices: int) -> Scene:
    """Nobody looks while the cluster takes pods away, and the Job controller gives the attempt up."""
    for index in indices:
        del scene.objects.pods[scene.pod(index)["metadata"]["name"]]
    newest = max(scene.objects.jobs, key=lambda name: int(name.rsplit("-", 1)[1]))
    job = scene.objects.jobs[newest]
    for kind in ("FailureTarget", "Failed"):
        scene.objects._add(job, kind, "BackoffLimitExceeded", scene.now)
    return scene


def evicted(scene: Scene, index: int) -> Scene:
    return scene.evict(index).settle().exit(index, 143, ended_by="signal")


@pytest.mark.parametrize("pods", [1, 2])
def test_pods_that_were_drained_unseen_are_not_counted(pods):
    scene = taken_away(running(make_job().nodes(pods).with_("spec.maxRestarts", 0)), *range(pods))
    scene.wait(15).settle()
    assert (scene.state, scene.status["restarts"]) == ("Restarting", {"total": 1, "counted": 0, "disruptions": 1})
    assert scene.status["attempts"][0]["reason"] == "PodsGone"
    assert "taken away before their end could be seen" in scene.status["attempts"][0]["message"]


def test_a_peer_of_an_unseen_pod_tells_what_it_saw():
    scene = running(make_job().nodes(2).with_("spec.maxRestarts", 0)).exit(
        1, 1, error="closed by peer", ended_by="lost"
    )
    taken_away(scene, 0).wait(15).settle()
    (first, _) = scene.status["attempts"]
    assert (first["outcome"], first["pod"], first["message"]) == (
        "Disrupted",
        "gpt-corpus-0-1-1",
        "closed by peer; 1 of 2 pods is not there to tell why",
    )


def ends(scene: Scene, times: int, end, **more) -> Scene:
    for _ in range(times):
        scene.start_pods().settle()
        end(scene)
        scene.wait(15).settle()
        if "completionTime" in scene.status:
            return scene
        scene.wait(600).settle()
    return scene


UNBOUNDED = {
    "pods gone": lambda scene: taken_away(scene, 0),
    "an older image that says stopped": lambda scene: scene.exit(0, 143),
    "stopped from within": lambda scene: scene.exit(0, 143, ended_by="signal"),
}


@pytest.mark.parametrize("end", UNBOUNDED.values(), ids=UNBOUNDED)
def test_ends_that_nobody_explains_are_bounded(end):
    scene = ends(Scene(make_job().with_("spec.maxRestarts", 1)).settle(), 20, end)
    assert (scene.state, scene.condition("Failed")["reason"]) == ("Failed", "TooManyRestarts")
    assert scene.status["restarts"] == {"total": UNEXPLAINED_FREE + 1, "counted": 1, "disruptions": UNEXPLAINED_FREE}
    assert f"the end of {UNEXPLAINED_FREE + 2} attempts in a row" in scene.condition("Failed")["message"]


@pytest.mark.parametrize("between", ["progress", "an eviction"])
def test_ends_that_nobody_explains_are_forgiven_where_the_job_gets_on(between):
    scene = Scene(make_job().with_("spec.maxRestarts", 0)).settle()
    for attempt in range(1, 9):
        scene.start_pods().settle()
        if between == "progress":
            scene.push(step=10 * attempt).settle()
        if between == "an eviction" and attempt % 3 == 0:
            evicted(scene, 0)
        else:
            taken_away(scene, 0)
        scene.wait(15).settle().wait(600).settle()
    assert (scene.state, scene.status["restarts"]["disruptions"]) == ("Restarting", 8)


def test_a_script_that_says_stopped_though_nobody_asked_counts():
    scene = ends(
        Scene(make_job().with_("spec.maxRestarts", 1)).settle(),
        5,
        lambda scene: scene.exit(0, 143, error="rank 0 ended with exit code 143 by itself", ended_by="script"),
    )
    assert scene.condition("Failed")["message"] == (
        "1 restart used (maxRestarts); attempt 2 failed: gpt-corpus-0-2-0 on node-a: "
        "rank 0 ended with exit code 143 by itself"
    )


@pytest.mark.parametrize("end", [taken_away, evicted])
def test_ends_that_nobody_explains_are_waited_between_however_long_the_attempts_took(end):
    scene = Scene(make_job()).settle()
    for _ in range(3):
        scene.start_pods().wait(3600).settle()
        end(scene, 0).wait(11).settle()
    waits = "attempt 4 starts at" in scene.condition("Restarting")["message"]
    assert waits == (end is taken_away)


def test_an_attempt_ended_when_its_job_did_however_late_somebody_looks():
    scene = running()
    ended = scene.now
    taken_away(scene, 0, 1).wait(3600).settle()
    assert scene.status["attempts"][0]["endTime"] == ended.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert scene.status["attempts"][1]["attempt"] == 2


def test_a_deadline_that_somebody_set_on_the_job_itself_is_no_disruption():
    scene = running(make_job().with_("spec.maxRestarts", 0))
    job = scene.objects.jobs["gpt-corpus-0-1"]
    for kind in ("FailureTarget", "Failed"):
        scene.objects._add(job, kind, "DeadlineExceeded", scene.now)
    scene.objects.pods.clear()
    assert scene.wait(15).settle().state == "Failed"
    assert "activeDeadlineSeconds that this operator did not set" in scene.condition("Failed")["message"]


def test_the_manual_says_how_many_are_free_and_names_every_reason():
    manual = (CHECKOUT / "docs/exit-codes.md").read_text()
    assert {3: "Three"}[UNEXPLAINED_FREE] + " of these in a row do not count" in manual
    assert [reason for reason in (UNEXPLAINED | FOLLOWED | BY_HAND) if f"`{reason}`" not in manual] == []
