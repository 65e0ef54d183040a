"""llama2.c's model files: version 0 and 1 (float32) and version 2 (int8 with a scale per group).

All are a header and then plain arrays in a fixed order, memory-mapped here. llama2.c turns
adjacent pairs of a head's dimensions; the rows of wq and wk are reordered so that the halves of a
head form the pairs, as in transformers. Layouts: `export.py` and `run.c` of karpathy/llama2.c.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flightllm.models.config import ModelConfig, RopeConfig, tensor_shapes
from flightllm.models.rope import rope_tables
from flightllm.spec.errors import InputError

__all__ = ["Header", "Llama2cFile", "read_header"]

F32 = NDArray[np.float32]

_MAGIC = 0x616B3432
_BOS, _EOS = 1, 2
_NORMS = ("attn_norm.weight", "mlp_norm.weight")
_MATRICES = ("q", "k", "v", "o", "gate", "down", "up")
_ANGLE_ERROR = 2e-3
"""What float32 rounding of a position's angle may change a cosine by."""


@dataclass(frozen=True)
class Header:
    """What a file's header says.

    Members
    -------
    config : the model. llama2.c starts and delimits texts with token 1 and ends replies with 2.
    version : 0, 1 or 2. group : weights that share a scale (version 2), else 0.
    offset : of the first array, in bytes.
    """

    config: ModelConfig
    version: int
    group: int
    offset: int


def _config(path: Path, sizes: tuple[int, ...], shared: bool) -> ModelConfig:
    dim, ffn_dim, layers, heads, kv_heads, vocab, length = sizes
    if heads < 1 or dim % heads:
        raise InputError(f"{path}: dim {dim} is not a multiple of {heads} heads")
    try:
        return ModelConfig(
            family="llama",
            vocab=vocab,
            dim=dim,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=dim // heads,
            ffn_dim=ffn_dim,
            max_length=length,
            rope=RopeConfig(),
            tied=shared,
            bos=_BOS if vocab > _BOS else None,
            eos=tuple(token for token in (_BOS, _EOS) if token < vocab),
            name=path.stem,
        )
    except InputError as error:
        raise InputError(f"{path}: is not a llama2.c model ({error})") from error


def read_header(path: Path) -> Header:
    """Read a file's header.

    Raises
    ------
    InputError : when the file is shorter than a header, or the header describes no model.
    """
    with path.open("rb") as file:
        raw = file.read(256)
    if len(raw) < 28:
        raise InputError(f"{path}: is no llama2.c model, it has only {len(raw)} bytes")
    if struct.unpack_from("<I", raw)[0] != _MAGIC:
        *sizes, vocab, length = struct.unpack_from("<7i", raw)
        # A negative vocabulary says that the head is not the embedding.
        config = _config(path, (*sizes, abs(vocab), length), shared=vocab > 0)
        return Header(config, 0, 0, 28)
    if len(raw) < 256:
        raise InputError(f"{path}: is truncated, its header has {len(raw)} of 256 bytes")
    version, *sizes = struct.unpack_from("<i7i", raw, 4)
    shared, group = struct.unpack_from("<Bi", raw, 36)
    if version not in (1, 2):
        raise InputError(f"{path}: llama2.c version {version} is not supported (only 0, 1, 2)")
    if version == 2 and group < 1:
        raise InputError(f"{path}: group size must be a positive integer, not {group}")
    config = _config(path, tuple(sizes), shared=bool(shared))
    return Header(config, version, group if version == 2 else 0, 256)


def _order(header: Header) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a file's arrays in the order they lie; "cos" and "sin" are no tensors."""
    config = header.config
    shapes = tensor_shapes(config)

    def layers(part: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        names = (f"layers.{index}.{part}" for index in range(config.layers))
        return ((name, shapes[name]) for name in names)

    def whole(name: str) -> tuple[str, tuple[int, ...]]:
        return name, shapes[name]

    matrices = [f"{part}.weight" for part in _MATRICES]
    if header.version == 0:
        table = (config.max_length, config.head_dim // 2)
        yield whole("embed")
        for part in (_NORMS[0], *matrices[:4], _NORMS[1], *matrices[4:]):
            yield from layers(part)
        yield whole("final_norm.weight")
        yield "cos", table
        yield "sin", table
    else:
        for part in _NORMS:
            yield from layers(part)
        yield whole("final_norm.weight")
        yield whole("embed")
        for part in matrices:
            yield from layers(part)
    if not config.tied:
        yield whole("head.weight")


@dataclass(frozen=True)
class _Place:
    """Where an array lies: bytes into the file; `group` 0 for plain float32."""

    offset: int
    shape: tuple[int, ...]
    group: int

    @property
    def size(self) -> int:
        count = math.prod(self.shape)
        return count + 4 * (count // self.group) if self.group else 4 * count


class Llama2cFile:
    """An open llama2.c model file.

    Parameters
    ----------
    path : of the file.

    Members
    -------
    header : what its header says. names : canonical names of its tensors.

    Raises
    ------
    InputError : when the file is no llama2.c model, is truncated or too long, or turns its heads
        by other angles than RoPE of base 10000.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.header = path, read_header(path)
        self._places = self._layout(path.stat().st_size)
        self._bytes = np.memmap(path, dtype=np.uint8, mode="c")
        if self.header.version == 0:
            self._check_angles()
        self.names = tuple(name for name in self._places if name not in ("cos", "sin"))

    def _layout(self, size: int) -> dict[str, _Place]:
        offset, group = self.header.offset, self.header.group
        places: dict[str, _Place] = {}
        for name, shape in _order(self.header):
            place = _Place(offset, shape, 0 if "norm" in name else group)
            if place.group and math.prod(shape) % place.group:
                raise InputError(
                    f"{self.path}: tensor {name!r} {list(shape)} does not divide into groups of"
                    f" {group}"
                )
            offset += place.size
            if offset > size:
                raise InputError(
                    f"{self.path}: is truncated: tensor {name!r} {list(shape)} ends at byte"
                    f" {offset}, but the file has {size}"
                )
            places[name] = place
        if offset != size:
            raise InputError(
                f"{self.path}: has {size} bytes, but a model of its header's shape has {offset}"
            )
        return places

    def _plain(self, offset: int, shape: tuple[int, ...]) -> F32:
        raw = self._bytes[offset : offset + 4 * math.prod(shape)]
        return np.asarray(raw).view("<f4").reshape(shape)

    def _check_angles(self) -> None:
        config = self.header.config
        for name, expected in zip(("cos", "sin"), rope_tables(config, config.max_length)):
            table = self._plain(self._places[name].offset, expected.shape)
            if table.any() and not np.abs(table - expected).max() <= _ANGLE_ERROR:
                raise InputError(
                    f"{self.path}: its RoPE table {name!r} is not that of base 10000, which is"
                    f" the only one llama2.c knows"
                )

    def _ordered(self, name: str, rows: NDArray[np.generic]) -> NDArray[np.generic]:
        """Rows of wq and wk from adjacent pairs to half and half, head by head."""
        if not name.endswith((".q.weight", ".k.weight")):
            return rows
        half = self.header.config.head_dim // 2
        heads = rows.reshape(-1, half, 2, rows.shape[1])
        return heads.transpose(0, 2, 1, 3).reshape(rows.shape)

    def read(self, name: str) -> F32:
        """One tensor, float32; codes are multiplied out."""
        place = self._places[name]
        if not place.group:
            return self._ordered(name, self._plain(place.offset, place.shape))  # type: ignore[return-value]
        levels, scales = self._codes(place)
        weights = levels.reshape(-1, place.group).astype(np.float32) * scales[:, None]
        return self._ordered(name, weights.reshape(place.shape))  # type: ignore[return-value]

    def _codes(self, place: _Place) -> tuple[NDArray[np.int8], F32]:
        """Levels in the tensor's shape and scales [groups], groups running on over row ends."""
        count = math.prod(place.shape)
        levels = np.asarray(self._bytes[place.offset : place.offset + count]).view(np.int8)
        scales = self._plain(place.offset + count, (count // place.group,))
        return levels.reshape(place.shape), scales

    def codes_reader(self, name: str) -> Callable[[], tuple[NDArray[np.int8], F32]] | None:
        """A function that reads a matrix's levels int8 [rows, columns] and scales float32 [rows,
        groups], or None where it is not quantised or its groups run on over row ends."""
        place = self._places[name]
        if not place.group or place.shape[-1] % place.group:
            return None

        def read() -> tuple[NDArray[np.int8], F32]:
            levels, scales = self._codes(place)
            rows = scales.reshape(place.shape[0], -1)
            return self._ordered(name, levels), self._ordered(name, rows)  # type: ignore[return-value]

        return read
