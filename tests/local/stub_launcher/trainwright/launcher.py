"""A launcher that does what the job's inline script says, in this process: ``end``, ``push``, ``wait_for_term``."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, NoReturn

OUTPUT = Path(os.environ["TRAINWRIGHT_OUTPUT_DIR"])
JOB = json.loads(Path(os.environ["TRAINWRIGHT_JOB_FILE"]).read_text())
INDEX, ATTEMPT = int(os.environ["PET_NODE_RANK"]), JOB["attempt"]
TERM: list[int] = []


def end(code: int, **word: Any) -> NoReturn:
    said = json.dumps({"reason": "x", "exit_code": code, **word})
    Path(os.environ["TRAINWRIGHT_TERMINATION_FILE"]).write_text(said)
    sys.exit(code)


def push(**own: Any) -> int:
    """The HTTP code of a push."""
    token = Path(os.environ["KUBEFLOW_TRAINER_SERVER_TOKEN"]).read_text()
    request = urllib.request.Request(
        os.environ["KUBEFLOW_TRAINER_SERVER_URL"],
        data=json.dumps({"trainerStatus": {}, "trainwright": own}).encode(),
        headers={"Authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        return int(answer.status)


def wait_for_term(seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not TERM and time.monotonic() < until:
        time.sleep(0.02)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda signum, frame: TERM.append(signum))
    exec(JOB["script"]["inline"], {**globals(), "os": os, "time": time})
