"""Every variable that accelerate's launcher exports is obeyed, refused by name, or none of the Trainer's business."""

from __future__ import annotations

import ast
import inspect
import os
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import GradientAccumulationPlugin, launch
from torch import nn
from transformers import TrainingArguments as TheirArguments
from transformers.trainer_pt_utils import AcceleratorConfig as TheirConfig

from trainer import tiny
from trainwright import Trainer, TrainingArguments
from trainwright.arguments import AcceleratorConfig, ArgumentError

OBEYED, REFUSED = "obeyed", "refused"
DETAIL = "settles the details of a switch that is refused"
STATE = "read by accelerate's own state, which is set up with it"
SYSTEM = "read by the libraries below: Python, OpenMP, the devices' drivers, torch's rendezvous"

VERDICTS = {
    "ACCELERATE_USE_CPU": OBEYED,
    "ACCELERATE_MIXED_PRECISION": OBEYED,
    "ACCELERATE_DYNAMO_BACKEND": OBEYED,
    "ACCELERATE_DYNAMO_MODE": OBEYED,
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": OBEYED,
    "ACCELERATE_DYNAMO_USE_DYNAMIC": OBEYED,
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": REFUSED,
    "ACCELERATE_USE_FSDP": OBEYED,
    "ACCELERATE_USE_DEEPSPEED": REFUSED,
    "ACCELERATE_USE_MEGATRON_LM": REFUSED,
    "ACCELERATE_USE_PARALLELISM_CONFIG": OBEYED,
    "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE": REFUSED,
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": REFUSED,  # unless it says what the arguments do
    "ACCELERATE_GRADIENT_CLIPPING": REFUSED,
    "ACCELERATE_USE_SAGEMAKER": "says where the process runs",
    "ACCELERATE_DEBUG_MODE": STATE,
    "ACCELERATE_CPU_AFFINITY": STATE,
    "FORK_LAUNCHED": STATE,
    "RANK": STATE,
    "LOCAL_RANK": STATE,
    "ACCELERATE_CONFIG_DS_FIELDS": DETAIL,
    "ACCELERATE_DEEPSPEED_*": DETAIL,
    "ACCELERATE_FP8_*": DETAIL,
    "FSDP_*": OBEYED,  # test_arguments_sharding.py
    "MEGATRON_LM_*": DETAIL,
    "PARALLELISM_CONFIG_*": OBEYED,
    "XLA_USE_BF16": SYSTEM,
    "XLA_DOWNCAST_BF16": SYSTEM,
    "PYTHONPATH": SYSTEM,
    "OMP_NUM_THREADS": SYSTEM,
    "KMP_*": SYSTEM,
    "MASTER_*": SYSTEM,
    "*_VISIBLE_*": SYSTEM,
    "ZE_AFFINITY_MASK": SYSTEM,
    "AWS_*": "of the process that submits to SageMaker, not of those that train",
}
"""Variable, or a pattern of many, -> what becomes of it."""


def exported_by_source() -> set[str]:
    """What accelerate's launcher writes into the environment of what it starts, read off its source."""
    names: set[str] = set()
    for function in ast.walk(ast.parse(inspect.getsource(launch))):
        if not isinstance(function, ast.FunctionDef):
            continue
        prefix = ""
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "prefix":
                prefix = ast.literal_eval(node.value)
        for node in ast.walk(function):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("current_env", "os.environ"):
                names.add(_name(node.slice, prefix))
            if isinstance(node, ast.Dict) and all(isinstance(k, ast.Constant) for k in node.keys):
                names |= {k.value for k in node.keys if str(k.value).startswith("ACCELERATE_")}
    return names


def _name(node: ast.expr, prefix: str) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    return prefix + (node.right.value if isinstance(node, ast.BinOp) else "FP8_ANYTHING")  # an f-string over --fp8_...


def verdict(name: str) -> str | None:
    return next((verdict for pattern, verdict in VERDICTS.items() if fnmatch(name, pattern)), None)


def test_there_is_a_verdict_on_every_variable() -> None:
    found = exported_by_source()
    assert len(found) > 60
    assert {name for name in found if verdict(name) is None} == set()


def launched(*flags: str) -> dict[str, str]:
    """What ``accelerate launch`` adds to the environment, by its own functions."""
    args = launch_command_parser().parse_args([*flags, "--num_processes", "1", "--num_machines", "1", "script.py"])
    args, *_ = _validate_launch_command(args)
    if args.use_deepspeed:
        environment = launch.prepare_deepspeed_cmd_env(args)[1]
    elif args.use_fsdp or args.use_megatron_lm or args.use_parallelism_config:
        environment = launch.prepare_multi_gpu_env(args)
    else:
        environment = launch.prepare_simple_launcher_cmd_env(args)[1]
    return {name: value for name, value in environment.items() if os.environ.get(name) != value}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Sets the variables of a launch; no configuration of this machine is read."""
    monkeypatch.setattr("accelerate.commands.launch.default_config_file", str(tmp_path / "none.yaml"))

    def enter(*flags: str, **variables: str) -> dict[str, str]:
        exported = {**(launched(*flags) if flags else {}), **variables}
        for name, value in exported.items():
            monkeypatch.setenv(name, value)
        return exported

    return enter


@pytest.fixture(params=[TrainingArguments, TheirArguments], ids=["our arguments", "those of transformers"])
def make(request: Any, tmp_path: Path) -> Any:
    def trainer(model: nn.Module | None = None, **arguments: Any) -> Trainer:
        common = {"use_cpu": True, "report_to": "none", "max_steps": 1, "disable_tqdm": True, "save_strategy": "no"}
        if request.param is TheirArguments and isinstance(arguments.get("accelerator_config"), AcceleratorConfig):
            arguments["accelerator_config"] = TheirConfig(**vars(arguments["accelerator_config"]))
        args = request.param(output_dir=str(tmp_path / "out"), **{**common, **arguments})
        return Trainer(model or tiny.classifier(), args, train_dataset=tiny.vectors(16))

    return trainer


SWITCHES = {
    "ACCELERATE_USE_MEGATRON_LM": (["--use_megatron_lm"], "not built yet; use --use_fsdp"),
    "ACCELERATE_USE_DEEPSPEED": ([], "give the configuration as the argument deepspeed"),
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": (
        ["--dynamo_backend", "eager", "--dynamo_use_regional_compilation"],
        "compiling block by block is not built yet",
    ),
    "ACCELERATE_MIXED_PRECISION": ([], "fp8 is not built yet; set it to bf16"),
    "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE": ([], "DATA_PARALLEL is not supported"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ([], "is 4, but gradient_accumulation_steps is 1; set grad"),
    "ACCELERATE_GRADIENT_CLIPPING": ([], "is 0.5, but max_grad_norm is 1.0; set max_grad_norm"),
    "ACCELERATE_USE_CPU": ([], "must be true or false, not 'perhaps'"),
}
BY_HAND = {
    "ACCELERATE_USE_DEEPSPEED": {"ACCELERATE_USE_DEEPSPEED": "true"},  # the launcher wants the package
    "ACCELERATE_MIXED_PRECISION": {"ACCELERATE_MIXED_PRECISION": "fp8"},
    "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE": {
        "ACCELERATE_USE_SAGEMAKER": "true", "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE": "DATA_PARALLEL",
    },
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
    "ACCELERATE_GRADIENT_CLIPPING": {"ACCELERATE_GRADIENT_CLIPPING": "0.5"},
    "ACCELERATE_USE_CPU": {"ACCELERATE_USE_CPU": "perhaps"},
}  # fmt: skip


@pytest.mark.parametrize("name", SWITCHES)
def test_features_that_are_not_built_are_refused_by_name(name: str, environment: Any) -> None:
    flags, reason = SWITCHES[name]
    exported = environment(*flags, **BY_HAND.get(name, {}))
    assert name in exported
    with pytest.raises(ArgumentError) as error:
        TrainingArguments(use_cpu=True)
    assert str(error.value).startswith(f"{name}: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_every_refusal_is_tried() -> None:
    assert {name for name, verdict in VERDICTS.items() if verdict == REFUSED} <= SWITCHES.keys()


def test_variables_that_do_not_concern_the_trainer_change_nothing(environment: Any) -> None:
    before = TrainingArguments(use_cpu=True).to_dict()
    ours = (OBEYED, REFUSED, STATE)
    names = [name.replace("*", "X") for name, verdict in VERDICTS.items() if verdict not in ours]
    environment(**dict.fromkeys(names, "1"))
    assert TrainingArguments(use_cpu=True).to_dict() == before


class Seeing(nn.Module):
    """Notes the type that its layer computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.seen: set[torch.dtype] = set()

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> Any:
        logits = self.layer(x)
        self.seen.add(logits.dtype)
        return nn.functional.cross_entropy(logits.float(), labels), logits


PRECISIONS = {
    "bf16": ("bf16", {}, torch.bfloat16),
    "fp16": ("fp16", {}, torch.float16),
    "no": ("no", {}, torch.float32),
    "the arguments' own wins": ("bf16", {"fp16": True}, torch.float16),
}


@pytest.mark.parametrize("name", PRECISIONS)
def test_forward_computes_as_the_launcher_says(name: str, environment: Any, make: Any) -> None:
    word, arguments, dtype = PRECISIONS[name]
    environment("--cpu", "--mixed_precision", word)
    trainer = make(Seeing(), **arguments)
    trainer.train()
    assert trainer.model.seen == {dtype}
    expected = (arguments and "fp16") or word
    assert (trainer.args.mixed_precision, trainer.accelerator.mixed_precision) == (expected, expected)
    assert (trainer.scaler is not None) == (dtype is torch.float16)


def test_the_launcher_compiles(environment: Any, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda model, **how: asked.append(how) or model)
    make().train()
    assert asked == []
    environment("--cpu", "--dynamo_backend", "aot_eager", "--dynamo_mode", "max-autotune", "--dynamo_use_fullgraph")
    make().train()
    make(torch_compile_backend="eager").train()
    environment("--cpu", "--dynamo_backend", "no", "--dynamo_use_dynamic")
    make(torch_compile=True, torch_compile_mode="reduce-overhead").train()
    fixed = {"mode": "max-autotune", "fullgraph": True, "dynamic": False}
    assert asked == [
        {"backend": "aot_eager", **fixed},
        {"backend": "eager", **fixed},
        {"backend": "inductor", "mode": "reduce-overhead", "fullgraph": False, "dynamic": True},
    ]


def test_the_cpu_is_used_where_the_launcher_says_so(environment: Any, make: Any) -> None:
    environment("--cpu")
    assert make(use_cpu=False).args.device.type == "cpu"
    assert TrainingArguments().use_cpu


# -- accelerator_config


FORMS = {
    "our dataclass": lambda said: AcceleratorConfig(gradient_accumulation_kwargs=said),
    "that of transformers": lambda said: TheirConfig(gradient_accumulation_kwargs=said),
    "a dict": lambda said: {"gradient_accumulation_kwargs": said},
}


@pytest.mark.parametrize("form", FORMS)
def test_gradient_accumulation_may_be_given_as_accelerates_dataclass(form: str, make: Any) -> None:
    plugin = GradientAccumulationPlugin(num_steps=2)
    trainer = make(accelerator_config=FORMS[form](plugin))
    trainer.train()
    assert trainer.args.gradient_accumulation_steps == 2
    assert trainer.state.epoch == 1.0  # 2 batches of 8


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "said", [{"adjust_scheduler": False}, GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False)]
)
def test_settings_of_accumulation_that_do_nothing_are_refused(said: Any, form: str, make: Any) -> None:
    with pytest.raises(ArgumentError, match=r"gradient_accumulation_kwargs: .* is not supported: "):
        make(accelerator_config=FORMS[form](said))


def test_a_dataclass_is_looked_at_as_a_mapping_is() -> None:
    with pytest.raises(ArgumentError, match="accelerator_config: split_batches must be true or false, not 'yes'"):
        TrainingArguments(accelerator_config=AcceleratorConfig(split_batches="yes"))  # type: ignore[arg-type]


def test_a_state_that_is_not_there_is_missed_at_once() -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ArgumentError, match="accelerator_config: use_configured_state needs"):
        TrainingArguments(use_cpu=True, accelerator_config={"use_configured_state": True})


def test_accelerates_logging_works_before_there_is_a_trainer(caplog: pytest.LogCaptureFixture) -> None:
    from accelerate.logging import get_logger
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    TrainingArguments(use_cpu=True)
    get_logger("a.script").warning("said once", main_process_only=True)
    assert "said once" in caplog.text
