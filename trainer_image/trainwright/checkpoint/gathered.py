"""Whole weights out of shards, in the files that ``from_pretrained`` reads, without any process that holds the whole.

One layer after the other is put together and written. With several ranks each file is written by one of them, so that
they write at the same time; all ranks take part in putting a layer together, because each holds a part of it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from trainwright.checkpoint.diskio import flush_tree
from trainwright.checkpoint.staging import return_memory
from trainwright.checkpoint.tensor_file import TensorFile
from trainwright.checkpoint.weights import save_weights
from trainwright.distributed.named_state import forms_of, wholes
from trainwright.distributed.ranks import Ranks
from trainwright.distributed.wrapping import unwrap
from trainwright.integrations.peft import adapter_names, adapter_state

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_SIZE = "50GB"
"""The largest size of a file of weights, by default: that of transformers."""
LEAST_SHARED = 1 << 30
"""Bytes from which on a model is divided into files for the ranks to write at the same time."""

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_LAYER = re.compile(r"^(.*?\.\d+)\.")

Tensors = dict[str, torch.Tensor]


def bytes_of(size: int | str) -> int:
    """The bytes of a size like ``5GB`` or ``500MB``, as transformers reads it.

    Raises:
        ValueError: It is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(size).strip())
    if match is None or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise ValueError(f"{size!r} is no size; write it like 5GB or 500MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


class Source(NamedTuple):
    """Where whole tensors come from.

    Attributes:
        forms: Name -> a tensor on the meta device, of the shape and number format of the whole.
        read: Returns some whole tensors by name, on any device; all ranks call it together.
        convert: Turns tensors of one layer (or all) into those that ``from_pretrained`` reads; None if they are equal.
        notes: What the header of each file says besides.
    """

    forms: Tensors
    read: Callable[[Sequence[str]], Tensors]
    convert: Callable[[Tensors], Tensors] | None = None
    notes: Mapping[str, str] = {}


def of_model(model: nn.Module) -> Source:
    """The weights of a model, which may be sharded over the ranks."""
    model = unwrap(model)
    aliases = aliases_of(model)
    forms = forms_of(model)
    convert = conversion_of(model, forms)
    forms = {name: forms[name] for name in kept_names(model, list(forms), aliases)}
    is_plain = not hasattr(model, "save_pretrained")
    notes = {"format": "pt", **(aliases if is_plain else {})}
    return Source(forms, lambda names: wholes(model, names), convert, notes)


def aliases_of(model: nn.Module) -> dict[str, str]:
    """Name -> the name under which its tensor is saved, for the tensors that have several (tied weights)."""
    names: dict[int, list[str]] = {}
    for members in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        for name, tensor in members:
            names.setdefault(id(tensor), []).append(name)
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    aliases = {}
    for alike in names.values():
        kept = next((name for name in alike if name not in tied), alike[0])
        aliases.update({name: kept for name in alike if name != kept})
    return aliases


def kept_names(model: nn.Module, names: Sequence[str], aliases: Mapping[str, str]) -> list[str]:
    """The names to save: one of each tensor, without those that the model says need no saving."""
    ignored = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_save", None) or ()]
    return [name for name in names if name not in aliases and not any(pattern.search(name) for pattern in ignored)]


def conversion_of(model: nn.Module, forms: Tensors | None = None) -> Callable[[Tensors], Tensors] | None:
    """How transformers turns a model's tensors into those of its files; None if it leaves them as they are.

    Args:
        forms: The forms of the model's tensors, if they are not whole in the model.
    """
    if not hasattr(model, "save_pretrained") or not hasattr(model, "config"):
        return None
    from transformers.core_model_loading import revert_weight_conversion

    def convert(tensors: Tensors) -> Tensors:
        converted: Tensors = revert_weight_conversion(model, dict(tensors))  # type: ignore[arg-type]
        return converted

    known = model.state_dict() if forms is None else forms
    form = {name: torch.empty(value.shape, device="meta") for name, value in known.items()}
    with torch.device("meta"):
        return None if convert(form).keys() == form.keys() else convert


# -- a model of this run


def save_whole(model: nn.Module, folder: Path, ranks: Ranks) -> None:
    """Write a model that is sharded over the ranks, or its adapters, below ``folder``; all ranks call it together.

    Each rank writes some of the files, so each may have a folder of its own.
    """
    if adapter_names(model):
        state = _adapters(model)
        if ranks.rank == 0:
            save_weights(model, folder, state)
        return
    write_weights(of_model(model), folder, ranks)


def replace_whole(model: nn.Module, folder: Path, ranks: Ranks) -> None:
    """Like :func:`save_whole`, into one folder that all ranks share; the files of an earlier save are replaced."""
    aside = folder / f".weights-{ranks.rank}"
    return_memory()

    def write() -> list[str]:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            save_whole(model, aside, ranks)
            flush_tree(aside)
            return [path.name for path in aside.iterdir()]
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise

    try:
        written = {name for names in ranks.agree(write) for name in names}
        if ranks.rank == 0:
            for path in [*folder.glob("model-*-of-*.safetensors"), folder / WEIGHTS, folder / INDEX]:
                if path.name not in written:
                    path.unlink(missing_ok=True)
        for path in aside.iterdir():
            path.rename(folder / path.name)
        ranks.barrier()
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _adapters(model: nn.Module) -> Tensors:
    """The ``state_dict`` with whole adapters; the base model, which is not written, is on the meta device."""
    model = unwrap(model)
    forms = forms_of(model)
    needed = {id(form) for name in adapter_names(model) for form in adapter_state(model, name, forms).values()}
    names = [name for name, form in forms.items() if id(form) in needed]
    return forms | {name: tensor.cpu() for name, tensor in wholes(model, names).items()}


# -- writing


def write_weights(source: Source, folder: Path, ranks: Ranks, max_shard_size: int | str = MAX_SHARD_SIZE) -> None:
    """Write the weights below ``folder``, with an index if they are several files; all ranks call it together.

    Raises:
        OSError: This rank could not write, but it has taken part in all that the others needed.
    """
    total = sum(form.nbytes for form in source.forms.values())
    limit = min(bytes_of(max_shard_size), max(LEAST_SHARED, -(-total // ranks.world_size)))
    groups = [_Group(names, forms) for names, forms in _groups(source)]
    files = _files(groups, limit)
    if ranks.rank == 0 and len(files) > 1:
        _write_index(folder, files)
    writer = _Writer(folder, files, ranks, source)
    for group in _interleaved(groups, files):
        writer.add(group, source.read(group.names))
    writer.finish()


class _Group(NamedTuple):
    """Tensors that are converted together, and what they become."""

    names: list[str]
    forms: Tensors


def _groups(source: Source) -> Iterator[tuple[list[str], Tensors]]:
    if source.convert is None:
        yield from (([name], {name: form}) for name, form in source.forms.items())
        return
    layers: dict[str, list[str]] = {}
    for name in source.forms:
        match = _LAYER.match(name)
        layers.setdefault(match[1] if match else name, []).append(name)
    for names in layers.values():
        yield names, source.convert({name: source.forms[name] for name in names})


def _files(groups: list[_Group], limit: int) -> dict[str, Tensors]:
    """File -> the forms of its tensors, in order, none larger than ``limit`` unless one tensor is."""
    parts: list[Tensors] = [{}]
    size = 0
    for group in groups:
        for name, form in group.forms.items():
            if size and size + form.nbytes > limit:
                parts.append({})
                size = 0
            parts[-1][name] = form
            size += form.nbytes
    if len(parts) == 1:
        return {WEIGHTS: parts[0]}
    return {f"model-{number:05d}-of-{len(parts):05d}.safetensors": part for number, part in enumerate(parts, 1)}


def _interleaved(groups: list[_Group], files: Mapping[str, Tensors]) -> Iterator[_Group]:
    """The groups, in turn from each file, so that the ranks write at the same time."""
    places = {name: file for file, forms in files.items() for name in forms}
    queues: dict[str, list[_Group]] = {file: [] for file in files}
    for group in groups:
        queues[places[next(iter(group.forms))]].append(group)
    for turn in range(max(map(len, queues.values()))):
        yield from (queue[turn] for queue in queues.values() if turn < len(queue))


class _Writer:
    """Writes this rank's files on a thread of its own, one group after the other."""

    def __init__(self, folder: Path, files: Mapping[str, Tensors], ranks: Ranks, source: Source) -> None:
        self._convert = source.convert
        self._error: Exception | None = None
        mine = [file for number, file in enumerate(files) if number % ranks.world_size == ranks.rank]
        self._places = {name: file for file in mine for name in files[file]}
        self._files = {file: TensorFile(folder / file, files[file], source.notes) for file in mine}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._writing: Future[None] | None = None

    def add(self, group: _Group, tensors: Tensors) -> None:
        """Write what is this rank's of a group. An error is kept for later, because the other ranks go on."""
        if not group.forms.keys() & self._places.keys():
            return
        self._wait()
        if self._error is None:
            self._writing = self._thread.submit(self._write, tensors)

    def _write(self, tensors: Tensors) -> None:
        for name, tensor in (tensors if self._convert is None else self._convert(tensors)).items():
            if name in self._places:
                self._files[self._places[name]].write(name, tensor)

    def _wait(self) -> None:
        if self._writing is None:
            return
        try:
            self._writing.result()
        except Exception as error:  # raised at the end, when no other rank waits for this one
            self._error = error
        self._writing = None

    def finish(self) -> None:
        self._wait()
        self._thread.shutdown()
        for file in self._files.values():
            try:
                file.close()
            except OSError as error:
                self._error = self._error or error
        if self._error is not None:
            raise self._error


def _write_index(folder: Path, files: Mapping[str, Tensors]) -> None:
    total = sum(form.nbytes for forms in files.values() for form in forms.values())
    parameters = sum(form.numel() for forms in files.values() for form in forms.values())
    index = {
        "metadata": {"total_parameters": parameters, "total_size": total},
        "weight_map": {name: file for file, forms in sorted(files.items()) for name in forms},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
