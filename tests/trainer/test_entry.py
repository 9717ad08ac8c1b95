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
import torch, torch.distributed as dist
dist.init_process_group("gloo", init_method="file://{path}", rank=0, world_size=1)
dist.all_reduce(torch.ones(1), async_op=True)
"""


def run(tmp_path, text):
    script = tmp_path / "script.py"
    script.write_text(text)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "trainwright.entry", str(script)],
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
    ended = run(tmp_path, GROUP.format(path=tmp_path / "store"))
    assert (ended.returncode, ended.stderr) == (0, "")
