"""What arguments become: accepted spellings, plain data and back, copies, pickles."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings

from argument_values import some_arguments
from trainwright.arguments import (
    AcceleratorConfig,
    ArgumentError,
    Seq2SeqTrainingArguments,
    TrainingArguments,
    sharding,
)
from trainwright.arguments.enums import DebugOption, HubStrategy, IntervalStrategy
from trainwright.arguments.fields import FIELDS, FieldInfo
from trainwright.arguments.shapes import KINDS
from trainwright.rules import AXES

pytestmark = pytest.mark.usefixtures("without_torch")


@given(some_arguments())
@settings(max_examples=150)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_every_way_there_and_back_gives_the_same(values: dict[str, Any]) -> None:
    try:
        args = Seq2SeqTrainingArguments(**values)
    except ArgumentError:
        assume(False)  # what does not fit together: test_rules
    assert Seq2SeqTrainingArguments.from_dict(args.to_dict()) == args
    assert Seq2SeqTrainingArguments.from_json_string(args.to_json_string()) == args
    assert dataclasses.replace(args) == args
    assert copy.deepcopy(args) == args
    assert pickle.loads(pickle.dumps(args)) == args
    before = args.to_dict()
    args.check()
    assert args.to_dict() == before


ACCEPTED: list[tuple[str, Any, Any]] = [
    ("output_dir", Path("a") / "b", "a/b"),
    ("max_steps", 1e3, 1000),
    ("max_steps", np.int64(7), 7),
    ("learning_rate", np.float32(0.5), 0.5),
    ("learning_rate", 1, 1),
    ("bf16", np.True_, True),
    ("eval_strategy", IntervalStrategy.EPOCH, "epoch"),
    ("label_names", ("a", "b"), ["a", "b"]),
    ("lr_scheduler_kwargs", '{"num_cycles": "2", "deep": {"on": "False", "x": "0.5", "s": "a.b"}}', None),
    ("report_to", None, []),
    ("report_to", ["none"], []),
    ("debug", None, []),
    ("include_num_input_tokens_seen", False, "no"),
    ("hub_token", "<HUB_TOKEN>", None),
    ("save_steps", 10.0, 10),
]


@pytest.mark.parametrize(("name", "given", "held"), ACCEPTED)
def test_every_accepted_spelling_gives_the_value_it_stands_for(name: str, given: Any, held: Any) -> None:
    value = getattr(TrainingArguments(**{name: given}), name)
    if name == "lr_scheduler_kwargs":
        held = {"num_cycles": 2, "deep": {"on": False, "x": 0.5, "s": "a.b"}}
    assert value == held
    assert type(getattr(value, "value", value)) is type(held)


def test_enums_compare_with_their_words() -> None:
    args = TrainingArguments(eval_strategy="steps")
    assert args.eval_strategy == "steps"
    assert args.eval_strategy is IntervalStrategy.STEPS
    with pytest.raises(ValueError, match="please select one of"):
        IntervalStrategy("sometimes")


def test_old_name_of_activation_checkpointing_warns_and_mirrors() -> None:
    with pytest.warns(FutureWarning, match="activation_checkpointing"):
        args = TrainingArguments(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
    assert args.activation_checkpointing is args.gradient_checkpointing is True
    assert args.activation_checkpointing_kwargs == args.gradient_checkpointing_kwargs == {"use_reentrant": False}
    again = dataclasses.replace(args, activation_checkpointing=False)
    assert again.gradient_checkpointing is False


def test_output_dir_has_a_default_and_expands_the_home() -> None:
    assert TrainingArguments().output_dir == "trainer_output"
    assert TrainingArguments("~/runs").output_dir == str(Path.home() / "runs")


def test_accelerator_config_may_come_in_every_form(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"even_batches": false}')
    wanted = AcceleratorConfig(even_batches=False)
    for form in (path, str(path), {"even_batches": False}, '{"even_batches": false}', wanted):
        assert TrainingArguments(accelerator_config=form).accelerator_config == wanted  # type: ignore[arg-type]
    assert AcceleratorConfig.from_json_file(str(path)) == wanted
    assert AcceleratorConfig.of({"use_configured_state": True}).to_dict()["use_configured_state"] is True


def test_values_given_are_not_shared() -> None:
    mine = {"num_cycles": 2}
    args = TrainingArguments(lr_scheduler_kwargs=mine)
    assert args.lr_scheduler_kwargs is not None
    args.lr_scheduler_kwargs["power"] = 1
    assert mine == {"num_cycles": 2}
    assert TrainingArguments().include_for_metrics is not TrainingArguments().include_for_metrics


def test_a_type_in_a_mapping_is_written_by_its_name() -> None:
    """By whatever name it stands there; torch is not imported to see."""
    of_torch = type("dtype", (), {"__module__": "torch", "__str__": lambda self: "torch.float32"})()
    args = TrainingArguments(lr_scheduler_kwargs={"deep": {"dtype": of_torch, "compute": [of_torch]}})
    assert args.to_dict()["lr_scheduler_kwargs"] == {"deep": {"dtype": "float32", "compute": ["float32"]}}


@dataclasses.dataclass
class Derived(TrainingArguments):
    """As libraries derive theirs."""

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_kwargs"]
    model_kwargs: dict[str, Any] | str | None = None
    compute: Any = None
    validated: bool = False

    def _validate_args(self) -> None:
        super()._validate_args()
        self.validated = True


def test_fields_of_a_subclass_are_parsed_and_written_as_ours() -> None:
    of_torch = type("dtype", (), {"__module__": "torch", "__str__": lambda self: "torch.bfloat16"})()
    args = Derived(model_kwargs='{"layers": "3", "tied": "true"}', compute=of_torch, lr_scheduler_kwargs='{"a": 1}')
    assert args.model_kwargs == {"layers": 3, "tied": True}
    assert args.validated
    written = json.loads(args.to_json_string())
    assert (written["compute"], written["model_kwargs"]) == ("bfloat16", {"layers": 3, "tied": True})
    assert json.loads(Derived(compute=Path("here")).to_json_string())["compute"] == "here"
    assert Derived(model_kwargs="a/path.json").model_kwargs == "a/path.json"
    with pytest.raises(ArgumentError, match="model_kwargs: must be a mapping, its JSON text, or the path of a JSON"):
        Derived(model_kwargs="{layers: 3}")


def test_checks_are_named_as_options() -> None:
    for said in ("underflow_overflow", ["underflow_overflow"], [DebugOption.UNDERFLOW_OVERFLOW]):
        (option,) = TrainingArguments(debug=said).debug
        assert option is DebugOption.UNDERFLOW_OVERFLOW
    assert json.loads(TrainingArguments(debug="underflow_overflow").to_json_string())["debug"] == ["underflow_overflow"]


def test_all_trackers_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainwright.arguments.machine.find_spec", lambda module: None)
    for everything in ("all", ["all"]):
        assert TrainingArguments(report_to=everything).report_to == []
    monkeypatch.setattr("trainwright.arguments.machine._found", lambda module: module in ("mlflow", "azureml.core.run"))
    assert TrainingArguments(report_to="all").report_to == ["mlflow"]  # Azure ML has MLflow's interface too
    monkeypatch.setenv("DISABLE_MLFLOW_INTEGRATION", "TRUE")
    assert TrainingArguments(report_to="all").report_to == ["azure_ml"]
    monkeypatch.setattr("trainwright.arguments.machine._found", lambda module: True)
    monkeypatch.delenv("COMET_API_KEY", raising=False)
    assert not {"comet_ml", "flyte"} & set(TrainingArguments(report_to="all").report_to)
    assert TrainingArguments(report_to=["kubeflow"]).report_to == ["kubeflow"]  # as transformers says in a pod of ours


def test_a_setting_of_what_is_off_is_carried() -> None:
    """Scripts say where an upload would go and ask for none."""
    args = TrainingArguments(hub_model_id="me/model", hub_strategy="end", hub_private_repo=True, project="mine")
    assert (args.hub_model_id, args.hub_strategy, args.project) == ("me/model", HubStrategy.END, "mine")


def test_json_is_plain_and_ordered_as_the_fields() -> None:
    values = json.loads(Seq2SeqTrainingArguments().to_json_string())
    assert list(values) == list(FIELDS)
    assert values["hub_token"] == "<HUB_TOKEN>"


def test_what_scripts_read_is_set_and_carried() -> None:
    args = TrainingArguments(run_name="a", resume_from_checkpoint="out/checkpoint-5", local_rank=1)
    assert (args.do_train, args.do_eval, args.do_predict) == (False, False, False)
    args.set_training().set_evaluate("epoch").set_testing()
    assert (args.do_train, args.do_eval, args.do_predict) == (True, True, True)
    again = TrainingArguments.from_json_string(args.to_json_string())
    assert (again.run_name, again.resume_from_checkpoint, again.local_rank) == ("a", "out/checkpoint-5", 1)
    assert (again.do_train, again.do_predict) == (True, True)
    assert TrainingArguments(do_eval=True).do_eval


def test_it_prints_like_hugging_face() -> None:
    text = str(TrainingArguments("x"))
    assert text.startswith("TrainingArguments(\naccelerator_config=")
    assert "\nlearning_rate=5e-05,\n" in text


def test_mixed_precision_follows_the_formats_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert TrainingArguments().mixed_precision == "bf16"
    assert TrainingArguments(fp16=True).mixed_precision == "fp16"


@pytest.mark.parametrize("info", FIELDS.values(), ids=FIELDS)
def test_every_field_is_described(info: FieldInfo) -> None:
    assert info.kind in KINDS
    assert info.description.endswith(".")
    assert info.description[0].isupper() or info.name in info.description
    assert 20 < len(info.description) < 330
    assert "%" not in info.description  # argparse would take it for a format
    assert info.choices is None or len(set(info.choices)) == len(info.choices)
    assert (info.form is None) == (info.pattern is None)


@pytest.mark.parametrize("info", FIELDS.values(), ids=FIELDS)
def test_names_in_descriptions_exist(info: FieldInfo) -> None:
    words = set(re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b", info.description))
    elsewhere = {
        *("trainer_output", "compute_metrics", "min_lr", "num_cycles", "num_decay_steps", "eval_", "use_reentrant"),
        *(
            "local_process_index",
            "fused_linear_cross_entropy",
        ),
    }
    settings_of_accelerate = {field.name for field in dataclasses.fields(AcceleratorConfig)}
    settings_of_accelerate |= {*sharding._KEYS, *sharding.STRATEGIES, *AXES}
    choices = {choice for other in FIELDS.values() for choice in other.choices or ()}
    assert words <= set(FIELDS) | elsewhere | settings_of_accelerate | choices


def test_help_tells_what_each_argument_does() -> None:
    documentation = TrainingArguments.__doc__ or ""
    assert all(
        f"\n        {name}: {info.description}\n" in f"{documentation}\n"
        for name, info in FIELDS.items()
        if not info.seq2seq
    )
    assert "predict_with_generate: " not in documentation
    assert "predict_with_generate: " in (Seq2SeqTrainingArguments.__doc__ or "")


def test_a_subclass_with_a_constructor_of_its_own() -> None:
    class Mine(TrainingArguments):
        def __init__(self, corpus: str, **values: Any) -> None:
            super().__init__(**values)
            self.corpus = corpus

    args = Mine(corpus="a", max_steps=3)
    assert (args.corpus, args.max_steps) == ("a", 3)
    with pytest.raises(TypeError):
        Mine(corpus="a", lerning_rate=3)


def test_importing_costs_no_heavy_library() -> None:
    heavy = ("torch", "transformers", "accelerate", "numpy", "asyncio", "subprocess", "socket", "difflib", "yaml")
    code = f"import sys, trainwright.arguments; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
