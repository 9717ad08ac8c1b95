"""Locks: one command at a time, none left behind by a killed one, and good on a folder that was removed meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster import locks
from cluster.paths import HERE

HOLD = """
import sys, time
from pathlib import Path
from cluster import locks
with locks.alone(Path(sys.argv[1]), ""):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder's lock."""
    started = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=HERE.parent, stdout=-1, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "held\n"
    return started


def test_a_killed_process_leaves_no_lock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = holder(tmp_path)
    assert locks.held(tmp_path)
    threading.Timer(0.2, other.send_signal, [signal.SIGKILL]).start()
    with locks.alone(tmp_path, "waiting for the other"):
        assert other.wait() == -signal.SIGKILL
    assert "waiting for the other" in capsys.readouterr().err
    assert not locks.held(tmp_path)


def test_a_folder_that_its_holder_removed_is_locked_anew(tmp_path: Path) -> None:
    folder, entered = tmp_path / "cluster", threading.Event()

    def wait() -> None:
        with locks.alone(folder, ""):
            assert folder.is_dir()
            entered.set()

    waiter = threading.Thread(target=wait)
    with locks.alone(folder, ""):
        waiter.start()
        assert not entered.wait(0.2)
        folder.rmdir()
    waiter.join(30)
    assert entered.is_set()


def test_what_is_not_there_is_not_held(tmp_path: Path) -> None:
    assert not locks.held(tmp_path / "nothing")
