"""Checks what arguments need from this machine: installed packages and devices.

The checks run at construction, and only for arguments that need something, so that torch is only imported to check for
devices. The operator checks arguments for other machines, and does not use them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from .errors import Problem


@dataclass(frozen=True)
class Package:
    """A library that a value needs: the name of its module, and the command that installs it."""

    module: str
    install: str
    name: str = ""
    least: tuple[int, ...] = ()

    @property
    def distribution(self) -> str:
        return self.name or self.install.split()[-1]

    def lacking(self) -> str | None:
        """The message if the package is missing or too old, or None."""
        if not _found(self.module):
            return f"needs the package {self.distribution}, which is not installed; run: {self.install}"
        if self.least and self._version() < self.least:
            least = ".".join(map(str, self.least))
            return f"needs {self.distribution} {least} or newer; run: {self.install} --upgrade"
        return None

    def _version(self) -> tuple[int, ...]:
        from importlib.metadata import PackageNotFoundError, version

        try:
            numbers = version(self.distribution).split(".")
        except PackageNotFoundError:
            return self.least
        return tuple(int(number) for number in numbers[:2] if number.isdecimal())


_BITSANDBYTES = Package("bitsandbytes", "pip install bitsandbytes")
_GALORE = Package("galore_torch", "pip install galore-torch")
_APOLLO = Package("apollo_torch", "pip install apollo-torch")
_LOMO = Package("lomo_optim", "pip install lomo-optim")
_TORCHAO = Package("torchao", "pip install torchao", least=(0, 11))
_SCHEDULE_FREE = Package("schedulefree", "pip install schedulefree", least=(1, 4))
_DEEPSPEED = Package("deepspeed", "pip install --no-build-isolation trainwright[deepspeed]", "deepspeed")
_LIGER = Package("liger_kernel", "pip install liger-kernel")
_XLA = Package("torch_xla", "pip install torch_xla[tpu]", "torch_xla")

OPTIMIZERS: dict[str, Package] = {
    **dict.fromkeys(
        (
            *("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "ademamix", "ademamix_8bit"),
            *("paged_ademamix_32bit", "paged_ademamix_8bit", "lion_8bit", "lion_32bit", "paged_lion_8bit"),
            *("paged_lion_32bit", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
        ),
        _BITSANDBYTES,
    ),
    **dict.fromkeys(
        (
            *("galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise"),
            *("galore_adamw_8bit_layerwise", "galore_adafactor_layerwise"),
        ),
        _GALORE,
    ),
    **dict.fromkeys(("apollo_adamw", "apollo_adamw_layerwise"), _APOLLO),
    **dict.fromkeys(("lomo", "adalomo"), _LOMO),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), _TORCHAO),
    **dict.fromkeys(("schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"), _SCHEDULE_FREE),
    "grokadamw": Package("grokadamw", "pip install grokadamw"),
    "stable_adamw": Package("optimi", "pip install torch-optimi"),
    "adamw_anyprecision": Package(
        "torchdistx", "pip install git+https://github.com/pytorch/torchdistx", name="torchdistx"
    ),
    "adamw_torch_xla": _XLA,
    "adamw_torch_npu_fused": Package("torch_npu", "pip install torch_npu"),
}
"""The values of ``optim`` that are not in torch -> the package that they need."""

_CUDA_ALONE = frozenset({"galore_adamw_8bit", "galore_adamw_8bit_layerwise", "adalomo"})
"""Optimizers whose packages move their state to an NVIDIA or AMD GPU, regardless of the model's device."""

_TRACKERS = {
    "azure_ml": Package("azureml.core.run", "pip install azureml-core"),
    "comet_ml": Package("comet_ml", "pip install comet-ml", least=(3, 43)),
    "dagshub": Package("dagshub", "pip install dagshub mlflow", "dagshub"),
    "dvclive": Package("dvclive", "pip install dvclive"),
    "mlflow": Package("mlflow", "pip install mlflow"),
    "neptune": Package("neptune", "pip install neptune"),
    "tensorboard": Package("tensorboard", "pip install tensorboard"),
    "wandb": Package("wandb", "pip install wandb"),
    "codecarbon": Package("codecarbon", "pip install codecarbon"),
    "clearml": Package("clearml", "pip install clearml"),
    "swanlab": Package("swanlab", "pip install swanlab"),
    "trackio": Package("trackio", "pip install trackio"),
    "flyte": Package("flytekit", "pip install flytekit"),
}
"""Experiment tracker -> its package, in the order in which transformers adds those of ``report_to="all"``."""

_BACKENDS = {"nccl": "cuda", "xccl": "xpu", "hccl": "npu", "cncl": "mlu", "mccl": "musa"}
"""Backend of torch.distributed -> its device type."""
_DEVICE_NAMES = {
    "cuda": "NVIDIA or AMD GPU",
    "xpu": "Intel GPU",
    "npu": "Ascend NPU",
    "mlu": "Cambricon MLU",
    "musa": "Moore Threads GPU",
}


def installed_trackers() -> list[str]:
    """The trackers of ``report_to="all"`` on this machine, chosen as transformers does.

    A Flyte task is not recognised by its package, Comet needs a key, and Azure ML has MLflow's interface too.
    """
    there = [name for name in _TRACKERS if name != "flyte" and _tracker_lacks(name) is None]
    without = {"comet_ml"} if not os.environ.get("COMET_API_KEY") else set()
    if os.environ.get("DISABLE_MLFLOW_INTEGRATION", "").upper() == "TRUE":
        without.add("mlflow")
    if "mlflow" in {*there} - without:
        without.add("azure_ml")
    return [name for name in there if name not in without]


def _tracker_lacks(name: str) -> str | None:
    """The message for the missing package of a tracker, or None."""
    if name == "tensorboard" and _found("tensorboardX"):
        return None
    if name == "dagshub" and not _found("mlflow"):
        return _TRACKERS["mlflow"].lacking()
    return _TRACKERS[name].lacking()


def _found(module: str) -> bool:
    """Whether a module exists; its parent packages are imported."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # ValueError: a stub in sys.modules without a spec
        return module in sys.modules


def lacking(args: Any) -> list[Problem]:
    """A problem, with its fix, for each argument that this machine does not support."""
    return [problem for check in _CHECKS for problem in check(args)]


def package_problem(optim: str) -> str | None:
    """Why the optimizer ``optim`` cannot be created here, or None."""
    package = OPTIMIZERS.get(optim)
    lack = package.lacking() if package is not None else None
    return None if lack is None else f"{optim} {lack}, or choose adamw_torch_fused"


def _optimizer(args: Any) -> Iterator[Problem]:
    optim = getattr(args.optim, "value", args.optim)
    if (problem := package_problem(optim)) is not None:
        yield Problem("optim", problem, ImportError)
    elif optim in _CUDA_ALONE and (args.use_cpu or not _has("cuda")):
        yield Problem("optim", f"{optim} keeps its state on a GPU, and there is none; choose {_ON_CPU[optim]}")


_ON_CPU = {
    "galore_adamw_8bit": "galore_adamw",
    "galore_adamw_8bit_layerwise": "galore_adamw_layerwise",
    "adalomo": "lomo",
}


def _tf32(args: Any) -> Iterator[Problem]:
    if args.tf32 and not _is_ampere():
        message = "this machine has no NVIDIA GPU of the Ampere generation or later; leave tf32 unset"
        yield Problem("tf32", f"tf32: {message}")


def _bfloat16(args: Any) -> Iterator[Problem]:
    wanted = [name for name in ("bf16", "bf16_full_eval") if getattr(args, name)]
    if wanted and not args.use_cpu and _has("cuda") and not _gpu_computes_bfloat16():
        for name in wanted:
            alternative = name.replace("bf16", "fp16")
            yield Problem(name, f"this GPU does not compute in bfloat16; use {alternative}, or use_cpu")


def _backend(args: Any) -> Iterator[Problem]:
    """Checks the backend of a launched process; a single process does not use it."""
    from .devices import launched

    kind = _BACKENDS.get(args.ddp_backend)
    if kind is not None and launched() and not _has(kind):
        yield Problem("ddp_backend", f"{args.ddp_backend} needs an {_DEVICE_NAMES[kind]}; leave it out for gloo")


def _liger(args: Any) -> Iterator[Problem]:
    if not args.use_liger_kernel:
        return
    if (lack := _LIGER.lacking()) is not None:
        yield Problem("use_liger_kernel", f"{lack}, or leave it out", ImportError)
    elif args.use_cpu or not any(map(_has, ("cuda", "xpu", "npu"))):
        yield Problem("use_liger_kernel", "its kernels run on GPUs only, and there is none here; leave it out")


def _deepspeed(args: Any) -> Iterator[Problem]:
    if args.deepspeed and (lack := _DEEPSPEED.lacking()) is not None:
        yield Problem("deepspeed", f"{lack}, or shard by fsdp", ImportError)


def _tpu(args: Any) -> Iterator[Problem]:
    if "tpu_metrics_debug" in args.debug and (lack := _XLA.lacking()) is not None:
        yield Problem("debug", f"tpu_metrics_debug {lack}, or leave it out: it counts what a TPU does", ImportError)


def _compiler(args: Any) -> Iterator[Problem]:
    """Checks for a C++ compiler, which inductor needs without a GPU."""
    if not (args.torch_compile and args.torch_compile_backend == "inductor"):
        return
    import shutil

    compilers = (os.environ.get("CXX") or "g++", "c++", "clang++")
    if not any(map(shutil.which, compilers)) and not _has("cuda") and not _has("xpu"):
        yield Problem("torch_compile", "inductor compiles C++ here and finds no compiler; install g++, or leave it out")


def _trackers(args: Any) -> Iterator[Problem]:
    for name in args.report_to:
        if name in ("all", "none"):
            yield Problem("report_to", f"{name!r} stands alone; leave it out, or the others")
        elif name in _TRACKERS and (lack := _tracker_lacks(name)) is not None:
            yield Problem("report_to", f"{name} {lack}, or leave it out", ImportError)


_CHECKS: tuple[Callable[[Any], Iterator[Problem]], ...] = (
    *(_optimizer, _bfloat16, _tf32, _compiler, _deepspeed, _liger, _backend, _tpu, _trackers),
)


def _has(kind: str) -> bool:
    """Whether torch is installed and finds a device of the type ``kind``."""
    if find_spec("torch") is None:
        return False
    import torch

    module = getattr(torch, kind, None)
    return module is not None and bool(module.is_available())


def _is_ampere() -> bool:
    if not _has("cuda"):
        return False
    import torch

    return torch.version.cuda is not None and torch.cuda.get_device_capability()[0] >= 8


def _gpu_computes_bfloat16() -> bool:
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))
