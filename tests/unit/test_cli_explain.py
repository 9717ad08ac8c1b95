"""``explain`` finds a field by any of its names; completion knows the commands."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from trainwright_operator.cli import main
from trainwright_operator.commands.completion import commands
from trainwright_operator.commands.explain import TOPICS, fields, find

FOUND = {
    "learningRate": "spec.trainingArguments.learningRate",
    "learning_rate": "spec.trainingArguments.learningRate",
    "spec.trainingArguments.learning_rate": "spec.trainingArguments.learningRate",
    "trainingArguments.learningRate": "spec.trainingArguments.learningRate",
    "LEARNINGRATE": "spec.trainingArguments.learningRate",
    "spec": "spec",
    "spec.dataset.source": "spec.dataset.source",
    "dataset.source": "spec.dataset.source",
    "dataset": "spec.dataset",
    "status": "status",
    "TrainingJob": "spec",
    "tj.spec.model": "spec.model",
    "trainingjob.spec.model": "spec.model",
    "topology": "spec.accelerator.topology",
    "chipsPerHost": "AcceleratorPool.spec.chipsPerHost",
    "AcceleratorPool": "AcceleratorPool.spec",
    "AcceleratorPool.spec.env.name": "AcceleratorPool.spec.env.name",
    "volumes.nfs.server": "spec.podTemplate.volumes.nfs.server",
}


@pytest.mark.parametrize(("query", "path"), FOUND.items(), ids=FOUND)
def test_a_field_is_found(query: str, path: str) -> None:
    assert find(query)[0].full_path == path


def test_a_name_is_found_in_every_field_that_has_it() -> None:
    found = [field.full_path for field in find("split")]
    assert found == ["spec.dataset.split"]
    assert len(find("source")) > 2


@pytest.mark.parametrize(
    ("query", "near"),
    [
        ("learnrate", "learningRate"),
        ("evalstrategie", "evalStrategy"),
        ("spec.datset", "dataset"),
        ("maxStep", "maxSteps"),
    ],
)
def test_a_misspelt_field_is_answered_with_the_nearest_one(
    query: str, near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", query]) == 2
    assert capsys.readouterr().err == f"trainwright explain: no field {query!r}; did you mean {near}?\n"


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("outputDir", "is not a field: the operator mounts spec.output and sets it; remove it"),
        ("evaluation_strategy", "is not a field; use evalStrategy"),
    ],
)
def test_an_argument_that_no_manifest_has_is_explained(
    query: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", query]) == 2
    assert capsys.readouterr().err == f"trainwright explain: no field {query!r}; {query} {why}\n"


WORDS = {
    "lora": "adapters need a script, with peft in its image: spec.script",
    "QLoRA": "adapters need a script, with peft in its image: spec.script",
    "wandb": "name them in spec.trainingArguments.reportTo; their credentials come by spec.podTemplate.envFrom",
    "gpus": "see spec.accelerator: pool is the kind of device",
    "resume": "these fields mention it: ",
    "volume": "did you mean volumes?",
}


@pytest.mark.parametrize("word", WORDS)
def test_a_word_that_is_no_field_leads_to_what_there_is(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", word]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"trainwright explain: no field {word!r}; {WORDS[word]}")


def test_every_path_that_a_topic_names_is_a_field() -> None:
    paths = {path for told in TOPICS.values() for path in re.findall(r"spec\.[\w.]*\w", told)}
    assert paths
    assert {path for path in paths if not find(path)} == set()


def test_a_name_like_no_field_is_answered_with_where_to_look(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "qqqq"]) == 2
    assert "`trainwright explain spec` lists" in capsys.readouterr().err


def explained(query: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["explain", query]) == 0
    return capsys.readouterr().out


def test_a_page_has_type_default_bounds_and_the_name_in_python(capsys: pytest.CaptureFixture[str]) -> None:
    page = explained("labelSmoothingFactor", capsys)
    assert page.startswith("spec.trainingArguments.labelSmoothingFactor <number>\n\n  ")
    assert "Default: 0." in page
    assert "  - at least 0" in page
    assert page.endswith("  - in Python: label_smoothing_factor\n")


def test_a_page_has_the_rules_that_it_can_break(capsys: pytest.CaptureFixture[str]) -> None:
    assert "loadBestModelAtEnd needs evaluations" in explained("loadBestModelAtEnd", capsys)


def test_a_page_has_choices_and_no_rule_that_holds_of_everything(capsys: pytest.CaptureFixture[str]) -> None:
    page = explained("evalStrategy", capsys)
    assert "  - one of: no, steps, epoch\n" in page
    assert "cannot change" not in page


def test_a_page_of_an_object_lists_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    page = explained("spec.model", capsys)
    assert "\nFields:\n  source <string> required\n      A hub id" in page


def test_the_exceptions_to_the_mirror_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = explained("trainingArguments", capsys)
    assert "  outputDir: not in a manifest: the operator mounts spec.output and sets it\n" in page
    assert "  reportTo: a list\n" in page


def test_no_line_is_wider_than_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    for query in ("spec", "spec.trainingArguments", "optim", "name"):
        assert max(map(len, explained(query, capsys).splitlines())) <= 72, query


def test_every_field_has_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    for field in fields():
        assert find(field.full_path)[0] == field


def test_the_recursive_form_prints_the_tree_of_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "-r", "spec.sample"]) == 0
    assert capsys.readouterr().out == (
        "sample <object>\n  prompts <list of string> required\n  maxNewTokens <integer>\n  temperature <number>\n"
    )


# completion


def test_completion_knows_every_command_and_its_options() -> None:
    known = {command.name: command for command in commands()}
    assert set(known) >= {"validate", "plan", "run", "convert", "explain", "completion"}
    assert "--diff" in known["plan"].options
    assert known["completion"].choices == ("bash", "zsh", "fish")
    assert {"learningRate", "perDeviceTrainBatchSize"} <= set(known["explain"].choices or ())
    assert known["validate"].choices is None


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_valid_in_its_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "trainwright" in script
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=script, text=True, check=True, capture_output=True)


def completed(line: str, script: str) -> set[str]:
    """What bash offers for the last word of ``line``."""
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    code = f'{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _trainwright; echo "${{COMPREPLY[@]}}"'
    return set(subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_bash_completes_commands_options_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    script = capsys.readouterr().out
    assert completed("trainwright va", script) == {"validate"}
    assert completed("trainwright plan --di", script) == {"--diff"}
    assert completed("trainwright explain learning", script) == {"learningRate"}
    assert completed("trainwright completion f", script) == {"fish"}
