"""A wrong manifest is reported in one line for each mistake: the place, what is wrong, and the fix."""

from __future__ import annotations

import pytest

from bad_manifests import ARGUMENTS, CASES, GOOD, SCRIPT, argument, best
from trainwright_operator.api.manifest import ManifestError, read
from trainwright_operator.commands.loading import problem_lines


def lines(text: str) -> list[str]:
    try:
        return [line for document in read(text, "job.yaml") for line in problem_lines(document)]
    except ManifestError as error:
        return [str(error)]


@pytest.mark.parametrize(("text", "said"), CASES.values(), ids=CASES)
def test_a_mistake_is_reported_in_one_line(text: str, said: list[str]) -> None:
    assert lines(text) == said


@pytest.mark.parametrize(
    "text",
    [
        *(
            GOOD,
            SCRIPT,
            argument("learningRate:"),
            best("CausalLM", "eval_loss"),
            best("TokenClassification", "f1_macro"),
        ),
        *(best("Seq2SeqLM", "rouge_l", "predictWithGenerate: true"), best("SequenceClassification", "runtime")),
        best("CausalLM", "f1").replace("evalStrategy: steps", 'evalStrategy: "no"'),
    ],
)
def test_a_right_manifest_is_not_complained_of(text: str) -> None:
    assert lines(text) == []


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_lines() -> None:
    text = argument("evalStrategy: no\n    bf_16: true").replace("source: gpt2", "sorce: gpt2") + "  maxRestart: 2\n"
    assert [line.split(": ")[:2] for line in lines(text)] == [
        ["job.yaml:6", "spec.model.sorce"],
        ["job.yaml:6", "spec.model.source"],
        ["job.yaml:11", "spec.trainingArguments.evalStrategy"],
        ["job.yaml:12", "spec.trainingArguments.bf_16"],
        ["job.yaml:14", "spec.maxRestart"],
    ]


def test_a_wrong_value_hides_no_rule_that_does_not_look_at_it() -> None:
    text = argument("seed: x\n    bf16: true\n    fp16: true")
    assert [line.split(": ")[1] for line in lines(text)] == [f"{ARGUMENTS}.seed", f"{ARGUMENTS}.fp16"]
