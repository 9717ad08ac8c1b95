"""The features of the argument ``debug``: find underflow and overflow, and print the metrics of a TPU."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from trainwright.contract import UserError

logger = logging.getLogger(__name__)

FRAMES = 21
"""Number of module calls in a report; the last one is the call that overflowed."""


class OverflowFound(UserError):
    """A weight, an input or an output is NaN or infinite."""


@contextmanager
def overflow_watched(model: nn.Module, debug: list[str]) -> Iterator[None]:
    """Watch the values of every forward pass in this context, if ``debug`` has ``underflow_overflow``.

    Raises:
        OverflowFound: A module's input or output is not finite. The log has the minimum and maximum absolute values of
            inputs and outputs of the calls before it.
    """
    watch = _Watch(model) if "underflow_overflow" in debug else None
    try:
        yield
    finally:
        if watch is not None:
            watch.end()


class _Watch:
    """Forward hooks on all modules. Each reads every value, which makes training several times slower."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.batch = model, 0
        self.names = {module: name or "the model" for name, module in model.named_modules()}
        self.frames: deque[str] = deque(maxlen=FRAMES)
        self.handles = [module.register_forward_hook(self._look) for module in self.names]

    def end(self) -> None:
        for handle in self.handles:
            handle.remove()

    @torch.no_grad()
    def _look(self, module: nn.Module, inputs: Any, output: Any) -> None:
        lines, wrong = [f"{self.names[module]} ({type(module).__name__})"], None
        for label, tensor in self._values(module, inputs, output):
            least, greatest = (bound.item() for bound in tensor.abs().aminmax())
            lines.append(f"  {least:9.2e} {greatest:9.2e}  {label}")
            if wrong is None and not greatest < float("inf"):
                wrong = f"{'nan' if greatest != greatest else 'inf'} in {label} of {self.names[module]}"
        self.frames.append("\n".join(lines))
        if wrong is not None:
            self._tell(wrong, type(module).__name__)
        self.batch += module is self.model

    @staticmethod
    def _values(module: nn.Module, inputs: Any, output: Any) -> Iterator[tuple[str, torch.Tensor]]:
        named = [*module.named_parameters(recurse=False), *_tensors("input", inputs), *_tensors("output", output)]
        return ((label, t.detach()) for label, t in named if t.is_floating_point() and t.numel())

    def _tell(self, wrong: str, kind: str) -> None:
        report = "\n".join(self.frames)
        logger.error("least and greatest absolute values of the last %d modules:\n%s", len(self.frames), report)
        raise OverflowFound(
            f"debug: {wrong} ({kind}), in forward pass {self.batch}; the values before it are in the log; "
            "lower learning_rate, or compute in bf16 or fp32 instead of fp16"
        )


def _tensors(label: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors in nested tuples, lists and mappings, each with its path."""
    if isinstance(value, torch.Tensor):
        yield label, value
    elif isinstance(value, (tuple, list)):
        for place, each in enumerate(value):
            yield from _tensors(f"{label}[{place}]", each)
    elif hasattr(value, "items"):
        for key, each in value.items():
            yield from _tensors(f"{label}[{key}]", each)


def tell_tpu_metrics(debug: list[str]) -> None:
    """Print the metrics of PyTorch/XLA so far, if ``debug`` has ``tpu_metrics_debug``."""
    if "tpu_metrics_debug" in debug:
        from torch_xla.core import xla_model
        from torch_xla.debug import metrics

        xla_model.master_print(metrics.metrics_report())
