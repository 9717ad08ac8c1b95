"""What a run tells: heartbeats, pushes that never hold training up, and the last report."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.receiver import Receiver, make_certificate
from trainwright.callbacks.state import TrainerControl, TrainerState
from trainwright.contract import ENV_PROGRESS_URL, MAX_METRICS, UserError
from trainwright.integrations import addresses, waiting
from trainwright.integrations.reporter import Meter, Reporter, merged
from trainwright.launch import nodefiles
from trainwright.launch.push import Endpoint, Poster, PushRefused

ARGS = SimpleNamespace(
    output_dir="/output", gradient_accumulation_steps=2, world_size=4, metric_for_best_model="eval_loss"
)
CONTROL = TrainerControl()
FULL = {f"m{number}": 0.0 for number in range(64)}


def make_state(**fields) -> TrainerState:
    return TrainerState(**{"max_steps": 100, "train_batch_size": 8, **fields})


@pytest.fixture
def reporters():
    """Makes reporters, and closes them."""
    made = []

    def make(**options) -> Reporter:
        made.append(Reporter(**{"interval": 0.1, **options}))
        return made[-1]

    yield make
    for reporter in made:
        reporter.close()


def test_a_run_is_told_as_it_goes(reporters, tmp_path):
    state = make_state()
    with Receiver() as receiver:
        reporter = reporters(folder=tmp_path, endpoint=Endpoint(receiver.url), attempt=3)
        addresses.announce("mlflow", "http://me:secret@mlflow:5000/#/experiments/1/runs/2")
        addresses.announce(addresses.HUB, "https://huggingface.co/me/model")
        reporter.on_train_begin(ARGS, state, CONTROL)
        receiver.wait_for(lambda: bool(receiver.documents))
        state.global_step, state.epoch = 50, 0.5
        reporter.on_step_end(ARGS, state, CONTROL)
        reporter.on_log(ARGS, state, CONTROL, logs={"loss": 2.5, "epoch": 0.5, "note": "text"})
        state.best_metric, state.best_global_step, state.best_model_checkpoint = 2.25, 50, "/output/checkpoint-50"
        reporter.on_evaluate(ARGS, state, CONTROL, metrics={"eval_loss": 2.25})
        reporter.on_save(ARGS, state, CONTROL)
        receiver.wait_for(lambda: "checkpoint" in receiver.documents[-1]["trainwright"])
        last = receiver.documents[-1]
        addresses.forget()
    assert last["trainwright"]["runs"] == [{"tracker": "mlflow", "url": "http://mlflow:5000/#/experiments/1/runs/2"}]
    assert last["trainwright"]["model"] == {"url": "https://huggingface.co/me/model"}
    assert last["trainerStatus"]["progressPercentage"] == 50
    assert last["trainerStatus"]["metrics"] == [
        {"name": "loss", "value": "2.5"},
        {"name": "eval_loss", "value": "2.25"},
    ]
    own = last["trainwright"]
    assert (own["step"], own["maxSteps"], own["epoch"], own["attempt"]) == (50, 100, 0.5, 3)
    assert (own["checkpoint"]["path"], own["checkpoint"]["step"]) == ("checkpoint-50", 50)
    assert own["best"] == {"metric": "eval_loss", "value": 2.25, "step": 50, "checkpoint": "checkpoint-50"}


def test_a_step_alone_is_told_within_the_interval(reporters):
    state = make_state()
    with Receiver() as receiver:
        reporter = reporters(endpoint=Endpoint(receiver.url))
        reporter.on_train_begin(ARGS, state, CONTROL)
        receiver.wait_for(lambda: len(receiver.documents) == 1)
        state.global_step = 7
        receiver.wait_for(lambda: receiver.documents[-1]["trainwright"]["step"] == 7)
        assert len(receiver.documents) == 2  # and nothing is told while nothing changes


def test_training_never_waits_and_the_newest_wins(reporters):
    state = make_state(max_steps=2000)
    with Receiver() as receiver:
        receiver.gate.clear()
        reporter = reporters(endpoint=Endpoint(receiver.url))
        reporter.on_train_begin(ARGS, state, CONTROL)
        assert receiver.asked.wait(20)
        for step in range(1000):  # would take for ever if any of it waited for the answer
            state.global_step = step
            reporter.on_step_end(ARGS, state, CONTROL)
            reporter.on_log(ARGS, state, CONTROL, logs={"loss": step})
        receiver.gate.set()
        receiver.wait_for(lambda: len(receiver.documents) >= 2)
    assert receiver.documents[1]["trainwright"]["step"] == 999
    assert receiver.documents[1]["trainerStatus"]["metrics"] == [{"name": "loss", "value": "999"}]


def test_a_push_that_failed_is_made_good(reporters, capfd):
    state = make_state(global_step=1)
    with Receiver() as receiver:
        receiver.answers = [503, 401]
        reporter = reporters(endpoint=Endpoint(receiver.url))
        reporter.on_train_begin(ARGS, state, CONTROL)
        receiver.wait_for(lambda: len(receiver.documents) >= 3)
    assert receiver.documents[2]["trainwright"]["step"] == 1
    assert capfd.readouterr().err.count("progress is not reported for now: PushRefused: 503") == 1


def test_an_endpoint_that_is_down_disturbs_nothing(reporters, tmp_path):
    with Receiver() as receiver:
        url = receiver.url
    reporter = reporters(folder=tmp_path, endpoint=Endpoint(url))
    state = make_state(global_step=4)
    reporter.on_train_begin(ARGS, state, CONTROL)
    reporter.on_log(ARGS, state, CONTROL, logs={"loss": 1.0})
    reporter.close()
    assert nodefiles.read_report(tmp_path)["metrics"] == {"loss": 1.0}


def test_https_is_verified_and_the_token_is_read_anew(tmp_path):
    certificate, token = make_certificate(tmp_path / "server.pem"), tmp_path / "token"
    token.write_text("first\n")
    with Receiver(certificate) as receiver:
        poster = Poster(Endpoint(receiver.url, str(certificate), str(token)))
        poster.post({"n": 1})
        token.write_text("second\n")
        poster.post({"n": 2})
        assert [headers["Authorization"] for headers in receiver.headers] == ["Bearer first", "Bearer second"]
        assert len(receiver.connections) == 1  # kept between pushes
        stranger = make_certificate(tmp_path / "stranger.pem")
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            Poster(Endpoint(receiver.url, str(stranger), str(token))).post({"n": 3})
    assert [document["n"] for document in receiver.documents] == [1, 2]


def test_a_refusal_says_when_to_come_back():
    with Receiver() as receiver:
        receiver.answers = [429]
        with pytest.raises(PushRefused, match="429"):
            Poster(Endpoint(receiver.url)).post({})
    assert PushRefused(429, "Too Many", 7.0).retry_after == 7.0


@pytest.mark.parametrize("url", ["http://operator.example/x", "ftp://localhost/x", "operator"])
def test_a_token_is_never_sent_in_the_clear(url):
    with pytest.raises(UserError, match="progress URL"):
        Endpoint(url)


def test_only_rank_0_tells_but_every_rank_beats(reporters, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    state = make_state(global_step=9)
    with Receiver() as receiver:
        reporter = reporters(folder=tmp_path, endpoint=Endpoint(receiver.url), rank=5)
        reporter.on_train_begin(ARGS, state, CONTROL)
        reporter.on_step_end(ARGS, state, CONTROL)
        reporter.on_log(ARGS, state, CONTROL, logs={"loss": 1.0})
        reporter.close()
        assert receiver.documents == []
    pulse = nodefiles.read_pulse(nodefiles.heartbeat_path(tmp_path, 1))
    assert (pulse.step, pulse.resting) == (9, False)
    assert nodefiles.read_report(tmp_path) == {}
    reporter.on_train_end(ARGS, state, CONTROL)
    assert nodefiles.read_pulse(nodefiles.heartbeat_path(tmp_path, 1)).resting


def test_evaluation_beats_only_while_training(reporters, tmp_path):
    def beats() -> int:
        return nodefiles.read_pulse(nodefiles.heartbeat_path(tmp_path, 0)).beats

    reporter = reporters(folder=tmp_path)
    reporter.on_prediction_step(ARGS, make_state(), CONTROL)
    assert beats() == 0
    reporter.on_train_begin(ARGS, make_state(), CONTROL)
    before = beats()
    reporter.on_prediction_step(ARGS, make_state(), CONTROL)
    assert beats() == before + 1


def test_what_comes_after_training_is_in_the_last_report(reporters, tmp_path):
    state = make_state(global_step=100)
    reporter = reporters(folder=tmp_path)
    reporter.on_train_begin(ARGS, state, CONTROL)
    reporter.on_train_end(ARGS, state, CONTROL)
    reporter.on_evaluate(ARGS, state, CONTROL, metrics={"eval_accuracy": 0.75})
    reporter.close()
    report = nodefiles.read_report(tmp_path)
    assert (report["step"], report["metrics"], report["remaining_seconds"]) == (100, {"eval_accuracy": 0.75}, 0)


def test_the_reporter_reads_its_attempt_from_the_environment(monkeypatch, tmp_path):
    for name in ("TRAINWRIGHT_NODE_DIR", "KUBEFLOW_TRAINER_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    assert Reporter.from_environment() is None
    (tmp_path / "job.json").write_text(json.dumps({"attempt": 4}))
    monkeypatch.setenv("TRAINWRIGHT_NODE_DIR", str(tmp_path))
    monkeypatch.setenv("TRAINWRIGHT_JOB_FILE", str(tmp_path / "job.json"))
    reporter = Reporter.from_environment()
    reporter.on_train_begin(ARGS, make_state(), CONTROL)
    reporter.close()
    assert nodefiles.read_report(tmp_path)["attempt"] == 4


def test_speed_and_remaining_time_are_of_the_recent_steps():
    meter, state = Meter(), make_state(global_step=10)
    assert set(meter.read(ARGS, state, 0.0, True).values()) == {None}
    state.global_step, state.local_tokens = 30, 5000
    assert meter.read(ARGS, state, 10.0, True) == {
        "remaining_seconds": 35,  # 70 steps left, 2 steps a second
        "samples_per_second": 128.0,  # 8 samples, 2 micro-batches, 4 ranks, 2 steps a second
        "tokens_per_second": 2000.0,  # 5000 tokens of each of 4 ranks in 10 s
    }
    state.global_step = 31
    for second in range(20, 200, 10):  # it slows down: what was long ago is forgotten
        speed = meter.read(ARGS, state, float(second), True)
    assert speed["samples_per_second"] is None


def test_the_first_step_does_not_count_for_the_speed():
    meter, state = Meter(), make_state()
    meter.read(ARGS, state, 0.0, True)
    state.global_step = 1
    assert meter.read(ARGS, state, 100.0, True)["samples_per_second"] is None
    state.global_step = 3
    assert meter.read(ARGS, state, 101.0, True)["samples_per_second"] == 128.0


@pytest.mark.parametrize(
    ("known", "new", "expected"),
    [
        ({"loss": 1.0}, {"loss": 2, "epoch": 3.0}, ({"loss": 2.0}, 0)),
        ({}, {"note": "text", "flag": True, "grad_norm": 0.5}, ({"grad_norm": 0.5}, 0)),
        (
            {f"m{n}": 0.0 for n in range(MAX_METRICS)},
            {"m0": 1.0, "more": 1.0},
            ({"m0": 1.0, **{f"m{n}": 0.0 for n in range(1, MAX_METRICS)}}, 1),
        ),
    ],
)
def test_new_metrics_replace_known_ones_up_to_the_limit(known, new, expected):
    assert merged(known, new) == expected


def test_rank_0_reports_what_it_does_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(waiting, "_handed_over", False)
    with Receiver() as receiver:
        monkeypatch.setenv(ENV_PROGRESS_URL, receiver.url)
        wait = waiting.Wait("tokenizing", 10, line=lambda text: None)
        wait.update(3)
        receiver.wait_for(lambda: "tokenizing 30%" in map(_activity, receiver.documents))
        wait.close()
        receiver.wait_for(lambda: _activity(receiver.documents[-1]) is None)
        assert "step" not in receiver.documents[0]["trainwright"]
    waiting.hand_over()


def _activity(push: dict[str, Any]) -> str | None:
    found: str | None = push["trainwright"].get("activity")
    return found
