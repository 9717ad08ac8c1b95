"""Adapters (PEFT): a checkpoint of a model with adapters holds only the adapters, in the files that ``peft`` reads.

The files are ``adapter_model.safetensors`` and ``adapter_config.json``, in a subfolder of the adapter's name unless it
is ``default``. The base model is not written. Both ways of adding adapters are supported: a ``PeftModel`` around the
model, and the model's own ``add_adapter``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from trainwright.contract import UserError

ADAPTER = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
_OWN_PREFIX = "base_model.model."
"""The prefix of the base model within a ``PeftModel``; a model with its own adapters has no such level."""


def adapter_names(model: nn.Module) -> list[str]:
    """The names of all adapters of a model, active or not."""
    if "peft" not in sys.modules or not (_is_wrapped(model) or getattr(model, "_hf_peft_config_loaded", False)):
        return []
    return list(cast(Any, model).peft_config)


def _is_wrapped(model: nn.Module) -> bool:
    from peft import PeftModel

    return isinstance(model, PeftModel)


def load_adapters(
    model: nn.Module, folder: Path, read_shards: Callable[[Collection[str]], dict[str, torch.Tensor]] | None = None
) -> None:
    """Load every adapter of ``model`` from a checkpoint, in place. Does not change which are active and trained.

    Args:
        read_shards: Reads whole tensors by name, if the checkpoint holds the active adapter in shards, as that of
            transformers' Trainer under FSDP does.

    Raises:
        UserError: An adapter is missing or damaged, or differs in its parameters (the message lists them).
    """
    from peft import set_peft_model_state_dict

    states = {}
    for name in adapter_names(model):
        if read_shards is not None and name in cast(Any, model).active_adapters:
            states[name] = read_shards(adapter_state(model, name, model.state_dict()))
        else:
            states[name] = read_adapter(model, name, folder)
    for name, state in states.items():
        _check_adapter_matches(model, name, state, folder)
    for name, state in states.items():
        set_peft_model_state_dict(model, state if _is_wrapped(model) else _without_prefix(state), adapter_name=name)


def adapter_state(model: nn.Module, name: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """What of a ``state_dict`` an adapter's file holds, by the names in the file."""
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(cast(Any, model), state_dict=dict(state), adapter_name=name)
    return found if _is_wrapped(model) else {f"{_OWN_PREFIX}{key}": value for key, value in found.items()}


def read_adapter(model: nn.Module, name: str, folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of one adapter in a checkpoint. Raises :class:`UserError` if it is missing or damaged."""
    return _read(_folder_of(model, name, folder), name)


def _folder_of(model: nn.Module, name: str, folder: Path) -> Path:
    """The folder of an adapter. A model's own ``save_pretrained`` saves one adapter, without a subfolder."""
    return folder if name == "default" or not _is_wrapped(model) else folder / name


def _read(folder: Path, name: str) -> dict[str, torch.Tensor]:
    try:
        if (folder / ADAPTER).is_file():
            return load_file(folder / ADAPTER)
        if (folder / PICKLED).is_file():
            return torch.load(folder / PICKLED, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
    except (SafetensorError, UnpicklingError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder}: the adapter {name} cannot be read ({reason}); use another checkpoint") from error
    raise UserError(f"{folder}: holds no weights ({ADAPTER}) of the adapter {name}; give the path of its checkpoint")


def _check_adapter_matches(model: nn.Module, name: str, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    from peft import get_peft_model_state_dict

    prefix = "" if _is_wrapped(model) else _OWN_PREFIX
    adapter = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    own = {f"{prefix}{key}": value for key, value in adapter.items()}
    # peft also saves embeddings and the head of the base model, if an adapter is on them or they were resized.
    known = {f"{prefix}{key}": value for key, value in model.state_dict().items()} | own
    problems = [f"missing {key}" for key in own if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in known]
    problems += [
        f"{key} is {tuple(value.shape)} there and {tuple(known[key].shape)} here"
        for key, value in state.items()
        if key in known and value.shape != known[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise UserError(
            f"{folder}: the adapter {name} does not match the model: {'; '.join(problems[:10])}{more}; "
            "configure it as it was trained, or train from the start in another output_dir"
        )


def _without_prefix(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(_OWN_PREFIX): value for key, value in state.items()}
