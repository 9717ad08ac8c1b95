"""Our arguments against those of the installed ``transformers``: names, positions, defaults, methods, what derives."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import transformers
from hypothesis import assume, given, settings
from transformers import HfArgumentParser

import trainwright.arguments.enums
from argument_values import some_arguments
from trainwright.arguments import ArgumentError, Seq2SeqTrainingArguments, TrainingArguments
from trainwright.arguments.fields import FIELDS

CLASSES = [
    pytest.param(TrainingArguments, transformers.TrainingArguments, id="TrainingArguments"),
    pytest.param(Seq2SeqTrainingArguments, transformers.Seq2SeqTrainingArguments, id="Seq2SeqTrainingArguments"),
]


def plain(value: Any) -> Any:
    return getattr(value, "value", value)


@pytest.mark.parametrize(("ours", "theirs"), CLASSES)
def test_fields_have_the_order_and_the_defaults_of_transformers(ours: type, theirs: type) -> None:
    assert described(ours) == described(theirs)


def described(cls: Any) -> list[tuple[str, Any]]:
    return [
        (field.name, field.default_factory() if field.default is dataclasses.MISSING else field.default)
        for field in dataclasses.fields(cls)
    ]


@pytest.mark.parametrize(("ours", "theirs"), CLASSES)
def test_the_constructor_has_the_signature_of_transformers(ours: type, theirs: type) -> None:
    def parameters(cls: type) -> list[tuple[str, Any, Any]]:
        return [(p.name, p.kind, repr(p.default)) for p in inspect.signature(cls).parameters.values()]

    assert parameters(ours) == parameters(theirs)


def public(cls: type) -> dict[str, Any]:
    return {name: inspect.getattr_static(cls, name) for name in dir(cls) if not name.startswith("_")}


@pytest.mark.parametrize(("ours", "theirs"), CLASSES)
def test_every_public_method_and_property_is_there(ours: type, theirs: type) -> None:
    ours_public, theirs_public = public(ours), public(theirs)
    del theirs_public["is_torch_greater_or_equal_than_2_8"]  # an import that is left in their class
    assert set(theirs_public) <= set(ours_public)
    for name, member in theirs_public.items():
        if inspect.isfunction(member):
            assert signature_of(ours_public[name]) == signature_of(member), name
        elif isinstance(member, property):
            assert not inspect.isfunction(ours_public[name]), f"{name} is a property"


def signature_of(function: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", ["IntervalStrategy", "SaveStrategy", "HubStrategy", "SchedulerType"])
def test_enums_of_trainer_utils_have_the_members_of_transformers(name: str) -> None:
    import transformers.trainer_utils as theirs

    assert members(getattr(trainwright.arguments.enums, name)) == members(getattr(theirs, name))


@pytest.mark.parametrize("name", ["OptimizerNames", "ParallelMode"])
def test_enums_of_training_args_have_the_members_of_transformers(name: str) -> None:
    import transformers.training_args as theirs

    assert members(getattr(trainwright.arguments.enums, name)) == members(getattr(theirs, name))


def members(enum: Any) -> dict[str, str]:
    return {member.name: member.value for member in enum}


DERIVED: dict[str, dict[str, Any]] = {
    "defaults": {},
    "a pathlike and a home": {"output_dir": "~/x"},
    "counts given as numbers": {"warmup_steps": 10, "num_train_epochs": 2, "logging_steps": 10.0, "save_steps": 20.0},
    "shares of all steps": {"warmup_steps": 0.1, "logging_steps": 0.05, "save_steps": 0.5},
    "evaluation follows logging": {"eval_strategy": "steps", "logging_steps": 7},
    "zero evaluation steps follow logging": {"eval_strategy": "steps", "logging_steps": 7, "eval_steps": 0},
    "evaluation by epochs": {"eval_strategy": "epoch"},
    "no evaluation": {"eval_strategy": "no", "do_eval": True},
    "best model": {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
    "best model by shares": {
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": 0.1,
        "save_steps": 0.3,
    },
    "best accuracy": {"metric_for_best_model": "eval_accuracy"},
    "least loss": {"metric_for_best_model": "my_loss"},
    "greater said": {"metric_for_best_model": "my_loss", "greater_is_better": True},
    "save best": {"save_strategy": "best", "eval_strategy": "epoch", "metric_for_best_model": "loss"},
    "plateau": {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"},
    "greedy": {"lr_scheduler_type": "greedy", "eval_strategy": "epoch"},
    "old name of activation checkpointing": {"gradient_checkpointing": True},
    "old names with settings": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
    "new name wins": {"gradient_checkpointing": True, "activation_checkpointing": False},
    "JSON text": {
        "lr_scheduler_kwargs": '{"num_cycles": "2", "power": "0.5", "on": "True", "in": {"x": "1"}, "s": "a"}'
    },
    "compile by backend": {"torch_compile_backend": "aot_eager"},
    "compile by mode": {"torch_compile_mode": "reduce-overhead"},
    "compile": {"torch_compile": True},
    "cpu": {"use_cpu": True},
    "tokens seen, no": {"include_num_input_tokens_seen": False},
    "report to a list": {"report_to": ["none"]},
    "accelerator config": {"accelerator_config": {"split_batches": True, "even_batches": False}},
    "accelerator config as text": {"accelerator_config": '{"dispatch_batches": "true"}'},
    "bf16": {"bf16": True, "use_cpu": True},
    "fp16": {"fp16": True},
    "enums": {"save_strategy": transformers.trainer_utils.SaveStrategy.EPOCH},
    "their optimizer enum": {"optim": transformers.training_args.OptimizerNames.SGD},
    "levels": {"log_level": "debug", "log_level_replica": "passive"},
    "no debug": {"debug": ""},
}


@pytest.mark.parametrize("values", DERIVED.values(), ids=DERIVED)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_derived_values_are_the_same(values: dict[str, Any]) -> None:
    ours, theirs = TrainingArguments(**values), transformers.TrainingArguments(**values)
    assert ours.to_dict() == theirs.to_dict()
    assert json.loads(ours.to_json_string()) == json.loads(theirs.to_json_string())
    assert ours.mixed_precision == theirs.mixed_precision


@pytest.mark.parametrize("values", DERIVED.values(), ids=DERIVED)
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("ours", "theirs"), CLASSES)
def test_dicts_and_json_of_transformers_are_read_and_written_alike(
    ours: Any, theirs: Any, values: dict[str, Any]
) -> None:
    original = theirs(**values)
    assert ours.from_dict(original.to_dict()).to_dict() == original.to_dict()
    assert ours.from_json_string(original.to_json_string()).to_dict() == original.to_dict()
    assert ours(**original.to_dict()) == ours(**values)


@given(some_arguments().map(lambda values: values | {"use_cpu": True}))
@settings(max_examples=200)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_transformers_accepts_is_accepted_and_nothing_more(values: dict[str, Any]) -> None:
    # theirs asks the machine, and takes sizes of a mesh as an object alone
    for name in ("tf32", "ddp_backend", "dataloader_multiprocessing_context", "parallelism_config"):
        values.pop(name, None)
    try:
        ours = TrainingArguments(**values).to_dict()
    except ArgumentError:
        assume(False)
    assert ours == transformers.TrainingArguments(**values).to_dict()


SETTERS: dict[str, dict[str, Any]] = {
    "set_push_to_hub": {"model_id": "me/model", "strategy": "checkpoint", "private_repo": True, "revision": "dev"},
    "set_training": {"learning_rate": 1e-4, "batch_size": 32, "activation_checkpointing": True},
    "set_evaluate": {"strategy": "steps", "steps": 100, "delay": 2, "batch_size": 4, "accumulation_steps": 3},
    "set_testing": {"batch_size": 32, "loss_only": True},
    "set_save": {"strategy": "steps", "steps": 100, "total_limit": 2, "on_each_node": True},
    "set_logging": {"strategy": "steps", "steps": 100, "level": "error", "report_to": []},
    "set_optimizer": {"name": "adamw_torch", "beta1": 0.8, "args": "a=1"},
    "set_lr_scheduler": {"name": "cosine", "warmup_steps": 0.05, "max_steps": 7},
    "set_dataloader": {"train_batch_size": 16, "num_workers": 2, "prefetch_factor": 3, "sampler_seed": 1},
}


@pytest.mark.parametrize("name", SETTERS)
def test_setters_do_what_those_of_transformers_do(name: str) -> None:
    ours, theirs = TrainingArguments(), transformers.TrainingArguments()
    assert getattr(ours, name)(**SETTERS[name]) is ours
    getattr(theirs, name)(**SETTERS[name])
    assert ours.to_dict() == theirs.to_dict()


def test_every_setter_is_compared() -> None:
    assert {name for name in dir(transformers.TrainingArguments) if name.startswith("set_")} == set(SETTERS)


THEIR_ERRORS: dict[str, dict[str, Any]] = {
    "logging steps 0": {"logging_steps": 0},
    "logging steps with a fraction": {"logging_steps": 1.5},
    "evaluation steps with a fraction": {"eval_strategy": "steps", "eval_steps": 2.5},
    "save steps with a fraction": {"save_steps": 2.5},
    "nothing says when to evaluate": {"eval_strategy": "steps", "logging_strategy": "no", "logging_steps": 0},
    "unequal strategies": {"load_best_model_at_end": True, "eval_strategy": "epoch"},
    "no multiple": {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 3, "save_steps": 4},
    "no multiple of a share": {
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": 0.2,
        "save_steps": 0.3,
    },
    "two formats": {"bf16": True, "fp16": True, "use_cpu": True},
    "two formats for evaluation": {"bf16_full_eval": True, "fp16_full_eval": True, "use_cpu": True},
    "plateau without evaluation": {"lr_scheduler_type": "reduce_lr_on_plateau"},
    "greedy without evaluation": {"lr_scheduler_type": "greedy"},
    "negative warmup": {"warmup_steps": -1},
    "prefetch without workers": {"dataloader_prefetch_factor": 2},
    "an unknown word": {"eval_strategy": "sometimes"},
    "an unknown optimizer": {"optim": "adam"},
    "emptying the cache every 0 steps": {"torch_empty_cache_steps": 0},
}


@pytest.mark.parametrize("values", THEIR_ERRORS.values(), ids=THEIR_ERRORS)
def test_what_transformers_refuses_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        transformers.TrainingArguments(**values)
    with pytest.raises(ArgumentError) as error:
        TrainingArguments(**values)
    assert not isinstance(error.value, NotImplementedError)


def test_properties_of_a_single_process_are_those_of_transformers() -> None:
    ours, theirs = TrainingArguments(use_cpu=True), transformers.TrainingArguments(use_cpu=True)
    for name in [*(n for n, m in public(transformers.TrainingArguments).items() if isinstance(m, property))]:
        assert plain(getattr(ours, name)) == plain(getattr(theirs, name)), name
    assert ours.get_process_log_level() == theirs.get_process_log_level()
    assert ours.to_sanitized_dict() == theirs.to_sanitized_dict()


@pytest.mark.parametrize("warmup", [0, 0.1, 0.999, 1, 10, 1.0])
def test_warmup_steps_are_counted_as_by_transformers(warmup: float) -> None:
    ours, theirs = TrainingArguments(warmup_steps=warmup), transformers.TrainingArguments(warmup_steps=warmup)
    for steps in (1, 10, 101):
        assert ours.get_warmup_steps(steps) == theirs.get_warmup_steps(steps)


@pytest.mark.parametrize("level", ["passive", "debug", "info", "warning", "error", "critical", "detail"])
def test_the_log_level_of_a_process_is_that_of_transformers(level: str) -> None:
    ours = TrainingArguments(log_level=level, use_cpu=True)
    theirs = transformers.TrainingArguments(log_level=level, use_cpu=True)
    assert ours.get_process_log_level() == theirs.get_process_log_level()


COMMAND_LINES = {
    "numbers": ["--output_dir", "x", "--learning_rate", "3e-4", "--max_steps", "5", "--warmup_steps", "0.1"],
    "words": ["--eval_strategy", "epoch", "--optim", "sgd", "--lr_scheduler_type", "cosine", "--log_level", "error"],
    "flags": ["--use_cpu", "--activation_checkpointing", "--no_dataloader_pin_memory", "--logging_first_step", "true"],
    "lists": ["--label_names", "a", "b", "--include_for_metrics", "inputs", "loss"],
    "mappings": ["--lr_scheduler_kwargs", '{"num_cycles": 2}', "--accelerator_config", '{"even_batches": false}'],
}


@pytest.mark.parametrize("line", COMMAND_LINES.values(), ids=COMMAND_LINES)
@pytest.mark.parametrize(("ours", "theirs"), CLASSES)
def test_their_argument_parser_reads_our_class(ours: Any, theirs: Any, line: list[str]) -> None:
    (mine,) = HfArgumentParser(ours).parse_args_into_dataclasses(line)
    (original,) = HfArgumentParser(theirs).parse_args_into_dataclasses(line)
    assert type(mine) is ours
    assert mine.to_dict() == original.to_dict()


def test_their_argument_parser_prints_our_descriptions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(["--help"])
    assert stop.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert " ".join(FIELDS["learning_rate"].description.split())[:40] in printed


def test_a_subclass_adds_fields_that_are_checked_as_well() -> None:
    @dataclasses.dataclass
    class Mine(TrainingArguments):
        beta: float = 0.1

    args = Mine("x", beta=0.3, max_steps=3)
    assert (args.beta, args.max_steps, args.to_dict()["beta"]) == (0.3, 3, 0.3)
    with pytest.raises(ArgumentError, match="did you mean beta"):
        Mine(betta=0.3)


def test_choices_are_those_of_transformers() -> None:
    with (Path(__file__).parents[1] / "fixtures" / "training_arguments.json").open(encoding="utf-8") as file:
        table = json.load(file)
    for entry in table:
        if entry["choices"]:
            assert list(FIELDS[entry["name"]].choices or ()) == entry["choices"], entry["name"]


def test_types_are_those_of_transformers() -> None:
    from typing import get_type_hints

    ours, theirs = get_type_hints(Seq2SeqTrainingArguments), get_type_hints(transformers.Seq2SeqTrainingArguments)
    for name in FIELDS:
        assert (type(None) in get_args(ours[name])) >= (type(None) in get_args(theirs[name])), name
