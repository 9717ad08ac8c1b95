"""NEFTune (arXiv:2310.05914): uniform noise on the input embeddings while training, which helps instruction tuning."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from trainwright.arguments.errors import ModelError
from trainwright.distributed.wrapping import base_model


def add_noise(model: nn.Module, alpha: float) -> RemovableHandle:
    """Add noise of magnitude ``alpha / sqrt(length x width)`` to the output of the input embeddings.

    Returns:
        A handle; its ``remove`` ends the noise.

    Raises:
        ModelError: The model has no ``get_input_embeddings``, or it returns None.
    """
    base = base_model(model)
    get = getattr(base, "get_input_embeddings", None)
    embeddings = get() if callable(get) else None
    if embeddings is None:
        raise ModelError(f"neftune_noise_alpha: {type(base).__name__} has no get_input_embeddings(); define it")

    def noisy(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        magnitude = alpha / (output.size(1) * output.size(2)) ** 0.5
        return output + torch.zeros_like(output).uniform_(-magnitude, magnitude)

    return cast(nn.Module, embeddings).register_forward_hook(noisy)
