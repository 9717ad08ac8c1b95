"""A rank that ends well ends as Python would have ended it, and never by an abort on the way out."""

import os
import subprocess
import sys

ENDS = """
import atexit, sys, threading, time
kept = open({path!r}, "w")
kept.write("written and never closed")
atexit.register(lambda: print("exit handler"))
threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
print("script", end=" ")
"""
GROUP = """
import builtins, os, sys, time, torch, torch.distributed as dist

class Lasting:
    def __del__(self, sleep=time.sleep):
        sleep(4)

peer = os.fork() == 0
dist.init_process_group("gloo", init_method="file://{path}", rank=int(peer), world_size=2)
dist.barrier()
if peer:
    time.sleep(0.2)
    dist.all_reduce(torch.ones(1))
    time.sleep(1)
    os._exit(0)
builtins.lasting = Lasting()   # while Python would be finalising it,
sys.setswitchinterval(3.0)     # gloo's thread gets the lock that it waits for, to let go of a tensor
dist.all_reduce(torch.ones(1), async_op=True)
until = time.monotonic() + 0.7
while time.monotonic() < until:
    pass
"""


def run(tmp_path, text):
    script = tmp_path / "script.py"
    script.write_text(text)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "trainwright.launch.entry", str(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_threads_handlers_and_files_are_seen_to(tmp_path):
    ended = run(tmp_path, ENDS.format(path=str(tmp_path / "file")))
    assert (ended.returncode, ended.stdout) == (0, "script thread\nexit handler\n")
    assert (tmp_path / "file").read_text() == "written and never closed"


def test_a_script_that_does_not_leave_its_process_group_ends_well(tmp_path):
    """Python before 3.14 ends a thread that waits for its lock while it finalises, by unwinding the thread's stack:
    within a destructor of C++ that aborts the process."""
    ended = run(tmp_path, GROUP.format(path=tmp_path / "store"))
    assert (ended.returncode, ended.stderr) == (0, "")
