"""When to replace: as soon as a module of transformers is there, whether it is imported already or only later."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from types import ModuleType
from typing import Any

from trainwright import extras
from trainwright.contract import UserError

KNOWN = ("5.24",)
"""The versions of transformers that the libraries' tests ran with."""


def install() -> None:
    """Lead every import of a Trainer of transformers to ours, from now on and where it has happened already.

    Raises:
        UserError: transformers, or what our Trainer needs, is not installed.
    """
    if line := extras.missing("transformers", *extras.packages("trainer")):
        raise UserError(f"trainwright.overlay: {line}; or leave the overlay out")
    found = version("transformers")
    if ".".join(found.split(".")[:2]) not in KNOWN:
        tell(f"transformers {found} is not among the versions that it was tried with: {', '.join(KNOWN)}")
    after_import("transformers.training_args", _join_on_cpus)
    after_import("transformers.trainer", _replace_trainer)
    after_import("transformers.trainer_seq2seq", _replace_seq2seq)


def _join_on_cpus() -> None:
    """Their arguments join ranks on CPUs only where they are told so; else each rank would train by itself."""
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")


def _replace_trainer() -> None:
    from trainwright.overlay.replacing import replace_trainer

    replace_trainer()
    tell(f"Trainwright's Trainer takes the place of that of transformers {version('transformers')}")


def _replace_seq2seq() -> None:
    from trainwright.overlay.replacing import replace_seq2seq

    replace_seq2seq()


def tell(line: str) -> None:
    """A line on stderr, from the first rank and not from the processes that it starts."""
    multiprocessing = sys.modules.get("multiprocessing")
    if os.environ.get("RANK", "0") == "0" and (multiprocessing is None or multiprocessing.parent_process() is None):
        print(f"trainwright.overlay: {line}", file=sys.stderr, flush=True)


def after_import(name: str, act: Callable[[], None]) -> None:
    """Call ``act`` once the module ``name`` has run: now, if it is there, or at the end of its first import."""
    module = sys.modules.get(name)
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        act()
    else:
        sys.meta_path.insert(0, _Arrival(name, act))


class _Arrival(MetaPathFinder):
    """Finds one module as the others would, and acts when that has run."""

    def __init__(self, name: str, act: Callable[[], None]) -> None:
        self.name, self.act = name, act

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        for finder in [finder for finder in sys.meta_path if finder is not self]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                self._act_after(spec.loader)
                return spec
        return None

    def _act_after(self, loader: Any) -> None:
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self.act()

        loader.exec_module = exec_module
