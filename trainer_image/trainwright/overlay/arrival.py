"""When to replace: as soon as a module of transformers is imported, which may have happened already."""

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
from trainwright.overlay.replacing import KNOWN


def install() -> None:
    """Replace every import of a Trainer of transformers by ours, both past and future imports.

    Raises:
        UserError: transformers, or what our Trainer needs, is not installed.
    """
    if line := extras.missing("transformers", *extras.packages("trainer")):
        raise UserError(f"trainwright.overlay: {line}; or leave the overlay out")
    found = version("transformers")
    if ".".join(found.split(".")[:2]) not in KNOWN:
        log(f"transformers {found} is not one of the versions that it was tested with: {', '.join(KNOWN)}")
    after_import("transformers.training_args", _join_on_cpus)
    after_import("transformers.integrations.deepspeed", _complete_configurations)
    after_import("transformers.trainer", _replace_trainer)
    after_import("transformers.trainer_seq2seq", _replace_seq2seq)


def _join_on_cpus() -> None:
    """The arguments of transformers join ranks on CPUs only with this variable; else each rank would train alone."""
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")


def _complete_configurations() -> None:
    from trainwright.overlay.zero import complete_configurations

    complete_configurations()


def _replace_trainer() -> None:
    from trainwright.overlay.replacing import replace_trainer

    replace_trainer()
    log(f"Trainwright's Trainer replaces the one of transformers {version('transformers')}")


def _replace_seq2seq() -> None:
    from trainwright.overlay.replacing import replace_seq2seq

    replace_seq2seq()


def log(line: str) -> None:
    """Prints a line on stderr, on rank 0 only and not in the processes that it starts."""
    multiprocessing = sys.modules.get("multiprocessing")
    if os.environ.get("RANK", "0") == "0" and (multiprocessing is None or multiprocessing.parent_process() is None):
        print(f"trainwright.overlay: {line}", file=sys.stderr, flush=True)


def after_import(name: str, act: Callable[[], None]) -> None:
    """Call ``act`` after the import of the module ``name``: now if it is imported already, else when it is."""
    module = sys.modules.get(name)
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        act()
    else:
        sys.meta_path.insert(0, _Arrival(name, act))


class _Arrival(MetaPathFinder):
    """Finds one module with the other finders, and calls ``act`` after its import."""

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
