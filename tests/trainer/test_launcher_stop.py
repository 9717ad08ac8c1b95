"""SIGTERM to a pod: its ranks may save for the grace period less 5 s, and its exit code is never 0."""

import signal
import time
from pathlib import Path

import pytest

from trainer.gangs import Gang

READY = "import os, signal, sys, time\nopen('ready', 'w').write(str(os.getpid()))\n"
SLEEP = READY + "time.sleep(300)"
HANDLER = (
    READY.replace("open(", "def stop(*_):\n    STOP\nsignal.signal(signal.SIGTERM, stop)\nopen(", 1) + "time.sleep(300)"
)


def handling(stop: str) -> str:
    return HANDLER.replace("STOP", stop)


LATER = {0: "import time; time.sleep(300)", 143: "sys.exit(143)"}
STOPS = {
    # name: (script, grace period, exit code); none may take the 300 s that the scripts sleep
    "saves, then says preempted": (handling("time.sleep(1); open('saved', 'w').close(); exit(143)"), 30, 143),
    "knows nothing of it": (SLEEP, 30, 143),
    "ends with 0": (handling("sys.exit(0)"), 30, 143),
    "will not end": (handling("pass") + "\ntime.sleep(300)", 7, 143),
    "fails to save": (handling("sys.exit(74)"), 30, 74),
}  # fmt: skip


@pytest.mark.parametrize("name", STOPS)
def test_a_stop_is_passed_on_and_bounded(name, tmp_path):
    script, grace, code = STOPS[name]
    with Gang(tmp_path, script, grace_period_seconds=grace) as gang:
        gang.start().await_file("ready")
        gang.signal(0)
        assert gang.wait() == [code], gang.log()
        assert (gang.word().exit_code, gang.word().ended_by) == (code, "signal")
    assert (tmp_path / "saved").exists() == ("saves" in name)


def test_a_second_sigterm_does_not_cut_the_saving_short(tmp_path):
    script = handling("time.sleep(1); open('saved', 'a').write('yes'); os._exit(143)")
    with Gang(tmp_path, script) as gang:
        gang.start().await_file("ready")
        for _ in range(3):
            gang.signal(0)
            time.sleep(0.2)
        assert gang.wait() == [143]
    assert (tmp_path / "saved").read_text() == "yes"


def test_one_rank_saves_on_while_another_has_ended(tmp_path):
    stop = "os.environ['RANK'] == '0' and (time.sleep(2), open('saved', 'w').write('yes')); sys.exit(143)"
    script = handling(stop).replace("'ready'", "'ready' + os.environ['RANK']")
    with Gang(tmp_path, script, per_node=2) as gang:
        gang.start()
        gang.await_file("ready0")
        gang.await_file("ready1")
        gang.signal(0)
        assert gang.wait() == [143], gang.log()
    assert (tmp_path / "saved").exists()


def test_what_a_rank_started_is_left_to_it_while_it_saves(tmp_path):
    """Data loader workers: a signal to the whole process group would break the step that is being finished."""
    script = handling("time.sleep(0.5); open('worker', 'w').write(str(worker.poll())); sys.exit(143)").replace(
        "import os,", "import subprocess\nworker = subprocess.Popen(['sleep', '300'])\nimport os,"
    )
    with Gang(tmp_path, script) as gang:
        gang.start().await_file("ready")
        gang.signal(0)
        assert gang.wait() == [143]
    assert (tmp_path / "worker").read_text() == "None"


def test_before_the_gang_has_met_a_stop_ends_at_once(tmp_path):
    with Gang(tmp_path, "pass", nodes=2) as gang:
        gang.start(0)
        time.sleep(3)  # it waits for node 1, or still imports torch: both are calls that no handler interrupts
        gang.signal(0)
        assert gang.wait() == [143]
    assert (gang.word().reason, gang.word().ended_by) == ("Preempted", "signal")


def test_a_stop_of_one_node_stops_scripts_on_all(tmp_path):
    script = SLEEP.replace("'ready'", "'ready' + os.environ['RANK']")
    with Gang(tmp_path, script, nodes=2) as gang:
        gang.start()
        gang.await_file("ready0")
        gang.await_file("ready1")
        gang.signal(1, signal.SIGTERM)
        assert gang.wait() == [143, 143], gang.log(0) + gang.log(1)
        assert [gang.word(node).ended_by for node in (0, 1)] == ["peer", "signal"]


@pytest.mark.parametrize("code", [143, 0])
def test_a_script_that_says_it_was_stopped_when_nobody_asked_ends_its_peers_in_its_own_name(code, tmp_path):
    with Gang(tmp_path, f"import os, sys\nif os.environ['RANK'] == '0': sys.exit(143)\n{LATER[code]}", nodes=2) as gang:
        assert gang.run() == [143, 143], gang.log(0) + gang.log(1)
        told = [gang.word(node).ended_by for node in (0, 1)]
        assert told in ([["script", "peer"]] if code == 0 else [["script"] * 2, ["script", "peer"], ["peer", "script"]])
        assert ["by itself" in gang.word(node).error for node in (0, 1)] == [True, True]


def test_a_node_that_is_done_waits_for_the_others_yet_obeys(tmp_path):
    ready = "import os, time\nrank = os.environ['RANK']\nopen('ready' + rank, 'w').write('yes')\n"
    script = ready + "if rank == '1': time.sleep(300)"
    with Gang(tmp_path, script, nodes=2) as gang:
        gang.start()
        gang.await_file("ready0")
        gang.await_file("ready1")
        time.sleep(0.5)
        assert gang.launchers[0].poll() is None
        gang.signal(0)
        assert gang.launchers[0].wait(60) == 143


def test_nothing_is_left_in_the_temporary_folder(tmp_path):
    (tmp_path / "tmp").mkdir()
    with Gang(tmp_path, SLEEP) as gang:
        gang.environment = {"TMPDIR": str(tmp_path / "tmp")}
        gang.start().await_file("ready")
        gang.signal(0)
        gang.wait()
    assert not list(Path(tmp_path / "tmp").glob("trainwright-*"))
