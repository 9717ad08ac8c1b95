"""What looks for leaks sees them: each kind once, made and taken back by the test itself."""

from __future__ import annotations

import logging
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from trainer import leaks

Patch = pytest.MonkeyPatch


def patch_a_model(monkeypatch: Patch) -> None:
    from transformers.models.gpt2 import modeling_gpt2

    monkeypatch.setattr(modeling_gpt2, "GPT2MLP", nn.Linear)
    monkeypatch.setattr(modeling_gpt2.GPT2Block, "forward", lambda *args: None)


def lower(monkeypatch: Patch) -> None:
    monkeypatch.setattr(logging.getLogger("trainwright.trainer.trainer"), "level", logging.DEBUG)


LEAKS: dict[str, tuple[Callable[[Patch], Any], str]] = {
    "environment": (lambda m: m.setenv("WORLD_SIZE", "2"), "environment: WORLD_SIZE: nothing -> '2'"),
    "folder": (lambda m: m.chdir("/"), "process: folder: "),
    "path": (lambda m: m.syspath_prepend("/"), "process: sys.path: "),
    "module": (lambda m: m.setitem(sys.modules, "torch.nn", types.ModuleType("x")), "sys.modules: torch.nn: "),
    "logger": (lower, "logger: trainwright.trainer.trainer: (0, 0, True, False) -> (10, 0, True, False)"),
    "function": (lambda m: m.setattr(nn.functional, "relu", abs), "replaced: torch.nn.functional.relu by "),
    "layer": (lambda m: m.setattr(nn, "LayerNorm", nn.Linear), "replaced: torch.nn.LayerNorm by "),
    "model": (patch_a_model, "replaced: transformers.models.gpt2.modeling_gpt2.GPT2MLP by "),
}


@pytest.mark.parametrize("kind", LEAKS)
def test_what_a_test_leaves_behind_is_named(kind: str) -> None:
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401

    leak, words = LEAKS[kind]
    logging.getLogger("trainwright.trainer.trainer")
    before = leaks.look()
    with pytest.MonkeyPatch.context() as monkeypatch, warnings.catch_warnings():
        leak(monkeypatch)
        left = leaks.left(before, leaks.look())
    assert any(text.startswith(words) for text in left), left
    assert leaks.left(before, leaks.look()) == []


def test_switches_of_torch_that_stay_changed_are_named() -> None:
    before = leaks.look()
    with torch.no_grad(), torch.autograd.set_detect_anomaly(True), torch.device("meta"):
        left = leaks.left(before, leaks.look())
    assert [text.split(":")[1].strip() for text in left] == ["anomaly mode", "default device", "gradients"]
    assert leaks.left(before, leaks.look()) == []
