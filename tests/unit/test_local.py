"""The parts of a local run that need no process: paths, environment, what an output folder remembers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from builders import make_job
from scene import START, Scene
from trainwright.contract import UserError
from trainwright_operator.api import manifest
from trainwright_operator.local.live import Lines, sentence
from trainwright_operator.local.mounts import Mounts, resolved_job
from trainwright_operator.local.output import OutputFolder, status_to_continue, uid_of
from trainwright_operator.local.pod import command_of, environment_of

MOUNTS = Mounts({"/output": Path("/here/out"), "/data": Path("/here/data"), "/data/big": Path("/big")})


@pytest.mark.parametrize(
    ("text", "here"),
    [
        ("/data", "/here/data"),
        ("/data/*.txt", "/here/data/*.txt"),
        ("/data/big/x", "/big/x"),
        ("/database", "/database"),
        ("--file=/data/x", "--file=/here/data/x"),
        ("hub/data", "hub/data"),
        ("/output/best", "/here/out/best"),
        ("see /data/x", "see /data/x"),
    ],
)
def test_container_paths_are_rewritten_to_local_ones(text, here):
    assert MOUNTS.here(text) == here


def test_the_resolved_job_is_rewritten_but_for_code():
    job = {
        "dataset": {"source": "/data/a"},
        "script": {"inline": "open('/data/a')", "args": ["/data/a"]},
        "training_arguments": {"logging_dir": "/output/tb", "max_steps": 3},
    }
    assert json.loads(resolved_job(json.dumps(job), MOUNTS, {})) == {
        "dataset": {"source": "/here/data/a"},
        "script": {"inline": "open('/data/a')", "args": ["/here/data/a"]},
        "training_arguments": {"logging_dir": "/here/out/tb", "max_steps": 3},
    }


def test_a_script_in_a_config_map_is_a_file_here():
    job = json.dumps({"script": {"configMap": {"name": "code", "key": "train.py"}, "path": "/etc/x"}})
    assert json.loads(resolved_job(job, MOUNTS, {"code": Path("/src")}))["script"] == {"path": "/src/train.py"}
    with pytest.raises(UserError, match=r"add --config-map code=DIR with train\.py in it"):
        resolved_job(job, MOUNTS, {})


def pod_with(**template):
    scene = Scene(make_job().with_("spec.podTemplate", template)).settle()
    return scene.pod()


def env(pod, **inherited):
    return environment_of(pod, MOUNTS, inherited, {"PET_MASTER_ADDR": "127.0.0.1"})


def test_the_environment_is_the_planned_one_on_top_of_this_machines():
    found = env(pod_with(), HOME="/root", PATH="/bin", PET_NNODES="7", RANK="3", OMP_NUM_THREADS="64", LOCAL_RANK="1")
    assert (found["HOME"], found["PATH"]) == ("/root", "/bin")
    assert (found["PET_NNODES"], found["OMP_NUM_THREADS"], found["PET_NODE_RANK"]) == ("1", "1", "0")
    assert (found["PET_MASTER_ADDR"], found["TRAINWRIGHT_OUTPUT_DIR"]) == ("127.0.0.1", "/here/out")
    assert "RANK" not in found
    assert "LOCAL_RANK" not in found


def test_variables_refer_to_variables_and_fields():
    variables = [
        {"name": "ROOT", "value": "/data"},
        {"name": "FILE", "value": "$(ROOT)/x$$y"},
        {"name": "UNKNOWN", "value": "$(NOPE)"},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "TEAM", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['team']"}}},
    ]
    found = env(pod_with(env=variables, metadata={"labels": {"team": "nlp"}}))
    assert (found["FILE"], found["UNKNOWN"]) == ("/here/data/x$y", "$(NOPE)")
    assert (found["POD"], found["TEAM"]) == ("gpt-corpus-0-1-0", "nlp")


def test_secrets_come_from_this_machines_environment():
    secret = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s3", "key": "id"}}}
    assert env(pod_with(env=[secret]), KEY="mine")["KEY"] == "mine"
    with pytest.raises(
        UserError, match="KEY comes from key id of secret s3, which does not exist here; set KEY in your env"
    ):
        env(pod_with(env=[secret]))
    secret["valueFrom"]["secretKeyRef"]["optional"] = True
    assert "KEY" not in env(pod_with(env=[secret]))


def test_the_images_python_is_this_one():
    assert command_of(pod_with())[1:] == ["-m", "trainwright.launcher"]
    assert Path(command_of(pod_with())[0]).name.startswith("python")


# What an output remembers


def document(job):
    return next(iter(manifest.read(manifest.write(job.without("status").manifest()), "job.yaml")))


def left_behind(tmp_path, **status):
    prior = make_job().status(**status).manifest()
    folder = OutputFolder(tmp_path)
    folder.save(prior, prior.get("status") or {})
    return folder, folder.prior()


ATTEMPT = {"attempt": 3, "startTime": "2026-01-01T00:00:00Z", "step": 40}


@pytest.mark.parametrize(
    "last", [ATTEMPT, {**ATTEMPT, "endTime": "2026-01-01T00:00:01Z", "outcome": "Failed", "exitCode": 64}]
)
def test_a_further_run_counts_on_and_forgives(tmp_path, last):
    folder, prior = left_behind(tmp_path, state="Failed", attempts=[last], restarts={"counted": 3})
    status = status_to_continue(document(make_job()), prior, folder, START)
    assert [(one["attempt"], one["outcome"], one["step"]) for one in status["attempts"]] == [(3, "Stopped", 40)]
    assert "restarts" not in status
    scene = Scene(make_job())
    scene.status = status
    assert scene.settle().applied == ["gpt-corpus-0-4"]


def test_a_cut_short_file_is_no_prior(tmp_path):
    (tmp_path / "trainingjob.yaml").write_text("spec: {")
    assert OutputFolder(tmp_path).prior() is None


def test_the_output_of_another_job_is_refused(tmp_path):
    folder, prior = left_behind(tmp_path)
    with pytest.raises(UserError, match="holds the run of gpt-corpus; choose another folder for other"):
        status_to_continue(document(make_job("other")), prior, folder, START)
    adopting = make_job("other").with_("spec.output.adopt", True)
    assert status_to_continue(document(adopting), prior, folder, START) == {}
    assert uid_of(adopting.manifest(), prior, tmp_path) != prior["metadata"]["uid"]


@pytest.mark.parametrize(("trained", "refused"), [(False, False), (True, True)])
def test_another_spec_is_refused_once_something_was_trained(tmp_path, trained, refused):
    folder, prior = left_behind(tmp_path, state="Failed", attempts=[ATTEMPT])
    if trained:
        (tmp_path / "checkpoint-40").mkdir()
    changed = document(make_job().training(learningRate=1e-5))
    if refused:
        with pytest.raises(UserError, match=r"^job\.yaml:\d+: spec\.trainingArguments"):
            status_to_continue(changed, prior, folder, START)
    else:
        assert status_to_continue(changed, prior, folder, START)["attempts"]


def test_the_uid_is_the_same_for_every_run_with_one_output(tmp_path):
    job = make_job().without("metadata.uid").manifest()
    assert uid_of(job, None, tmp_path) == uid_of(job, None, tmp_path)
    assert uid_of(job, None, tmp_path) != uid_of(job, None, tmp_path / "other")
    moved = {"metadata": {"uid": "what it was"}}
    assert uid_of(job, moved, tmp_path / "other") == "what it was"


# What is shown


def test_a_pipe_gets_a_line_for_each_change_and_no_flood(capsys):
    lines = Lines("gpt", Console(width=200))
    scene = Scene(make_job()).settle().start_pods()
    lines.show(scene.step().status, scene.last.events)
    for step in range(50):
        scene.push(step=step, maxSteps=50)
        lines.show(scene.status, ())
    scene.push(step=50, maxSteps=50)
    scene.status["display"]["eval"] = "2.29"
    lines.show(scene.status, ())
    shown = [line.split(": ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["Running", "Running, step 50/50, eval 2.29"]


def test_a_line_says_what_is_known():
    shown = {"state": "Running", "step": "1/2", "loss": "2.1", "tokensPerSecond": "18k", "ends": "10:42 (in ~21s)"}
    assert sentence(shown) == "Running, step 1/2, loss 2.1, 18k tokens/s, ends 10:42 (in ~21s)"
    assert sentence({"state": "Succeeded", "ends": "10:42"}) == "Succeeded"
