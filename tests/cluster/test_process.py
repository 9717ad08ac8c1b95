"""Daemons: found again, told from a later process of the same id, and reported with their last words."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from cluster.process import Daemon, start_time
from cluster.say import ClusterError


def daemon(state: Path, program: str) -> Daemon:
    return Daemon("worker", [sys.executable, "-c", program], state)


def test_a_daemon_is_found_by_another_command_and_stopped(tmp_path: Path) -> None:
    daemon(tmp_path, "import time; time.sleep(60)").start()
    other = daemon(tmp_path, "")
    pid = other.pid()
    assert pid is not None
    other.stop()
    assert start_time(pid) is None
    assert not other.alive()


def test_a_later_process_of_the_same_id_is_not_the_daemon(tmp_path: Path) -> None:
    record = tmp_path / "run" / "worker.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"pid": os.getpid(), "started": 1}))
    assert not daemon(tmp_path, "").alive()
    daemon(tmp_path, "").stop()  # would end this very test


def test_one_that_ends_while_starting_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    ending = daemon(tmp_path, "print('address in use', flush=True); raise SystemExit(1)")
    ending.start()
    with pytest.raises(ClusterError, match=r"worker ended while starting; .*\n.*address in use"):
        ending.wait_ready(lambda: False, 30)


def test_one_that_gets_not_ready_is_reported_with_the_deadline(tmp_path: Path) -> None:
    slow = daemon(tmp_path, "import time; print('waiting', flush=True); time.sleep(60)")
    slow.start()
    try:
        with pytest.raises(ClusterError, match=r"worker was not ready after 0\.5 s"):
            slow.wait_ready(lambda: False, 0.5)
    finally:
        slow.stop()


def test_one_that_does_not_heed_is_made_to_end(tmp_path: Path) -> None:
    deaf = daemon(
        tmp_path, "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    deaf.start()
    deaf.wait_ready(lambda: "deaf" in deaf.tail(), 30)
    deaf.stop(grace=0.2)
    assert not deaf.alive()
