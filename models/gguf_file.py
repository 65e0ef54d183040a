"""GGUF files: metadata and tensor directory, read with every count held against the file's size.

Layout: ggml's docs/gguf.md, versions 2 and 3, little-endian. The `gguf` package supplies the block
types and their sizes; its own reader trusts the counts that a file states, so it is not used here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flightllm.spec.errors import InputError, MissingToolError

__all__ = ["MAGIC", "GgufFile", "GgufTensor", "open_gguf"]

MAGIC = b"GGUF"
_ALIGNMENT = 32
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8",
    11: "<i8", 12: "<f8",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_SMALLEST_TENSOR = 8 + 4 + 4 + 8
"""Bytes of a directory entry with an empty name and no dimensions."""
_SMALLEST_FIELD = 8 + 4 + 1


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the directory.

    Members
    -------
    kind : name of its block type ("Q4_K"). shape : rows first, as numpy has it.
    offset, size : bytes of its data in the file. block : elements of a block and its bytes.
    """

    kind: str
    shape: tuple[int, ...]
    offset: int
    size: int
    block: tuple[int, int]


@dataclass(frozen=True)
class GgufFile:
    """An open file: metadata by key (numbers, strings, arrays), tensors by name."""

    path: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    def raw(self, tensor: GgufTensor) -> NDArray[np.uint8]:
        """The bytes of a tensor, mapped anew each time, so that pages are given back after use."""
        if not tensor.size:
            return np.zeros(0, np.uint8)
        return np.memmap(self.path, np.uint8, "c", tensor.offset, (tensor.size,))


class _Cursor:
    """A place in the file's head that never leaves it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        self.data: NDArray[np.uint8] = (
            np.memmap(path, np.uint8, "r") if self.size else np.zeros(0, np.uint8)
        )
        self.at = 0

    def fail(self, message: str) -> InputError:
        return InputError(f"{self.path}: {message}")

    def take(self, count: int, what: str) -> bytes:
        if count > self.size - self.at:
            raise self.fail(
                f"is truncated or damaged: {what} of {count} bytes at byte {self.at} ends beyond"
                f" the file's {self.size}"
            )
        raw = self.data[self.at : self.at + count].tobytes()
        self.at += count
        return raw

    def number(self, kind: str, what: str) -> Any:
        return np.frombuffer(self.take(np.dtype(kind).itemsize, what), kind)[0].item()

    def count(self, smallest: int, what: str) -> int:
        """A number of things of at least `smallest` bytes each, for which there is room."""
        value: int = self.number("<u8", what)
        if value * smallest > self.size - self.at:
            raise self.fail(
                f"is truncated or damaged: {value} {what} cannot lie in {self.size - self.at} bytes"
            )
        return value

    def text(self, what: str) -> str:
        length: int = self.number("<u8", what)
        return self.take(length, what).decode("utf-8", errors="replace")


def _value(cursor: _Cursor, kind: int, key: str) -> Any:
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind], key)
    if kind == _STRING:
        return cursor.text(key)
    if kind != _ARRAY:
        raise cursor.fail(f"field {key!r} has the unknown type {kind}")
    inner: int = cursor.number("<u4", key)
    if inner in _SCALARS:
        count = cursor.count(np.dtype(_SCALARS[inner]).itemsize, f"elements of {key!r}")
        raw = cursor.take(count * np.dtype(_SCALARS[inner]).itemsize, key)
        return np.frombuffer(raw, _SCALARS[inner])
    if inner != _STRING:
        raise cursor.fail(f"field {key!r} is an array of type {inner}, which is not supported")
    return [cursor.text(key) for _ in range(cursor.count(8, f"strings of {key!r}"))]


def _tensor(cursor: _Cursor, sizes: Mapping[int, tuple[str, int, int]]) -> tuple[str, Any]:
    name = cursor.text("a tensor's name")
    dims: int = cursor.number("<u4", name)
    if dims > _MAX_DIMENSIONS:
        raise cursor.fail(f"tensor {name!r} has {dims} dimensions, more than {_MAX_DIMENSIONS}")
    shape = tuple(cursor.number("<u8", name) for _ in range(dims))[::-1]
    kind: int = cursor.number("<u4", name)
    offset: int = cursor.number("<u8", name)
    if kind not in sizes:
        raise cursor.fail(f"tensor {name!r} has the unknown block type {kind}")
    label, elements, size = sizes[kind]
    if not shape or shape[-1] % elements:
        raise cursor.fail(f"tensor {name!r} {list(shape)} does not divide into blocks of {label}")
    total = math.prod(shape) // elements * size
    return name, GgufTensor(label, shape, offset, total, (elements, size))


def _block_sizes() -> dict[int, tuple[str, int, int]]:
    """Block types: number in the file to name, elements and bytes."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError as error:
        raise MissingToolError(
            "GGUF files need the package gguf: pip install 'flightllm[gguf]'"
        ) from error
    return {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}


def open_gguf(path: Path) -> GgufFile:
    """Read a file's head.

    Raises
    ------
    InputError : when it is no GGUF file, is truncated, or a count, a name or an offset in it does
        not fit the file.
    """
    cursor = _Cursor(path)
    if cursor.take(4, "the magic number") != MAGIC:
        raise cursor.fail("is no GGUF file: it does not begin with GGUF")
    version: int = struct.unpack("<I", cursor.take(4, "the version"))[0]
    if version not in (2, 3):
        raise cursor.fail(f"has GGUF version {version}; 2 and 3, little-endian, are read")
    tensors = cursor.count(_SMALLEST_TENSOR, "tensors")
    fields: dict[str, Any] = {}
    for _ in range(cursor.count(_SMALLEST_FIELD, "fields")):
        key = cursor.text("a field's name")
        if key in fields:
            raise cursor.fail(f"has the field {key!r} twice")
        fields[key] = _value(cursor, cursor.number("<u4", key), key)
    return GgufFile(path, fields, _directory(cursor, fields, tensors))


def _directory(cursor: _Cursor, fields: Mapping[str, Any], count: int) -> dict[str, GgufTensor]:
    align = fields.get("general.alignment", _ALIGNMENT)
    if not isinstance(align, int) or align < 1 or align & (align - 1):
        raise cursor.fail(f"general.alignment {align!r} is no power of two")
    sizes = _block_sizes()
    found: dict[str, GgufTensor] = {}
    for _ in range(count):
        name, tensor = _tensor(cursor, sizes)
        if name in found:
            raise cursor.fail(f"has the tensor {name!r} twice")
        found[name] = tensor
    start = -(-cursor.at // align) * align
    out = {}
    for name, tensor in found.items():
        end = start + tensor.offset + tensor.size
        if tensor.offset % align or end > cursor.size:
            raise cursor.fail(
                f"tensor {name!r} {list(tensor.shape)} of {tensor.kind} lies at bytes"
                f" {start + tensor.offset} to {end}, but the file has {cursor.size}"
            )
        out[name] = GgufTensor(
            tensor.kind, tensor.shape, start + tensor.offset, tensor.size, tensor.block
        )
    return out
