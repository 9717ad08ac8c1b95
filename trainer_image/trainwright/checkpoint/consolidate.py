"""Makes a model for ``from_pretrained`` of a checkpoint in shards, in one process that never holds the whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainwright.checkpoint.diskio import explained, flush_tree
from trainwright.checkpoint.gathered import (
    MAX_SHARD_SIZE,
    Source,
    Tensors,
    aliases_of,
    conversion_of,
    kept_names,
    write_weights,
)
from trainwright.checkpoint.sharded import MODEL_SHARDS, Shards, is_in_shards
from trainwright.checkpoint.store import MANIFEST, CheckpointStore
from trainwright.checkpoint.zero import LATEST, SCRIPT, is_of_engine, written
from trainwright.checkpoint.zero_partitions import Partitions
from trainwright.contract import UserError
from trainwright.distributed.ranks import Ranks
from trainwright.integrations.peft import ADAPTER
from trainwright.integrations.waiting import bytes_below, growing

_OF_TRAINING = ("optimizer", "scheduler", "scaler", "rng_state", "data_state", "trainer_state", "trainwright_manifest")
"""The files of a checkpoint that begin so are of no use without the Trainer."""
_CONFIGURATION = "config.json"


def consolidate(checkpoint: Path, output: Path, max_shard_size: int | str = MAX_SHARD_SIZE) -> list[Path]:
    """Write the model of ``checkpoint`` into the folder ``output``; return its files of weights.

    The shards are those of FSDP, or DeepSpeed's of ZeRO 3, which hold float32.

    Raises:
        UserError: It is no complete checkpoint in shards, ``output`` holds a model, or the disk is full.
    """
    _check(checkpoint, output)
    source = _source(checkpoint)
    aside = output / ".consolidating"
    with explained(f"{output}: cannot write the model", lambda: f"{checkpoint} stays as it is"):
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            with growing(f"consolidating {checkpoint.name}", lambda: bytes_below([aside]), lambda: _bytes_of(source)):
                write_weights(source, aside, Ranks(), max_shard_size)
            names = [path.name for path in aside.iterdir()]
            for path in checkpoint.iterdir():
                if path.is_file() and not path.name.startswith((*_OF_TRAINING, LATEST, SCRIPT)):
                    shutil.copyfile(path, aside / path.name)
            flush_tree(aside)
            for path in aside.iterdir():
                path.rename(output / path.name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return sorted(output / name for name in names)


def _bytes_of(source: Source) -> int:
    return sum(form.numel() * form.element_size() for form in source.forms.values())


def _check(checkpoint: Path, output: Path) -> None:
    store = CheckpointStore(checkpoint.parent, ranks=Ranks())
    if not checkpoint.is_dir():
        raise UserError(f"{checkpoint}: there is no such folder; give the path of a checkpoint-N folder")
    if steps := CheckpointStore(checkpoint, ranks=Ranks()).steps():
        raise UserError(
            f"{checkpoint}: holds checkpoints; give the path of one, such as {checkpoint}/checkpoint-{steps[-1]}"
        )
    if problems := store.problems(checkpoint):
        raise UserError(f"{checkpoint}: cannot be used: {problems[0]}; take another checkpoint")
    if not is_in_shards(checkpoint) and not (is_of_engine(checkpoint) and written(checkpoint).parameters):
        raise UserError(f"{checkpoint}: {_what_it_holds(checkpoint)}")
    if any(output.glob("*.safetensors*")):
        raise UserError(f"{output}: holds a model; choose another folder")


def _what_it_holds(checkpoint: Path) -> str:
    if any(checkpoint.rglob(ADAPTER)):
        return "holds adapters, which are not in shards: PeftModel.from_pretrained reads them as they are"
    if any(checkpoint.glob("*model*.safetensors")):
        return "its model is not in shards, from_pretrained reads it as it is"
    return "holds no model in shards"


def _source(checkpoint: Path) -> Source:
    if is_of_engine(checkpoint):
        partitions = Partitions(checkpoint)
        return _as_saved(checkpoint, partitions.forms, partitions.read, partitions.aliases)
    shards = Shards(checkpoint, MODEL_SHARDS)
    paths = {".".join(path): path for path in shards.paths()}
    every = {name: form for name, path in paths.items() if (form := shards.form(path)) is not None}

    def read(names: Sequence[str]) -> Tensors:
        targets = {paths[name]: torch.empty_like(every[name], device="cpu") for name in names}
        return {".".join(path): value for path, value in shards.read(targets).items()}

    return _as_saved(checkpoint, every, read, _noted_aliases(checkpoint))


def _as_saved(
    checkpoint: Path, every: Tensors, read: Callable[[Sequence[str]], Tensors], noted: Mapping[str, str]
) -> Source:
    """The tensors as the model of the checkpoint's configuration, if transformers has it, would save them."""
    model = _model_without_values(checkpoint)
    aliases = aliases_of(model) if model is not None else dict(noted)
    names = [name for name in every if name not in aliases]
    convert, notes = None, {"format": "pt", **aliases}
    if model is not None:
        names, convert, notes = kept_names(model, list(every), aliases), conversion_of(model), {"format": "pt"}
    return Source({name: every[name] for name in names}, read, convert, notes)


def _model_without_values(checkpoint: Path) -> Any:
    """The model of transformers that a checkpoint's configuration names; None for one that transformers has not."""
    try:
        architecture = json.loads((checkpoint / _CONFIGURATION).read_text(encoding="utf-8"))["architectures"][0]
    except (FileNotFoundError, KeyError, TypeError, IndexError):
        return None
    import transformers

    kind: Any = getattr(transformers, architecture, None)
    if kind is None:
        return None
    with torch.device("meta"):
        model: nn.Module = kind(kind.config_class.from_pretrained(checkpoint))
    return model


def _noted_aliases(checkpoint: Path) -> dict[str, str]:
    """The aliases that the manifest notes for a model that only its own program can make."""
    try:
        aliases: dict[str, str] = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8")).get("aliases", {})
    except FileNotFoundError:
        return {}
    return aliases
