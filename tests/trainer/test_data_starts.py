"""The start of data workers: none waits for a lock that a thread of the rank held when it was forked."""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from trainer import tiny
from trainer.data_cases import Noisy, Stream, as_list, loader_for
from trainer.runs import make, weights
from trainwright import TrainerCallback
from trainwright.contract import DataError
from trainwright.data import fork_server, forking, sending, workers
from trainwright.data.epochs import batches

UNUSED = "_xxsubinterpreters"
"""An extension module of Python that nothing here imports."""


@contextmanager
def held_linker() -> Iterator[None]:
    """A thread that holds the dynamic linker's lock, as each that loads a library or unwinds an exception does."""
    held, over = threading.Event(), threading.Event()

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    def within(*_: Any) -> int:
        held.set()
        over.wait()
        return 1

    thread = threading.Thread(target=lambda: ctypes.CDLL(None).dl_iterate_phdr(within, None))
    thread.start()
    held.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Loads(Noisy):
    """Loads a library when its first sample is asked for, as decoders of images do."""

    def __getitem__(self, index: int) -> Any:
        importlib.import_module(UNUSED)
        return tiny.vectors(1)[0]


def read(loader: Any) -> list[Any]:
    return list(batches(loader, epoch=0))


def test_a_worker_meets_no_lock_that_a_thread_holds(tmp_path: Any) -> None:
    """Also one of an evaluation in the midst of training; forked from the rank, each would wait for ever."""
    assert UNUSED not in sys.modules
    done: list[float] = []

    class Hold(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.held = held_linker()
            self.held.__enter__()

        def on_train_end(self, args, state, control, **kwargs):
            self.held.__exit__(None, None, None)

        def on_evaluate(self, args, state, control, metrics, **kwargs):
            done.append(metrics["eval_loss"])

    trainer = make(
        tmp_path, data=Loads(16), max_steps=2, eval_strategy="steps", eval_steps=1, dataloader_num_workers=1,
        trainer={"eval_dataset": Loads(4), "callbacks": [Hold()]},
    )  # fmt: skip
    trainer.train()
    assert len(done) == 2


def test_a_fork_that_a_lock_stops_is_given_up_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "PATIENCE", (0.5, 20.0))
    expected = read(loader_for(Noisy(4), dataloader_num_workers=2))
    held = held_linker()
    held.__enter__()
    threading.Timer(0.25, held.__exit__, (None, None, None)).start()
    assert read(loader_for(Noisy(4), dataloader_num_workers=2)) == expected


def test_a_start_that_never_succeeds_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "PATIENCE", (0.2, 0.2))
    before = set(multiprocessing.active_children())
    with held_linker(), pytest.raises(DataError) as caught:
        read(loader_for(Noisy(4), dataloader_num_workers=2))
    words = str(caught.value)
    assert words.startswith("train_dataset, data worker 0: 2 processes forked for it did not come to life")
    assert "\n" not in words
    assert "dataloader_num_workers to 0" in words
    assert set(multiprocessing.active_children()) == before


def test_a_server_that_does_not_answer_is_an_error_and_one_that_is_gone_is_not_missed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "PATIENCE", (0.2, 0.2))
    with fork_server.running(True):
        server = fork_server.current()
        assert server is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(DataError, match=r"^train_dataset, data worker 0: it did not start within 0 s; look"):
                read(loader_for([bytes(1 << 17)], dataloader_num_workers=1))  # more than a pipe holds
        finally:
            os.kill(server.pid, signal.SIGKILL)
        assert len(read(loader_for(Noisy(4), dataloader_num_workers=1))) == 2
    assert "their fork server has ended" in caplog.text


class Scaled(Noisy):
    """Holds what only a fork seems able to hand on: a lambda, a closure over itself, and tensors of many kinds."""

    def __init__(self, factor: int) -> None:
        super().__init__(5)
        factors = [factor]

        def by(number: int) -> int:
            return number * factors[0] if number < 100 else by(100)

        self.scale, self.shift = by, lambda number: number + 1
        self.tensors = [
            torch.arange(6.0)[2:4], torch.ones(2, dtype=torch.bfloat16), torch.tensor(3),
            torch.ones(2, requires_grad=True), torch.eye(2).to_sparse(), torch.tensor([1 + 2j]).conj(),
        ]  # fmt: skip

    def __getitem__(self, index: int) -> Any:
        return self.shift(self.scale(index)), [tensor.to_dense().sum().item() for tensor in self.tensors]


def local_dataset() -> Any:
    class Local(Scaled):
        """A class that no name leads to, with a method that calls its parent's."""

        def __getitem__(self, index: int) -> Any:
            return "local", super().__getitem__(index)

    return Local(3)


def local_stream() -> Any:
    class Local(Stream):
        def __iter__(self) -> Any:
            return iter("abcdef")

    return Local(6)


SENT: dict[str, Callable[[], tuple[Any, Any]]] = {
    "named": lambda: (Noisy(5), as_list),
    "functions without a name": lambda: (Scaled(3), lambda samples: ("collated", samples)),
    "a class without a name": lambda: (local_dataset(), as_list),
    "a stream of a class without a name": lambda: (local_stream(), as_list),
    "a list of tensors": lambda: (tiny.vectors(5), lambda samples: [sample["x"].tolist() for sample in samples]),
}


@pytest.mark.parametrize("case", SENT)
def test_what_is_sent_is_what_a_fork_shows(case: str, caplog: pytest.LogCaptureFixture) -> None:
    dataset, collate = SENT[case]()
    arguments: Any = {"dataloader_num_workers": 2, "collate_fn": collate}
    forked = read(loader_for(dataset, dataloader_multiprocessing_context="fork", **arguments))
    with fork_server.running(True):
        assert read(loader_for(dataset, **arguments)) == forked
    assert not caplog.records


class Tells(Noisy):
    """Tells a number that changes between epochs, and the parent of the process that reads."""

    number = 0

    def __getitem__(self, index: int) -> Any:
        return self.number, os.getppid()


def test_a_worker_reads_the_dataset_as_it_stands_when_the_epoch_begins() -> None:
    dataset = Tells(2)
    loader = loader_for(dataset, dataloader_num_workers=1)
    with fork_server.running(True):
        server = fork_server.current()
        assert server is not None
        for number in range(3):
            dataset.number = number
            assert read(loader) == [[(number, server.pid)] * 2]


@pytest.mark.parametrize("prepared", [False, True])
def test_a_users_own_loader_starts_its_workers_alike(prepared: bool) -> None:
    loader = torch.utils.data.DataLoader(Tells(2), num_workers=1, collate_fn=as_list)
    loader = Accelerator(cpu=True).prepare(loader) if prepared else loader
    with fork_server.running(True):
        server = fork_server.current()
        assert server is not None
        assert read(loader) == [[(0, server.pid)]] * 2


UNSENDABLE: dict[str, tuple[Any, str]] = {
    "a lock": (threading.Lock(), "it cannot be pickled (cannot pickle '_thread.lock' object)"),
    "a generator": ((number for number in range(3)), "it cannot be pickled (cannot pickle 'generator' object)"),
    "too much": (bytes(1 << 16), "it takes more than 0 MiB to send"),
    "what fails to arrive": (None, "ValueError: not here"),
}


class Holds(Tells):
    held: Any = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state.get("held") is None:
            raise ValueError("not here")
        self.__dict__.update(state)


@pytest.mark.parametrize("case", UNSENDABLE)
def test_what_cannot_be_sent_is_forked_with_and_told_once(
    case: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Holds(2)
    dataset.held, words = UNSENDABLE[case]
    if case == "too much":
        monkeypatch.setattr(sending, "LARGEST", 1 << 16)
    loader = loader_for(dataset, dataloader_num_workers=2, dataloader_persistent_workers=False)
    with fork_server.running(True):
        for _ in range(2):
            assert read(loader) == [[(0, os.getpid())] * 2]
    (record,) = caplog.records
    assert record.getMessage().startswith("train_dataset: its data workers are forked from the training process itself")
    assert record.getMessage().endswith(words)


def test_persistent_workers_outlive_the_training_that_started_them() -> None:
    loader = loader_for(Tells(2), dataloader_num_workers=1, dataloader_persistent_workers=True)
    with fork_server.running(True):
        server = fork_server.current()
        assert server is not None
        parent = server.pid
        del server
        first = read(loader)
    assert first == read(loader) == [[(0, parent)] * 2]
    del loader
    ended = time.monotonic() + 30
    while os.path.exists(f"/proc/{parent}") and time.monotonic() < ended:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{parent}")


def test_workers_end_with_their_rank() -> None:
    """Killed, it says nothing to anybody; a worker would hold its device's memory and its sockets."""
    reader, writer = os.pipe()
    rank = os.fork()
    if rank == 0:
        with fork_server.running(True):
            iterator = batches(loader_for(Tells(4), dataloader_num_workers=1), epoch=0)
            next(iterator)
            (worker,) = multiprocessing.active_children()
            os.write(writer, f"{worker.pid}".encode())
            time.sleep(1000)
    worker = int(os.read(reader, 100))
    os.kill(rank, signal.SIGKILL)
    os.waitpid(rank, 0)
    ended = time.monotonic() + 30
    while os.path.exists(f"/proc/{worker}") and time.monotonic() < ended:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{worker}")


def test_training_is_the_same_wherever_its_workers_come_from(tmp_path: Any) -> None:
    results = []
    for context in (None, "fork"):
        trainer = make(
            tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2, dataloader_num_workers=2,
            dataloader_multiprocessing_context=context,
        )  # fmt: skip
        trainer.train()
        results.append(weights(trainer))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
