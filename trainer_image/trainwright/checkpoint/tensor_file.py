"""A ``safetensors`` file that is written one tensor at a time, so that no process holds all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any, cast

import torch

from trainwright.contract import UserError

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
"""Number format -> its name in the header."""


class TensorFile:
    """A ``safetensors`` file that is written one tensor at a time, in any order.

    Args:
        forms: Name -> a tensor of the shape and number format of the one to be written.
        notes: The metadata of the header.
    """

    def __init__(self, path: Path, forms: Mapping[str, torch.Tensor], notes: Mapping[str, str]) -> None:
        self._path = path
        self._file: FileIO | None = None
        self._places: dict[str, int] = {}
        header: dict[str, Any] = {"__metadata__": dict(notes)} if notes else {}
        end = 0
        for name in sorted(forms, key=lambda name: (-forms[name].itemsize, name)):  # keeps all of them aligned
            form = forms[name]
            begin, end = end, end + form.nbytes
            header[name] = {"dtype": _dtype(name, form), "shape": list(form.shape), "data_offsets": [begin, end]}
            self._places[name] = begin
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start, self._header = 8 + len(text), len(text).to_bytes(8, "little") + text

    def write(self, name: str, tensor: torch.Tensor) -> None:
        file = self._opened()
        file.seek(self._start + self._places[name])
        if tensor.numel():
            values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            _write_all(file, memoryview(cast(Any, values.numpy())))

    def _opened(self) -> FileIO:
        if self._file is None:
            self._file = FileIO(self._path, "wb")
            _write_all(self._file, memoryview(self._header))
        return self._file

    def close(self) -> None:
        self._opened().close()


def _dtype(name: str, form: torch.Tensor) -> str:
    if form.dtype not in DTYPES:
        raise UserError(f"{name}: safetensors has no number format {form.dtype}; convert the model before it is saved")
    return DTYPES[form.dtype]


def _write_all(file: FileIO, content: memoryview) -> None:
    written = 0
    while written < len(content):
        written += file.write(content[written:])
