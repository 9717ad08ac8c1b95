"""Checkpoints in shards: every rank writes its part of each tensor, by ``torch.distributed.checkpoint``.

The folders are those of accelerate, ``pytorch_model_fsdp_0`` and ``optimizer_0``, so that Hugging Face's Trainer and
ours read each other's. A run of any layout reads them: each rank reads the parts that it holds, or everything if it
holds the whole model. Reading needs no collective, so an error on one rank can be reported to the others.

Both the description of the shards and the values that are not tensors are pickles. They are read with the classes that
they need and no others, so a checkpoint cannot run code.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from trainwright.checkpoint.diskio import SummedFile, Sums, single_checksum
from trainwright.contract import UserError
from trainwright.distributed.named_state import is_sharded, with_part

MODEL_SHARDS, OPTIMIZER_SHARDS = "pytorch_model_fsdp_0", "optimizer_0"
DESCRIPTION = ".metadata"
"""The file in a folder of shards that says which file holds which part of which tensor. It is written last."""

_ROOTS = {MODEL_SHARDS: "model", OPTIMIZER_SHARDS: "optimizer"}
"""Folder -> the first part of the names within, as accelerate writes them."""
_SAFE_MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_SAFE_NAMES = {
    ("torch", "Size"), ("torch", "device"), ("torch.serialization", "_get_layout"), ("builtins", "set"),
    ("collections", "OrderedDict"), ("pathlib", "PosixPath"), ("pathlib", "PurePosixPath"), ("pathlib", "Path"),
    ("pathlib._local", "PosixPath"),
}  # fmt: skip


def is_in_shards(folder: Path, kind: str = MODEL_SHARDS) -> bool:
    """Whether a checkpoint holds the model (or the optimizer) in shards."""
    return (folder / kind / DESCRIPTION).is_file()


# -- writing


def save_shards(states: Mapping[str, Mapping[str, Any]], folder: Path, group: Any) -> Sums:
    """Write this rank's shards below ``folder``; all ranks of ``group`` call it together. Returns the files' sums.

    If one rank fails, all of them raise its error, so that none waits for it.

    Args:
        states: :data:`MODEL_SHARDS` or :data:`OPTIMIZER_SHARDS` -> the nest of tensors and plain values to write.
        folder: This rank's own folder. The first rank's gets the description.
        group: A process group of gloo that no other thread uses.
    """
    from torch.distributed.checkpoint.state_dict_saver import save

    sums: Sums = {}
    for kind, state in states.items():
        with _errors_of_ranks(), single_checksum():
            save({_ROOTS[kind]: state}, storage_writer=_writer(folder / kind, sums), process_group=group)
    return sums


def _writer(folder: Path, sums: Sums) -> Any:
    from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter

    class SummedFiles(FileSystem):
        @contextmanager
        def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
            assert mode == "wb"
            with SummedFile(Path(path), sums) as stream:
                yield stream

    writer = FileSystemWriter(folder, sync_files=False)  # flushed with the other files
    writer.fs = SummedFiles()
    return writer


@contextmanager
def _errors_of_ranks() -> Iterator[None]:
    """Raise the error of the rank that failed; torch raises a ``BaseException`` with the errors of all."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        failed, (cause, _) = next(iter(error.failures.items()))
        if isinstance(cause, OSError | UserError):
            raise cause from None
        raise RuntimeError(f"rank {failed} failed: {cause}") from cause


# -- reading


class Shards:
    """The tensors and values in one folder of shards.

    Args:
        folder: The checkpoint.
        kind: :data:`MODEL_SHARDS` or :data:`OPTIMIZER_SHARDS`.

    Raises:
        UserError: The description is missing or damaged.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self._root = folder / kind, _ROOTS[kind]
        try:
            self._description = _description(self.folder)
        except (OSError, ValueError, EOFError, AttributeError, pickle.UnpicklingError) as error:
            raise UserError(f"{self.folder}: its description of the shards cannot be read ({error})") from error
        self._paths = {tuple(map(str, path))[1:]: name for name, path in (self._description.planner_data or {}).items()}
        if not self._paths:
            raise UserError(f"{self.folder}: is not a checkpoint of {self._root} that accelerate or this Trainer wrote")

    def paths(self) -> list[tuple[str, ...]]:
        """The path of each tensor or value in the nest that was saved."""
        return list(self._paths)

    def form(self, path: tuple[str, ...]) -> torch.Tensor | None:
        """A tensor without values, of the shape and number format of the whole; None if it is no tensor."""
        entry = self._description.state_dict_metadata[self._paths[path]]
        if not hasattr(entry, "properties"):
            return None
        return torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")

    def read(self, targets: Mapping[tuple[str, ...], Any]) -> dict[tuple[str, ...], Any]:
        """Fill the tensors in place, and return them with the values that are no tensors.

        Args:
            targets: Path -> the tensor to fill, of which this rank reads the part that it holds. Ignored for values.

        Raises:
            UserError: A path or shape is not that of the checkpoint, or a file is missing or damaged.
        """
        from torch.distributed.checkpoint.state_dict_loader import load

        flat: dict[str, Any] = {self._paths[path]: target for path, target in targets.items()}
        with self._explained(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # meant so
            load(flat, storage_reader=_reader(self.folder, self._description), planner=_planner(), no_dist=True)
        return {path: flat[self._paths[path]] for path in targets}

    @contextmanager
    def _explained(self) -> Iterator[None]:
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            yield
        except CheckpointException as error:
            cause, _ = next(iter(error.failures.values()))
            raise self._as_user_error(cause) from cause
        except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise self._as_user_error(error) from error

    def _as_user_error(self, error: BaseException) -> UserError:
        if isinstance(error, FileNotFoundError):
            reason = f"{Path(str(error.filename)).name} is missing"
        else:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
        return UserError(f"{self.folder}: cannot be read ({reason}); resume from another checkpoint")


class Rows:
    """A place for some rows of a tensor in shards: a target of :meth:`Shards.read` that needs no memory for the others.

    Attributes:
        values: The rows.
    """

    def __init__(self, form: torch.Tensor, rows: slice) -> None:
        self._shape, self._first = form.shape, rows.start
        self.values = torch.empty(rows.stop - rows.start, *form.shape[1:], dtype=form.dtype)

    def size(self) -> torch.Size:
        """The shape of the whole, which torch compares with that of the checkpoint."""
        return self._shape

    def __create_chunk_list__(self) -> list[Any]:
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        offsets = torch.Size([self._first, *[0] * (len(self._shape) - 1)])
        return [ChunkStorageMetadata(offsets=offsets, sizes=self.values.shape)]


class ShardedWeights:
    """The weights of a model in shards, of which some rows of a tensor can be read.

    Attributes:
        forms: Name -> a tensor on the meta device, of the shape and number format of the whole.
        extra: Values that are no tensors.

    Raises:
        UserError: The description of the shards is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._shards = Shards(folder, MODEL_SHARDS)
        self._paths = {".".join(path): path for path in self._shards.paths()}
        forms = {name: self._shards.form(path) for name, path in self._paths.items()}
        self.forms = {name: form for name, form in forms.items() if form is not None}
        others = {self._paths[name]: None for name, form in forms.items() if form is None}
        self.extra = {".".join(path): value for path, value in self._shards.read(others).items()}

    def read(self, name: str, part: tuple[slice, ...]) -> torch.Tensor | None:
        """A part of a tensor; None if the checkpoint does not have it."""
        return read_part(self._shards, self._paths[name], part) if name in self.forms else None


def read_part(shards: Shards, path: tuple[str, ...], part: tuple[slice, ...]) -> torch.Tensor:
    """Read a part of one tensor; only the rows of which it is a part get into memory."""
    form = shards.form(path)
    assert form is not None
    target = Rows(form, part[0]) if part else torch.empty_like(form, device="cpu")
    read: torch.Tensor | Rows = shards.read({path: target})[path]
    return read.values[(slice(None), *part[1:])] if isinstance(read, Rows) else read


def read_model(state: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Fill the tensors of a ``state_dict`` in place; return its values that are not tensors.

    Raises:
        UserError: The checkpoint is of another model: names or shapes differ.
    """
    shards = Shards(folder, MODEL_SHARDS)
    saved = {".".join(path): path for path in shards.paths()}
    if problems := list(_differences(state, {name: shards.form(path) for name, path in saved.items()})):
        raise another_model(folder, problems)
    read = shards.read({saved[name]: value for name, value in state.items()})
    return {name: read[saved[name]] for name, value in state.items() if not isinstance(value, torch.Tensor)}


def read_whole(folder: Path, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Read some tensors of a model whole; the others that the checkpoint holds are on the meta device.

    Raises:
        UserError: A file is missing or damaged.
    """
    shards = Shards(folder, MODEL_SHARDS)
    forms = {path: form for path in shards.paths() if (form := shards.form(path)) is not None}
    wanted = {path: torch.empty_like(form, device="cpu") for path, form in forms.items() if ".".join(path) in names}
    return {".".join(path): tensor for path, tensor in (forms | shards.read(wanted)).items()}


def _differences(own: Mapping[str, Any], saved: Mapping[str, torch.Tensor | None]) -> Iterator[str]:
    yield from (f"missing {name}" for name in own if name not in saved)
    yield from (f"unexpected {name}" for name in saved if name not in own)
    for name, value in own.items():
        form = saved.get(name)
        if form is not None and isinstance(value, torch.Tensor) and value.shape != form.shape:
            yield f"{name} is {tuple(form.shape)} there and {tuple(value.shape)} here"


LISTED = 10


def another_model(folder: Path, problems: list[str]) -> UserError:
    """The error for a checkpoint whose tensors are not those of the model; lists the first differences."""
    more = f" and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    return UserError(
        f"{folder}: is a checkpoint of another model: {'; '.join(problems[:LISTED])}{more}; "
        "create the model as it was trained, or train from the start in another output_dir"
    )


def read_optimizer(parameters: Mapping[str, torch.Tensor], folder: Path) -> dict[str, Any]:
    """Read the state of an optimizer, in the form of :func:`trainwright.distributed.named_state.optimizer_state`.

    Args:
        parameters: Name -> parameter. What has the shape of its parameter is spread as that is.
    """
    shards = Shards(folder, OPTIMIZER_SHARDS)
    targets: dict[tuple[str, ...], Any] = {}
    for path in shards.paths():
        form, name = shards.form(path), path[1] if path[0] == "state" else None
        if name is not None and name not in parameters:
            raise another_model(folder, [f"unexpected optimizer state of {name}"])
        targets[path] = None if form is None else _place_for(form, parameters.get(name or ""))
    return nested(shards.read(targets))


def nested(values: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """The state of an optimizer of which each value is given with its path."""
    result: dict[str, Any] = {"state": {}, "param_groups": []}
    for path, value in sorted(values.items(), key=lambda item: item[0][:1]):
        _set(result, path, value)
    return result


def _place_for(form: torch.Tensor, parameter: torch.Tensor | None) -> torch.Tensor:
    """Memory for a tensor of an optimizer, or for this rank's part of it."""
    if parameter is None or form.shape != parameter.shape or not form.ndim:
        return torch.empty_like(form, device="cpu")
    if not is_sharded(parameter):
        return torch.empty_like(form, device=parameter.device)
    return with_part(parameter, torch.empty_like(parameter._local_tensor, dtype=form.dtype, requires_grad=False))


def _set(result: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Put a value where it was in the nest; numbers in a path are those of a list."""
    place: Any = result
    for key, following in pairwise(path):
        place = _step_into(place, key, [] if following.isdigit() and key == "param_groups" else {})
    if isinstance(place, list):
        place.append(value)
    else:
        place[path[-1]] = value


def _step_into(place: Any, key: str, default: Any) -> Any:
    if isinstance(place, list):
        while len(place) <= int(key):
            place.append({})
        return place[int(key)]
    return place.setdefault(key, default)


def _description(folder: Path) -> Any:
    with open(folder / DESCRIPTION, "rb") as file:
        return _Unpickler(file).load()


class _Unpickler(pickle.Unpickler):
    """Creates only what describes shards."""

    def find_class(self, module: str, name: str) -> Any:
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype | torch.layout | torch.memory_format):
            return found
        if module.startswith(_SAFE_MODULES) or (module, name) in _SAFE_NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which describes no shards")


def _reader(folder: Path, description: Any) -> Any:
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    class Reader(FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            return description

    return Reader(folder)


def _planner() -> Any:
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

    class Planner(DefaultLoadPlanner):
        """Takes the names as they are, and reads values without running code."""

        def lookup_tensor(self, index: Any) -> torch.Tensor:
            target = self.state_dict[index.fqn]
            found: torch.Tensor = target.values if isinstance(target, Rows) else super().lookup_tensor(index)
            return found

        def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
            self.state_dict[read_item.dest_index.fqn] = torch.load(value, weights_only=True)

        def set_up_planner(self, state_dict: Any, metadata: Any = None, is_coordinator: bool = False) -> None:
            self.original_state_dict = self.state_dict = state_dict
            self.metadata, self.is_coordinator = metadata, is_coordinator

    return Planner(flatten_state_dict=False, flatten_sharded_tensors=False)
