"""Trackers never harm a run: slow, hanging, refusing and lost ones cost a line each; a restart continues its run."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import trainwright
from trainer import tiny
from trainwright.arguments.errors import ArgumentError
from trainwright.contract import ENV_JOB_FILE, ResolvedJob
from trainwright.integrations import addresses, trackers
from trainwright.integrations.trackers import sender, tracker
from trainwright.integrations.trackers.tracker import Facts, Row, Tracker, rewrite_logs


class Recording(Tracker):
    """Keeps in lists what a server would get."""

    name = "recording"
    runs: list[tuple[str, str | None]] = []
    rows: list[Row] = []
    ends: list[bool] = []

    def begin(self, facts: Facts) -> str | None:
        run_id = facts.run_id or f"run-{len(self.runs) + 1}"
        self.runs.append((run_id, facts.run_id))
        return run_id

    def send(self, facts: Facts, rows: list[Row]) -> None:
        self.rows.extend(rows)

    def end(self, facts: Facts, finished: bool) -> None:
        self.ends.append(finished)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``made(tracker, **arguments)``: a Trainer with it."""
    monkeypatch.setattr(tracker, "IDLE_SECONDS", 1.0)
    monkeypatch.setattr(tracker, "START_SECONDS", 0.5)
    monkeypatch.setattr(tracker, "_BEGUN", set())
    for kept in (Recording.runs, Recording.rows, Recording.ends):
        kept.clear()
    addresses.forget()

    def make(added: Any, **changes: Any) -> Any:
        given = {"output_dir": str(tmp_path / "out"), "use_cpu": True, "max_steps": 6, "logging_steps": 1, **changes}
        args = trainwright.TrainingArguments(**given, disable_tqdm=True)
        return trainwright.Trainer(tiny.classifier(), args, train_dataset=tiny.vectors(64), callbacks=[added])

    return make


def test_every_name_of_transformers_has_a_tracker_of_the_same_class_name() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    theirs = {name: kind.__name__ for name, kind in INTEGRATION_TO_CALLBACK.items() if name != "kubeflow"}
    assert {name: kind for name, (_, kind) in trackers.TRACKERS.items()} == theirs


def test_every_tracker_can_be_loaded_without_its_package() -> None:
    for name, (_, kind) in trackers.TRACKERS.items():
        loaded = trackers._load(name)
        assert (loaded.__name__, loaded.name) == (kind, name)


def test_nothing_is_imported_unless_it_is_asked_for() -> None:
    statement = "import sys\nfrom trainwright import Trainer, TrainingArguments\nprint(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True).stdout.split())
    assert "trainwright.integrations.trackers" in loaded
    assert not {name for name in loaded if name.startswith("trainwright.integrations.trackers.")}
    assert not {"mlflow", "wandb", "tensorboard", "huggingface_hub"} & loaded


def test_names_are_those_of_transformers() -> None:
    from transformers.integrations.integration_utils import rewrite_logs as theirs

    logs = {"loss": 1, "eval_loss": 2, "test_x": 3, "evaluate": 4, "epoch": 5}
    assert rewrite_logs(logs) == theirs(logs)


def test_a_missing_package_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainwright.arguments.machine.find_spec", lambda module: None)
    with pytest.raises(ImportError) as error:
        trainwright.TrainingArguments(report_to=["wandb"])
    assert str(error.value) == (
        "report_to: wandb needs the package wandb, which is not installed; run: pip install wandb, or leave it out"
    )


@pytest.mark.parametrize("wrong", [["all", "wandb"], ["none", "wandb"]])
def test_all_and_none_stand_alone(wrong: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainwright.arguments.machine._found", lambda module: True)
    with pytest.raises(ArgumentError, match=r"report_to: '(all|none)' stands alone"):
        trainwright.TrainingArguments(report_to=wrong)


def test_a_row_for_each_entry_of_the_log(made: Any) -> None:
    trainer = made(Recording(), eval_strategy="no")
    trainer.train()
    logged = [{k: v for k, v in entry.items() if k != "step"} for entry in trainer.state.log_history]
    assert [row.values for row in Recording.rows] == logged
    assert [row.step for row in Recording.rows] == [1, 2, 3, 4, 5, 6, 6]
    assert (Recording.ends, Recording.runs) == ([True], [("run-1", None)])


def test_one_run_over_a_resumed_training(made: Any) -> None:
    made(Recording(), max_steps=4, save_steps=2).train()
    made(Recording(), max_steps=8, save_steps=2).train(resume_from_checkpoint=True)
    made(Recording(), max_steps=2, save_strategy="no").train()
    assert Recording.runs == [("run-1", None), ("run-1", "run-1"), ("run-3", None)]


def test_an_attempt_without_a_checkpoint_continues_the_run_of_its_job(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_job(uid: str, attempt: int) -> None:
        job = ResolvedJob(name="job", namespace="ns", uid=uid, attempt=attempt, nodes=1, per_node=1)
        (tmp_path / "job.json").write_text(job.to_json())
        monkeypatch.setattr(tracker, "_BEGUN", set())  # a process of its own

    monkeypatch.setenv(ENV_JOB_FILE, str(tmp_path / "job.json"))
    for attempt in (1, 2, 3):
        as_job("a", attempt)
        made(Recording(), save_strategy="no").train()
    assert [continued for _, continued in Recording.runs] == [None, "run-1", "run-1"]
    made(Recording(), save_strategy="no").train()  # a second training of the same script
    assert Recording.runs[-1][1] is None
    as_job("b", 1)
    made(Recording(), save_strategy="no", output_dir=str(tmp_path / "other")).train()
    assert Recording.runs[-1][1] is None


def test_a_run_that_cannot_be_continued_is_replaced_with_one_line(made: Any, capsys: Any) -> None:
    class Gone(Recording):
        def begin(self, facts: Facts) -> str | None:
            if facts.run_id is not None:
                raise ValueError("run-1 belongs to another project")
            return super().begin(facts)

    made(Gone(), max_steps=4, save_steps=2).train()
    capsys.readouterr()
    made(Gone(), max_steps=6, save_steps=2).train(resume_from_checkpoint=True)
    assert capsys.readouterr().err.count("recording: run run-1 cannot be continued, so a new one begins") == 1
    assert Recording.runs[-1][1] is None


def test_the_rows_before_a_checkpoint_are_sent_before_training_goes_on(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed later resumes after them."""
    monkeypatch.setattr(tracker, "SAVE_SECONDS", 60.0)  # a busy machine may need more than the second of a real run
    sent: list[int] = []

    class Costly(Recording):
        def send(self, facts: Facts, rows: list[Row]) -> None:
            end = time.thread_time() + 0.03  # the thread then rests for its share of a processor
            while time.thread_time() < end:
                pass
            super().send(facts, rows)

        def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            super().on_save(args, state, control, **more)  # type: ignore[no-untyped-call]
            sent.append(len(self.rows))

    made(Costly(), max_steps=6, save_steps=3).train()
    assert sent == [3, 6]


def test_a_refusal_costs_one_line(made: Any, capsys: Any) -> None:
    class Refusing(Recording):
        def begin(self, facts: Facts) -> str | None:
            raise PermissionError("401: the token is wrong")

    trainer = made(Refusing())
    trainer.train()
    said = [line for line in capsys.readouterr().err.splitlines() if "recording" in line]
    assert said == [
        "recording: it gets no log of this run, because it refuses: PermissionError: 401: the token is wrong"
    ]
    assert trainer.state.global_step == 6


def test_a_tracker_that_hangs_never_holds_up_the_run(made: Any, capsys: Any) -> None:
    release, slowest = threading.Event(), [0.0]

    class Hanging(Recording):
        def send(self, facts: Facts, rows: list[Row]) -> None:
            release.wait(30)

        def on_log(self, *given: Any, **more: Any) -> None:
            start = time.monotonic()
            super().on_log(*given, **more)  # type: ignore[no-untyped-call]
            slowest[0] = max(slowest[0], time.monotonic() - start)

    start = time.monotonic()
    made(Hanging()).train()
    release.set()
    assert slowest[0] < 0.3
    assert time.monotonic() - start < 10
    said = capsys.readouterr().err
    assert said.count("the end of the run does not wait for it any longer: it does not answer within 1 s") == 1
    assert "rows of the log were not sent; they are in trainer_state.json" in said


def test_a_connection_that_comes_back_gets_all_rows(made: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "IDLE_SECONDS", 8.0)
    tries: list[int] = []

    class Flaky(Recording):
        def send(self, facts: Facts, rows: list[Row]) -> None:
            tries.append(1)
            if len(tries) in (2, 3):
                raise ConnectionResetError("gone")
            super().send(facts, rows)

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            time.sleep(0.5)  # long enough for the retry to come before the end

    made(Flaky(), max_steps=8).train()
    assert [row.step for row in Recording.rows] == [1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert capsys.readouterr().err.count("it cannot be reached, and training goes on") == 1


def test_a_row_that_is_refused_costs_only_itself(made: Any, capsys: Any) -> None:
    class Picky(Recording):
        joins_rows = True

        def send(self, facts: Facts, rows: list[Row]) -> None:
            if any(row.step == 3 for row in rows):
                raise ValueError("no such metric")
            super().send(facts, rows)

    made(Picky()).train()
    assert sorted(row.step for row in Recording.rows) == [1, 2, 4, 5, 6, 6]
    assert "1 rows of the log were not sent" in capsys.readouterr().err


def test_a_full_queue_drops_rows_and_counts_them(made: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "LIMIT", 3)
    gate = threading.Event()

    class Slow(Recording):
        def send(self, facts: Facts, rows: list[Row]) -> None:
            gate.wait(5)
            super().send(facts, rows)

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step == args.max_steps:
                gate.set()

    made(Slow(), max_steps=20).train()
    said = capsys.readouterr().err
    assert said.count("its queue is full") == 1
    assert "rows of the log were not sent; they are in trainer_state.json" in said


def test_pages_are_announced_without_passwords() -> None:
    addresses.forget()
    addresses.announce("mlflow", "https://me:secret@host:5000/#/experiments/1/runs/2")
    addresses.announce("tensorboard", "/a/folder")
    addresses.announce(addresses.HUB, "https://huggingface.co/me/model")
    assert addresses.runs() == [{"tracker": "mlflow", "url": "https://host:5000/#/experiments/1/runs/2"}]
    assert addresses.model() == "https://huggingface.co/me/model"
    addresses.forget()


def test_a_run_whose_page_is_unknown_gets_its_rows(made: Any, capsys: Any) -> None:
    class Offline(Recording):
        def page(self) -> str | None:
            raise ValueError("the run is not online")

    made(Offline()).train()
    assert len(Recording.rows) == 7
    assert "offline" not in capsys.readouterr().err.lower()


def test_swanlab_begins_a_run_where_asking_for_an_open_one_is_an_error() -> None:
    def get_run() -> Any:
        raise RuntimeError("No active Run. Call swanlab.init() first.")

    class FakeSwanLab(trackers._load("swanlab")):  # type: ignore[misc]
        def look_up(self) -> None:
            self._swanlab = SimpleNamespace(get_run=get_run)

    assert FakeSwanLab()._current() is None


class FakeTrackio:
    """The part of trackio that its callback calls; keeps the arguments of each call."""

    def __init__(self) -> None:
        self.calls: dict[str, dict[str, Any]] = {}
        self.config: Any = SimpleNamespace(update=lambda *args, **more: None)
        names = ("current_run", "current_project", "current_space_id")
        self.context_vars = SimpleNamespace(**{name: ContextVar(name, default=None) for name in names})

    def init(self, **given: Any) -> Any:
        self.calls["init"] = given
        self.context_vars.current_space_id.set(given.get("space_id"))
        return SimpleNamespace(name=given["name"], log=lambda row: None, finish=lambda: None)

    def freeze(self, **given: Any) -> str:
        self.calls["freeze"] = given
        return str(given["new_space_id"])


def test_trackio_gets_its_arguments(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    trainer = made(
        trackers._load("trackio")(), run_name="first", project="mine", trackio_space_id="me/space",
        trackio_bucket_id="me/bucket", trackio_static_space_id="me/kept", hub_private_repo=True,
    )  # fmt: skip
    trainer.train()
    assert fake.calls["init"] == {
        "project": "mine", "name": "first", "space_id": "me/space", "resume": "allow", "private": True,
        "bucket_id": "me/bucket",
    }  # fmt: skip
    assert fake.calls["freeze"] == {
        "space_id": "me/space", "project": "mine", "new_space_id": "me/kept", "private": True
    }  # fmt: skip
    assert trainer.model.model_tags == ["trackio", "trackio:https://huggingface.co/spaces/me/kept"]
    assert addresses.runs() == [{"tracker": "trackio", "url": "https://huggingface.co/spaces/me/space"}]
    addresses.forget()


def test_report_to_adds_the_trackers_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainwright.arguments.machine._found", lambda module: True)
    monkeypatch.setitem(sys.modules, "trackio", FakeTrackio())
    args = trainwright.TrainingArguments(str(tmp_path), use_cpu=True, report_to=["trackio", "kubeflow"])
    trainer = trainwright.Trainer(tiny.classifier(), args)
    names = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    assert names.count("TrackioCallback") == 1
    trainer.remove_callback(trackers._load("trackio"))
    assert "TrackioCallback" not in trainer.callback_handler.callback_list
