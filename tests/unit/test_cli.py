"""The command line as a person or a pipeline uses it: what is printed where, and the exit codes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from builders import make_job
from trainwright_operator import __version__
from trainwright_operator.api import manifest
from trainwright_operator.cli import main

POOLS = """\
apiVersion: trainwright.dev/v1alpha1
kind: AcceleratorPool
metadata: {name: big}
spec: {vendor: cpu, perNode: 4}
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A manifest as a person writes it."""
    made = make_job().nodes(2).without("metadata.uid").without("metadata.creationTimestamp")
    return write(tmp_path / "job.yaml", made.without("metadata.generation").manifest())


def write(path: Path, *documents: object) -> Path:
    path.write_text(manifest.write(*documents))
    return path


def run(*arguments: object) -> int:
    """The exit code, also of argparse's own exits."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        return int(exit_.code or 0)


# validate


def test_a_valid_manifest_is_confirmed(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("validate", job) == 0
    assert capsys.readouterr() == (f"{job}: TrainingJob gpt-corpus is valid\n", "")


def test_quiet_says_nothing_of_what_is_right(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("validate", "--quiet", job) == 0
    assert capsys.readouterr() == ("", "")


def test_mistakes_go_to_standard_error_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = make_job().without("spec.output").training(evalStrategy=False)
    file = write(tmp_path / "job.yaml", make_job("right").manifest(), wrong.manifest())
    assert run("validate", file) == 2
    out, err = capsys.readouterr()
    assert out == f"{file}: TrainingJob right is valid\n"
    assert [line.split(": ")[1] for line in err.splitlines()] == ["spec.output", "spec.trainingArguments.evalStrategy"]


def test_one_file_that_is_no_yaml_does_not_hide_the_next(
    tmp_path: Path, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.yaml").write_text("a: [")
    assert run("validate", tmp_path / "broken.yaml", tmp_path / "absent.yaml", job) == 2
    out, err = capsys.readouterr()
    assert "gpt-corpus is valid" in out
    assert [line.rpartition("/")[2].split(":")[0] for line in err.splitlines()] == ["broken.yaml", "absent.yaml"]


def test_a_folder_is_searched_and_other_kinds_are_left_alone(
    tmp_path: Path, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "pools.yml").write_text(POOLS)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "bad.yaml").write_text("kind: TrainingJob")
    (tmp_path / "claim.yaml").write_text("apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: runs}\n")
    (tmp_path / "values.yaml").write_text("replicas: 2\n")
    (tmp_path / "notes.txt").write_text("not: [yaml")
    other = "apiVersion: sagemaker.services.k8s.aws/v1alpha1\nkind: TrainingJob\nmetadata: {name: x}\nspec: {}\n"
    (tmp_path / "other.yaml").write_text(other)
    assert run("validate", tmp_path) == 0
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()] == [
        "AcceleratorPool big is valid",
        "TrainingJob gpt-corpus is valid",
    ]


def test_a_group_that_is_nearly_ours_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "job.yaml", make_job().with_("apiVersion", "trainwrigth.dev/v1alpha1").manifest())
    assert run("validate", tmp_path) == 2
    assert capsys.readouterr().err == (
        f'{file}:1: apiVersion: must be trainwright.dev/v1alpha1, not "trainwrigth.dev/v1alpha1"\n'
    )


def test_a_file_without_our_kinds_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claim = tmp_path / "claim.yaml"
    claim.write_text("apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: runs}\n")
    assert run("validate", claim) == 2
    said = capsys.readouterr().err
    assert said == f"{claim}: holds no TrainingJob or AcceleratorPool of trainwright.dev/v1alpha1\n"


def test_a_manifest_is_read_from_standard_input(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(job.read_bytes())))
    assert run("validate", "-") == 0
    assert capsys.readouterr().out == "<stdin>: TrainingJob gpt-corpus is valid\n"


def test_standard_input_that_is_not_text_is_refused(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piped = io.TextIOWrapper(io.BytesIO(b"name: \xff\xfe"), errors="surrogateescape")
    monkeypatch.setattr(sys, "stdin", piped)
    assert run("validate", "-") == 2
    assert capsys.readouterr().err == "<stdin>: is not UTF-8 text\n"


def test_an_empty_name_of_a_file_is_not_this_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("validate", "") == 2
    assert capsys.readouterr().err == "the file name is empty; give a file, a folder, or - for standard input\n"


# plan


def test_a_plan_is_yaml_that_kubectl_takes(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", job) == 0
    service, planned = yaml.safe_load_all(capsys.readouterr().out)
    assert (service["kind"], planned["kind"]) == ("Service", "Job")
    assert planned["spec"]["completions"] == 2
    assert "ownerReferences" not in planned["metadata"]


def test_a_plan_may_be_printed_as_json(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "-o", "json", job) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "List"
    assert [item["kind"] for item in found["items"]] == ["Service", "Job"]


def test_the_objects_of_a_job_that_is_in_a_cluster_keep_their_owner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plan", write(tmp_path / "job.yaml", make_job().manifest())) == 0
    assert yaml.safe_load(capsys.readouterr().out)["metadata"]["ownerReferences"][0]["name"] == "gpt-corpus"


def test_an_unknown_pool_is_refused_until_its_manifest_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "job.yaml", make_job().with_("spec.accelerator.pool", "big").manifest())
    assert run("plan", file) == 2
    assert "spec.accelerator.pool: pool 'big' is not known here (cpu); give its manifest with --pools" in (
        capsys.readouterr().err
    )
    (tmp_path / "pools.yaml").write_text(POOLS)
    assert run("plan", file, "--pools", tmp_path / "pools.yaml") == 0
    environment = yaml.safe_load(capsys.readouterr().out)["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "PET_NPROC_PER_NODE", "value": "4"} in environment


def test_a_job_larger_than_its_pool_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pools.yaml").write_text(POOLS)
    job = make_job().with_("spec.accelerator", {"pool": "big", "perNode": 8})
    assert run("plan", write(tmp_path / "job.yaml", job.manifest()), "--pools", tmp_path / "pools.yaml") == 2
    assert "8 is more than pool 'big' has in a node (4)" in capsys.readouterr().err


def test_a_suspended_job_creates_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", write(tmp_path / "job.yaml", make_job().suspended().manifest())) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "nothing is created" in err


def test_a_difference_shows_what_changed_and_what_a_cluster_would_refuse(
    tmp_path: Path, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(job.read_text())
    content["spec"]["trainingArguments"] = {"maxSteps": 300, "learningRate": 1e-4}
    assert run("plan", write(tmp_path / "new.yaml", content), "--diff", job) == 0
    out, err = capsys.readouterr()
    changed = [line.split() for line in out.splitlines() if line[0] in "+-" and line[:3] not in ("+++", "---")]
    assert changed == [
        *(["-", "learning_rate:", "0.0003"], ["-", "max_steps:", "200"]),
        *(["+", "learning_rate:", "0.0001"], ["+", "max_steps:", "300"]),
    ]
    assert [line.split(": ")[1] for line in err.splitlines()] == ["spec.trainingArguments.learningRate"]


def test_no_difference_is_empty(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", job, "--diff", job) == 0
    assert capsys.readouterr() == ("", "")


def test_a_field_may_be_changed_for_a_plan_and_compared_with_the_file(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plan", job, "--set", "spec.accelerator.nodes=3") == 0
    _, planned = yaml.safe_load_all(capsys.readouterr().out)
    assert planned["spec"]["completions"] == 3
    assert run("plan", job, "--set", "spec.accelerator.nodes=3", "--diff", job) == 0
    assert "+  completions: 3\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("spec.trainingArguments.maxSteps=many", "--set: spec.trainingArguments.maxSteps: "),
        ("spec.task.name=x", "--set spec.task.name: task is not an object"),
        ("spec.task=", "--set spec.task: give one value after the ="),
    ],
)
def test_a_change_for_a_plan_that_is_invalid_is_one_line(
    job: Path, change: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plan", job, "--set", change) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(problem)


# the whole


@pytest.mark.parametrize("arguments", [[], ["train"], ["validate"], ["plan", "a", "b"], ["plan", "x", "-o", "xml"]])
def test_wrong_usage_is_told_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--help" in err


def test_version_prints_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"trainwright {__version__}\n"


@pytest.mark.parametrize("command", ["validate", "plan", "run", "convert", "explain", "completion"])
def test_every_command_has_a_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert f"trainwright {command} " in capsys.readouterr().out.partition("examples:")[2]


def test_nothing_heavy_is_imported_to_validate_and_plan(job: Path) -> None:
    """torch alone takes a second; the answer to a save in an editor must not wait for it."""
    code = (
        "import sys; from trainwright_operator.cli import main\n"
        f"codes = main(['validate', {str(job)!r}]), main(['plan', {str(job)!r}])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'kopf', 'aiohttp', 'kubernetes', 'asyncio', 'rich', 'numpy'}\n"
        "assert codes == (0, 0); assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_a_full_disk_is_told_in_one_line(job: Path, command: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "trainwright_operator.cli", command, job], stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 1
    assert done.stderr.endswith(b": the output could not be written: No space left on device\n")
    assert done.stderr.count(b"\n") == 1


def test_a_reader_that_has_seen_enough_is_no_error(job: Path) -> None:
    command = f"{sys.executable} -m trainwright_operator.cli explain -r spec | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("spec <object> required\n", "")
