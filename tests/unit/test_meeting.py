"""Pods that run and have not met: what the conditions say, on whose word, and what is made again under them."""

import pytest

from builders import make_job
from scene import Scene
from trainwright.contract import gang_on_wire
from trainwright_operator.core.pods import PushEndpoint
from trainwright_operator.remote.diagnosis import Facts, diagnose

WHERE = "gpt-corpus-0-1-0.tj-gpt-corpus:29400"
WAITS = f"node 0 has waited 15 s at {WHERE} for node 1; see their logs; check that a NetworkPolicy lets them"
SILENT = (
    f"the pods run, and none has said that they have met: they start still, wait for node 0 at {WHERE}, or do not "
    "reach the operator; their logs say which; check that a NetworkPolicy lets them reach one another and the "
    "operator, the Service tj-gpt-corpus and the cluster's DNS"
)


def at_work(nodes=2, endpoint=True):
    scene = Scene(make_job().nodes(nodes))
    scene.endpoint = PushEndpoint("https://operator/push", "audience", "ca") if endpoint else None
    return scene.settle().start_pods().wait(3).settle()


def told(scene):
    running = scene.condition("Running")
    return scene.status["display"]["state"], running["reason"], running["message"]


TOGETHER = ("Running", "PodsReady", "every pod is ready")


def test_a_gang_that_meets_is_told_as_ever():
    scene = at_work()
    assert told(scene)[:2] == TOGETHER[:2]
    assert scene.last.requeue_after == 60, "a word is waited for"
    scene.push(**gang_on_wire()["trainwright"]).settle()
    assert scene.status["gang"] == {"attempt": 1, "met": True}
    assert scene.last.requeue_after is None
    scene.wait(3600).settle()
    assert told(scene)[:2] == TOGETHER[:2]


def test_whom_node_0_waits_for_is_told_until_they_have_met():
    scene = at_work()
    scene.push(**gang_on_wire(WAITS)["trainwright"]).settle()
    message = f"the pods run and have not met: {WAITS}"
    assert told(scene) == ("Running (PodsNotMet)", "PodsNotMet", message)
    assert scene.status["display"]["why"] == message
    assert [one for one in scene.events if one.startswith("PodsNotMet")] == [f"PodsNotMet: {message}"]
    assert scene.holding() == {"PodsReady", "Running"}, "tools see a job at work"
    scene.wait(3600).push(**gang_on_wire()["trainwright"]).settle()
    assert told(scene)[:2] == TOGETHER[:2]
    assert "why" not in scene.status["display"]


def test_pods_that_say_nothing_are_told_after_a_while():
    scene = at_work().wait(59).settle()
    assert told(scene)[:2] == TOGETHER[:2]
    scene.wait(1).settle()
    assert told(scene) == ("Running (PodsNotMet)", "PodsNotMet", SILENT)
    before = scene.status
    assert scene.wait(600).settle().status == before, "it is not written again"
    scene.push(step=1).settle()
    assert told(scene)[:2] == TOGETHER[:2], "who trains has met"


def test_the_next_attempt_has_to_meet_anew():
    scene = at_work()
    scene.push(**gang_on_wire()["trainwright"]).wait(5).exit_all(1).settle()
    assert "gang" not in scene.status
    scene.wait(60).settle().start_pods().settle().wait(61).settle()
    assert told(scene)[1] == "PodsNotMet"
    scene.push(attempt=1, **gang_on_wire()["trainwright"]).settle()
    assert told(scene)[1] == "PodsNotMet", "a former attempt's word"


@pytest.mark.parametrize(
    "scene", [at_work(nodes=1), at_work(endpoint=False)], ids=["one node", "pods that are told of no endpoint"]
)
def test_who_has_nobody_to_meet_or_to_tell_is_told_as_ever(scene):
    scene.wait(600).settle()
    assert told(scene)[:2] == TOGETHER[:2]


@pytest.mark.parametrize("junk", [{"waits": 7}, {"met": "yes"}, {"waits": ""}, "met", None, {"waits": "x" * 9000}])
def test_a_word_is_bounded_and_junk_is_none(junk):
    scene = at_work().push(gang=junk).settle()
    assert len(scene.status.get("gang", {}).get("waits", "")) <= 512
    assert not scene.status.get("gang", {}).get("met")


def test_describe_says_it_with_the_fix():
    scene = at_work()
    scene.push(**gang_on_wire(WAITS)["trainwright"]).settle()
    (finding,) = diagnose(Facts({**scene.builder.manifest(), "status": scene.status}, scene.now))
    assert finding.what == f"the pods run and have not met: {WAITS.partition('; check')[0]}"
    assert finding.fix == "check that a NetworkPolicy lets them; trainwright logs gpt-corpus"


# The Service


def restored(scene):
    return [child["metadata"]["name"] for child in scene.plan().restore]


def test_a_service_that_is_gone_under_its_pods_is_made_again_as_it_was():
    scene = Scene(make_job().nodes(2))
    scene.services = frozenset()
    (planned,) = (child for child in scene.step().apply if child["kind"] == "Service")
    assert scene.plan().restore == (planned,), "it is lost before the pods have started"
    scene.services = frozenset({"tj-gpt-corpus"})
    assert restored(scene.settle().start_pods().settle()) == []
    scene.services = frozenset({"another"})
    assert scene.plan().restore == (planned,)


def test_nothing_is_made_again_of_what_is_over_or_needs_none():
    one = at_work(nodes=1)
    one.services = frozenset()
    assert restored(one) == []
    done = at_work().exit_all(0).settle()
    done.services = frozenset()
    assert restored(done) == []
    stops = at_work().edit("spec.suspend", True)
    stops.services = frozenset()
    assert restored(stops.settle()) == []
