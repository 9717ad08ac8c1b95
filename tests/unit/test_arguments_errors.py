"""What is said about wrong arguments: one line each, with the field, what is wrong and the mend."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from trainwright.arguments import (
    ArgumentError,
    TrainingArguments,
    UnknownArgumentError,
)
from trainwright.contract import ExitCode, UserError

NO = 'is the boolean false; write "no" in quotes, since a bare no is a boolean in YAML'

# field, value, what is said of it
WRONG_VALUES: list[tuple[str, Any, str]] = [
    (
        "learning_rate",
        "3e-4",
        "must be a number, not the text '3e-4'; write 3.0e-4 without quotes (YAML wants the point)",
    ),
    ("learning_rate", "0.1", "must be a number, not the text '0.1'; write it without quotes"),
    ("learning_rate", "fast", "must be a number, not the text 'fast'"),
    ("learning_rate", True, "must be a number, not the boolean True"),
    ("learning_rate", None, "must not be None; leave it out for 5e-05"),
    ("learning_rate", -1e-4, "must be at least 0, not -0.0001"),
    ("learning_rate", float("nan"), "must be a finite number, not nan"),
    ("learning_rate", float("inf"), "must be a finite number, not inf"),
    ("learning_rate", [1e-4], "must be a number, not the list [0.0001]"),
    ("max_steps", -5, "must be at least -1, not -5"),
    ("max_steps", "100", "must be a whole number, not the text '100'; write it without quotes"),
    ("max_steps", 1.5, "must be a whole number, not the number 1.5"),
    ("max_steps", True, "must be a whole number, not the boolean True"),
    ("per_device_train_batch_size", 0, "must be at least 1, not 0"),
    ("warmup_steps", -1, "must be at least 0, not -1"),
    ("adam_beta1", 1.0, "must be below 1, not 1.0"),
    ("label_smoothing_factor", 1.5, "must be at most 1, not 1.5"),
    ("seed", -1, "must be at least 0, not -1"),
    ("seed", 2**32, "must be at most 4294967295, not 4294967296"),
    ("bf16", "true", "must be true or false, not the text 'true'; write it without quotes"),
    ("bf16", "yes", "must be true or false, not the text 'yes'"),
    ("bf16", 1, "must be true or false, not the number 1"),
    ("eval_strategy", False, NO),
    ("save_strategy", False, NO),
    ("eval_strategy", "step", "'step' is not one of no, steps, epoch; did you mean steps?"),
    ("eval_strategy", "best", "'best' is not one of no, steps, epoch"),
    ("eval_strategy", 3, "3 is not one of no, steps, epoch"),
    ("optim", "adamw", "'adamw' is not a choice; did you mean adamw_torch?"),
    ("lr_scheduler_type", "Cosine", "'Cosine' is not a choice; did you mean cosine?"),
    ("ddp_backend", "glo", "'glo' is not one of nccl, gloo, mpi, xccl, hccl, cncl, mccl; did you mean gloo?"),
    ("include_num_input_tokens_seen", "some", "'some' is not one of all, non_padding, no"),
    ("report_to", "wandbb", "'wandbb' is not a choice; did you mean wandb?"),
    ("report_to", ["none", 3], "must hold texts only, not the number 3"),
    ("include_for_metrics", ["input"], "'input' is not one of inputs, loss; did you mean inputs?"),
    ("label_names", "labels", "must be a list of texts, not a text; write ['labels']"),
    ("label_names", {"labels": 1}, "must be a list of texts, not the dict {'labels': 1}"),
    ("output_dir", "", "must be a path, not ''"),
    ("output_dir", 3, "must be text, not the number 3"),
    ("run_name", 3, "must be text, not the number 3"),
    ("optim_args", "momentum", "must be key=value with commas between, not 'momentum'"),
    ("lr_scheduler_kwargs", "num_cycles=2", "must be a mapping, or its JSON text; 'num_cycles=2' is not JSON: "),
    ("lr_scheduler_kwargs", "[1]", "must be a mapping, or its JSON text, not the list [1]"),
    ("lr_scheduler_kwargs", {1: 2}, "must have texts for keys, not 1"),
    ("lr_scheduler_kwargs", 3, "must be a mapping, or its JSON text, not the number 3"),
    ("accelerator_config", {"split_batches": "yes"}, "split_batches must be true or false, not 'yes'"),
    (
        "accelerator_config",
        {"gradient_accumulation_kwargs": 3},
        "gradient_accumulation_kwargs must be a mapping, not 3",
    ),
    (
        "accelerator_config",
        "/no/such/file.json",
        "cannot read the file '/no/such/file.json': No such file or directory",
    ),
    ("accelerator_config", dict, "is the class dict; give an instance of it or a mapping"),
    ("logging_steps", "x" * 100, f"must be a number, not the text '{'x' * 56}..."),
]


@pytest.mark.parametrize(("field", "value", "said"), WRONG_VALUES, ids=[f"{f}={v!r:.20}" for f, v, _ in WRONG_VALUES])
def test_a_wrong_value_is_refused_in_one_line(field: str, value: Any, said: str) -> None:
    with pytest.raises(ArgumentError) as error:
        TrainingArguments(**{field: value})
    (problem,) = error.value.problems
    assert problem.field == field
    assert problem.message.startswith(said) if said.endswith(": ") else problem.message == said
    assert "\n" not in str(error.value)


UNKNOWN = {
    "lerning_rate": "lerning_rate: is not an argument; did you mean learning_rate?",
    "learningRate": "learningRate: is not an argument; did you mean learning_rate?",
    "per_device_batch_size": "per_device_batch_size: is not an argument; did you mean per_device_eval_batch_size?",
    "evaluation_strategy": "evaluation_strategy: is not an argument; use eval_strategy",
    "warmup_ratio": "warmup_ratio: is not an argument; use warmup_steps, where a value below 1 is a share of all steps",
    "per_gpu_train_batch_size": ("per_gpu_train_batch_size: is not an argument; use per_device_train_batch_size"),
    "tokenizer": "tokenizer: is not an argument; use processing_class of the Trainer",
    "split_batches": 'split_batches: is not an argument; use accelerator_config={"split_batches": ...}',
    "tpu_num_cores": "tpu_num_cores: is not needed: the launcher starts a process for each core; remove it",
    "no_cuda": "no_cuda: is not an argument; use use_cpu",
    "overwrite_output_dir": ("overwrite_output_dir: is not needed: an output folder is never overwritten; remove it"),
    "predict_with_generate": "predict_with_generate: is an argument of Seq2SeqTrainingArguments",
    "qqq": "qqq: is not an argument",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_name_is_refused_with_a_suggestion(name: str) -> None:
    for build in (lambda: TrainingArguments(**{name: 1}), lambda: TrainingArguments.from_dict({name: 1})):
        with pytest.raises(UnknownArgumentError) as error:
            build()
        assert str(error.value) == UNKNOWN[name]


def test_all_mistakes_come_at_once() -> None:
    with pytest.raises(ArgumentError) as error:
        TrainingArguments(
            max_steps=-7,
            learning_rate="3e-4",  # type: ignore[arg-type]
            fp16=True,
            bf16=True,
            eval_strategy="epoch",
            load_best_model_at_end=True,
            deepspeed={"zero_optimization": {"stage": 0}},
        )
    assert str(error.value).splitlines() == [
        "max_steps: must be at least -1, not -7",
        "learning_rate: must be a number, not the text '3e-4'; write 3.0e-4 without quotes (YAML wants the point)",
        "deepspeed: zero_optimization.stage: 0 shards nothing; set 1, 2 or 3, or leave deepspeed out to train data "
        "parallel",
        "fp16 and bf16 exclude each other; keep bf16 where the hardware has it",
        'load_best_model_at_end needs save_strategy to be the same as eval_strategy, or "best"',
    ]
    assert [problem.field for problem in error.value.problems] == [
        "max_steps",
        "learning_rate",
        "deepspeed",
        "fp16",
        "load_best_model_at_end",
    ]


def test_unknown_names_come_with_the_other_mistakes() -> None:
    with pytest.raises(TypeError) as error:
        TrainingArguments(lerning_rate=1, max_steps=-7, deepspeed={"a": 1})  # type: ignore[call-arg]
    problems = error.value.problems  # type: ignore[attr-defined]
    assert [problem.field for problem in problems] == ["lerning_rate", "max_steps", "deepspeed"]


def test_a_mistake_is_an_error_of_the_user_and_a_value_error() -> None:
    with pytest.raises(ValueError) as error:
        TrainingArguments(max_steps=-7)
    assert isinstance(error.value, UserError)
    assert error.value.exit_code is ExitCode.BAD_CONFIGURATION


def test_errors_cross_processes() -> None:
    with pytest.raises(ArgumentError) as error:
        TrainingArguments(max_steps=-7, seed=-1)
    copy = pickle.loads(pickle.dumps(error.value))
    assert (type(copy), copy.problems, str(copy)) == (ArgumentError, error.value.problems, str(error.value))


def test_a_broken_file_of_accelerator_config_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "config.json"
    for text, said in [("{", "is not JSON"), ("[]", "must hold a JSON object"), ('{"even": true}', "not one of")]:
        path.write_text(text)
        with pytest.raises(ArgumentError, match=said):
            TrainingArguments(accelerator_config=str(path))


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_broken_json_is_refused_with_its_path(text: str, tmp_path: Any) -> None:
    with pytest.raises(ArgumentError, match="JSON"):
        TrainingArguments.from_json_string(text)
    path = tmp_path / "args.json"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=str(path)):
        TrainingArguments.from_json_file(str(path))


def test_a_missing_file_of_arguments_is_refused() -> None:
    with pytest.raises(ArgumentError, match="no-such-file"):
        TrainingArguments.from_json_file("no-such-file")


def test_a_token_is_never_printed() -> None:
    with pytest.raises(ArgumentError) as wrong:
        TrainingArguments(hub_token=["hf_secret"])  # type: ignore[arg-type]
    assert "hf_secret" not in str(wrong.value)
    args = TrainingArguments()
    args.hub_token = "hf_secret"
    assert "hf_secret" not in f"{args} {args!r} {args.to_json_string()}"


def test_changed_attributes_are_looked_at_again() -> None:
    args = TrainingArguments()
    args.learning_rate = "3e-4"  # type: ignore[assignment]
    with pytest.raises(ArgumentError, match="learning_rate: must be a number"):
        args.check()


def test_setters_check_their_values_and_leave_the_rest() -> None:
    args = TrainingArguments(learning_rate=0.1)
    with pytest.raises(ArgumentError) as error:
        args.set_training(learning_rate=-1, batch_size=0)
    assert [problem.field for problem in error.value.problems] == ["learning_rate", "per_device_train_batch_size"]
    assert args.learning_rate == 0.1
    for setter in (args.set_save, args.set_logging, args.set_evaluate):
        with pytest.raises(ArgumentError, match=r"_steps: must be above 0"):
            setter("steps", 0)


def test_a_chain_of_setters_may_pass_through_what_does_not_fit() -> None:
    args = TrainingArguments().set_optimizer("sgd").set_lr_scheduler("greedy")
    with pytest.raises(ArgumentError, match="lr_scheduler_type follows the evaluation"):
        args.check()
    args.set_evaluate("epoch").check()
    assert args.do_eval
