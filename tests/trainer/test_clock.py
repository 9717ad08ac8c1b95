"""Where the time of a run goes: each part of a training takes a known time, on a clock that only those parts move."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer.gangs import Gang
from trainwright import Trainer, TrainerCallback, TrainingArguments
from trainwright.contract import CLOCK_CAUSES, ENV_NODE_DIR, ENV_REACHED_STEP
from trainwright.integrations import clock
from trainwright.launch import nodefiles

STEP, BATCH, EVALUATION_BATCH, SAVE, LOAD, COMPILE, IMPORT = 3.0, 0.5, 0.25, 11.0, 7.0, 20.0, 40.0


class Time:
    """The monotonic clock of the tests, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(clock, "perf_counter", lambda: made.now)
    monkeypatch.setattr(clock, "_age_of_process", lambda: IMPORT)
    monkeypatch.setattr(clock, "_clock", None)
    monkeypatch.setattr(clock, "_following", [])
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "node").mkdir()
    monkeypatch.setenv(ENV_NODE_DIR, str(tmp_path / "node"))
    return tmp_path


class Net(nn.Module):
    def __init__(self, time: Time) -> None:
        super().__init__()
        self.layer, self.time = nn.Linear(4, 2), time

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        self.time.passes(STEP if self.training else EVALUATION_BATCH)
        logits = self.layer(x)
        return (nn.functional.cross_entropy(logits, labels), logits)


class Samples(torch.utils.data.Dataset[Any]):
    def __init__(self, time: Time, seconds: float) -> None:
        self.time, self.seconds = time, seconds

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        self.time.passes(self.seconds / 2)
        return {"x": torch.full((4,), index / 24), "labels": torch.tensor(index % 2)}


class Slow(Trainer):
    """Saves and loads take a known time."""

    time: Time

    def _save(self, *args: Any, **kwargs: Any) -> None:
        self.time.passes(SAVE)
        super()._save(*args, **kwargs)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.time.passes(LOAD)
        super()._load_from_checkpoint(*args, **kwargs)


def trainer(folder: Path, time: Time, callbacks: Any = (), **arguments: Any) -> Trainer:
    defaults = {"max_steps": 12, "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    args = TrainingArguments(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        **{**defaults, **arguments},
    )
    Slow.time = time
    training, evaluation = Samples(time, BATCH), Samples(time, 0.0)
    return Slow(Net(time), args, train_dataset=training, eval_dataset=evaluation, callbacks=list(callbacks))


def seconds() -> dict[str, float]:
    read = clock.of_process().read()
    return {cause: read[cause] for cause in CLOCK_CAUSES if cause in read}


def test_each_part_of_a_training_is_counted_where_it_belongs(folder: Path, time: Time) -> None:
    began = time.now - IMPORT
    trainer(folder, time, eval_strategy="steps", eval_steps=6, save_strategy="steps", save_steps=4).train()
    expected = {"starting": IMPORT, "stepping": 12 * STEP, "data": 12 * BATCH}
    assert seconds() == expected | {"evaluating": 2 * 12 * EVALUATION_BATCH, "saving": 3 * SAVE}
    assert sum(seconds().values()) == time.now - began
    assert clock.of_process().read()["save"] == SAVE


def test_accumulated_micro_batches_belong_to_their_step(folder: Path, time: Time) -> None:
    trainer(folder, time, max_steps=3, gradient_accumulation_steps=4).train()
    assert seconds() == {"starting": IMPORT, "stepping": 12 * STEP, "data": 12 * BATCH}


def test_what_a_user_does_around_the_training_is_not_training(folder: Path, time: Time) -> None:
    clock.of_process()
    made = trainer(folder, time)
    time.passes(5)
    made.train()
    time.passes(9)
    made.evaluate()
    made.save_model()
    time.passes(1)
    clock.of_process().enter(clock.IDLE)
    found = seconds()
    assert (found["starting"], found["stepping"]) == (IMPORT + 5, 12 * STEP)
    assert (found["evaluating"], found["saving"], found["idle"]) == (12 * EVALUATION_BATCH, SAVE, 10)


def test_a_resumed_run_restores_and_redoes_what_was_lost(folder: Path, time: Time) -> None:
    class Dies(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 7:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(folder, time, [Dies], save_strategy="steps", save_steps=4).train()
    first = seconds()
    assert first == {"starting": IMPORT, "stepping": 7 * STEP, "data": 7 * BATCH, "saving": SAVE}
    time.passes(100)
    clock._clock = None  # as a new process
    trainer(folder, time).train(resume_from_checkpoint=True)
    expected = {"starting": 2 * IMPORT, "idle": 100 - IMPORT, "restoring": LOAD, "redone": 3 * (STEP + BATCH)}
    expected |= {"stepping": 12 * STEP, "data": 12 * BATCH, "saving": SAVE}
    assert seconds() == expected
    assert clock.of_process().read()["step"] == 12


def test_steps_that_a_former_attempt_reported_are_redone(
    folder: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_REACHED_STEP, "5")
    trainer(folder, time).train()
    assert seconds() == {
        "starting": IMPORT, "redone": 5 * (STEP + BATCH), "stepping": 7 * STEP, "data": 7 * BATCH
    }  # fmt: skip


def test_compilation_is_counted_apart_whenever_it_happens(folder: Path, time: Time) -> None:
    from torch._dynamo.callback import callback_handler

    def backend(module: Any, inputs: Any) -> Callable[..., Any]:
        time.passes(COMPILE)
        return module.forward  # type: ignore[no-any-return]

    before = list(callback_handler.start_callbacks), list(callback_handler.end_callbacks)
    try:
        made = trainer(folder, time)
        made.model.layer = torch.compile(made.model.layer, backend=backend)
        made.train()
        found = seconds()
    finally:
        callback_handler.start_callbacks[:], callback_handler.end_callbacks[:] = before
        torch._dynamo.reset()
    assert found.pop("compiling") % COMPILE == 0
    assert found == {"starting": IMPORT, "stepping": 12 * STEP, "data": 12 * BATCH}


@pytest.mark.parametrize("content", [b"", b"torn", bytes(8 * 12), b"\xff" * 8 * nodefiles.CLOCK_SLOTS])
def test_a_torn_file_is_begun_anew(folder: Path, time: Time, content: bytes) -> None:
    nodefiles.clock_path(folder / "node").write_bytes(content)
    assert nodefiles.read_clock(folder / "node") is None
    trainer(folder, time, max_steps=2).train()
    assert seconds() == {"starting": IMPORT, "stepping": 2 * STEP, "data": 2 * BATCH}


def test_every_rank_has_a_file_of_its_own_for_all_rounds(
    folder: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "node" / "round-2").mkdir()
    monkeypatch.setenv(ENV_NODE_DIR, str(folder / "node" / "round-2"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    clock.of_process().enter(clock.DATA)
    assert (folder / "node" / "clock-1").exists()
    assert nodefiles.phase_of(nodefiles.read_clock(folder / "node", 1)) == ("data", time.now)


KILLED = f"""
import os, signal, time, torch
from torch import nn
from trainwright import Trainer, TrainerCallback, TrainingArguments

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
    def forward(self, x, labels=None):
        time.sleep(0.02)
        return nn.functional.cross_entropy(self.layer(x), labels), x

class Killed(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 30:
            time.sleep(0.5)
            os.kill(os.getpid(), {int(signal.SIGKILL)})

rows = [{{"x": torch.ones(2), "labels": torch.tensor(0)}}] * 100
args = TrainingArguments(max_steps=99, save_strategy="no", report_to="none", use_cpu=True)
Trainer(Net(), args, train_dataset=rows, callbacks=[Killed()]).train()
"""


def test_the_launcher_tells_what_a_killed_rank_had_measured(tmp_path: Path) -> None:
    with Gang(tmp_path, KILLED) as gang:
        assert gang.run() == [137]
        word = gang.word()
    assert word.clock is not None
    assert word.clock["step"] == 30
    assert word.clock["stepping"] >= 30 * 0.02
    assert word.clock["starting"] > 0
    assert "idle" not in word.clock, "the half second before the kill was not counted, for nothing ended it"
