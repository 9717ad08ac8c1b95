"""Ranks that were restarted in place: what the operator counts, records and says, however it hears of it."""

from __future__ import annotations

import json

import pytest

from builders import make_job
from scene import Scene, running
from trainwright.contract import RoundEnd, Termination, backoff_seconds, restarts_in_place, rounds_on_wire
from trainwright_operator.core.history import History
from trainwright_operator.core.policy import quick_failures
from trainwright_operator.core.progress import keep_rounds

KILLED = "rank 1 was killed by SIGKILL (exit code 137)"
START = 1767225605.0


def ends(count: int, seconds: float = 10) -> list[RoundEnd]:
    """Rounds of which each worked for ``seconds``, and whose second node failed."""
    return [RoundEnd(n, 137, START + seconds * n, KILLED, rank=1, node=1, step=100 + n) for n in range(1, count + 1)]


def restarted(scene: Scene, count: int) -> Scene:
    """The launcher of node 0 pushes that so many rounds have ended."""
    return scene.push(**rounds_on_wire(count + 1, ends(count))["trainwright"]).settle()


def word(count: int, code: int = 1, **more: object) -> dict[str, object]:
    return json.loads(Termination("Error", code, round=count + 1, rounds=[e.to_wire() for e in ends(count)]).to_json())


def budget_of(scene: Scene, index: int = 0) -> dict[str, str]:
    env = scene.pod(index)["spec"]["containers"][0]["env"]
    return {one["name"]: one["value"] for one in env if "RESTARTS_LEFT" in one["name"] or "IN_A_ROW" in one["name"]}


def test_a_round_is_recorded_counted_and_told_once():
    scene = restarted(restarted(running(), 1), 1)
    (attempt,) = scene.status["attempts"]
    pod = scene.pod(1)
    assert attempt["restartsInPlace"] == 1
    assert attempt["rounds"] == [
        {
            "round": 1, "endTime": "2026-01-01T00:00:15Z", "reason": "Error", "message": KILLED, "rank": 1,
            "nodeRank": 1, "pod": pod["metadata"]["name"], "node": "node-a", "exitCode": 137, "step": 101,
        }
    ]  # fmt: skip
    assert scene.status["restarts"] == {"total": 1, "counted": 1, "disruptions": 0}
    assert scene.status["display"]["restarts"] == "1"
    assert scene.state == "Running"
    said = [event for event in scene.events if event.startswith("RestartedInPlace")]
    where = f"{pod['metadata']['name']} on node-a"
    again = "its ranks start again in the same pods, as round 2"
    assert said == [f"RestartedInPlace: attempt 1: round 1 ended at step 101: {where}: {KILLED}; {again}"]


def test_the_last_word_counts_what_no_push_told():
    scene = restarted(running(), 1).exit(0, 1, **word(3)).exit(1, 1, **word(3)).settle()
    record = scene.status["attempts"][0]
    assert record["restartsInPlace"] == 3
    assert [one["round"] for one in record["rounds"]] == [1, 2, 3]
    assert scene.state == "Failed"
    message = scene.condition("Failed")["message"]
    assert message.startswith("3 restarts used (maxRestarts); attempt 1 failed")
    assert scene.status["restarts"]["counted"] == 3


def test_a_new_attempt_gets_what_is_left_of_the_budget():
    scene = Scene(make_job().nodes(2)).settle()
    assert budget_of(scene) == {"TRAINWRIGHT_RESTARTS_LEFT": "3"}
    scene = restarted(scene.start_pods().wait(30).settle(), 1).exit_all(137).settle().wait(700).settle()
    assert scene.status["attempts"][-1]["attempt"] == 2
    assert scene.status["restarts"]["counted"] == 2
    assert budget_of(scene) == {"TRAINWRIGHT_RESTARTS_LEFT": "1", "TRAINWRIGHT_FAILURES_IN_A_ROW": "2"}


def test_without_restarts_nothing_is_asked_of_the_launcher():
    assert budget_of(Scene(make_job().with_("spec.maxRestarts", 0)).settle()) == {}


def test_an_attempt_after_rounds_waits_as_after_attempts():
    scene = restarted(running(), 2).wait(40).exit_all(137).settle()
    assert "attempt 2 starts at" in scene.condition("Restarting")["message"]
    assert quick_failures(History.of(scene.status)) == 3
    assert scene.last.requeue_after == pytest.approx(backoff_seconds(3))


def test_a_long_round_ends_the_row():
    scene = running()
    scene.push(**rounds_on_wire(2, ends(1, seconds=700))["trainwright"]).settle()
    scene.wait(720).exit_all(137).settle()
    assert quick_failures(History.of(scene.status)) == 1


def test_after_a_round_the_step_may_be_lower():
    scene = running().push(step=140, maxSteps=200).settle()
    scene.push(step=120).settle()
    assert scene.status["progress"]["step"] == 140  # an older push that came late
    restarted(scene, 1).push(step=120, round=2).settle()
    assert (scene.status["progress"]["step"], scene.status["progress"]["round"]) == (120, 2)
    scene.push(step=150, round=1).settle()
    assert scene.status["progress"]["step"] == 120


def test_a_script_that_reports_no_round_is_believed_as_well():
    scene = restarted(running().push(step=140).settle(), 1).push(step=120).settle()
    assert scene.status["progress"]["step"] == 120


NONSENSE = [None, -1, "many", [2], {"number": "x"}, {"number": 2, "ended": "x"}, {"number": 2, "ended": [7, {}, None]},
            {"number": 2, "ended": [{"round": 9}, {"round": 1, "time": 1e300, "code": "?", "node": -4}]}]  # fmt: skip


@pytest.mark.parametrize("rounds", NONSENSE, ids=repr)
def test_what_a_pod_pushes_is_checked(rounds):
    scene = running().push(rounds=rounds).settle()
    assert scene.state == "Running"
    assert all(one["round"] == 1 for one in scene.status["attempts"][0].get("rounds", ()))


def test_a_push_of_rank_0_does_not_hide_that_of_its_launcher():
    told = {"attempt": 1, **rounds_on_wire(2, ends(1))}
    both = keep_rounds({"attempt": 1, "trainerStatus": {}, "trainwright": {"step": 7}}, told)
    scene = running().push(**both["trainwright"]).settle()
    assert scene.status["restarts"]["counted"] == 1
    assert scene.status["progress"]["step"] == 7
    assert "rounds" not in keep_rounds({"attempt": 2, "trainwright": {}}, told)["trainwright"]


def test_a_node_on_which_two_rounds_ended_is_avoided():
    scene = restarted(running(), 2)
    (avoided,) = scene.status["avoidedNodes"]
    assert (avoided["node"], avoided["failures"]) == ("node-a", 2)
    assert avoided["why"].startswith("attempt 1, round 1: rank 1 was killed by SIGKILL (exit code 137); attempt 1")


def test_only_failures_that_a_restart_may_survive_are_restarted_in_place():
    assert [code for code in (0, 1, 64, 65, 76, 124, 137, 143) if restarts_in_place(code)] == [1, 124, 137]


def test_the_backoff_is_that_of_attempts():
    assert [backoff_seconds(row) for row in (0, 1, 2, 3, 4, 7, 50)] == [0, 0, 10, 20, 40, 300, 300]


def test_a_last_word_with_many_rounds_fits_and_keeps_their_number():
    long = [RoundEnd(n, 1, START, "x" * 5000, 0, 0, 1) for n in range(1, 9)]
    text = Termination("Error", 1, error="y" * 3000, round=9, rounds=[one.to_wire() for one in long]).to_json()
    read = Termination.from_json(text)
    assert len(text) <= 4096
    assert read is not None
    assert (read.round, read.rounds[-1]["round"]) == (9, 8)
    assert "more characters" in read.rounds[-1]["error"]
