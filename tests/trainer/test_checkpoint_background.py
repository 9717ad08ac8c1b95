"""Checkpoints that are written while training goes on: the same files, the same safety, told when they are there."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trainer import tiny
from trainer.resume_job import make_trainer, weights
from trainer.world import in_world
from trainwright import TrainerCallback
from trainwright.checkpoint import background, staging
from trainwright.checkpoint.background import BackgroundWriter
from trainwright.checkpoint.part import Part
from trainwright.checkpoint.snapshot import Snapshot
from trainwright.checkpoint.staging import Stager
from trainwright.checkpoint.store import CheckpointStore
from trainwright.contract import ENV_ASYNC_SAVE, ENV_JOB_FILE, ENV_NODE_DIR, ExitCode, ResolvedJob, UserError
from trainwright.training.session import saves_asynchronously


class Watch(TrainerCallback):
    """Notes at which step what happened, and lets the test act at a step."""

    def __init__(self, at: dict[int, Callable[[], None]] | None = None) -> None:
        self.saved: list[tuple[int, int]] = []
        self.step, self.at = 0, at or {}

    def on_step_end(self, args, state, control, **kwargs):
        self.step = state.global_step
        self.at.get(self.step, lambda: None)()

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        assert not CheckpointStore(args.output_dir).problems(folder, foreign=False)
        assert all(entry["step"] <= state.global_step for entry in state.log_history)
        self.saved.append((state.global_step, self.step))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """While it is closed the threads that write checkpoints wait."""
    opened, write = threading.Event(), Part.write

    def wait_and_write(part: Part, pieces: Any) -> None:
        if threading.current_thread().name.startswith("checkpoint-"):
            assert opened.wait(60)
        write(part, pieces)

    monkeypatch.setattr(Part, "write", wait_and_write)
    yield opened
    opened.set()


def trainer_with(output: Path, watch: Watch, **arguments: Any) -> Any:
    trainer = make_trainer(str(output), **{"async_save": True, "save_steps": 3, "max_steps": 8, **arguments})
    trainer.add_callback(watch)
    return trainer


def test_training_goes_on_and_the_checkpoint_is_of_its_step(gate: threading.Event, tmp_path: Path) -> None:
    at_once = make_trainer(str(tmp_path / "a"), save_steps=3, max_steps=5)
    at_once.train()
    watch = Watch({5: gate.set})  # two steps after the checkpoint was begun, or the run would hang here
    trainer_with(tmp_path / "b", watch, max_steps=5).train()
    assert watch.saved == [(3, 5), (5, 5)]
    a, b = (tmp_path / name / "checkpoint-3" for name in "ab")
    same = load_file(b / "model.safetensors")
    assert all(torch.equal(value, same[name]) for name, value in load_file(a / "model.safetensors").items())
    one, other = (torch.load(folder / "optimizer.pt") for folder in (a, b))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    for name in ("scheduler.pt", "rng_state.pth", "data_state.pt"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    assert sorted(os.listdir(a)) == sorted(os.listdir(b))


def test_the_next_checkpoint_waits_and_the_end_waits(gate: threading.Event, tmp_path: Path) -> None:
    watch = Watch({5: gate.set})
    trainer_with(tmp_path, watch).train()
    assert [step for step, _ in watch.saved] == [3, 6, 8] == CheckpointStore(tmp_path).steps()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".checkpoint")]


def test_limit_and_best_model_are_as_without(tmp_path: Path) -> None:
    found = {}
    for asynchronous in (False, True):
        torch.manual_seed(0)
        trainer = trainer_with(
            tmp_path / str(asynchronous),
            Watch(),
            async_save=asynchronous,
            save_steps=1,
            eval_strategy="no",
            save_total_limit=2,
        )
        values = iter([3.0, 1.0, 2.0, 4.0, 5.0, 6.0, 7.0, 8.0])
        judge_by(trainer, values)
        trainer.train()
        found[asynchronous] = (trainer.checkpoints.steps(), trainer.state.best_global_step, weights(trainer))
    assert found[True][:2] == found[False][:2] == ([2, 8], 2)
    for name, value in found[False][2].items():
        assert torch.equal(found[True][2][name], value)
        assert torch.equal(load_file(tmp_path / "True" / "checkpoint-2" / "model.safetensors")[name], value)


def judge_by(trainer: Any, values: Iterator[float]) -> None:
    """Evaluate before every checkpoint, with these losses, and load the best at the end."""
    trainer.args.load_best_model_at_end, trainer.args.metric_for_best_model = True, "eval_loss"
    trainer.args.greater_is_better = False

    def evaluate(*_: Any, **__: Any) -> dict[str, float]:
        trainer.control.should_evaluate = False
        return {"eval_loss": next(values)}

    trainer.evaluate = evaluate

    class Evaluate(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_evaluate = True

    trainer.add_callback(Evaluate)


def test_a_full_disk_is_told_before_the_next_step_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, failed = Watch(), threading.Event()
    save = torch.save

    def full(value: Any, file: Any) -> None:
        if (tmp_path / "checkpoint-3").exists():
            failed.set()
            raise OSError(28, "No space left on device")
        save(value, file)

    monkeypatch.setattr("trainwright.checkpoint.snapshot.torch.save", full)
    watch.at[7] = lambda: failed.wait(60) and None
    trainer = trainer_with(tmp_path, watch, max_steps=1000)
    with pytest.raises(UserError, match=r"cannot save checkpoint-6: the disk is full; .*; checkpoint-3 is kept"):
        trainer.train()
    assert watch.step < 1000
    assert os.listdir(tmp_path) == ["checkpoint-3"]
    assert watch.saved[0][0] == 3
    assert len(watch.saved) == 1


def test_a_newer_attempt_fences_the_thread_out(
    gate: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job.json").write_text(ResolvedJob("j", "n", "uid", 1, 1, 1, async_save=True).to_json())
    monkeypatch.setenv(ENV_JOB_FILE, str(tmp_path / "job.json"))
    output = tmp_path / "out"

    def supersede() -> None:
        CheckpointStore(output, owner="uid", attempt=2).claim()
        gate.set()

    trainer = trainer_with(output, Watch({5: supersede}), async_save=None)
    with pytest.raises(UserError, match="attempt 2 of this job has claimed it; attempt 1 stops"):
        trainer.train()
    assert CheckpointStore(output).steps() == []


def test_sigterm_waits_for_what_is_under_way(
    gate: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "node").mkdir()
    monkeypatch.setenv(ENV_NODE_DIR, str(tmp_path / "node"))  # as under the launcher, which sends the signal

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        gate.set()

    watch = Watch({3: stop})
    with pytest.raises(SystemExit) as caught:
        trainer_with(tmp_path / "out", watch).train()
    assert caught.value.code == ExitCode.PREEMPTED
    assert watch.saved == [(3, 3)]
    assert CheckpointStore(tmp_path / "out").newest() == tmp_path / "out" / "checkpoint-3"


def test_a_run_that_fails_does_not_lose_what_is_under_way(gate: threading.Event, tmp_path: Path) -> None:
    def fail() -> None:
        gate.set()
        raise RuntimeError("of the user")

    with pytest.raises(RuntimeError, match="of the user"):
        trainer_with(tmp_path, Watch({4: fail})).train()
    assert CheckpointStore(tmp_path).newest() == tmp_path / "checkpoint-3"


def test_transformers_models_are_written_from_the_copy(gate: threading.Event, tmp_path: Path) -> None:
    from trainwright import Trainer, TrainingArguments

    args = TrainingArguments(
        str(tmp_path), max_steps=4, save_steps=2, logging_steps=1, use_cpu=True, disable_tqdm=True, learning_rate=0.1
    )
    model, watch = tiny.gpt2(), Watch({4: gate.set})
    trainer = Trainer(model, args, train_dataset=tiny.texts(), callbacks=[watch])
    trainer.async_save = True
    at_two: dict[str, torch.Tensor] = {}
    watch.at[2] = lambda: at_two.update({name: value.clone() for name, value in model.state_dict().items()})
    trainer.train()
    loaded = type(model).from_pretrained(tmp_path / "checkpoint-2").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in at_two.items())
    assert not torch.equal(model.state_dict()["lm_head.weight"], at_two["lm_head.weight"])


def test_a_model_that_writes_only_itself_is_written_at_once(gate: threading.Event, tmp_path: Path) -> None:
    class Own(tiny.Classifier):
        def save_pretrained(self, folder: Any) -> None:
            torch.save(self.head.weight.detach().clone(), Path(folder) / "own.bin")

    from trainwright import Trainer, TrainingArguments

    args = TrainingArguments(str(tmp_path), max_steps=4, save_steps=2, use_cpu=True, disable_tqdm=True)
    model, seen = Own(), {}
    watch = Watch({2: lambda: seen.update(head=model.head.weight.detach().clone()), 4: gate.set})
    trainer = Trainer(model, args, train_dataset=tiny.vectors(), callbacks=[watch])
    trainer.async_save = True
    trainer.train()
    assert torch.equal(torch.load(tmp_path / "checkpoint-2" / "own.bin"), seen["head"])


# -- where it is turned on


def test_the_trainer_outranks_the_environment_and_that_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(str(tmp_path))
    assert not saves_asynchronously(trainer)
    (tmp_path / "job.json").write_text(ResolvedJob("j", "n", "uid", 1, 1, 1, async_save=True).to_json())
    monkeypatch.setenv(ENV_JOB_FILE, str(tmp_path / "job.json"))
    assert saves_asynchronously(trainer)
    monkeypatch.setenv(ENV_ASYNC_SAVE, "0")
    assert not saves_asynchronously(trainer)
    trainer.async_save = True
    assert saves_asynchronously(trainer)
    trainer.async_save = None
    monkeypatch.setenv(ENV_ASYNC_SAVE, "maybe")
    with pytest.raises(UserError, match="TRAINWRIGHT_ASYNC_SAVE: it must be 1 or 0, not 'maybe'"):
        saves_asynchronously(trainer)


# -- copies


def test_copies_stay_apart_and_use_their_memory_again() -> None:
    shared = torch.arange(6.0)
    state = {
        "a": shared,
        "tied": shared,
        "view": shared[2:],
        "deep": [{"n": 1}, (shared + 1,)],
        "t": shared.view(2, 3).T,
    }
    stager = Stager()
    first = stager.copy("model", state)
    assert first["a"] is first["tied"]
    assert first["a"].data_ptr() != shared.data_ptr()
    assert first["t"].stride() == state["t"].stride()
    place = first["a"].data_ptr()
    shared += 1
    assert first["view"].tolist() == [2.0, 3.0, 4.0, 5.0]
    second = stager.copy("model", state)
    assert second["a"].data_ptr() == place
    assert second["a"].tolist() == shared.tolist()
    assert stager.copy("model", {"a": torch.zeros(2)})["a"].shape == (2,)


def test_copies_hold_the_same_values_whatever_the_size_type_and_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    numbers = torch.arange(6000.0)
    state = {
        "many chunks": numbers.view(60, 100),
        "bfloat16": numbers.bfloat16(),
        "bool": numbers > 7,
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "every second": numbers[::2],
        "conjugate": torch.complex(numbers, numbers).conj(),
        "negative": torch.complex(numbers, numbers).conj().imag[1:2],
    }
    stager = Stager()
    for _ in range(2):
        copied = stager.copy("model", state)
        assert all(torch.equal(copied[name], tensor) for name, tensor in state.items())
        numbers += 1


def test_the_memory_is_touched_before_the_first_checkpoint(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, Watch())
    writer = BackgroundWriter(trainer.checkpoints, lambda copy: copy("model", trainer.model.state_dict()))
    assert not writer.is_due(1)
    assert not writer._stager._places
    assert not writer.is_due(2)
    writer._warming.join(60)
    assert len(writer._stager._places) == len(trainer.model.state_dict())


# -- several ranks


def save_in_two_ranks(folder: str) -> Any:
    """A run as it should be, and one in which rank 1 finds its disk full."""
    rank = torch.distributed.get_rank()
    watch = Watch()
    good = trainer_with(Path(folder) / "good", watch, ddp_find_unused_parameters=False)
    good.train()
    bad_watch, save = Watch(), torch.save

    def full(value: Any, file: Any) -> None:
        if rank == 1 and (Path(folder) / "bad" / "checkpoint-3").exists():
            raise OSError(28, "No space left on device")
        save(value, file)

    bad = trainer_with(Path(folder) / "bad", bad_watch, ddp_find_unused_parameters=False, max_steps=1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainwright.checkpoint.snapshot.torch.save", full)
        with pytest.raises(UserError) as caught:
            bad.train()
    return {
        "saved": [step for step, _ in watch.saved],
        "weights": weights(good),
        "error": str(caught.value),
        "stopped": bad_watch.step,
        "left": sorted(os.listdir(Path(folder) / "bad")),
    }


def test_ranks_save_together_and_stop_at_the_same_step(tmp_path: Path) -> None:
    one, two = in_world(2, "trainer.test_checkpoint_background:save_in_two_ranks", str(tmp_path))
    assert one["saved"] == two["saved"] == [3, 6, 8]
    names = os.listdir(tmp_path / "good" / "checkpoint-6")
    assert {"rng_state_0.pth", "rng_state_1.pth", "data_state_0.pt", "data_state_1.pt"} <= set(names)
    assert "cannot save checkpoint-6: the disk is full" in one["error"]
    assert one["error"] == two["error"]
    assert one["stopped"] == two["stopped"] < 1000
    assert one["left"] == ["checkpoint-3"]


def test_a_peer_that_is_gone_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(background, "FAILED_RUN_WAIT_SECONDS", 0.1)
    never = threading.Event()

    store = CheckpointStore(tmp_path)
    monkeypatch.setattr(store, "seen_by", lambda ranks: store)
    monkeypatch.setattr(store, "write", lambda *_: never.wait(60))
    with pytest.raises(RuntimeError, match="a peer is gone"):
        start_and_fail(BackgroundWriter(store, lambda copy: Snapshot([], [])))
    never.set()


def start_and_fail(writer: BackgroundWriter) -> None:
    with writer:
        writer.start(1, then=lambda: None, done=lambda: None)
        raise RuntimeError("a peer is gone")
