"""All ranks stop before the same step, whenever and wherever SIGTERM comes; nobody waits for a rank that is gone."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trainer import tiny
from trainer.gangs import Gang, free_port
from trainer.runs import logged, make
from trainwright import TrainerCallback
from trainwright.distributed.preemption import Preemption

SCRIPTS = Path(__file__).parent / "scripts"
ROUNDS = 60


@pytest.mark.parametrize(("nodes", "per_node"), [(2, 1), (1, 2), (2, 2)])
def test_all_ranks_stop_before_the_same_step(nodes, per_node, tmp_path):
    arguments = [str(tmp_path), str(ROUNDS), f"{nodes}x{per_node}".replace("x", "0")]
    script = {"path": str(SCRIPTS / "stop_rounds.py"), "args": arguments}
    with Gang(tmp_path, script=script, nodes=nodes, per_node=per_node) as gang:
        assert gang.run(120) == [0] * nodes, gang.log(0)
    stops = {(tmp_path / f"stops-{rank}").read_text() for rank in range(nodes * per_node)}
    assert len(stops) == 1
    steps = list(map(int, stops.pop().split()))
    assert len(steps) == ROUNDS
    assert len(set(steps)) > 5  # they did stop at many different steps


def test_one_process_stops_at_the_next_boundary():
    with Preemption() as preemption:
        assert [preemption.begin(step) for step in range(3)] == [False] * 3
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.requested
        assert preemption.begin(3)
        with pytest.raises(SystemExit) as left:
            preemption.leave()
    assert left.value.code == 143


def test_a_step_that_has_begun_is_finished():
    with Preemption() as preemption:
        preemption.begin(7)
        os.kill(os.getpid(), signal.SIGTERM)
        assert not preemption.begin(7)  # a step that is begun again, as after a retried batch, is still the last one
        assert preemption.begin(8)


def test_the_former_handler_is_back_afterwards():
    former = signal.getsignal(signal.SIGTERM)
    with Preemption():
        assert signal.getsignal(signal.SIGTERM) != former
    assert signal.getsignal(signal.SIGTERM) == former


def test_outside_the_main_thread_it_only_listens():
    seen = []

    def train():
        with Preemption() as preemption:
            seen.append(preemption.begin(0))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_forked_worker_dies_of_sigterm_alone():
    with Preemption() as preemption:
        reader, writer = os.pipe()
        worker = os.fork()
        if worker == 0:
            os.write(writer, b"ready")
            time.sleep(60)
            os._exit(0)
        os.read(reader, 5)
        os.kill(worker, signal.SIGTERM)
        _, status = os.waitpid(worker, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
        assert not preemption.begin(0)


STOPPED = """
import os, sys, time, torch, torch.distributed as dist
from trainwright.distributed.preemption import Preemption
dist.init_process_group("gloo")
rank = dist.get_rank()
with Preemption() as preemption:
    step = 0
    while not preemption.begin(step):
        if step == 5:
            open(f"ready-{rank}", "w").write("yes")
        WORK
        step += 1
    open(f"saved-{rank}", "w").write(str(step))
    preemption.leave()
"""


@pytest.mark.parametrize("signalled", [[0], [1], [0, 1]])
def test_a_node_that_is_told_to_stop_stops_the_gang(signalled, tmp_path):
    with Gang(tmp_path, STOPPED.replace("WORK", "dist.all_reduce(torch.ones(1)); time.sleep(0.01)"), nodes=2) as gang:
        gang.start()
        gang.await_file("ready-0")
        for node in signalled:
            gang.signal(node)
        assert gang.wait() == [143, 143], gang.log(0) + gang.log(1)
        assert gang.await_file("saved-0") == gang.await_file("saved-1")
    assert [gang.word(node).reason for node in (0, 1)] == ["Preempted"] * 2
    asked = {gang.word(node).ended_by for node in signalled}
    followed = {gang.word(node).ended_by for node in {0, 1} - set(signalled)}
    assert (asked <= {"signal", "peer"} and "signal" in asked, followed <= {"peer"}) == (True, True)


def test_a_peer_that_is_gone_is_not_waited_for(tmp_path):
    """Without a launcher to notice: the rank that is asked to stop gives up when the other one does not answer."""
    script = STOPPED.replace("Preemption()", "Preemption(agreement_seconds=1)").replace(
        "WORK", "time.sleep(0.02); rank == 1 and step == 8 and os._exit(0)"
    )
    (tmp_path / "train.py").write_text(script)
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "train.py"], cwd=tmp_path, env={**os.environ, **store, "RANK": str(rank)},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        assert ranks[1].wait(60) == 0
        ranks[0].send_signal(signal.SIGTERM)
        _, errors = ranks[0].communicate(timeout=60)
        assert ranks[0].returncode == 143
        assert "a peer is gone" in errors
        assert not (tmp_path / "saved-0").exists()
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


EPOCH = 5


class StopAt(TrainerCallback):
    def __init__(self, *steps):
        self.steps = list(steps)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            os.kill(os.getpid(), signal.SIGTERM)


class StopAtOnce(TrainerCallback):
    def on_epoch_begin(self, args, state, control, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)


def train(folder, *callbacks, resume=None):
    """Twelve steps of a model with dropout, on epochs of five."""
    options = {"max_steps": 12, "save_strategy": "steps", "save_steps": 100, "enable_jit_checkpoint": True}
    trainer = make(folder, data=tiny.vectors(8 * EPOCH), trainer={"callbacks": list(callbacks)}, **options)
    trainer.train(resume_from_checkpoint=resume)
    return logged(trainer, "loss")


@pytest.mark.parametrize("step", [EPOCH - 1, EPOCH, EPOCH + 1])
def test_a_run_that_is_stopped_where_an_epoch_ends_goes_on_exactly(step, tmp_path):
    """The next epoch begins with a random number, which must not be drawn before the stop and again after it."""
    unbroken = train(tmp_path / "unbroken")
    with pytest.raises(SystemExit):
        train(tmp_path / "stopped", StopAt(step))
    assert (tmp_path / "stopped" / f"checkpoint-{step}").is_dir()
    assert train(tmp_path / "stopped", resume=True) == unbroken
    with pytest.raises(SystemExit):  # at once, before it has trained anything
        train(tmp_path / "twice", StopAt(step))
    with pytest.raises(SystemExit):
        train(tmp_path / "twice", StopAtOnce(), resume=True)
    assert train(tmp_path / "twice", resume=True) == unbroken


def test_a_run_that_is_stopped_before_its_first_step_begins_again(tmp_path):
    with pytest.raises(SystemExit):
        train(tmp_path / "stopped", StopAtOnce())
    assert not list((tmp_path / "stopped").glob("checkpoint-*"))
    assert train(tmp_path / "stopped") == train(tmp_path / "unbroken")
