"""What arguments need of the machine is asked when they are made, of a machine that is made up here."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from trainwright.arguments import ArgumentError, TrainingArguments, machine
from trainwright.arguments.enums import OptimizerNames

OF_TORCH = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}
LOW_RANK = {"optim_target_modules": "all-linear"}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what the machine has: modules to import and kinds of devices."""

    def has(modules: set[str], *devices: str) -> None:
        monkeypatch.setattr(machine, "find_spec", lambda name: name in modules or None)
        monkeypatch.setattr(machine, "_has", lambda kind: kind in devices)
        monkeypatch.setattr(machine.Package, "_version", lambda package: (99, 0))

    return has


def said(**arguments: Any) -> list[str]:
    """The lines of the error, or none."""
    try:
        TrainingArguments(**arguments)
    except ArgumentError as error:
        return str(error).splitlines()
    return []


def test_every_optimizer_is_of_torch_or_of_a_package() -> None:
    assert OF_TORCH | set(machine.OPTIMIZERS) == {member.value for member in OptimizerNames}
    assert not OF_TORCH & set(machine.OPTIMIZERS)


@pytest.mark.parametrize("optim", sorted(machine.OPTIMIZERS))
def test_without_its_package_an_optimizer_is_refused_with_the_command_that_installs_it(optim: str, here: Any) -> None:
    here(set())
    package, low_rank = machine.OPTIMIZERS[optim], optim.startswith(("galore", "apollo"))
    (line,) = said(optim=optim, **(LOW_RANK if low_rank else {}))
    assert line == (
        f"optim: {optim} needs the package {package.distribution}, which is not installed; run: {package.install}, "
        "or choose adamw_torch_fused"
    )
    here({package.module}, "cuda")
    assert said(optim=optim, **(LOW_RANK if low_rank else {})) == []


def test_a_package_that_is_too_old_is_refused_with_the_upgrade(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here({"schedulefree"})
    monkeypatch.setattr(machine.Package, "_version", lambda package: (1, 3))
    (line,) = said(optim="schedule_free_radam")
    assert "needs schedulefree 1.4 or newer; run: pip install schedulefree --upgrade" in line


PACKAGES = {"galore_torch", "lomo_optim", "liger_kernel"}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "tf32": (
        {"tf32": True},
        "tf32: this machine has no NVIDIA GPU of the Ampere generation or later; leave tf32 unset",
    ),
    "8 bits of GaLore": (
        {"optim": "galore_adamw_8bit", **LOW_RANK},
        "optim: galore_adamw_8bit keeps its state on a GPU, and there is none; choose galore_adamw",
    ),
    "AdaLOMO": ({"optim": "adalomo"}, "optim: adalomo keeps its state on a GPU, and there is none; choose lomo"),
    "Liger": (
        {"use_liger_kernel": True},
        "use_liger_kernel: its kernels run on GPUs only, and there is none here; leave it out",
    ),
    "counters of a TPU": (
        {"debug": ["tpu_metrics_debug"]},
        "debug: tpu_metrics_debug needs the package torch_xla, which is not installed; "
        "run: pip install torch_xla[tpu], or leave it out: it counts what a TPU does",
    ),
}


@pytest.mark.parametrize(("arguments", "line"), REFUSED.values(), ids=REFUSED)
def test_what_needs_a_device_is_refused_without_it(arguments: dict[str, Any], line: str, here: Any) -> None:
    here(PACKAGES)
    assert said(**arguments) == [line]


@pytest.mark.parametrize("name", ["8 bits of GaLore", "AdaLOMO", "Liger"])
def test_a_gpu_that_is_not_used_is_none(name: str, here: Any) -> None:
    here(PACKAGES, "cuda")
    arguments, line = REFUSED[name]
    assert said(**arguments) == []
    assert said(**arguments, use_cpu=True) == [line]


def test_a_gpu_without_bfloat16_refuses_it(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_gpu_computes_bfloat16", lambda: False)
    here(set(), "cuda")
    assert said(bf16=True, bf16_full_eval=True) == [
        "bf16: this GPU does not compute in bfloat16; use fp16, or use_cpu",
        "bf16_full_eval: this GPU does not compute in bfloat16; use fp16_full_eval, or use_cpu",
    ]
    assert said(bf16=True, use_cpu=True) == []
    here(set())
    assert said(bf16=True) == []


@pytest.mark.parametrize(
    ("backend", "kind", "name"),
    [("nccl", "cuda", "NVIDIA or AMD GPU"), ("xccl", "xpu", "Intel GPU"), ("hccl", "npu", "Ascend NPU")],
)
def test_a_backend_needs_its_device_where_there_are_several_processes(
    backend: str, kind: str, name: str, here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(set())
    assert said(ddp_backend=backend) == []
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert said(ddp_backend=backend) == [f"ddp_backend: {backend} needs an {name}; leave it out for gloo"]
    here(set(), kind)
    assert said(ddp_backend=backend) == []


def test_compiling_for_a_cpu_needs_a_compiler(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here(set())
    monkeypatch.setattr("shutil.which", lambda name: None)
    (line,) = said(torch_compile=True)
    assert line == "torch_compile: inductor compiles C++ here and finds no compiler; install g++, or leave it out"
    assert said(torch_compile_backend="eager") == []
    here(set(), "cuda")
    assert said(torch_compile=True) == []


def test_several_lacks_are_told_at_once(here: Any) -> None:
    here(set())
    assert [line.partition(":")[0] for line in said(optim="lion_8bit", tf32=True)] == ["optim", "tf32"]


def test_torch_is_imported_for_nobody_who_asks_for_no_device() -> None:
    code = "import sys; from trainwright import TrainingArguments as T; T(optim='sgd'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
