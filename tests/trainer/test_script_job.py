"""What a script has of its TrainingJob: a place that outlives the pod, its arguments, and a start where it stopped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainer.gangs import Gang
from trainwright import Seq2SeqTrainingArguments, TrainingArguments, job
from trainwright.contract import ENV_JOB_FILE, ENV_OUTPUT_DIR, ResolvedJob
from trainwright_operator.local.command import models

SCRIPT = """
import json, os, sys
sys.path.insert(0, {tests!r})
from trainer import tiny
from trainwright import Trainer, TrainerCallback, TrainingArguments

class Dies(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        if state.global_step == 4 and {attempt} == 1:
            os._exit(9)

class Counts(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        steps.append(state.global_step + 1)

def run(folder, **more):
    global steps
    steps = []
    args = TrainingArguments(folder, use_cpu=True, max_steps=6, save_steps=2, disable_tqdm=True, report_to="none")
    trainer = Trainer(tiny.classifier(), args, train_dataset=tiny.vectors(), callbacks=[Dies, Counts])
    trainer.train(**more)
    trainer.save_model()
    return steps

print("first", run("out-a"), flush=True)
print("second", run("out-a"), flush=True)
"""


def test_a_script_goes_on_by_itself_in_the_output_of_its_job(tmp_path: Path) -> None:
    """Its ``train()`` is the same in every attempt, and its ``output_dir`` is relative."""
    tests = str(Path(__file__).parent.parent)
    logs = []
    for attempt in (1, 2):
        stated = {"training_arguments": {"learning_rate": 0.1}} if attempt == 2 else {}
        with Gang(tmp_path, SCRIPT.format(tests=tests, attempt=attempt), attempt=attempt, **stated) as gang:
            assert gang.run() == [9 if attempt == 1 else 0], gang.log()
            logs.append(gang.log())
    output = tmp_path / "output" / "out-a"
    assert f"going on from {output / 'checkpoint-4'} of this job" in logs[1]
    assert "first [5, 6]" in logs[1]
    assert "second [1, 2, 3, 4, 5, 6]" in logs[1]
    assert logs[1].count("the job sets learning_rate, but the script has not read them") == 1
    assert models(tmp_path / "output") == [output]
    assert gang.word().checkpoint == "out-a/checkpoint-6"


@pytest.fixture
def of_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    stated = {"learning_rate": 0.25, "max_steps": 7}
    resolved = ResolvedJob("a", "b", "u-1", 1, 1, 1, training_arguments=stated, script={"path": "/x.py"})
    (tmp_path / "job.json").write_text(resolved.to_json())
    monkeypatch.setenv(ENV_JOB_FILE, str(tmp_path / "job.json"))
    monkeypatch.setenv(ENV_OUTPUT_DIR, str(tmp_path / "output"))
    monkeypatch.setattr(job, "_read", [])
    monkeypatch.setattr(job, "_trainings", [])
    return tmp_path / "output"


def test_arguments_come_from_the_job(of_a_job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = TrainingArguments.from_job(max_steps=9, use_cpu=True)
    assert (args.learning_rate, args.max_steps, args.output_dir) == (0.25, 9, str(of_a_job))
    assert Seq2SeqTrainingArguments.from_job(predict_with_generate=True, use_cpu=True).learning_rate == 0.25
    job.warn_if_arguments_unread()
    assert capsys.readouterr().err == ""


def test_arguments_that_nobody_reads_are_told_once(of_a_job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job.warn_if_arguments_unread()
    job.warn_if_arguments_unread()
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(";")[0] for line in told] == [
        "trainingArguments: the job sets learning_rate, max_steps, but the script has not read them"
    ]


def test_without_a_job_the_arguments_are_those_given(tmp_path: Path) -> None:
    args = TrainingArguments.from_job(output_dir=str(tmp_path), max_steps=9, use_cpu=True)
    assert (args.learning_rate, args.max_steps, args.output_dir) == (5e-5, 9, str(tmp_path))
    assert TrainingArguments("out-a", use_cpu=True).output_dir == "out-a"


def test_a_relative_output_lies_in_that_of_the_job(of_a_job: Path) -> None:
    assert TrainingArguments("out-a", use_cpu=True).output_dir == str(of_a_job / "out-a")
    assert TrainingArguments("/scratch/a", use_cpu=True).output_dir == "/scratch/a"
    copied = TrainingArguments.from_dict(TrainingArguments("out-a", use_cpu=True).to_dict())
    assert copied.output_dir == str(of_a_job / "out-a")


def test_a_folder_that_goes_with_the_pod_is_told(
    of_a_job: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted = str(of_a_job)
    monkeypatch.setattr(os.path, "ismount", lambda place: str(place) in ("/", mounted))
    job.warn_if_ephemeral("/scratch/a")
    assert caplog.text == ""  # on a machine of one's own nothing goes
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    job.warn_if_ephemeral(f"{mounted}/out-a")
    assert caplog.text == ""
    job.warn_if_ephemeral("/scratch/a")
    assert "output_dir: /scratch/a is on the pod's own disk and is lost with the pod; use" in caplog.text


def test_models_are_found_where_they_are(tmp_path: Path) -> None:
    assert models(tmp_path) == []
    for place in ("checkpoint-5", "out-a/checkpoint-5", "out-b", "deep/er"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "model.safetensors").write_text("")
    assert models(tmp_path) == [tmp_path / "deep/er", tmp_path / "out-b"]
