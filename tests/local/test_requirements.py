"""``spec.script.requirements`` on this machine: real pip, wheels of a folder, no network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from wheels import wheel, write

PROBE = "import greeting; print('GREETING', greeting.VERSION, greeting.__file__)"


def run(folder: Path, *packages: str, offline: bool = True) -> subprocess.CompletedProcess[str]:
    """``trainwright run`` of a job whose pod sees the wheels at /wheels."""
    env = [{"name": "PIP_NO_INDEX", "value": "1"}, {"name": "PIP_FIND_LINKS", "value": "/wheels"}]
    manifest = {
        "apiVersion": "trainwright.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "greets"},
        "spec": {
            "script": {"inline": PROBE, "requirements": [*packages]},
            "output": {"emptyDir": {}},
            "podTemplate": {
                "env": env if offline else [{"name": "PIP_INDEX_URL", "value": "http://127.0.0.1:9/simple"}],
                "volumes": [{"name": "wheels", "persistentVolumeClaim": {"claimName": "wheels"}}],
                "volumeMounts": [{"name": "wheels", "mountPath": "/wheels"}],
            },
        },
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(manifest))
    command = [sys.executable, "-m", "trainwright_operator.cli", "run", "job.yaml", "--volume", "wheels=wheels"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "PIP_RETRIES": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "wheels", wheel("greeting", "1.0"), wheel("greeting", "2.0", requires="torch>=2"))
    return tmp_path


def test_a_script_imports_what_was_installed_and_a_second_run_installs_nothing(folder: Path) -> None:
    done = run(folder, "greeting")
    log = (folder / "runs/greets/logs/greets-0-1-0.log").read_text()
    assert done.returncode == 0, done.stderr + log
    assert "GREETING 2.0" in log
    (packages,) = (folder / "cache/trainwright/packages").iterdir()
    assert str(packages) in log
    assert not (packages / "torch").exists(), "what is installed already is not installed again"
    for one in (folder / "wheels").iterdir():
        one.unlink()
    again = run(folder, "greeting")
    assert again.returncode == 0, again.stderr


def test_a_package_that_is_not_there_is_one_line(folder: Path) -> None:
    done = run(folder, "greetings>=3")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "trainwright: spec.script.requirements: greetings>=3 is not in PIP_FIND_LINKS; correct its name or version"
    )
    assert "No matching distribution" in (folder / "runs/greets/logs/requirements.log").read_text()
    assert not list((folder / "cache/trainwright/packages").glob("*"))


def test_an_index_that_does_not_answer_is_no_mistake_of_the_list(folder: Path) -> None:
    done = run(folder, "greeting", offline=False)
    assert done.returncode == 2
    assert "the package index cannot be reached; set PIP_INDEX_URL" in done.stderr.splitlines()[-1]
