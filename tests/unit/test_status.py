"""The status: conditions that GitOps tools read, what trainers tell, and the strings of the columns."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import make_job
from scene import START, Scene
from status_schema import problems
from trainwright.contract import MAX_ATTEMPTS, MAX_MESSAGE, MAX_METRICS, Progress, Termination, activity_on_wire
from trainwright_operator.api.names import Condition
from trainwright_operator.core import display
from trainwright_operator.core.history import Cause, History, Outcome, Record
from trainwright_operator.core.status import merge_progress
from trainwright_operator.remote.diagnosis import Facts, diagnose

OPEN = {"attempts": [{"attempt": 2, "startTime": "2026-01-01T00:00:00Z"}]}


def test_a_pod_that_cannot_start_stalls_in_the_end():
    scene = Scene(make_job()).settle()
    waiting = {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s" not found'}}
    scene.pod()["status"] = {"phase": "Pending", "containerStatuses": [{"name": "trainer", "state": waiting}]}
    assert scene.wait(5).settle().holding() == {"Reconciling"}
    assert scene.status["display"]["state"] == "Starting (CreateContainerConfigError)"
    assert scene.last.requeue_after == 55
    assert scene.wait(55).settle().holding() == {"Stalled"}
    assert 'secret "s" not found' in scene.condition(Condition.STALLED)["message"]


def test_unschedulable_pods_are_queued():
    scene = Scene(make_job()).settle()
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: no room"}
    scene.pod()["status"] = {"phase": "Pending", "conditions": [scheduled]}
    scene.settle()
    assert scene.state == "Starting", "the scheduler's first word is often out of date"
    assert scene.last.requeue_after == 3
    scene.wait(3).settle()
    assert scene.state == "Queued"
    assert "0/3 nodes: no room" in scene.condition(Condition.QUEUED)["message"]
    scene.start_pods().settle()
    assert scene.condition(Condition.QUEUED)["status"] == "False"


def test_transition_times_move_only_with_the_status():
    scene = Scene(make_job()).settle()
    began = scene.condition(Condition.RECONCILING)["lastTransitionTime"]
    scene.wait(30).edit("spec.maxRestarts", 7).settle()
    condition = scene.condition(Condition.RECONCILING)
    assert (condition["lastTransitionTime"], condition["observedGeneration"]) == (began, 2)
    scene.wait(30).start_pods().settle()
    assert scene.condition(Condition.RECONCILING)["lastTransitionTime"] == "2026-01-01T00:01:05Z"


def test_every_status_fits_its_schema():
    scene = Scene(make_job().nodes(2).with_("spec.maxRestarts", 99)).settle()
    for index in range(MAX_ATTEMPTS + 4):
        scene.start_pods().settle().push(step=index, maxSteps=20, epoch=0.5).exit_all(1, error="x" * 5000).settle()
        scene.wait(400).settle()
        assert problems(scene.status) == []
    assert len(scene.status["attempts"]) == MAX_ATTEMPTS


# What trainers tell


def progress(**told) -> dict:
    return Progress(**told).to_wire("2026-01-01T00:00:00Z")


def test_a_push_of_our_trainer_becomes_progress():
    push = progress(
        step=140,
        max_steps=200,
        epoch=1.5,
        remaining_seconds=21,
        tokens_per_second=18_432.0,
        samples_per_second=144.0,
        metrics={"loss": 2.1134567, "eval_loss": 2.29},
        checkpoint={"path": "checkpoint-100", "step": 100, "time": "2026-01-01T00:00:00Z"},
        best={"metric": "eval_loss", "value": 2.29, "step": 100, "checkpoint": "checkpoint-100"},
        attempt=2,
    )
    status = merge_progress(OPEN, push, START)
    assert status["progress"] == {
        "attempt": 2,
        "step": 140,
        "maxSteps": 200,
        "percent": 70,
        "epoch": 1.5,
        "samplesPerSecond": 144.0,
        "tokensPerSecond": 18_432.0,
        "endTime": "2026-01-01T00:00:26Z",
        "lastUpdateTime": "2026-01-01T00:00:05Z",
    }
    assert status["metrics"] == [{"name": "eval_loss", "value": "2.29"}, {"name": "loss", "value": "2.11346"}]
    assert status["checkpoint"]["step"] == 100
    assert status["best"] == {"metric": "eval_loss", "value": "2.29", "step": 100, "checkpoint": "checkpoint-100"}
    assert status["display"] == {
        "step": "140/200",
        "loss": "2.113",
        "eval": "2.29",
        "tokensPerSecond": "18.4k",
        "ends": "00:00 (in ~21s)",
    }


def test_the_pages_of_runs_and_model_are_kept_over_attempts_and_pushes():
    page = {"tracker": "mlflow", "url": "https://mlflow.example.com/#/experiments/1/runs/2"}
    status = merge_progress(OPEN, progress(step=1, runs=[page], model="https://huggingface.co/me/model"), START)
    status = merge_progress(status, progress(step=2, runs=[{"tracker": "comet_ml", "url": "https://c.example"}]), START)
    assert status["runs"] == [{"tracker": "comet_ml", "url": "https://c.example"}, page]
    assert status["model"] == {"url": "https://huggingface.co/me/model"}
    assert problems(status) == []


@pytest.mark.parametrize("url", ["javascript:alert(1)", "https://a b", "https://a\x1b[31m", "x" * 3000, 3, None, ["a"]])
def test_an_address_that_no_browser_opens_is_left_out(url):
    own = {"step": 1, "runs": [{"tracker": "mlflow", "url": url}], "model": {"url": url}}
    status = merge_progress(OPEN, {"trainwright": own}, START)
    assert not {"runs", "model"} & status.keys()


def test_a_push_of_the_kubeflow_callback_becomes_progress():
    told = {
        "lastUpdatedTime": "2026-01-01T00:00:00+00:00",
        "progressPercentage": 25,
        "estimatedRemainingSeconds": 90,
        "metrics": [
            {"name": "loss", "value": "1.5"},
            {"name": "current_step", "value": "5"},
            {"name": "total_steps", "value": "20"},
            {"name": "current_epoch", "value": "0.25"},
        ],
    }
    status = merge_progress(OPEN, {"trainerStatus": told, "attempt": 2}, START)
    assert (status["progress"]["step"], status["progress"]["maxSteps"], status["progress"]["epoch"]) == (5, 20, 0.25)
    assert status["metrics"] == [{"name": "loss", "value": "1.5"}]
    assert status["display"]["step"] == "5/20"


def test_a_percentage_alone_is_shown_as_the_step():
    status = merge_progress(OPEN, {"trainerStatus": {"progressPercentage": 40}}, START)
    assert status["display"]["step"] == "40%"


LATE = {**OPEN, "progress": {"attempt": 2, "step": 50}}


@pytest.mark.parametrize(
    ("before", "push"),
    [
        (OPEN, {"attempt": 1, "trainwright": {"step": 3}}),
        (LATE, {"trainwright": {"step": 49}}),
        ({}, {"trainwright": {"step": 3}}),
        ({"attempts": [{**OPEN["attempts"][0], "endTime": "2026-01-01T00:00:01Z"}]}, {"trainwright": {"step": 3}}),
    ],
    ids=["a former attempt", "an older push", "nothing was started", "the attempt has ended"],
)
def test_an_old_or_foreign_push_changes_nothing(before, push):
    assert merge_progress(before, push, START) == before


def test_a_new_attempt_may_go_back():
    before = {**OPEN, "progress": {"attempt": 1, "step": 50}}
    assert merge_progress(before, {"trainwright": {"step": 40}}, START)["progress"]["step"] == 40


def test_a_new_attempt_does_not_inherit_a_step():
    scene = Scene(make_job().with_("spec.maxRestarts", 5)).settle().start_pods().settle()
    scene.push(step=140, maxSteps=200, epoch=0.7).settle().exit_all(1).settle().start_pods().settle()
    assert scene.push(attempt=2, epoch=0.1).status["progress"].keys() == {"attempt", "epoch", "lastUpdateTime"}
    assert scene.push(attempt=2, step=101).status["progress"]["step"] == 101


def test_an_attempt_that_told_no_step_ended_at_none():
    scene = Scene(make_job().with_("spec.maxRestarts", 5)).settle().start_pods().settle()
    scene.push(step=140, maxSteps=200).settle().exit_all(1).settle().start_pods().settle()
    scene.exit_all(1, error="no such file").settle()
    assert [entry.get("step") for entry in scene.status["attempts"]] == [140, None]


TIMES = st.sampled_from(["9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00+23:00", "0900-01-01", "2026-01-01T00:00:00"])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**300, 10**400)
    | st.floats()
    | st.text(max_size=300)
    | TIMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = [
    "step",
    "maxSteps",
    "epoch",
    "samplesPerSecond",
    "tokensPerSecond",
    "checkpoint",
    "best",
    "attempt",
    "activity",
    "runs",
    "model",
]
TOLD = ["progressPercentage", "estimatedRemainingSeconds", "metrics"]
METRICS = st.lists(st.fixed_dictionaries({"name": st.text(min_size=1, max_size=8), "value": JSON}), max_size=3)
OWN = st.dictionaries(st.sampled_from(FIELDS), JSON) | st.fixed_dictionaries(
    {
        "checkpoint": st.fixed_dictionaries({"path": st.text(max_size=8), "step": JSON, "time": JSON}),
        "best": st.fixed_dictionaries({"metric": st.text(max_size=8), "value": JSON}),
        "runs": st.lists(st.fixed_dictionaries({"tracker": JSON, "url": JSON | st.just("https://a")}), max_size=3),
    }
)


@given(OWN, st.dictionaries(st.sampled_from(TOLD), JSON) | st.fixed_dictionaries({"metrics": METRICS}))
def test_whatever_is_pushed_fits_the_schema(own, told):
    status = merge_progress(OPEN, {"trainwright": own, "trainerStatus": told, "attempt": 2}, START)
    assert problems(status) == []
    assert all(one["name"].isprintable() and one["value"].isprintable() for one in status.get("metrics", ()))
    json.dumps(status, allow_nan=False)


def test_a_wrong_status_does_not_fit_the_schema():
    assert problems({"state": "Nope"})
    assert problems({"novel": 1})
    assert problems({"attempts": [{"attempt": "x", "startTime": "t"}]})


def test_metrics_are_bounded_and_the_newest_stay():
    status = merge_progress(OPEN, progress(metrics={f"old{i}": 1.0 for i in range(MAX_METRICS)}), START)
    assert "metricsLeftOut" not in status["progress"]
    status = merge_progress(status, progress(metrics={"loss": 1.0}), START)
    assert len(status["metrics"]) == MAX_METRICS
    assert {"name": "loss", "value": "1"} in status["metrics"]
    assert status["progress"]["metricsLeftOut"] == 1
    assert problems(status) == []


def test_what_is_done_besides_steps_is_shown_until_it_is_over():
    status = merge_progress(OPEN, activity_on_wire("tokenizing 34%"), START)
    assert status["progress"]["activity"] == "tokenizing 34%"
    assert status["display"]["step"] == "tokenizing 34%"
    assert problems(status) == []
    status = merge_progress(status, progress(step=3, max_steps=9, activity="saving checkpoint-3"), START)
    assert status["progress"]["activity"] == "saving checkpoint-3"
    assert status["display"]["step"] == "3/9"
    assert "activity" not in merge_progress(status, progress(step=4, max_steps=9), START)["progress"]
    assert "activity" not in merge_progress(OPEN, activity_on_wire(""), START)["progress"]


def test_forty_metrics_arrive_whole():
    status = merge_progress(OPEN, progress(metrics={f"m{i}": 1.0 for i in range(40)}), START)
    assert len(status["metrics"]) == 40
    assert "metricsLeftOut" not in status["progress"]


def test_metrics_that_the_trainer_left_out_are_counted_in_the_status():
    told = progress(metrics={f"m{i}": 1.0 for i in range(MAX_METRICS)}, metrics_left_out=12)
    status = merge_progress(OPEN, told, START)
    assert status["progress"]["metricsLeftOut"] == 12
    assert merge_progress(status, progress(step=1, metrics={"m0": 2.0}), START)["progress"]["metricsLeftOut"] == 12


def test_a_message_is_kept_as_long_as_a_pod_may_leave_it_and_a_cut_is_said():
    def kept(message):
        cause = Cause(Outcome.FAILED, "Error", message)
        return Record(1, START, START, cause).to_dict()["message"]

    assert kept("x" * MAX_MESSAGE) == "x" * MAX_MESSAGE
    cut = kept("x" * 5000)
    assert len(cut) <= MAX_MESSAGE
    assert cut.endswith(f"x ... and {5000 - cut.count('x')} more characters")
    assert kept(cut) == cut


def test_the_last_attempts_are_kept_as_many_as_the_schema_allows():
    past = History()
    for number in range(1, MAX_ATTEMPTS + 3):
        past = past.begin(Record(number, START)).update(Record(number, START, START, Cause(Outcome.FAILED, "Error")))
    assert [record.number for record in past.records] == list(range(3, MAX_ATTEMPTS + 3))
    assert past.counted == MAX_ATTEMPTS + 1
    assert problems({"attempts": [record.to_dict() for record in past.records]}) == []


def test_a_loss_that_is_no_number_is_said_wherever_one_looks():
    scene = Scene(make_job()).settle().start_pods().settle()
    scene.status = merge_progress(scene.status, progress(step=3, metrics={"loss": 2.0}), scene.now)
    scene.settle()
    assert "why" not in scene.status["display"]
    scene.status = merge_progress(scene.status, progress(step=4, metrics={"loss": float("nan")}), scene.now)
    scene.settle()
    assert scene.status["display"]["loss"] == "nan"
    assert scene.status["display"]["why"].startswith("loss is nan: resume from a checkpoint before it")
    assert "loss is nan" in scene.condition("Running")["message"]
    (finding,) = diagnose(Facts({**scene.builder.manifest(), "status": scene.status}, scene.now))
    assert finding.what == "loss is nan"
    word = {"step": 5, "max_steps": 5, "metrics": {"loss": float("nan"), "train_loss": 2.5}}
    scene.exit_all(0, **word).settle()
    assert scene.state == "Succeeded"
    assert "loss is nan" in scene.condition("Succeeded")["message"]
    assert problems(scene.status) == []


def test_the_final_word_stands_when_every_push_was_lost():
    word = Termination(
        "Completed", 0, step=200, max_steps=200, metrics={"eval_loss": 1.25}, checkpoint="checkpoint-200"
    )
    scene = Scene(make_job()).settle().start_pods().settle()
    scene.objects.ended("gpt-corpus-0-1-0", 0, word.to_json(), scene.now)
    scene.settle()
    assert scene.status["display"]["step"] == "200/200"
    assert scene.status["display"]["eval"] == "1.25"
    assert scene.status["checkpoint"] == {"path": "checkpoint-200", "step": 200, "time": "2026-01-01T00:00:05Z"}
    assert scene.status["attempts"][0]["step"] == 200


@pytest.mark.parametrize(
    "message",
    [
        "[" * 4000,
        '{"a":' * 800,
        "[1]",
        '{"reason": 5, "exit_code": "x"}',
        '{"reason": "Error", "exit_code": 1, "error": 5}',
        '{"reason": "Error", "exit_code": 1, "error": ["x"]}',
        '{"reason": "Error", "exit_code": 1, "error": {"a": 1}, "step": "7"}',
        '{"reason": "Error", "exit_code": 1, "metrics": [1], "best": 5, "checkpoint": 7}',
        '{"reason": "Error", "exit_code": 1, "step": 1' + "0" * 400 + "}",
        '{"reason": "Error", "exit_code": 1, "metrics": {"": 1, "a": null, "b": 1e999, "c": 1' + "0" * 400 + "}}",
    ],
    ids=lambda message: message[:60],
)
def test_whatever_a_container_leaves_as_its_last_word_the_attempt_is_judged(message):
    scene = Scene(make_job().with_("spec.maxRestarts", 0)).settle().start_pods().settle()
    scene.objects.ended(scene.pod(0)["metadata"]["name"], 1, message, scene.now)
    entry = scene.settle().status["attempts"][0]
    assert (scene.state, entry["outcome"], entry["exitCode"]) == ("Failed", "Failed", 1)
    assert problems(scene.status) == []


def test_the_end_is_told_of_a_job_at_work_alone():
    scene = Scene(make_job()).settle().start_pods().settle()
    scene.push(step=1, maxSteps=2, tokensPerSecond=5.0).settle()
    scene.status = merge_progress(scene.status, progress(step=1, remaining_seconds=60), scene.now)
    assert scene.settle().status["display"]["ends"] == "00:01 (in ~60s)".replace("60s", "1m00s")
    scene.exit_all(1).settle()
    assert "ends" not in scene.status["display"]
    assert "tokensPerSecond" not in scene.status["display"]
    assert scene.status["display"]["step"] == "1/2"


# Strings


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (21, "21s"), (60, "1m00s"), (310, "5m10s"), (11_100, "3h05m"), (187_200, "2d04h")],
)
def test_a_duration_is_shown_in_its_two_largest_units(seconds, text):
    assert display.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.5, "0.5"), (930, "930"), (999.9, "1k"), (18_432, "18.4k"), (1_250_000, "1.25M"), (3e9, "3G")],
)
def test_a_rate_is_shown_with_three_digits_and_a_unit(value, text):
    assert display.rate(value) == text


def test_the_end_is_told_in_the_time_zone_of_now_and_with_a_date_when_it_is_not_today():
    now = datetime(2026, 1, 1, 22, 0, tzinfo=timezone(timedelta(hours=2)))
    assert display.ending({"endTime": "2026-01-01T20:42:00Z"}, now) == {"ends": "22:42 (in ~42m00s)"}
    assert display.ending({"endTime": "2026-01-02T20:42:00Z"}, now.astimezone(UTC)) == {
        "ends": "Jan 02 20:42 (in ~1d00h)"
    }


def test_anomalies_are_counted_and_told_once():
    scene = Scene(make_job()).settle().start_pods().settle()
    one = {"count": 1, "rollbacks": 0, "step": 30, "kind": "LossNotFinite", "rank": 1, "action": "Skip"}
    two = {"count": 2, "rollbacks": 1, "step": 45, "kind": "GradientNormTooLarge", "rank": 0, "action": "Rollback"}
    scene.push(step=40, maxSteps=100, anomalies=one).settle().push(step=60, anomalies=two).settle()
    assert scene.status["anomalies"].pop("since")
    assert scene.status["anomalies"] == two
    assert [event for event in scene.events if event.startswith("Anomaly")] == [
        "Anomaly: 1 step was left out; the last was step 30: the loss was not finite (rank 1)"
    ]
    assert display.anomalies(scene.status) == (
        "2 steps were left out, 1 of them with a rollback; the last was step 45: the gradient norm was too large "
        "(rank 0)"
    )
    assert problems(scene.status) == []
    scene.push(step=70, anomalies={**two, "kind": "x"}).push(step=80, anomalies=[]).settle()
    assert {**scene.status["anomalies"], "since": ""} == {**two, "since": ""}


def test_losses_of_steps_that_were_left_out_are_no_reason_to_start_again():
    scene = Scene(make_job()).settle().start_pods().settle()
    one = {"count": 1, "rollbacks": 0, "step": 30, "kind": "LossNotFinite", "rank": 1, "action": "Skip"}
    scene.status = {**scene.status, "metrics": [{"name": "loss", "value": "nan"}]}
    assert "lower learningRate" in scene.settle().status["display"]["why"]
    scene.push(step=31, anomalies=one).settle()
    assert "why" not in scene.status["display"]


PARTS = {"parameters": 25, "gradients": 6, "optimizer": 12, "activations": 10, "buffers": 1}


def test_the_estimate_of_the_memory_stands_beside_the_highest_peak_of_the_attempt():
    scene = Scene(make_job()).settle().start_pods().settle()
    sizes = {name: size * 2**30 for name, size in {"estimate": 54, **PARTS}.items()}

    def push(peak: float | None, **more) -> dict:
        wire = progress(step=4, attempt=1, metrics={"peak_memory_gib": peak} if peak else {}, **more)
        scene.status = merge_progress(scene.status, wire, START)
        return scene.settle().status["memory"]

    assert push(None, memory=sizes) == {"attempt": 1, "estimate": 54, **PARTS}
    assert push(53.5, memory=sizes)["peak"] == 53.5
    assert push(2.0) == {"attempt": 1, "estimate": 54, "peak": 53.5, **PARTS}, "it ends with the attempt alone"
    assert problems(scene.status) == []
    scene.exit_all(1).settle().wait(60).settle()
    assert scene.status["memory"]["peak"] == 53.5
    scene.start_pods().settle()
    scene.status = merge_progress(scene.status, progress(step=1, attempt=2, metrics={"peak_memory_gib": 2.0}), START)
    assert scene.settle().status["memory"] == {"attempt": 2, "peak": 2.0}


@pytest.mark.parametrize("sizes", [{"estimate": "much"}, {**PARTS, "estimate": -1}, PARTS, {**PARTS, "estimate": [1]}])
def test_an_estimate_that_makes_no_sense_is_left_out(sizes):
    assert "memory" not in merge_progress(OPEN, progress(step=1, attempt=2, memory=sizes), START)


def test_the_slow_rank_is_shown_with_its_pod_and_node_and_told_once():
    scene = Scene(make_job().nodes(3, per_node=2)).settle().start_pods().settle()
    for index in range(3):
        scene.pod(index)["spec"]["nodeName"] = f"node-{index}"
    slow = {"rank": 3, "factor": 2.41, "step": 40}
    scene.push(step=40, maxSteps=100, slowest=slow).settle().push(step=60, slowest={**slow, "step": 60}).settle()
    pod = scene.pod(1)["metadata"]["name"]
    assert scene.status["slowest"] == {"attempt": 1, **slow, "step": 60, "pod": pod, "node": "node-1"}
    assert scene.status["display"]["slowest"] == f"{pod} 2.4x"
    said = [event for event in scene.events if event.startswith("SlowRank")]
    assert said == [
        f"SlowRank: rank 3 in {pod} on node-1 takes 2.4 times as long for its part of a step as the others, which wait "
        "for it"
    ]
    assert problems(scene.status) == []
    scene.push(step=80, slowest={}).settle()
    assert "slowest" not in scene.status
    scene.push(step=90, slowest={"rank": "x", "factor": -1}).settle()
    assert "slowest" not in scene.status
