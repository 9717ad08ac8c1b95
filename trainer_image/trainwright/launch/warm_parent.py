"""The process from which the ranks of a pod are forked: it imports once what every rank would import.

``python -m trainwright.launch.warm_parent FD MODULE`` is started by the launcher and obeys it over the socket ``FD``.
It reports that it is ready, or why it must not be forked; then each message is answered by the process ids of the ranks
that it asks for. It brings a gate, the reading end of a pipe, at which they wait until all are there. This process
never computes, so it has one thread, no OpenMP pool and no device context, and a fork of it is as good as a new
process. It ends with the launcher.

A rank is forked twice: its parent ends at once, so the rank becomes a child of the launcher, the subreaper of the pod.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time
import traceback
import warnings
from contextlib import suppress
from typing import Any, NoReturn

LARGEST_MESSAGE = 2**20
OPEN = b"o"
"""What a rank reads from its gate when it may begin; at the end of the file it ends, because the launcher gave up."""
QUIET_LIBRARIES = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "OPENBLAS_NUM_THREADS": "1"}
"""Without these, pyarrow's jemalloc and numpy's BLAS start threads when they are imported."""
_PR_SET_PDEATHSIG = 1
_OF_A_SCRIPT = ("torch.distributed", "accelerate", "transformers", "datasets", "trainwright.trainer.trainer")


def main() -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    channel = socket.socket(fileno=int(sys.argv[1]))
    prepare(sys.argv[2])
    answer(channel, {"unfit": reason} if (reason := unfit()) else {"ready": True})
    while True:
        message, gates, _, _ = socket.recv_fds(channel, LARGEST_MESSAGE, 1)
        if not message:
            return
        (gate,) = gates
        answer(channel, {"pids": fork_ranks(channel, gate, **json.loads(message))})
        os.close(gate)


def answer(channel: socket.socket, document: dict[str, Any]) -> None:
    channel.send(json.dumps(document).encode())


def prepare(module: str) -> None:
    """Imports what ``python -m module`` will, by the ``preload`` of its package if it has one.

    The garbage collector is off until a rank begins, which makes imports a quarter cheaper. What was imported is then
    out of its sight for good: its marks would copy the pages of a million objects in each rank.
    """
    gc.disable()
    try:
        importlib.import_module(f"{module}.preload").preload()
    except ModuleNotFoundError:
        for name in _OF_A_SCRIPT:
            with suppress(ImportError):  # an image may lack it, and a script may not need it
                importlib.import_module(name)
    gc.freeze()


def unfit() -> str | None:
    """Why forks of this process would not be safe; None if they are."""
    if threads := len(os.listdir("/proc/self/task")) - 1:
        return f"the imported libraries run {threads} thread{'s' * (threads > 1)}, which forked ranks would lack"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "the imported libraries use a GPU, which forked ranks could not"
    return None


def fork_ranks(
    channel: socket.socket,
    gate: int,
    module: str,
    args: list[str],
    environment: dict[str, str],
    ranks: list[dict[str, Any]],
) -> list[int]:
    """Forks ranks, which begin when their gate opens; returns their process ids once they are the launcher's children.

    Args:
        environment: What all ranks have.
        ranks: The environment that each has besides, and its streams.
    """
    forked = [
        _fork_twice(channel, gate, module, args, {**environment, **rank["environment"]}, rank["streams"])
        for rank in ranks
    ]
    for between, _ in forked:  # they end while the next rank is forked
        os.waitpid(between, 0)
    return [pid for _, pid in forked]


def _fork_twice(channel: socket.socket, gate: int, *start: Any) -> tuple[int, int]:
    """The process between and the rank."""
    reader, writer = os.pipe()
    between = os.fork()
    if between == 0:
        own = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            os.close(writer)
            channel.close()
            while os.getppid() == own:
                time.sleep(0.001)
            become_rank(gate, *start)
        os.write(writer, str(pid).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return between, int(pipe.read())


def become_rank(gate: int, module: str, args: list[str], environment: dict[str, str], streams: list[str]) -> NoReturn:
    """Runs ``python -m module args`` in this process, as if it had just been started, when the gate opens.

    Args:
        gate: A pipe; if it ends without :data:`OPEN`, so does this process.
        environment: All of it.
        streams: The files for stdout and stderr; empty for those of this process.
    """
    try:
        os.setsid()
        if not os.read(gate, len(OPEN)):
            os._exit(1)
        os.close(gate)
        _reset_signals()
        for descriptor, path in enumerate(streams, start=1):
            if path:
                _redirect(descriptor, path)
        os.environ.clear()
        os.environ.update(environment)
        if (numpy := sys.modules.get("numpy")) is not None:
            numpy.random.seed()  # else every rank would draw the same numbers; Python's own generator seeds itself
        gc.enable()
        warnings.filterwarnings(
            "ignore", ".*found in sys.modules", RuntimeWarning, "runpy"
        )  # of a module imported before
        sys.argv = [module, *args]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}:
        with suppress(OSError, ValueError):
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _redirect(descriptor: int, path: str) -> None:
    opened = os.open(path, os.O_WRONLY)
    os.dup2(opened, descriptor)
    os.close(opened)


if __name__ == "__main__":
    main()
