"""Forks ranks from a warm parent, two at a time, each of which uses every library; counts those that stall or fail."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from trainwright.contract import ENV_JOB_FILE, ResolvedJob
from trainwright.launch import reaper
from trainwright.launch.warm import RankStart, WarmParent

AT_ONCE = 2
LONGEST = 120.0
"""Seconds after which a rank counts as stalled; it needs about one."""
TRL_EVERY = 50
"""Importing TRL takes seconds, so only one rank in so many does."""
MODEL = {"source": "gpt2", "fromConfig": {"n_layer": 1}, "tokenizer": "bytes"}


def main(forks: int) -> int:
    reaper.adopt_orphans()
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    job = ResolvedJob("warm", "default", "uid", 1, 1, AT_ONCE, task="CausalLM", model=MODEL)
    (folder / "job.json").write_text(job.to_json())
    tests = str(Path(__file__).parent.parent)
    paths = os.pathsep.join(filter(None, [tests, os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, ENV_JOB_FILE: str(folder / "job.json"), "OMP_NUM_THREADS": "2", "PYTHONPATH": paths}
    began = time.monotonic()
    parent = WarmParent(environment, "trainwright.declarative")
    parent.wait()
    if not parent.usable:
        return 1
    print(f"imported in {time.monotonic() - began:.1f} s", flush=True)
    return run(parent, environment, forks)


def run(parent: WarmParent, environment: dict[str, str], forks: int) -> int:
    working: dict[int, float] = {}
    bad = {"stalled": 0, "failed": 0}
    began, started, longest = time.monotonic(), 0, 0.0
    while started < forks or working:
        while started < forks and len(working) < AT_ONCE:
            uses_trl = int(started % TRL_EVERY == TRL_EVERY - 1)
            own = {**environment, "RANK": str(started), "USES_TRL": str(uses_trl)}
            (pid,) = parent.fork(["-u", "-m", "warm.rank"], own, {0: RankStart({}, ["", ""])}).values()
            working[pid] = time.monotonic()
            started += 1
        for pid, since in list(working.items()):
            code, took = reaper.exit_code_of(pid), time.monotonic() - since
            if code is None and took < LONGEST:
                continue
            if code is None:
                bad["stalled"] += 1
                print(f"process {pid} stalls: {Path(f'/proc/{pid}/wchan').read_text()}", flush=True)
                reaper.kill_group(pid)
            elif code:
                bad["failed"] += 1
            os.waitpid(pid, 0)
            longest = max(longest, took)
            del working[pid]
        time.sleep(0.005)
    parent.close()
    seconds = time.monotonic() - began
    print(json.dumps({"forks": forks, **bad, "longest": round(longest, 2), "seconds": round(seconds, 1)}), flush=True)
    return int(any(bad.values()))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
