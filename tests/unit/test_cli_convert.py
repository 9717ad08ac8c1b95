"""Hugging Face arguments to a manifest and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainwright.arguments import Seq2SeqTrainingArguments, TrainingArguments
from trainwright.arguments.fields import FIELDS
from trainwright_operator.api import crd, manifest
from trainwright_operator.cli import main
from trainwright_operator.commands.convert import Notes, training_arguments

pytestmark = pytest.mark.usefixtures("without_torch")
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
    assert crd.problems(content) == []
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
    assert crd.problems(content) == []


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


def test_arguments_survive_the_way_to_a_manifest_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"learning_rate": -1}, "learningRate: must be at least 0, not -1"),
        ({"learning_rate": "fast"}, 'learningRate: must be a number, not the text "fast"'),
        (
            {"deepspeed": {"zero_optimization": {"stage": 4}}},
            "deepspeed: zero_optimization.stage: must be 1, 2 or 3, not 4",
        ),
    ],
)
def test_what_does_not_validate_is_told_by_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: dict[str, Any], said: str
) -> None:
    file = tmp_path / "args.json"
    file.write_text(json.dumps(arguments))
    assert main(["convert", str(file), *WHAT]) == 2
    out, err = capsys.readouterr()
    assert err == f"{file}: spec.trainingArguments.{said}\n"
    assert out.startswith("apiVersion")  # to be mended


def test_sharding_is_converted_without_what_transformers_fills_in() -> None:
    filled = {"min_num_params": 0, "xla": False, "xla_fsdp_v2": False, "xla_fsdp_grad_ckpt": False}
    assert training_arguments({"fsdp": [], "fsdp_config": filled}, Notes()) == {}
    assert training_arguments({"fsdp": True, "fsdp_config": filled}, Notes()) == {"fsdp": "full_shard"}
    given = {"fsdp": ["full_shard", "auto_wrap"], "fsdp_config": {**filled, "fsdp_cpu_offload": True}}
    assert training_arguments(given, Notes()) == {"fsdp": "full_shard auto_wrap", "fsdpConfig": {"cpu_offload": True}}


@pytest.mark.parametrize("value", [False, "", [], None])
def test_no_sharding_is_nothing_to_state(value: Any) -> None:
    assert training_arguments({"fsdp": value}, Notes()) == {}


# What libraries' files hold besides arguments

TRL = """
model_name_or_path: Qwen/Qwen3-0.6B
model_revision: main
dtype: bfloat16
dataset_name: trl-lib/Capybara
dataset_config: null
dataset_train_split: train
dataset_test_split: test
dataset_streaming: false
use_peft: true
lora_r: 16
packing: true
max_length: 512
learning_rate: 2.0e-4
bf16: auto
eval_strategy: no
"""
AXOLOTL = """
base_model: NousResearch/Llama-3.2-1B
load_in_8bit: false
datasets:
  - {path: teknium/GPT4-LLM-Cleaned, type: alpaca}
  - {path: mhenrichsen/alpaca_2k_test}
val_set_size: 0.1
output_dir: ./outputs/full
sequence_len: 2048
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_8bit
lr_scheduler: cosine
"""
FILES = {
    "trl": (
        TRL,
        {
            "model": {"source": "Qwen/Qwen3-0.6B", "revision": "main", "dtype": "bfloat16"},
            "dataset": {"source": "trl-lib/Capybara", "split": "train", "blockSize": 512},
            "trainingArguments": {"learningRate": 2e-4},
        },
        ["use_peft", "lora_r", "bf16"],
    ),
    "axolotl": (
        AXOLOTL,
        {
            "model": {"source": "NousResearch/Llama-3.2-1B"},
            "dataset": {"source": "teknium/GPT4-LLM-Cleaned", "validationFraction": 0.1, "maxLength": 2048},
            "trainingArguments": {
                "perDeviceTrainBatchSize": 2,
                "numTrainEpochs": 1,
                "optim": "adamw_8bit",
                "lrSchedulerType": "cosine",
            },
        },
        ["datasets[0].type", "datasets", "micro_batch_size", "num_epochs", "optimizer", "lr_scheduler"],
    ),
    "no adapter": ("{use_peft: false, lora_r: 16, model_name_or_path: a/b, dataset_name: c}", {}, []),
    "evaluated": (
        "{model_name_or_path: a/b, dataset_name: c, dataset_test_split: test, eval_strategy: steps}",
        {"dataset": {"source": "c", "evalSplit": "test"}},
        [],
    ),
    "files": (
        "{base_model: a/b, datasets: [{path: json, data_files: d.jsonl}], test_datasets: [{path: e.jsonl}]}",
        {"dataset": {"source": "d.jsonl", "evalSource": "e.jsonl"}},
        [],
    ),
    "rows": ("{base_model: a/b, datasets: {path: c}, val_set_size: 500}", {}, ["val_set_size"]),
    "older names": (
        "{model_name_or_path: a/b, train_file: c.csv, lr: 0.1, epochs: 2}",
        {"trainingArguments": {"learningRate": 0.1, "numTrainEpochs": 2}},
        ["lr", "epochs"],
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_model_and_its_data_are_those_of_the_file(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, wanted, told = FILES[case]
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert main(["convert", str(file), "--claim", "runs"]) == 0
    out, err = capsys.readouterr()
    (document,) = manifest.read(out, "out")
    assert {key: document.content["spec"][key] for key in wanted} == wanted
    assert [line[2:].split(": ")[0] for line in out.splitlines() if line.startswith("#")] == told
    assert err == ""


def test_an_option_goes_before_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {"model_name_or_path": "a/b", "model_revision": "v1", "dataset_name": "c"}
    spec = converted(tmp_path, capsys, content, "--model", "mine", "--claim", "runs")["spec"]
    assert (spec["model"], spec["dataset"]) == ({"source": "mine"}, {"source": "c"})


def test_a_script_has_a_model_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.py").write_text("pass\n")
    file = tmp_path / "config.yaml"
    file.write_text("{model_name_or_path: a/b, learning_rate: 0.1}")
    assert main(["convert", str(file), "--script", str(tmp_path / "train.py"), "--claim", "runs"]) == 0
    assert capsys.readouterr().out.startswith("# model.source: left out: the script defines what it trains\n")


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("[1]", [], "must hold one set of arguments, or one TrainingJob"),
        ("a: [", [], "is not YAML"),
        ("a: 1\n---\nb: 1\n", [], "must hold one set of arguments"),
        ("{}", ["--to", "arguments"], "is not a manifest"),
        ("apiVersion: trainwright.dev/v1alpha1\nkind: TrainingJob\n", [], "metadata: is missing"),
        ("apiVersion: v1\nkind: TrainingJob\n", ["--to", "manifest"], "is already a manifest"),
        ("apiVersion: v1\nkind: AcceleratorPool\n", [], "is an AcceleratorPool, which has no arguments"),
    ],
)
def test_a_file_that_cannot_be_converted_is_refused_with_the_reason(
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
