"""A declarative job as a rank runs it: from the resolved job to the model in the output, and on in a second attempt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import make_job
from pool_cases import pool_manifest
from trainwright.contract import ENV_JOB_FILE, ENV_OUTPUT_DIR, ExitCode, ResolvedJob, UserError
from trainwright.declarative.environment import prepare_environment
from trainwright.declarative.job import run_declarative
from trainwright.integrations import expected_memory
from trainwright.integrations.reporter import Reporter
from trainwright_operator.api.spec import parse_pool
from trainwright_operator.api.status import MEMORY_PARTS
from trainwright_operator.commands.memory import Report

JOB = ResolvedJob(
    name="small",
    namespace="default",
    uid="uid-1",
    attempt=1,
    nodes=1,
    per_node=1,
    task="CausalLM",
    model={
        "source": "gpt2",
        "fromConfig": {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32},
        "tokenizer": "bytes",
    },
    dataset={"source": "*.txt", "validationFraction": 0.2},
    training_arguments={
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "report_to": [],
        "use_cpu": True,
    },
    sample={"prompts": ["line "], "maxNewTokens": 4},
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in "abcde":
        text = "".join(f"line {number} of {name}\n" for number in range(30))
        (tmp_path / f"{name}.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / ".cache")
    return tmp_path


def train(job: ResolvedJob, output: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the job in this process; gives its results."""
    file = output.parent / "job.json"
    file.write_text(job.to_json())
    monkeypatch.setenv(ENV_JOB_FILE, str(file))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # which the run sets, as the process is its own
    run_declarative(job, output)
    return json.loads((output / "all_results.json").read_text())


def steps_logged(output: Path, step: int) -> list[int]:
    state = json.loads((output / f"checkpoint-{step}" / "trainer_state.json").read_text())
    return [entry["step"] for entry in state["log_history"] if "loss" in entry]


def test_the_output_holds_model_tokenizer_results_and_samples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output = folder / "out"
    results = train(JOB, output, monkeypatch)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    ids = torch.tensor([tokenizer("line 1")["input_ids"]])
    assert model(input_ids=ids).logits.shape == (1, 6, 260)
    assert {"train_loss", "eval_loss", "eval_perplexity", "epoch"} <= set(results)
    assert json.loads((output / "eval_results.json").read_text())["eval_loss"] == results["eval_loss"] < 5.6
    assert "line " in (output / "samples.txt").read_text()
    assert not list(output.rglob("*.arrow")), "prepared data belongs into the cache"


def test_a_second_attempt_goes_on_where_the_first_saved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longer = replace(JOB, training_arguments={**JOB.training_arguments, "max_steps": 6})
    train(longer, folder / "whole", monkeypatch)

    train(longer, folder / "parted", monkeypatch)
    checkpoint = folder / "parted" / "checkpoint-6"
    checkpoint.rename(folder / "lost")  # as if the first attempt had died after step 4
    train(replace(longer, attempt=2), folder / "parted", monkeypatch)

    assert steps_logged(folder / "parted", 6) == [2, 4, 6]
    for name in ("whole", "lost"):
        base = folder / name if name == "lost" else folder / name / "checkpoint-6"
        assert (base / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()


def test_an_attempt_that_finds_all_steps_done_tells_no_loss_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(JOB, folder / "out", monkeypatch)
    again = train(replace(JOB, attempt=2), folder / "out", monkeypatch)
    assert first.keys() - again.keys() == {"train_loss"}
    assert again["eval_loss"] == first["eval_loss"]


@pytest.fixture
def measured_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """As on an accelerator, whose peak is measured."""
    with monkeypatch.context() as patch:
        patch.setattr("trainwright.declarative.job._NO_PEAK", ())
        yield patch
    expected_memory.forget()


def test_the_estimate_of_plan_is_reported_and_training_is_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, measured_here: pytest.MonkeyPatch
) -> None:
    reporter = Reporter(attempt=1)
    measured_here.setattr(Reporter, "from_environment", lambda: reporter)
    train(JOB, folder / "reported", monkeypatch)
    pushed = reporter._collect(urgent=True)
    reporter.close()
    measured_here.undo()
    expected_memory.forget()
    train(JOB, folder / "plain", monkeypatch)
    assert expected_memory.expected() is None
    first, second = (folder / name / "model.safetensors" for name in ("reported", "plain"))
    assert first.read_bytes() == second.read_bytes()

    spec = {"task": JOB.task, "model": JOB.model, "dataset": JOB.dataset, "accelerator": {"pool": "cpu"}}
    arguments = {"perDeviceTrainBatchSize": 2, "useCpu": True}
    job = make_job().with_("spec", {**spec, "output": {"emptyDir": {}}, "trainingArguments": arguments})
    report = Report(job.build(), parse_pool(pool_manifest("cpu", vendor="cpu")))
    planned = report.of(report.way)
    parts = {name: round(getattr(planned, name)) for name in MEMORY_PARTS}
    assert pushed["trainwright"]["memory"] == {"estimate": round(planned.total), **parts}
    assert all(parts[name] > 0 for name in ("parameters", "gradients", "optimizer", "activations"))


@pytest.mark.usefixtures("measured_here")
def test_no_job_fails_because_its_memory_cannot_be_estimated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise NotImplementedError("no fake kernel")

    monkeypatch.setattr("trainwright.declarative.footprint.Subject", fail)
    assert train(JOB, folder / "out", monkeypatch)["train_loss"] > 0
    assert expected_memory.expected() is None


def test_the_output_of_another_job_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = folder / "out"
    train(JOB, output, monkeypatch)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="adopt"):
        train(replace(JOB, uid="uid-2"), output, monkeypatch)
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}


def test_a_classifier_tells_its_accuracy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"{text},{label}\n" for text, label in [("good", "pos"), ("bad", "neg")] * 10)
    (folder / "rows.csv").write_text("text,label\n" + rows)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    longer = {"max_steps": 40, "per_device_train_batch_size": 10, "learning_rate": 5e-3, "eval_steps": 20}
    job = replace(
        JOB,
        task="SequenceClassification",
        model={"source": "bert", "fromConfig": shape, "tokenizer": "bytes"},
        dataset={"source": "rows.csv", "evalSource": "rows.csv"},
        training_arguments={**JOB.training_arguments, **longer},
        sample=None,
    )
    results = train(job, folder / "out", monkeypatch)
    assert results["eval_accuracy"] == results["eval_f1_macro"] == 1.0
    config = json.loads((folder / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "neg", "1": "pos"}


def test_a_translator_tells_how_like_its_texts_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(json.dumps({"source": word, "target": word.upper()}) + "\n" for word in "abc" * 4)
    (folder / "pairs.jsonl").write_text(rows)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    learning = {"per_device_train_batch_size": 12, "learning_rate": 5e-3, "lr_scheduler_type": "constant"}
    learning |= {"max_steps": 80, "save_steps": 80, "eval_steps": 80, "logging_steps": 20}
    generation = {"predict_with_generate": True, "generation_max_length": 8, "generation_config": {"num_beams": 2}}
    job = replace(
        JOB,
        task="Seq2SeqLM",
        model={"source": "t5", "fromConfig": sizes, "tokenizer": "bytes"},
        dataset={"source": "pairs.jsonl", "evalSource": "pairs.jsonl"},
        training_arguments={**JOB.training_arguments, **learning, **generation},
        sample=None,
    )
    results = train(job, folder / "out", monkeypatch)
    assert results["eval_exact_match"] == results["eval_rouge_l"] == 1.0
    generating = job.training_arguments
    with pytest.raises(UserError, match=r"predictWithGenerate: CausalLM has no target text to compare with; leave"):
        train(replace(JOB, uid="other", training_arguments=generating), folder / "other", monkeypatch)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataset": {"source": "*.txt"}}, ["evalStrategy", "nothing to evaluate on"]),
        ({"dataset": {"source": "*.txt", "evalSource": "a.txt", "streaming": True}}, ["maxSteps", "no length"]),
        ({"task": "MaskedLM"}, ["spec.sample", "does not write text"]),
        (
            {"dataset": {"source": "a.txt", "evalSource": "other.csv"}, "sample": None},
            ["columns.text", "evaluation rows", "only a, b"],
        ),
        ({"sample": {"prompt": ["x"]}}, ["spec.sample.prompt", "did you mean prompts?"]),
    ],
)
def test_fields_that_contradict_each_other_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: list[str]
) -> None:
    (folder / "other.csv").write_text("a,b\n1,2\n")
    arguments = {**JOB.training_arguments, "max_steps": -1}
    with pytest.raises(UserError) as caught:
        train(replace(JOB, **{"training_arguments": arguments, **change}), folder / "out", monkeypatch)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_mistake_ends_the_rank_with_its_code_and_one_line(folder: Path) -> None:
    job = replace(JOB, dataset={"source": "*.parquet"}, training_arguments={"use_cpu": True})
    (folder / "job.json").write_text(job.to_json())
    environment = {
        **os.environ,
        ENV_JOB_FILE: str(folder / "job.json"),
        ENV_OUTPUT_DIR: str(folder / "out"),
        "HF_HOME": str(folder / "hub"),
    }
    command = [sys.executable, "-m", "trainwright.declarative"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == ExitCode.BAD_DATA, done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert lines[-1].endswith("no file matches '*.parquet'; check the pattern, and that its volume is mounted")
    assert "Traceback" not in done.stderr
    assert len(lines) == 1, done.stderr


def test_the_environment_is_quiet_offline_and_has_a_cache_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: not str(path).startswith("/home"))
    monkeypatch.setattr("pathlib.Path.home", lambda: Path("/home"))
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    environ: dict[str, str] = {"TRANSFORMERS_VERBOSITY": "info"}
    prepare_environment(True, environ)
    assert environ["HF_HUB_OFFLINE"] == environ["HF_DATASETS_OFFLINE"] == "1"
    assert environ["DATASETS_VERBOSITY"] == "error"
    assert environ["TRANSFORMERS_VERBOSITY"] == "info"
    assert environ["HF_HOME"].startswith(str(tmp_path))
    read_only = {"HF_HOME": "/home/models"}
    prepare_environment(False, read_only)
    assert read_only["HF_HOME"] == "/home/models"
    assert read_only["HF_DATASETS_CACHE"].startswith(str(tmp_path))
    assert "HF_HUB_OFFLINE" not in read_only
