"""The process that forks data workers: it has one thread, and the rank forks it before training begins.

A worker forked during training may wait forever for a lock that another thread of the rank held at that moment:
progress reports, a progress bar, queues of other workers, gloo, CUDA. The server is forked once, at the start of
``train``, when few threads run. It then has a single thread, so it can fork a worker safely at any time. Unlike
Python's fork server it is not a new interpreter: it imports nothing again, does not run the script again, and has the
classes and functions of ``__main__``.

The dataset is sent to a worker in its current state, which is the state that a fork would see.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import socket
from collections.abc import Iterator
from multiprocessing import util
from typing import Any

from trainwright.data.forking import ALIVE, Lines, fork_alive, touch_locks
from trainwright.data.sending import UnsendableError

MOST_FILES = 250
"""Maximum number of file descriptors in one socket message; Linux's limit."""
READY, FAILED, EXITED = b"R", b"E", b"X"
START, CLOSE = b"start", b"close"

inherited: list[int] = []
"""In a worker: the file descriptors that were sent with its dataset."""


class ForkServer:
    """The rank's handle of its server. The server ends with the rank, or after ``close`` and the last worker's end.

    Attributes:
        unsendable: Names of datasets whose workers cannot start from the server.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._owner = os.getpid()
        self.unsendable: set[str] = set()
        with theirs:
            self.pid, self._life = fork_alive(
                lambda _: _Server(theirs, self._socket).run(), "fork server of data workers"
            )
        util.Finalize(self, _reap, (self.pid, self._socket, self._life.fd), exitpriority=-100)

    @property
    def is_mine(self) -> bool:
        """Whether this process created the server; a forked child has a copy of the handle."""
        return self._owner == os.getpid()

    def start(self, files: list[int]) -> tuple[Lines, int]:
        """Fork a worker; return the status lines about it, and the pipe for its payload.

        Write the payload only after the worker reports that it runs, because nothing may read the pipe before.

        Raises:
            UnsendableError: The server is gone.
        """
        readable, writable = os.pipe()
        reader, writer = os.pipe()
        try:
            socket.send_fds(self._socket, [START], [readable, writer, *files])
        except OSError as error:
            os.close(writable)
            os.close(reader)
            reason = f"their fork server has ended ({error.strerror}); look whether memory ran out"
            raise UnsendableError(reason) from None
        finally:
            os.close(readable)
            os.close(writer)
        return Lines(reader), writable

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.send(CLOSE)


def _reap(pid: int, sock: socket.socket, life: int) -> None:
    sock.close()
    os.close(life)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


class _Server:
    """The server process."""

    def __init__(self, sock: socket.socket, rank_end: socket.socket) -> None:
        rank_end.close()
        self._socket, self._closed = sock, False
        self._workers: dict[int, int] = {}
        self._woken, wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(wake, False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the rank stops its workers
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def run(self) -> int:
        while not (self._closed and not self._workers):
            watched: list[Any] = [self._socket, self._woken]
            ready = select.select(watched, [], [])[0]
            if self._woken in ready:
                self._bury()
            if self._socket in ready and not self._obey():
                break
        for pid in self._workers:
            os.kill(pid, signal.SIGKILL)
        return 0

    def _obey(self) -> bool:
        message, files, _, _ = socket.recv_fds(self._socket, 16, MOST_FILES + 2)
        if message == CLOSE:
            self._closed = True
        if message != START:
            return message == CLOSE
        payload, life, *others = files
        if (pid := os.fork()) == 0:
            self._be_worker(payload, life, others)
        self._workers[pid] = life
        for file in (payload, *others):
            os.close(file)
        return True

    def _bury(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._woken, 256):
                pass
        for pid in list(self._workers):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                life = self._workers.pop(pid)
                _say(life, EXITED, str(os.waitstatus_to_exitcode(status)))
                os.close(life)

    def _be_worker(self, payload: int, life: int, files: list[int]) -> None:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._socket.close()
            for other in self._workers.values():
                os.close(other)
            inherited[:] = files
            code = _work(payload, life)
        finally:
            os._exit(code)


def _say(pipe: int, word: bytes, more: str = "") -> None:
    text = " ".join(more.split()).encode(errors="replace")[:2000]
    with contextlib.suppress(OSError):  # the reader is gone
        os.write(pipe, word + text + b"\n")


def _work(payload: int, life: int) -> int:
    touch_locks()
    _say(life, ALIVE, str(os.getpid()))
    try:
        with open(payload, "rb") as pipe:
            process = load(pipe)
    except BaseException as error:
        _say(life, FAILED, f"{type(error).__name__}: {error}")
        return 1
    _say(life, READY)
    os.close(life)
    code: int = process._bootstrap()
    return code


def load(pipe: Any) -> Any:
    """Load the process from a payload: first the data that all workers share, then the data of this worker."""
    shared = pickle.load(pipe)
    unpickler = pickle.Unpickler(pipe)
    unpickler.persistent_load = shared.__getitem__  # type: ignore[method-assign]
    return unpickler.load()


# -- the server of this process

_current: ForkServer | None = None


def current() -> ForkServer | None:
    """Return the running server of this process, if any."""
    return _current if _current is not None and _current.is_mine else None


@contextlib.contextmanager
def running(wanted: bool) -> Iterator[None]:
    """Run a server during the body, unless it is not ``wanted`` or one runs already."""
    global _current
    if not wanted or current() is not None:
        yield
        return
    server = _current = ForkServer()
    try:
        yield
    finally:
        _current = None
        server.close()
