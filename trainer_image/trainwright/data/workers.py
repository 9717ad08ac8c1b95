"""How data workers start: from the fork server, else by a verified fork; every wait has a timeout.

In messages, a loader's ``name`` is that of its dataset, and its workers are numbered from 0.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing import connection, context, popen_fork, process, resource_tracker, util
from typing import Any, cast

from torch.utils.data import DataLoader

from trainwright.contract import DataError
from trainwright.data import fork_server
from trainwright.data.fork_server import EXITED, FAILED, READY, ForkServer
from trainwright.data.forking import ALIVE, PATIENCE, Lines, StartError, fork_alive
from trainwright.data.sending import UnsendableError, pickled

logger = logging.getLogger(__name__)

SPAWN_SECONDS = 300.0
"""Timeout of a new interpreter, which imports everything that the script imports."""
READING_SECONDS = 60.0
"""Timeout of a worker that reads its payload, which was sent within :data:`trainwright.data.sending.LONGEST`."""

_GONE = 255
"""The exit code of a worker whose server ended first."""


def context_of(method: str | None, name: str) -> Any:
    """Return the ``multiprocessing_context`` of torch's loader, for data workers of the dataset ``name``.

    Args:
        method: ``"fork"``, ``"spawn"``, ``"forkserver"``, or None for our fork server.
    """
    chosen = multiprocessing.get_start_method(allow_none=True)  # also set after Python chose its default
    if method is None and chosen != multiprocessing.get_all_start_methods()[0]:
        method = chosen
    if method in ("spawn", "forkserver") or sys.platform != "linux":
        return _Interpreters(name, method or multiprocessing.get_start_method())
    return Forks(name, uses_server=method is None)


def needs_server(args: Any) -> bool:
    """Whether loaders with these arguments start their workers from the fork server."""
    return (
        bool(args.dataloader_num_workers)
        and args.dataloader_multiprocessing_context is None
        and (isinstance(context_of(None, ""), Forks))
    )


def watch_start(loader: Any, name: str) -> None:
    """Make a foreign loader start its workers like ours, unless it sets a context."""
    loader = getattr(loader, "base_dataloader", loader)  # inside accelerate's wrapper
    if isinstance(loader, DataLoader) and loader.num_workers > 0 and loader.multiprocessing_context is None:
        loader.multiprocessing_context = context_of(None, name)


class Forks(context.BaseContext):
    """The multiprocessing context that creates the workers of one loader.

    Attributes:
        shared: Objects that all workers of one pass read; they are pickled once for all workers.
    """

    _name = "trainwright"

    def __init__(self, name: str, uses_server: bool = True) -> None:
        self.name, self.uses_server = name, uses_server
        self.shared: list[Any] = []
        self._parcel: _Parcel | None = None
        self._number = 0

    def begin(self, shared: Sequence[Any]) -> None:
        """Start a pass: restart the numbering of workers."""
        _start_tracker()
        self.shared, self._parcel, self._number = list(shared), None, 0

    def end(self) -> None:
        self.begin(())

    def Process(self, *args: Any, **kwargs: Any) -> Worker:  # noqa: N802
        worker = Worker(*args, **kwargs)
        worker.start_by, worker.number = self, self._number
        self._number += 1
        return worker

    def launch(self, worker: Worker) -> Any:
        server = fork_server.current() if self.uses_server else None
        if server is not None and self.name not in server.unsendable:
            try:
                self._parcel = self._parcel or _Parcel(self.shared)
                return _FromServer(worker, server, self._parcel)
            except UnsendableError as reason:
                server.unsendable.add(self.name)
                logger.warning(
                    "%s: its data workers are forked from the training process itself, at some risk of a stall, as "
                    "what they read cannot be sent to them: %s",
                    self.name, reason,
                )  # fmt: skip
        return _Forked(worker)


def _start_tracker() -> None:
    """Start Python's resource tracker, which removes semaphores of killed processes, without its warning."""
    sys.warnoptions.append(quietly := "ignore:resource_tracker")
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(quietly)


class Worker(process.BaseProcess):
    """A data worker.

    Attributes:
        start_by: The context that created the worker; not sent to it.
        number: Index among the workers of the loader.
    """

    _start_method = None  # processes that a worker starts use the default method
    start_by: Forks | None = None
    number = 0

    def _Popen(self, worker: Worker) -> Any:  # noqa: N802
        assert self.start_by is not None
        try:
            return self.start_by.launch(worker)
        except StartError as error:
            raise DataError(str(error)) from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "start_by": None}

    @property
    def title(self) -> str:
        """The worker's name in messages."""
        return f"{self.start_by.name if self.start_by else 'a loader'}, data worker {self.number}"


class _Files:
    """Collects the file descriptors of queues and shared memory while a process is pickled, like ``Popen`` does."""

    class DupFd:
        """In the worker: the file descriptor that was sent at this index."""

        def __init__(self, place: int) -> None:
            self.place = place

        def detach(self) -> int:
            return fork_server.inherited[self.place]

    def __init__(self, taken: Sequence[int] = ()) -> None:
        self.files = list(taken)

    def duplicate_for_child(self, file: int) -> int:
        if len(self.files) == fork_server.MOST_FILES:
            raise UnsendableError(f"it holds more than {fork_server.MOST_FILES} files or pieces of shared memory")
        self.files.append(file)
        return len(self.files) - 1

    def pickled(self, item: Any, shared: list[Any]) -> bytes:
        context.set_spawning_popen(cast(Any, self))
        try:
            return pickled(item, shared)
        finally:
            context.set_spawning_popen(None)


class _Parcel:
    """The pickled objects that all workers of a pass share."""

    def __init__(self, shared: list[Any]) -> None:
        files = _Files()
        self.shared = shared
        self.bytes = files.pickled(shared, [])
        self.files = files.files
        self.arrived = False


class _FromServer(popen_fork.Popen):
    """The handle of a worker whose parent is the server."""

    method = "trainwright"

    def __init__(self, worker: Worker, server: ForkServer, parcel: _Parcel) -> None:
        self.returncode: int | None = None
        self.finalizer: Any = None
        files = _Files(parcel.files)
        payload = parcel.bytes + files.pickled(worker, parcel.shared)
        self._server = server  # keep the server alive as long as its workers
        self._lines = self._start(worker, payload, files.files)
        self.sentinel = self._lines.fd
        self.finalizer = util.Finalize(self, cast(Any, util).close_fds, (self.sentinel,))
        if not parcel.arrived:  # the first worker shows whether all can read it
            self._await_reading()
            parcel.arrived = bool(parcel.shared)

    def _start(self, worker: Worker, payload: bytes, files: list[int]) -> Lines:
        for seconds in PATIENCE:
            lines, pipe = self._server.start(files)
            with contextlib.suppress(BrokenPipeError), open(pipe, "wb") as takes:  # the status lines have the cause
                line = lines.next(seconds)
                if line is not None and line.startswith(ALIVE):
                    self.pid = int(line[1:])
                    takes.write(payload)
                    return lines
            os.close(lines.fd)
        raise StartError(_not_started(worker.title, sum(PATIENCE)))

    def _await_reading(self) -> None:
        line = self._lines.next(READING_SECONDS)
        if line == READY:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        if self.finalizer is not None:
            self.finalizer()
        if line is not None and line.startswith(FAILED):
            raise UnsendableError(line[1:].decode())
        raise UnsendableError("a worker ended while it read it, or did not come to an end")

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        return self.wait(0.0 if flag == os.WNOHANG else None)

    def wait(self, timeout: float | None = None) -> int | None:
        while self.returncode is None:
            line = self._lines.next(timeout)
            if line is not None and line.startswith(EXITED):
                self.returncode = int(line[1:])
            elif line is None and self._lines.ended:
                self.returncode = _GONE
            elif line is None:
                return None
        return self.returncode


class _Forked(popen_fork.Popen):
    """The handle of a worker that was forked from this process."""

    def _launch(self, worker: Worker) -> None:
        # The worker keeps its end of the pipe open, so this process sees when the worker ends.
        self.pid, lines = fork_alive(lambda _: int(cast(Any, worker)._bootstrap()), worker.title)
        self.sentinel = lines.fd
        self.finalizer = util.Finalize(self, cast(Any, util).close_fds, (self.sentinel,))


def _not_started(title: str, seconds: float) -> str:
    return (
        f"{title}: it did not start within {seconds:.0f} s; look whether the node is short of memory or processes, or "
        "set dataloader_num_workers to 0"
    )


# -- new interpreters


class _Interpreters(context.BaseContext):
    """Python's start methods with a new interpreter, with a timeout."""

    def __init__(self, name: str, method: str) -> None:
        self.name, self._name, self._number = name, method, 0
        self._base: Any = multiprocessing.get_context(method)

    def begin(self, shared: Sequence[Any]) -> None:
        self._number = 0

    def end(self) -> None:
        pass

    def Process(self, *args: Any, **kwargs: Any) -> Any:  # noqa: N802
        reader, writer = self._base.Pipe(duplex=False)
        kwargs["target"], kwargs["args"] = _prove, (writer, kwargs["target"], kwargs["args"])
        made = self._base.Process(*args, **kwargs)
        title, self._number = f"{self.name}, data worker {self._number}", self._number + 1
        start = made.start

        def start_and_wait() -> None:
            del made.start  # this must not be pickled
            start()
            writer.close()
            ready = connection.wait([reader, made.sentinel], SPAWN_SECONDS)
            reader.close()
            if not ready:
                made.kill()
                raise DataError(_not_started(title, SPAWN_SECONDS))

        made.start = start_and_wait
        return made


def _prove(writer: Any, target: Any, args: Any) -> None:
    writer.send_bytes(ALIVE)
    writer.close()
    target(*args)
