"""What real launchers say while their gang cannot meet: in their logs, and node 0 to the operator."""

import socket
from contextlib import ExitStack, contextmanager

from trainer.gangs import Gang
from trainer.receiver import Receiver

NEVER = 1e9  # a busy machine may take its time
SOON = """
from trainwright.launch import rendezvous
rendezvous.FIRST_LOG_SECONDS = {seconds}
from trainwright.launch.launcher import main
main()
"""


@contextmanager
def unanswered():
    """A port of which the kernel drops every further connection, as a NetworkPolicy does."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def gang_of(receiver):
    return [document["trainwright"]["gang"] for document in receiver.documents]


def test_who_cannot_meet_says_who_waits_for_whom_and_goes_on_once_they_can(tmp_path):
    """Node 1 finds no name and node 2 no answer, until both are told the right one."""
    with Receiver() as operator, unanswered() as port, Gang(tmp_path, "print('MET')", nodes=3) as gang:
        gang.command = ["-c", SOON.format(seconds=1.0)]
        gang.environment = {"KUBEFLOW_TRAINER_SERVER_URL": operator.url}
        gang.start(0)
        gang.environment = {"PET_MASTER_ADDR": "job-0-1-0.tj-job.invalid"}
        gang.start(1)
        gang.environment = {"PET_MASTER_PORT": str(port)}
        gang.start(2)
        where = f"127.0.0.1:{gang.port}"
        gang.await_log("for node 0: job-0-1-0.tj-job.invalid does not resolve", node=1)
        gang.await_log("the Service tj-job.invalid and the cluster's DNS", node=1)
        gang.await_log(f"for node 0 at 127.0.0.1:{port}: timed out; check that a NetworkPolicy lets", node=2)
        gang.await_log(f"s at {where} for nodes 1, 2; see their logs; check that a NetworkPolicy", node=0)
        for node in (1, 2):
            gang.stop(node)
        gang.environment = {}
        assert gang.start(1, 2).wait() == [0, 0, 0], gang.log()
        operator.wait_for(lambda: gang_of(operator)[-1:] == [{"met": True}])
    assert "all nodes have met, after " in gang.log()
    waits = gang_of(operator)[0]["waits"]
    assert waits.startswith("node 0 has waited ")
    assert f"at {where} for nodes 1, 2" in waits
    assert [gang.log(node).count("MET") for node in range(3)] == [1, 1, 1]


def test_a_guest_says_that_others_are_missing_and_ends_when_its_host_does(tmp_path):
    with Gang(tmp_path, "print('MET')", nodes=3) as gang:
        gang.command = ["-c", SOON.format(seconds=1.0)]
        gang.start(0, 1)
        gang.await_log("with node 0 for other nodes; the log of node 0 says for which", node=1)
        gang.await_log("for node 2; see", node=0)
        gang.stop(0)
        assert gang.wait() == [1]
        assert "node 1: 127.0.0.1:" in gang.word(1).error


def test_a_gang_that_meets_at_once_says_so_to_the_operator_alone(tmp_path):
    """And again, until it is taken."""
    script = "import os, time\nwhile not os.path.exists('told'): time.sleep(0.05)"
    with Receiver() as operator, Gang(tmp_path, script, nodes=2) as gang:
        gang.command = ["-c", SOON.format(seconds=NEVER)]
        operator.answers = [503, 403]
        gang.environment = {"KUBEFLOW_TRAINER_SERVER_URL": operator.url}
        gang.start()
        operator.wait_for(lambda: gang_of(operator) == [{"met": True}] * 3, 60)
        (tmp_path / "told").touch()
        assert gang.wait() == [0, 0]
    assert [gang.log(node) for node in (0, 1)] == ["", ""]


SHUT = """
from trainwright.launch import meeting, rendezvous
rendezvous.FIRST_LOG_SECONDS = {seconds}
meeting.CONNECT_SECONDS = 1.0
open_port = meeting.ReachabilityCheck.open_port
def publish_closed_port(self, store):
    open_port(self, store)
    store.set(f"at/{{self._place.node_rank}}", "127.0.0.1 {port}")
meeting.ReachabilityCheck.open_port = publish_closed_port
from trainwright.launch.launcher import main
main()
"""


def test_nodes_that_meet_and_reach_no_other_port_say_so_and_go_on(tmp_path):
    """As where a NetworkPolicy lets the port of node 0 through and no other."""
    script = "import os, time\nwhile not os.path.exists('told'): time.sleep(0.05)"
    with Receiver() as operator, unanswered() as port, Gang(tmp_path, script, nodes=2) as gang:
        gang.command = ["-c", SHUT.format(seconds=NEVER, port=port)]
        gang.environment = {"KUBEFLOW_TRAINER_SERVER_URL": operator.url}
        gang.start()
        operator.wait_for(lambda: "waits" in (gang_of(operator) or [{}])[-1], 60)
        words = gang_of(operator)[-1]["waits"]
        (tmp_path / "told").touch()
        assert gang.wait() == [0, 0]
    assert f"but does not reach it at 127.0.0.1:{port} (timed out)" in words
    assert gang_of(operator)[0] == {"met": True}
    assert "node 1 has met node 0 but does not reach it" in gang.log(1)
