"""Wraps the work of every rank: reports a failure in one line, and ends the process in bounded time.

``run(main)`` is the whole ``__main__`` of a rank. ``python -m trainwright.launch.entry SCRIPT [ARGS]`` runs a user's
file the same way, like ``python SCRIPT ARGS``. Standard library only, because a script may not need torch, and its
image may contain no other module of ours.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import os
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

from trainwright.contract import ExitCode, UserError
from trainwright.job import warn_if_arguments_unread
from trainwright.launch import nodefiles

DUMP_SIGNAL = signal.SIGUSR1
"""Makes a rank dump the stacks of all its threads."""
EXIT_HANDLER_SECONDS = 10.0
"""How long a failed rank may spend in its ``atexit`` handlers."""
MAX_ERROR_CHARACTERS = 1500

_OVERLAY = str(Path(__file__).parent.parent / "overlay" / "__main__.py")
_OWN_FRAMES = (__file__, _OVERLAY, "<frozen runpy>", runpy.__file__)
_LOST_PEER = (
    "connection closed by peer",
    "connection reset by peer",
    "connection was likely closed",
    "connection refused",
    "broken pipe",
    "gloo",
    "nccl",
    "socket timeout",
)
_DISTRIBUTIONS = {
    "PIL": "pillow", "bs4": "beautifulsoup4", "cv2": "opencv-python-headless", "dateutil": "python-dateutil",
    "skimage": "scikit-image", "sklearn": "scikit-learn", "yaml": "pyyaml",
}  # fmt: skip
"""Modules whose distribution has another name on PyPI."""


def run(main: Callable[[], object]) -> NoReturn:
    """Runs ``main`` and ends the process with the exit code of its :class:`UserError` or ``SystemExit``, else 0 or 1.

    A :class:`UserError` prints one line; any other exception prints its traceback, without our own frames.
    """
    prepare()
    try:
        main()
        warn_if_arguments_unread()
    except BaseException as error:
        code = _report(error)
        if code != ExitCode.DONE:
            leave(code)
    finish()


def prepare() -> None:
    """Installs the signal handlers that the launcher relies on: SIGUSR1 dumps stacks, SIGTERM exits in order."""
    folder = nodefiles.node_dir()
    faulthandler.enable()
    if folder is not None:
        stacks = nodefiles.stacks_path(folder, nodefiles.local_rank()).open("w")
        faulthandler.register(DUMP_SIGNAL, file=stacks, all_threads=True)
    signal.signal(signal.SIGTERM, _stop)


def finish() -> NoReturn:
    """Ends the process with code 0 as Python does: joins threads, runs ``atexit`` handlers, flushes files.

    It skips the C++ destructors. Those of a process group that the script has not destroyed sometimes abort the process
    ("terminate called without an active exception"), and then a completed run would count as failed.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading._shutdown()  # type: ignore[attr-defined]
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        with contextlib.suppress(RuntimeError):  # a peer may have left already, which does not matter at this point
            distributed.destroy_process_group()
    gc.collect()
    _exit_now(ExitCode.DONE)


def leave(code: int) -> NoReturn:
    """Ends the process with ``code`` after its ``atexit`` handlers, without waiting for threads or communicators.

    Threads and collectives may wait for a peer that is gone, and a failed rank must not wait with them.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this process is already exiting
    guard = threading.Timer(EXIT_HANDLER_SECONDS, os._exit, (code,))
    guard.daemon = True
    guard.start()
    _exit_now(code)


def _exit_now(code: int) -> NoReturn:
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)


def run_script(path: str, args: Sequence[str] = ()) -> None:
    """Runs a Python file as ``python path args`` does, with its own ``sys.argv``, ``sys.path[0]`` and ``__main__``.

    Raises:
        UserError: the file does not exist, cannot be read, or is not Python.
    """
    _check_script(path)
    sys.argv = [path, *args]
    sys.path[0] = str(Path(path).resolve().parent)
    runpy.run_path(path, run_name="__main__")


def run_module(name: str, args: Sequence[str] = ()) -> None:
    """Runs a module as ``python -m name args`` does.

    Raises:
        UserError: the module does not exist.
    """
    sys.argv = [name, *args]
    sys.path[0] = os.getcwd()
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except ImportError as error:
        if _shown(error.__traceback__) is None:
            raise UserError(f"module: {error}; it must be in the image or on PYTHONPATH") from None
        raise


def _check_script(path: str) -> None:
    try:
        compile(Path(path).read_bytes(), path, "exec")
    except OSError as error:
        raise UserError(f"script: cannot read {path} ({error.strerror}); it must be in the image or a volume") from None
    except SyntaxError as error:
        raise UserError(f"script: {Path(path).name}, line {error.lineno}: {error.msg}") from None
    except ValueError as error:
        raise UserError(f"script: {path} is not Python: {error}") from None


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(int(ExitCode.PREEMPTED))


def _report(error: BaseException) -> int:
    """Reports ``error`` to the log and to the launcher; returns the exit code for it."""
    if isinstance(error, SystemExit):
        return _report_exit(error)
    if isinstance(error, UserError):
        _print(f"error: {_one_line(str(error))}")
        _record(error.exit_code, _one_line(str(error)))
        return int(error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    place = _shown(error.__traceback__)
    if (line := _image_problem(error, place)) is not None:
        return _report(UserError(line))
    sys.excepthook(type(error), error.with_traceback(place), place)
    _record(1, _line(error, place), secondary=_is_lost_peer(error))
    return 1


def _image_problem(error: BaseException, trace: TracebackType | None) -> str | None:
    """The message for an error that every retry in the same image would repeat: a missing or invalid module."""
    if isinstance(error, SyntaxError) and not (error.filename or "<").startswith("<"):
        return f"{Path(str(error.filename)).name}, line {error.lineno}: {error.msg}"
    if not isinstance(error, ImportError) or not error.name or trace is None:
        return None
    package = error.name.partition(".")[0]
    distribution = _DISTRIBUTIONS.get(package, package)
    if isinstance(error, ModuleNotFoundError):
        return (
            f"{_place(trace)}: no module named {error.name!r} in this image; add {distribution} to "
            "script.requirements, use an image that has it (podTemplate.image), or put the module's files beside the "
            "script"
        )
    if "cannot import name" in str(error):
        return f"{_place(trace)}: {error}; list a release of {package} that has it in script.requirements"
    return None


def _report_exit(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        code = int(error.code or 0) & 0xFF
        if code not in (ExitCode.DONE, ExitCode.PREEMPTED):
            _record(code, f"the script ended with exit code {code}")
        return code
    _print(str(error.code))
    _record(1, _one_line(str(error.code)))
    return 1


def _record(code: int, line: str, secondary: bool = False) -> None:
    folder = nodefiles.node_dir()
    if folder is not None:
        rank = int(os.environ.get("RANK", "0"))
        nodefiles.RankError(rank, int(code), line, secondary).write(folder, nodefiles.local_rank())


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _shown(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without our own frames at its start."""
    while trace is not None and trace.tb_frame.f_code.co_filename in _OWN_FRAMES:
        trace = trace.tb_next
    return trace


def _line(error: BaseException, trace: TracebackType | None = None) -> str:
    """``ValueError: no such column (train.py, line 12)``."""
    text = _one_line(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    if trace is None:
        return text
    return f"{text} ({_place(trace)})"


def _place(trace: TracebackType) -> str:
    """The last position within the user's file."""
    frames = traceback.extract_tb(trace)
    last = [frame for frame in frames if frame.filename == frames[0].filename][-1]
    return f"{Path(last.filename).name}, line {last.lineno}"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MAX_ERROR_CHARACTERS]


def _is_lost_peer(error: BaseException) -> bool:
    """Whether a collective or the store failed because a peer went away, so that the cause is on another rank."""
    module, text = type(error).__module__, str(error).lower()
    return isinstance(error, RuntimeError) and (
        (module.startswith("torch") and "Dist" in type(error).__name__) or any(sign in text for sign in _LOST_PEER)
    )


def main() -> None:
    if len(sys.argv) < 2:
        raise UserError("usage: python -m trainwright.launch.entry SCRIPT [ARGS]")
    run_script(sys.argv[1], sys.argv[2:])


if __name__ == "__main__":
    run(main)
