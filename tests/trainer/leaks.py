"""What one test may leave to the next in the same process: seen before and after, so that who leaves it fails.

Looked at are the environment, the folder, signal handlers, loggers, the modules that stood, torch's own switches, and
the names in torch and transformers that libraries like to replace. The generators are not: each test begins with the
same ones.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

Names = dict[str, Any]
Seen = dict[str, Names]


def seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def look() -> Seen:
    return {kind: read() for kind, read in KINDS.items()}


def left(before: Seen, after: Seen) -> list[str]:
    """What differs, one text each."""
    return [text for kind in before for text in _changes(kind, before[kind], after[kind])]


def _changes(kind: str, before: Names, after: Names) -> list[str]:
    if before == after:
        return []
    if kind == "replaced":
        return [
            text for where in before.keys() & after.keys() for text in _replaced(where, before[where], after[where])
        ]
    names = before.keys() if kind in GROWING else before.keys() | after.keys()
    changed = [name for name in sorted(names) if before.get(name, GONE) != after.get(name, GONE)]
    return [f"{kind}: {name}: {before.get(name, GONE)!r:.80} -> {after.get(name, GONE)!r:.80}" for name in changed]


def _replaced(where: str, before: Names, after: Names) -> list[str]:
    """Functions and classes; what a module keeps for itself is its own affair."""
    return [
        f"replaced: {where}.{name} by {after.get(name, GONE)!r:.80}"
        for name, held in before.items()
        if callable(held) and after.get(name, GONE) is not held
    ]


class _Gone:
    def __repr__(self) -> str:
        return "nothing"


GONE = _Gone()


OF_IMPORTS = ("PYTEST_CURRENT_TEST", "KMP_DUPLICATE_LIB_OK", "TORCHINDUCTOR_CACHE_DIR")
"""What pytest sets for each test, and scikit-learn and the compiler of torch when they are first needed."""


def _environment() -> Names:
    return {name: value for name, value in os.environ.items() if name not in OF_IMPORTS}


def _process() -> Names:
    return {
        "folder": os.getcwd(),
        "sys.path": list(sys.path),
        "sys.argv": list(sys.argv),
        "sys.excepthook": sys.excepthook,
        **{signum.name: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)},
    }


def _modules() -> Names:
    """By the file that each came from: transformers puts another object for itself there when it sees fit."""
    return {name: getattr(module, "__dict__", {}).get("__file__") for name, module in list(sys.modules.items())}


def _loggers() -> Names:
    """``trainwright`` itself has the level of the latest Trainer, which is no test's doing."""
    seen = {
        name: (logger.level if name != "trainwright" else None, len(logger.filters), logger.propagate, logger.disabled)
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger)
    }
    return {**seen, "root": logging.root.level, "disable": logging.root.manager.disable}


def _torch() -> Names:
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision of products": torch.get_float32_matmul_precision(),
        "TF32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "threads": torch.get_num_threads(),
        "process group": torch.distributed.is_initialized(),
    }


def _replaceable() -> Names:
    """The names in torch and in the models that are loaded, by module and class."""
    holders: Names = {"torch.nn": nn, "torch.nn.functional": nn.functional, "torch.optim": torch.optim}
    for name, module in list(sys.modules.items()):
        if name.startswith(("transformers.models.", "transformers.loss.")) and vars(module).get("nn") is not None:
            holders[name] = module
            holders |= {f"{name}.{key}": held for key, held in vars(module).items() if _is_layer(held, name)}
    return {where: dict(vars(holder)) for where, holder in holders.items()}


def _is_layer(held: Any, module: str) -> bool:
    return isinstance(held, type) and held.__module__ == module


KINDS: dict[str, Callable[[], Names]] = {
    "environment": _environment,
    "process": _process,
    "sys.modules": _modules,
    "logger": _loggers,
    "torch": _torch,
    "replaced": _replaceable,
}
GROWING = ("sys.modules", "logger")
"""New names are no leak there: a module is imported by whoever needs it first."""
