"""Every argument in camelCase and back, and the printed list of those that are not simply that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainwright.arguments.fields import FIELDS
from trainwright_operator.api import mirror
from trainwright_operator.api.arguments import training_arguments

HUGGING_FACE = json.loads((Path(__file__).parents[1] / "fixtures" / "training_arguments.json").read_text())
PROPERTIES = training_arguments()["properties"]

TYPES = {
    "bool": "boolean",
    "int": "integer",
    "float": "number",
    "str": "string",
    "enum": "string",
    "list[str]": "array",
}


def test_a_name_in_camel_case_comes_back_in_snake_case() -> None:
    for name in FIELDS:
        assert mirror.snake(mirror.camel(name)) == name


def test_names_are_unique_in_camel_case() -> None:
    assert len({mirror.camel(name) for name in FIELDS}) == len(FIELDS)


def test_every_field_of_hugging_face_is_there_or_said_to_be_absent() -> None:
    names = {field["name"] for field in HUGGING_FACE}
    assert len(names) == 119
    assert {mirror.camel(name) for name in names - set(mirror.ABSENT)} == set(PROPERTIES)


def test_a_field_that_is_no_exception_has_the_type_of_the_argument() -> None:
    for name, info in mirror.MIRRORED.items():
        if name not in mirror.EXCEPTIONS:
            assert PROPERTIES[mirror.camel(name)]["type"] == TYPES[info.kind], name


def test_choices_are_those_of_hugging_face() -> None:
    for field in HUGGING_FACE:
        node = PROPERTIES.get(mirror.camel(field["name"]), {})
        if field["choices"] and "enum" in node:
            assert set(node["enum"]) == set(field["choices"]), field["name"]


def test_the_exceptions_to_the_mirror_are_these() -> None:
    """Printed by `trainwright explain trainingArguments`; changing it is changing the API."""
    forms = {mirror.camel(name): form for name, form in mirror.EXCEPTIONS.items()}
    assert {name: form for name, form in forms.items() if form.startswith("not in a manifest")}.keys() == {
        *("outputDir", "localRank", "resumeFromCheckpoint"),
    }
    assert {name for name, form in forms.items() if form.startswith("an object")} == {
        *("lrSchedulerKwargs", "activationCheckpointingKwargs", "gradientCheckpointingKwargs", "ligerKernelConfig"),
        *("acceleratorConfig", "parallelismConfig", "fsdpConfig", "deepspeed", "generationConfig"),
    }
    assert {name for name, form in forms.items() if form == "a list"} == {"optimTargetModules", "reportTo", "debug"}
    assert forms["hubToken"] == "a reference to a Secret: {secretKeyRef: {name, key}}"
    assert set(forms) >= {"includeNumInputTokensSeen", "trackioStaticSpaceId", "fsdp"}
    assert len(forms) == 4 + 8 + 3 + 4


# argument, its value in Python -> its form in a manifest
FORMS: list[tuple[str, Any, Any]] = [
    ("lr_scheduler_kwargs", '{"power": 2}', {"power": 2}),
    ("lr_scheduler_kwargs", {"power": 2}, {"power": 2}),
    ("report_to", "wandb", ["wandb"]),
    ("report_to", ["wandb"], ["wandb"]),
    ("optim_target_modules", "all-linear", ["all-linear"]),
    ("debug", "underflow_overflow tpu_metrics_debug", ["underflow_overflow", "tpu_metrics_debug"]),
    ("debug", "", []),
    ("include_num_input_tokens_seen", True, "all"),
    ("include_num_input_tokens_seen", False, "no"),
    ("include_num_input_tokens_seen", "non_padding", "non_padding"),
    ("trackio_static_space_id", False, ""),
    ("generation_config", "gpt2", {"source": "gpt2"}),
    ("generation_config", {"num_beams": 2}, {"num_beams": 2}),
    ("warmup_steps", "0.1", 0.1),
    ("learning_rate", 1e-3, 1e-3),
]


@pytest.mark.parametrize(("name", "python", "form"), FORMS)
def test_an_argument_has_its_form_in_a_manifest(name: str, python: Any, form: Any) -> None:
    assert mirror.from_argument(name, python) == form


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("deepspeed", "ds.json", "write the content of the file"),
        ("lr_scheduler_kwargs", "[1]", "must be an object"),
        ("output_dir", "/tmp", "the operator mounts spec.output"),
        ("hub_token", "hf_x", "does not belong in a manifest"),
    ],
)
def test_a_value_that_no_manifest_can_hold_is_refused(name: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mirror.from_argument(name, value)


def test_a_manifest_becomes_arguments_with_names_and_values_of_python() -> None:
    stated = {
        "learningRate": 1e-3,
        "fp16FullEval": True,
        "ddpBucketCapMb": 25,
        "trackioStaticSpaceId": "",
        "generationConfig": {"source": "gpt2"},
        "hubToken": {"secretKeyRef": {"name": "hub", "key": "token"}},
    }
    assert mirror.to_arguments(stated) == {
        "learning_rate": 1e-3,
        "fp16_full_eval": True,
        "ddp_bucket_cap_mb": 25,
        "trackio_static_space_id": False,
        "generation_config": "gpt2",
    }


def test_names_of_fields_in_sentences_become_camel_case() -> None:
    assert mirror.in_manifest_names("every eval_steps, as lr_max says") == "every evalSteps, as lr_max says"
