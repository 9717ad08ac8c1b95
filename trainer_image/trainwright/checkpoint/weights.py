"""Model weights as ``safetensors``, in the files that ``from_pretrained`` reads.

Models with ``save_pretrained`` save themselves. A plain ``nn.Module`` becomes one ``model.safetensors``. Tensors that
share memory (tied weights) are stored once, and their other names are in the file's metadata, as safetensors'
``save_model`` does it, so that ``safetensors.torch.load_model`` can read the file.

A transformers model with undeclared tied weights is refused before the first step. Otherwise ``save_pretrained`` would
fail at the first checkpoint, after the steps that should be saved.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from trainwright.checkpoint.sharded import ShardedWeights, another_model, is_in_shards, read_model, read_whole
from trainwright.checkpoint.staging import Stager
from trainwright.checkpoint.tensor_file import DTYPES
from trainwright.checkpoint.zero import is_of_engine
from trainwright.checkpoint.zero_names import load_partitions
from trainwright.contract import UserError
from trainwright.distributed.named_state import (
    forms_of,
    gathered,
    held,
    is_partitioned,
    is_sharded,
    model_state,
    part_of,
)
from trainwright.distributed.wrapping import unwrap
from trainwright.integrations.peft import adapter_names, adapter_state, load_adapters, read_adapter

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
EXTRA_STATE = "model_extra_state.pt"
"""The results of ``get_extra_state`` of a plain module that are not tensors."""

_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


def save_weights(model: nn.Module, folder: Path, state: dict[str, Any] | None = None) -> None:
    """Write the weights, and the configuration files if the model has any.

    Args:
        state: A copy of a ``state_dict`` to write instead of the current one; see :func:`accepts_state_dict`.
    """
    model = unwrap(model)
    if state is None and accepts_state_dict(model) and any(p.device.type == "xla" for p in model.parameters()):
        state = Stager().copy("model", model.state_dict())
    save: Callable[..., Any] | None = getattr(model, "save_pretrained", None)
    if save is None:
        _save_plain(model.state_dict() if state is None else state, folder)
    elif state is None:
        save(folder)
    else:
        save(folder, state_dict=state)
    _open_to_readers(folder)


def _open_to_readers(folder: Path) -> None:
    """Give weights the folder's read and write bits.

    safetensors leaves its files to their owner alone (0600): a server that runs as another user could not load them.
    """
    mode = folder.stat().st_mode & 0o666
    for pattern in ("*.safetensors", "*/adapter_model.safetensors"):
        for path in folder.glob(pattern):
            path.chmod(mode)


def save_config(model: nn.Module, folder: Path) -> None:
    """Write the configuration files, if the model has any, and the parts of a plain module that are no tensors.

    What ``save_pretrained`` writes besides the weights. Adapters write their own.
    """
    model = unwrap(model)
    config: Any = getattr(model, "config", None)
    if not hasattr(model, "save_pretrained"):
        values = {name: value for name, value in model.state_dict().items() if not isinstance(value, torch.Tensor)}
        _save_extra(values, folder)
    elif hasattr(config, "save_pretrained") and not adapter_names(model):
        config.dtype = str(model.dtype).removeprefix("torch.")
        config.architectures = [type(model).__name__.removeprefix("FSDP")]  # the prefix is torch's
        if callable(custom := getattr(model, "is_remote_code", None)) and custom():
            from transformers.dynamic_module_utils import custom_object_save

            custom_object_save(model, folder, config=config)
        config.save_pretrained(folder)
        if callable(generates := getattr(model, "can_generate", None)) and generates():
            cast(Any, model).generation_config.save_pretrained(folder)


def accepts_state_dict(model: nn.Module) -> bool:
    """Whether a model can be saved from a copy of its ``state_dict``.

    Quantised models save from their own modules, and for a model with adapters the copy would contain the base model.
    """
    model = unwrap(model)
    save: Callable[..., Any] | None = getattr(model, "save_pretrained", None)
    if save is None:
        return True
    saves_itself = getattr(model, "hf_quantizer", None) is not None or getattr(model, "_hf_peft_config_loaded", False)
    return "state_dict" in inspect.signature(save).parameters and not saves_itself


def _save_plain(state: Mapping[str, Any], folder: Path) -> None:
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    extra = {name: value for name, value in state.items() if name not in tensors}
    _save_extra(extra, folder)
    aliases = _aliases(tensors)
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if name not in aliases}
    save_file(_without_overlap(kept), folder / WEIGHTS, metadata={"format": "pt", **aliases})


def _save_extra(extra: Mapping[str, Any], folder: Path) -> None:
    if extra:
        torch.save(dict(extra), folder / EXTRA_STATE)


def _aliases(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Name -> the first name of the same elements in memory."""
    first: dict[Any, str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        if tensor.numel() and tensor.device.type != "meta":
            place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if first.setdefault(place, name) != name:
                aliases[name] = first[place]
    return aliases


def _without_overlap(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Safetensors refuses several views of one storage, so all but the first are copied."""
    seen: set[Any] = set()
    result = {}
    for name, tensor in tensors.items():
        storage = (tensor.device, tensor.untyped_storage().data_ptr())
        result[name] = tensor.clone() if tensor.numel() and storage in seen else tensor
        seen.add(storage)
    return result


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load the weights of a checkpoint into ``model``, in place.

    Raises:
        UserError: There are no weights, they are damaged, or they belong to another model (keys and shapes are listed).
    """
    model, folder = unwrap(model), Path(folder)
    if is_of_engine(folder) and not any(map(is_partitioned, model.parameters())):
        load_partitions(model, folder)
        return
    if adapter_names(model):
        with gathered([p for p in model.parameters() if p.requires_grad], writes=True):
            load_adapters(model, folder, partial(read_whole, folder) if is_in_shards(folder) else None)
        return
    if any(map(is_partitioned, model.parameters())):
        _load_partitioned(model, folder)
        return
    if is_in_shards(folder):
        model.load_state_dict(read_model(model_state(model), folder), strict=False)
        return
    if any(map(is_sharded, model.parameters())):
        _load_parts(model, folder)
        return
    state = read_weights(folder)
    if problems := _differences(model, state):
        if _has_custom_loading(model) and _loads_cleanly(model, state, problems):
            return
        state = _converted(model, folder) or _refuse(folder, problems)
    model.load_state_dict(state, strict=False)


def _load_parts(model: nn.Module, folder: Path) -> None:
    """Load the parts of the weights that this rank holds, in place; a file that is read is not read whole."""
    files = WeightFiles(folder)
    state = model_state(model)
    problems = _differences(model, files.forms)
    converted = _converted(model, folder) or _refuse(folder, problems) if problems else {}
    for name, value in state.items():
        if is_sharded(value) or isinstance(value, torch.Tensor):
            saved = converted[name][part_of(value)] if name in converted else files.read(name, part_of(value))
            if saved is not None:
                held(value).copy_(saved)
    model.load_state_dict(files.extra, strict=False)


def _load_partitioned(model: nn.Module, folder: Path) -> None:
    """Load the weights into parameters that are partitioned by ZeRO 3: all ranks read, and each keeps its part."""
    saved = weights_of(model, folder)
    parameters = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    for name, form in saved.forms.items():
        with gathered([parameters[name]], writes=True), torch.no_grad():
            parameters[name].copy_(saved.read(name, tuple(slice(0, size) for size in form.shape)))
    model.load_state_dict(saved.extra, strict=False)


class NamedWeights(NamedTuple):
    """The weights of a checkpoint by the names of the model that they are for.

    Attributes:
        forms: Name -> a tensor on the meta device, of the shape of the whole. Of tied weights one name may be there.
        read: Reads a part of a tensor.
        extra: The values of a plain module that are no tensors.
    """

    forms: Mapping[str, torch.Tensor]
    read: Callable[[str, tuple[slice, ...]], torch.Tensor]
    extra: Mapping[str, Any]


def weights_of(model: nn.Module, folder: Path) -> NamedWeights:
    """The weights in a folder, whole or in shards, for a model of which a rank may hold only parts.

    Of a model with adapters, these are the adapters alone.

    Raises:
        UserError: There are none, they cannot be read, or they are of another model.
    """
    forms = forms_of(model)
    if names := adapter_names(model):
        return _adapters_of(model, names, forms, folder)
    files = ShardedWeights(folder) if is_in_shards(folder) else WeightFiles(folder)
    if problems := _differing_forms(model, forms, files.forms):
        converted: dict[str, torch.Tensor] = _converted(model, folder) or _refuse(folder, problems)
        return NamedWeights(converted, lambda name, part: converted[name][part], files.extra)

    def read(name: str, part: tuple[slice, ...]) -> torch.Tensor:
        value = files.read(name, part)
        assert value is not None
        return value

    return NamedWeights({name: form for name, form in forms.items() if name in files.forms}, read, files.extra)


def _adapters_of(model: nn.Module, names: Iterable[str], forms: Mapping[str, Any], folder: Path) -> NamedWeights:
    own = {id(form): name for name, form in forms.items()}
    values: dict[str, torch.Tensor] = {}
    for adapter in names:
        expected = adapter_state(model, adapter, forms)
        saved = read_whole(folder, expected) if is_in_shards(folder) else read_adapter(model, adapter, folder)
        problems = [f"missing {key}" for key in expected if key not in saved]
        problems += [
            f"{key} is {tuple(saved[key].shape)} there and {tuple(form.shape)} here"
            for key, form in expected.items()
            if key in saved and saved[key].shape != form.shape
        ]
        if problems:
            _refuse(folder, problems)
        values |= {own[id(form)]: saved[key] for key, form in expected.items()}
    return NamedWeights(values, lambda name, part: values[name][part], {})


class WeightFiles:
    """The weights in a folder, of which a part of a tensor can be read; in any of the layouts that Hugging Face writes.

    Attributes:
        forms: Name -> a tensor on the meta device, of the shape and number format of the one in the files.
        extra: The values of a plain module that are no tensors.

    Raises:
        UserError: There are no weights, or they cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.forms: dict[str, torch.Tensor] = {}
        self.extra: dict[str, Any] = {}
        self._open: dict[str, Any] = {}
        with _readable(folder):
            if (folder / WEIGHTS).is_file() or (folder / INDEX).is_file():
                self._open_safetensors(folder)
            elif (folder / PICKLED).is_file():
                self._open = torch.load(folder / PICKLED, map_location="cpu", weights_only=True, mmap=True)
                self.forms = {name: _form(value.shape, value.dtype) for name, value in self._open.items()}
            else:
                raise _no_weights(folder)
            if (folder / EXTRA_STATE).is_file():
                self.extra = torch.load(folder / EXTRA_STATE, weights_only=True)

    def _open_safetensors(self, folder: Path) -> None:
        is_single = (folder / WEIGHTS).is_file()
        index = {} if is_single else json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        for path in [WEIGHTS] if is_single else sorted(set(index.values())):
            file: Any = safe_open(folder / path, framework="pt")
            for name in file.keys():  # noqa: SIM118
                piece = file.get_slice(name)
                self.forms[name] = _form(piece.get_shape(), _DTYPES[piece.get_dtype()])
                self._open[name] = piece if piece.get_shape() else file.get_tensor(name)
            aliases = {name: kept for name, kept in (file.metadata() or {}).items() if kept in self._open}
            self._open |= {name: self._open[kept] for name, kept in aliases.items()}
            self.forms |= {name: self.forms[kept] for name, kept in aliases.items()}

    def read(self, name: str, part: tuple[slice, ...]) -> torch.Tensor | None:
        """A part of a tensor; None if the files do not have it."""
        piece = self._open.get(name)
        if piece is None:
            return None
        value: torch.Tensor = piece[part] if part else piece
        return value


def _form(shape: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def read_weights(folder: Path) -> dict[str, Any]:
    """Every tensor of a checkpoint by name, on the CPU, from any of the layouts that Hugging Face writes."""
    with _readable(folder):
        if (folder / WEIGHTS).is_file():
            return _read_plain(folder)
        if (folder / INDEX).is_file():
            shards = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
            return {name: tensor for shard in sorted(shards) for name, tensor in load_file(folder / shard).items()}
        if (folder / PICKLED).is_file():
            pickled: dict[str, Any] = torch.load(folder / PICKLED, map_location="cpu", weights_only=True, mmap=True)
            return pickled
    raise _no_weights(folder)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, UnpicklingError, OSError, RuntimeError, ValueError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        reason = _first_line(error)
        raise UserError(f"{folder}: the weights cannot be read ({reason}); use another checkpoint") from error


def _no_weights(folder: Path) -> UserError:
    return UserError(f"{folder}: holds no weights ({WEIGHTS}); give the path of a checkpoint-N folder")


def _read_plain(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = load_file(folder / WEIGHTS)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        aliases = file.metadata() or {}
    state.update({name: state[kept] for name, kept in aliases.items() if kept in state})
    if (folder / EXTRA_STATE).is_file():
        state.update(torch.load(folder / EXTRA_STATE, weights_only=True))
    return state


def _differences(model: nn.Module, state: Mapping[str, Any]) -> list[str]:
    """The differences between ``state`` and the model's own, except for tied weights."""
    return _differing_forms(model, model.state_dict(), state)


def _differing_forms(model: nn.Module, own: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    loaded = {_place(own[name]) for name in own.keys() & state.keys()}
    ignored = _matcher(getattr(model, "_keys_to_ignore_on_save", None) or ())
    missing = [n for n in own if n not in state and not ignored(n) and _place(own[n]) not in loaded]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(value.shape)} there and {tuple(own[name].shape)} here"
        for name, value in state.items()
        if name in own and isinstance(value, torch.Tensor) and value.shape != own[name].shape
    ]
    return [f"missing {n}" for n in missing] + [f"unexpected {n}" for n in unexpected] + shapes


def _has_custom_loading(model: nn.Module) -> bool:
    """Whether a module that is not torch's may resize its buffers or rename them during loading."""
    return any(
        module._load_state_dict_pre_hooks
        or any(_defined_in(type(module), name) != "torch" for name in ("load_state_dict", "_load_from_state_dict"))
        for module in model.modules()
    )


def _defined_in(kind: type, method: str) -> str:
    return str(getattr(kind, method).__module__).partition(".")[0]


def _loads_cleanly(model: nn.Module, state: Mapping[str, Any], problems: list[str]) -> bool:
    """Load the weights with the model's own loading code; whether that resolves all ``problems``."""
    try:
        outcome = model.load_state_dict(state, strict=False)
    except RuntimeError:
        return False
    left = [f"missing {name}" for name in getattr(outcome, "missing_keys", ())]
    left += [f"unexpected {name}" for name in getattr(outcome, "unexpected_keys", ())]
    return not set(left) & set(problems)


def _place(value: Any) -> Any:
    value = held(value) if is_sharded(value) else value
    is_stored = isinstance(value, torch.Tensor) and value.numel() and value.device.type not in ("meta", "xla")
    return value.data_ptr() if is_stored else id(value)


def _matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    import re

    compiled = [re.compile(pattern) for pattern in patterns]
    return lambda name: any(pattern.search(name) for pattern in compiled)


def _converted(model: nn.Module, folder: Path) -> dict[str, Any] | None:
    """Let transformers convert the weights: some architectures store them under other names than they use."""
    read: Callable[..., Any] | None = getattr(type(model), "from_pretrained", None)
    if read is None or not (folder / "config.json").is_file():
        return None
    try:
        loaded, info = read(folder, dtype=model.dtype, output_loading_info=True)
    except (RuntimeError, ValueError, OSError):
        return None
    state = loaded.state_dict()
    is_whole = not any(info.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return state if is_whole and not _differing_forms(model, forms_of(model), state) else None


def _refuse(folder: Path, problems: list[str]) -> Any:
    raise another_model(folder, problems)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_ties(model: nn.Module) -> None:
    """Raises :class:`UserError` for a model that transformers could not save because of undeclared tied weights."""
    modeling = sys.modules.get("transformers.modeling_utils")
    remove_ties, model = getattr(modeling, "remove_tied_weights_from_state_dict", None), unwrap(model)
    if modeling is None or remove_ties is None or not isinstance(model, modeling.PreTrainedModel):
        return
    try:
        remove_ties(dict(model.state_dict()), model)
    except RuntimeError as error:
        names = ", ".join(re.findall(r"'([^']+)'", str(error).partition("]")[0])) or "some"
        raise UserError(
            f"model: {type(model).__name__} shares one weight under several names ({names}) without declaring it, and "
            "cannot be saved; list all but one in its _tied_weights_keys, or give each name its own copy"
        ) from None
