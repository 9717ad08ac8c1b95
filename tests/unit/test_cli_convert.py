"""Hugging Face arguments to a manifest and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainwright.arguments import Seq2SeqTrainingArguments, TrainingArguments
from trainwright.arguments.fields import FIELDS
from trainwright_operator import manifest, schema
from trainwright_operator.cli import main
from trainwright_operator.commands.convert import Notes, training_arguments

WHAT = ["--model", "gpt2", "--dataset", "/data/*.txt", "--claim", "runs"]


def converted(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: dict[str, Any], *options: str) -> Any:
    file = tmp_path / "training_args.json"
    file.write_text(json.dumps(arguments))
    assert main(["convert", str(file), *(options or WHAT)]) == 0
    (document,) = manifest.read(capsys.readouterr().out, "out")
    return document.content


def test_stated_arguments_become_a_valid_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = TrainingArguments(
        "runs/My Run_1", learning_rate=3e-4, max_steps=10, eval_strategy="steps", lr_scheduler_kwargs={"a": 1}
    )
    content = converted(tmp_path, capsys, arguments.to_dict())
    assert schema.problems(content) == []
    assert content["metadata"]["name"] == "my-run-1"
    assert content["spec"]["trainingArguments"] == {
        "learningRate": 3e-4,
        "maxSteps": 10,
        "evalStrategy": "steps",
        "lrSchedulerKwargs": {"a": 1},
    }
    assert content["spec"]["model"] == {"source": "gpt2"}
    assert content["spec"]["output"] == {"persistentVolumeClaim": {"claimName": "runs"}}


def test_arguments_that_nobody_stated_are_not_stated() -> None:
    notes = Notes()
    assert training_arguments(Seq2SeqTrainingArguments("x").to_dict(), notes) == {}
    assert notes.lines == []


def test_a_script_takes_the_place_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "train.py"
    script.write_text("from trainwright import Trainer\nprint('no')\n")
    content = converted(
        tmp_path, capsys, {"output_dir": "x"}, "--script", str(script), "--claim", "runs", "--name", "a"
    )
    assert content["spec"]["script"] == {"inline": script.read_text()}
    assert schema.problems(content) == []


def test_what_stands_in_for_the_users_own_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.json"
    file.write_text("{}")
    assert main(["convert", str(file)]) == 0
    comments = [line for line in capsys.readouterr().out.splitlines() if line.startswith("#")]
    assert [comment.split(": ")[0] for comment in comments] == ["# --model", "# --dataset", "# --claim"]


FORMER = {
    "evaluation_strategy": ("steps", {"evalStrategy": "steps"}),
    "warmup_ratio": (0.1, {"warmupSteps": 0.1}),
    "no_cuda": (True, {"useCpu": True}),
    "per_gpu_train_batch_size": (4, {"perDeviceTrainBatchSize": 4}),
    "adafactor": (True, {"optim": "adafactor"}),
    "group_by_length": (True, {"trainSamplingStrategy": "group_by_length"}),
    "logging_dir": ("/logs", {}),
    "fp16_opt_level": ("O1", {}),
    "never_heard_of": (1, {}),
}


@pytest.mark.parametrize(("name", "value", "found"), [(name, *case) for name, case in FORMER.items()], ids=FORMER)
def test_former_names_are_carried_over_or_said(name: str, value: Any, found: dict[str, Any]) -> None:
    notes = Notes()
    assert training_arguments({name: value}, notes) == found
    assert [line.split(": ")[0] for line in notes.lines] == [name]


@pytest.mark.parametrize("name", ["evaluation_strategy", "warmup_ratio", "no_cuda", "adafactor"])
def test_former_names_that_were_not_set_are_not_spoken_of(name: str) -> None:
    notes = Notes()
    assert training_arguments({name: None}, notes) == {}
    assert notes.lines == []


def test_what_a_manifest_does_not_have_is_said() -> None:
    notes = Notes()
    assert training_arguments({"output_dir": "x", "hub_token": "hf_secret", "deepspeed": "ds.json"}, notes) == {}
    assert [line.split(": ")[0] for line in notes.lines] == ["hubToken", "deepspeed"]
    assert "hf_secret" not in "".join(notes.lines)


def test_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stated = {"learning_rate": 1e-3, "bf16": True, "eval_strategy": "epoch", "label_names": ["y"], "seed": 7}
    content = converted(tmp_path, capsys, stated)
    file = tmp_path / "job.yaml"
    file.write_text(manifest.write(content))
    assert main(["convert", str(file)]) == 0
    back = json.loads(capsys.readouterr().out)
    assert back == stated
    assert TrainingArguments("x", **back).learning_rate == 1e-3


def test_yaml_is_read_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "args.yaml"
    file.write_text("learning_rate: 3e-4\neval_strategy: 'no'\n")
    assert main(["convert", str(file), *WHAT]) == 0
    (document,) = manifest.read(capsys.readouterr().out, "out")
    assert document.content["spec"]["trainingArguments"] == {"learningRate": 3e-4}


def test_a_value_that_is_wrong_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "args.json"
    file.write_text('{"learning_rate": -1}')
    assert main(["convert", str(file), *WHAT]) == 0
    assert capsys.readouterr().err == f"{file}: spec.trainingArguments.learningRate: must be at least 0, not -1\n"


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("[1]", [], "must hold one set of arguments, or one TrainingJob"),
        ("a: [", [], "is not YAML"),
        ("a: 1\n---\nb: 1\n", [], "must hold one set of arguments"),
        ("{}", ["--to", "arguments"], "is no manifest"),
        ("apiVersion: trainwright.dev/v1alpha1\nkind: TrainingJob\n", [], "metadata: is missing"),
        ("apiVersion: v1\nkind: TrainingJob\n", ["--to", "manifest"], "is a manifest already"),
        ("apiVersion: v1\nkind: AcceleratorPool\n", [], "is an AcceleratorPool, which has no arguments"),
    ],
)
def test_what_cannot_be_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, options: list[str], said: str
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    assert main(["convert", str(file), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err.splitlines()[0]


def test_every_argument_can_be_converted_or_is_said_to_be_left_out() -> None:
    values = {"bool": True, "int": 7, "float": 0.7, "str": "x", "bool|str": "x", "list[str]": ["x"], "object": {"a": 1}}
    values |= {"object|path": {"a": 1}, "str|list[str]": ["x"], "opaque": object()}
    for name, info in FIELDS.items():
        value = info.choices[-1] if info.choices else values.get(info.kind)
        value = not info.default if info.kind == "bool" else value
        notes = Notes()
        found = training_arguments({name: value}, notes)
        absent = name in ("output_dir", "local_rank", "resume_from_checkpoint")
        assert len(found) + len(notes.lines) == (0 if absent or value == info.default else 1), name
