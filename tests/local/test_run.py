"""``trainwright run`` with real processes and real signals; in the pods a stub stands for the trainer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from trainwright_operator.api.spec import parse_job
from trainwright_operator.core.placement.pools import BUILTIN
from trainwright_operator.local.run import Runner, Setup

STUB = Path(__file__).parent / "stub_launcher"


class Run:
    """One manifest in a folder of its own, run as a user would; ``args`` are further ones of the command."""

    def __init__(self, folder: Path, script: str, nodes: int = 2, **spec: Any) -> None:
        self.folder, self.output = folder, folder / "runs" / "stub"
        template = spec.pop("podTemplate", {})
        env = [{"name": "PYTHONPATH", "value": str(STUB)}, *template.pop("env", [])]
        manifest = {
            "apiVersion": "trainwright.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": "stub"},
            "spec": {
                "script": {"inline": textwrap.dedent(script)},
                "accelerator": {"nodes": nodes},
                "output": {"emptyDir": {}},
                "podTemplate": {"env": env, **template},
                **spec,
            },
        }
        (folder / "job.yaml").write_text(yaml.safe_dump(manifest))

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "trainwright_operator.cli", "run", "job.yaml", *args],
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def finish(self, *args: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*args)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    @property
    def saved(self) -> dict[str, Any]:
        return yaml.safe_load((self.output / "trainingjob.yaml").read_text())

    def wait_for(self, file: str) -> None:
        _until(lambda: (self.output / file).exists(), file)


def _until(holds: Any, what: str) -> None:
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until, f"never came: {what}"
        time.sleep(0.02)


def test_a_successful_run_prints_its_progress_and_keeps_its_output(tmp_path):
    run = Run(
        tmp_path,
        """
        assert push(step=3, maxSteps=4, attempt=ATTEMPT) == 200
        print("hello from", INDEX, os.environ["OMP_NUM_THREADS"])
        if INDEX == 0:
            (OUTPUT / "samples.txt").write_text("once upon a time")
        end(0, step=4, max_steps=4, metrics={"loss": 1.25})
        """,
    )
    done = run.finish()
    assert done.returncode == 0, done.stderr
    assert "stub succeeded at step 4/4" in done.stdout
    assert "loss 1.25" in done.stdout
    assert "once upon a time" in done.stdout
    assert run.saved["status"]["state"] == "Succeeded"
    assert run.saved["metadata"]["uid"]
    assert (run.output / "logs" / "stub-0-1-1.log").read_text() == "hello from 1 1\n"


def test_a_killed_pod_is_restarted_as_the_operator_would(tmp_path):
    run = Run(
        tmp_path,
        """
        if ATTEMPT == 1 and INDEX == 1:
            os.kill(os.getpid(), 9)
        if ATTEMPT == 1:
            wait_for_term()
            end(143)
        """,
    )
    done = run.finish()
    assert done.returncode == 0, done.stderr
    assert "attempt 1 failed: stub-0-1-1 on local: exit code 137 (SIGKILL)" in done.stdout
    status = run.saved["status"]
    assert status["restarts"] == {"total": 1, "counted": 1, "disruptions": 0}
    assert [entry["outcome"] for entry in status["attempts"]] == ["Failed", "Succeeded"]


def test_a_second_failure_wishes_for_no_other_node_where_there_is_one(tmp_path):
    done = Run(tmp_path, "end(1)", nodes=1, maxRestarts=1).finish()
    assert "attempt 2" in done.stdout
    assert "avoided" not in done.stdout


def test_a_permanent_error_is_one_clear_line(tmp_path):
    run = Run(tmp_path, 'end(65, error="dataset.source: /data/*.txt matches no file; check the path")', nodes=1)
    done = run.finish()
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "trainwright: stub failed: BadData: stub-0-1-0: dataset.source: /data/*.txt matches no file; check the path"
        f" (log: {run.output}/logs/stub-0-1-0.log)"
    )


def test_a_crash_tells_the_last_line_of_the_log(tmp_path):
    done = Run(tmp_path, 'raise ValueError("boom")', nodes=1, maxRestarts=0).finish()
    assert done.returncode == 1
    assert "TooManyRestarts" in done.stderr
    assert "ValueError: boom" in done.stderr


SAVES_WHEN_STOPPED = """
if ATTEMPT > 1:
    end(0, step=9)
(OUTPUT / f"ready-{INDEX}").touch()
wait_for_term()
(OUTPUT / "checkpoint-7").mkdir(exist_ok=True)
end(143, step=7, checkpoint="checkpoint-7")
"""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_saves_and_the_same_command_goes_on(tmp_path, signum, code):
    run = Run(tmp_path, SAVES_WHEN_STOPPED)
    process = run.start()
    run.wait_for("ready-0")
    run.wait_for("ready-1")
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"stopped: saved {run.output}/checkpoint-7; run the same command to continue" in err
    assert run.saved["status"]["state"] == "Suspended"
    again = run.finish()
    assert again.returncode == 0, again.stderr
    assert [entry["attempt"] for entry in run.saved["status"]["attempts"]] == [1, 2]


def test_a_second_interrupt_kills(tmp_path):
    run = Run(tmp_path, '(OUTPUT / f"ready-{INDEX}").touch(); time.sleep(60); time.sleep(60)', nodes=1)
    process = run.start()
    run.wait_for("ready-0")
    process.send_signal(signal.SIGINT)
    _until(lambda: run.saved["status"]["state"] == "Stopping", "stopping")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert _pods_of(tmp_path) == []


def test_a_pod_that_ignores_its_grace_is_killed(tmp_path):
    """On the runner itself: a manifest may not ask for a grace as short as a test's."""
    run = Run(tmp_path, 'os.fork(); (OUTPUT / f"ready-{INDEX}").touch(); time.sleep(60); time.sleep(60)', nodes=1)
    job = parse_job({**yaml.safe_load((tmp_path / "job.yaml").read_text())})
    job = replace(job, uid="u", spec=replace(job.spec, termination_grace_period_seconds=1))
    (run.output / "logs").mkdir(parents=True)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    runner = Runner(job, Setup(BUILTIN["cpu"], run.output, scratch, {}, {}), on_status=lambda status, events: None)
    interrupt = threading.Thread(target=lambda: (run.wait_for("ready-0"), runner.stop()))
    interrupt.start()
    assert runner.run()["state"] == "Suspended"
    interrupt.join()
    _until(lambda: _pods_of(tmp_path) == [], "the end of its children")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_pods_do_not_outlive_a_runner_that_is_killed(tmp_path):
    run = Run(tmp_path, SAVES_WHEN_STOPPED)
    process = run.start()
    run.wait_for("ready-0")
    run.wait_for("ready-1")
    assert len(_pods_of(tmp_path)) == 2
    process.kill()
    process.communicate(timeout=30)
    _until(lambda: _pods_of(tmp_path) == [], "the end of the pods")
    assert (run.output / "checkpoint-7").exists(), "they were asked, not killed"
    assert run.finish().returncode == 0


def _pods_of(folder: Path) -> list[int]:
    """Processes that were told to write below ``folder``."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TRAINWRIGHT_OUTPUT_DIR", "").startswith(str(folder)):
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return [pid for pid in found if pid != os.getpid()]


def test_a_finished_run_is_not_trained_again(tmp_path):
    run = Run(tmp_path, "end(0, step=4)", nodes=1, trainingArguments={"numTrainEpochs": 1})
    assert run.finish().returncode == 0
    again = run.finish()
    assert again.returncode == 0
    assert "is already trained" in again.stdout
    assert len(run.saved["status"]["attempts"]) == 1
    assert run.finish("--set", "spec.trainingArguments.numTrainEpochs=5").returncode == 0
    assert len(run.saved["status"]["attempts"]) == 2


def test_what_was_trained_is_not_mixed_with_another_run(tmp_path):
    run = Run(tmp_path, "end(0, step=4)", nodes=1, trainingArguments={"learningRate": 0.1})
    assert run.finish().returncode == 0
    changed = run.finish("--set", "spec.trainingArguments.learningRate=0.2")
    assert changed.returncode == 2
    assert "holds the result of the previous run: choose another --output" in changed.stderr
    assert len(changed.stderr.strip().splitlines()) == 1


def test_a_mistake_that_ended_a_run_can_be_fixed(tmp_path):
    run = Run(
        tmp_path,
        'end(64 if JOB["training_arguments"]["learning_rate"] > 1 else 0)',
        nodes=1,
        trainingArguments={"learningRate": 2},
    )
    assert run.finish().returncode == 1
    assert run.finish("--set", "spec.trainingArguments.learningRate=0.2").returncode == 0
    assert [entry["attempt"] for entry in run.saved["status"]["attempts"]] == [1, 2]


VOLUME = {
    "volumes": [{"name": "corpus", "persistentVolumeClaim": {"claimName": "c"}}],
    "volumeMounts": [{"name": "corpus", "mountPath": "/data"}],
}


def test_volumes_are_mapped_to_local_folders(tmp_path):
    (tmp_path / "texts").mkdir()
    run = Run(tmp_path, 'print(JOB["script"]["args"]); end(0)', nodes=1, podTemplate=VOLUME)
    manifest = yaml.safe_load((tmp_path / "job.yaml").read_text())
    manifest["spec"]["script"]["args"] = ["--data=/data/a.txt", "/output/x", "/database"]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(manifest))
    refused = run.finish()
    assert refused.returncode == 2
    assert "corpus is a persistentVolumeClaim" in refused.stderr
    assert "add --volume corpus=DIR" in refused.stderr
    assert run.finish("--volume", "corpus=texts").returncode == 0
    told = run.output / "logs" / "stub-0-2-0.log"
    logs = sorted((run.output / "logs").glob("*.log"))
    assert logs[-1].read_text().strip() == f"['--data={tmp_path}/texts/a.txt', '{run.output}/x', '/database']", told


def test_two_runs_do_not_share_an_output(tmp_path):
    run = Run(tmp_path, SAVES_WHEN_STOPPED, nodes=1)
    first = run.start()
    run.wait_for("ready-0")
    second = run.finish()
    assert second.returncode == 2
    assert "another run is writing there" in second.stderr
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=30)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--volume", "corpus"], "must be written NAME=VALUE"),
        (["--volume", "corpus=/no/such/folder"], "corpus=/no/such/folder: the folder does not exist"),
        (["--volume", "corpus=."], "the job has no volume of that name"),
        (["--output", "job.yaml"], "job.yaml: cannot be written to"),
        (["--set", "spec.trainingArguments.maxSteps=-5"], "maxSteps"),
        (["--set", "spec.trainingArguments.maxStep=5"], "maxSteps"),
        (["--set", "spec.trainingArguments.maxSteps="], "give one value after the ="),
        (["--set", "spec.trainingArguments.maxSteps=[1,"], "is not YAML"),
        (["--pools", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_usage_mistakes_are_one_line(tmp_path, args, words):
    done = Run(tmp_path, "end(0)", nodes=1).finish(*args)
    assert done.returncode == 2
    lines = [line for line in done.stderr.strip().splitlines() if "logs in" not in line]
    assert len(lines) == 1, done.stderr
    assert words in lines[0]
