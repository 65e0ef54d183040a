"""Quantised Hugging Face checkpoints: the layouts of GPTQ, AWQ and compressed-tensors.

A matrix is quantised where its module carries packed codes in place of a weight, so that what a
checkpoint leaves in float (heads, mostly) is read as float. Nothing is unpacked before it is asked
for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flightllm.models.codes import CodeKind, Codes
from flightllm.models.hf_config import Fields
from flightllm.models.packing import unpack_awq, unpack_stream
from flightllm.spec.errors import InputError

if TYPE_CHECKING:
    from flightllm.models.weight_files import Entry

__all__ = [
    "LAYOUTS",
    "METHODS", "PackedMatrix", "QuantScheme", "packed_matrix", "read_scheme",
]  # fmt: skip

LAYOUTS = (
    ("GPTQ, `checkpoint_format` `gptq` or `gptq_v2`", "2, 3, 4, 8", "kept exactly; rounded anew to"
     " w8g32 where act-order puts columns of a group apart, or 8-bit levels leave -127 to 127"),
    ("AWQ, `version` `gemm` or `gemv`", "4", "kept exactly"),
    ("compressed-tensors, `pack-quantized`", "4, 8", "kept exactly; as GPTQ with act-order"),
    ("compressed-tensors, `int-quantized`", "8", "kept exactly, but for levels of -128"),
)  # fmt: skip
"""What is read, in words: format, bits, and what `--weights as-is` makes of it."""
METHODS = ("gptq", "awq", "compressed-tensors")
"""Values of `quant_method` that are read."""

_FLOATS = ("float16", "bfloat16", "float32")
_INTEGERS = ("int32", "int64", "int16", "int8")


@dataclass(frozen=True)
class QuantScheme:
    """What a folder's quantisation configuration says.

    Members
    -------
    layout : "gptq", "awq", "awq-gemv", "packed" or "plain" (the last two of compressed-tensors).
    bits : width of a code. group : columns that share a scale; -1 for whole rows, 0 for the whole
        matrix.
    zero_offset : what is added to a zero point as it is stored (1 in GPTQ's first format).
    """

    layout: str
    bits: int
    group: int
    zero_offset: int = 0

    def per_scale(self, columns: int) -> int:
        """Columns that share a scale in a matrix of `columns`."""
        return self.group if self.group > 0 else columns


def _gptq(fields: Fields) -> QuantScheme:
    layout = fields.choice(
        "checkpoint_format", {"gptq": "1", "gptq_v2": "0"}, "gptq"
    )  # the others (marlin, bitblas) are orders of one GPU's kernels
    return QuantScheme("gptq", fields.integer("bits"), _group(fields), int(layout))


def _awq(fields: Fields) -> QuantScheme:
    version = fields.data.get("version")
    kinds = {"gemm": "awq", "gemv": "awq-gemv"}
    name = version.lower() if isinstance(version, str) else "gemm"
    if name not in kinds:
        raise fields.fail(f"version {version!r} is not supported (only gemm, gemv): export as gemm")
    bits = fields.integer("bits", fields.data.get("w_bit", 4))
    if not fields.has("group_size") and fields.has("q_group_size"):
        return QuantScheme(kinds[name], bits, _group(fields, "q_group_size"))
    return QuantScheme(kinds[name], bits, _group(fields))


def _group(fields: Fields, name: str = "group_size") -> int:
    value = fields.integer(name, -1, minimum=-1)
    if value == 0:
        raise fields.fail(f"{name} 0 is no number of columns")
    return value


def _compressed(fields: Fields) -> QuantScheme:
    groups = fields.data.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise fields.fail("config_groups is missing")
    schemes = {_compressed_group(fields, name, part) for name, part in groups.items()}
    if len(schemes) > 1:
        raise fields.fail("config_groups differ in width or group, which is not supported")
    return schemes.pop()


def _compressed_group(fields: Fields, name: str, part: Any) -> QuantScheme:
    weights = part.get("weights") if isinstance(part, dict) else None
    where = f"{fields.where}: config_groups.{name}.weights"
    if not isinstance(weights, dict):
        raise InputError(f"{where} is missing")
    inner = Fields(weights, where)
    layouts = {"pack-quantized": "packed", "int-quantized": "plain", "naive-quantized": "plain"}
    kind = part["format"] if isinstance(part.get("format"), str) else fields.data.get("format")
    if not isinstance(kind, str) or kind not in layouts:
        raise fields.fail(f"format {kind!r} is not supported (only {', '.join(layouts)})")
    inner.choice("type", {"int": "int"}, "int")
    bits, strategy = inner.integer("num_bits"), inner.text("strategy", "tensor")
    group = {"channel": -1, "tensor": 0}.get(strategy)
    if strategy == "group":
        group = inner.integer("group_size")
    if group is None:
        raise inner.fail(f"strategy {strategy!r} is not supported (only group, channel, tensor)")
    return QuantScheme(layouts[kind], bits, group)


_WIDTHS = {"gptq": (2, 3, 4, 8), "awq": (4,), "awq-gemv": (4,), "packed": (4, 8), "plain": (8,)}


def read_scheme(data: Mapping[str, Any], where: str) -> QuantScheme | None:
    """The scheme of a folder's config.json (`quantization_config`), None where it has none.

    Parameters
    ----------
    data : the object of config.json. where : the file, for messages.

    Raises
    ------
    InputError : for a method, layout or width that is not read.
    """
    described = data.get("quantization_config")
    if described is None:
        return None
    if not isinstance(described, dict):
        raise InputError(f"{where}: quantization_config must be an object, not {described!r}")
    fields = Fields(described, f"{where}: quantization_config")
    method = fields.text("quant_method", "gptq" if "desc_act" in described else ...)
    readers = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed}
    if method not in readers:
        raise fields.fail(
            f"quant_method {method!r} is not supported (only {', '.join(METHODS)}): quantise the"
            " model with one of these, or give the float checkpoint"
        )
    scheme = readers[method](fields)
    if scheme.bits not in _WIDTHS[scheme.layout]:
        widths = ", ".join(map(str, _WIDTHS[scheme.layout]))
        raise fields.fail(f"{scheme.bits} bits in layout {scheme.layout} (only {widths}) are not")
    return scheme


@dataclass(frozen=True)
class PackedMatrix:
    """A quantised module of a checkpoint, checked but not read.

    Members
    -------
    shape : rows and columns of the matrix as it is used. names : the file's tensors it uses.
    codes : reads it. kind : gives what is known of some rows without reading their codes; None
        where only the codes tell (8 bits: whether all levels stay in range).
    """

    shape: tuple[int, int]
    names: tuple[str, ...]
    codes: Callable[[], Codes]
    kind: Callable[[slice], CodeKind] | None


@dataclass(frozen=True)
class _Module:
    """What a layout reads of a module: its codes, zero points [rows, groups], groups of columns."""

    codes: Callable[[], Codes]
    zeros: Callable[[], NDArray[np.integer[Any]]]
    places: Callable[[], NDArray[np.int64] | None] = lambda: None

    def kind(self, scheme: QuantScheme, rows: slice) -> CodeKind:
        """What is known of some rows."""
        middle = 1 << (scheme.bits - 1)
        return CodeKind(
            scheme.bits, max(scheme.group, 0),
            zeros=bool((self.zeros()[rows] != middle).any()),
            scattered=self.places() is not None,
        )  # fmt: skip


class _Parts:
    """The tensors of one module, by their last name, checked as they are taken."""

    def __init__(self, entries: Mapping[str, Entry], module: str, source: Path) -> None:
        self.entries, self.module, self.source = entries, module, source
        self.names: list[str] = []

    def has(self, name: str) -> bool:
        return f"{self.module}.{name}" in self.entries

    def take(self, name: str, shape: tuple[int, ...] | None, types: tuple[str, ...]) -> Entry:
        full = f"{self.module}.{name}"
        entry = self.entries.get(full)
        if entry is None:
            raise InputError(f"{self.source}: tensor {full!r} is missing")
        if shape is not None and entry.shape != shape:
            raise InputError(
                f"{entry.file}: tensor {full!r} has shape {list(entry.shape)}, expected"
                f" {list(shape)}"
            )
        if entry.dtype not in types:
            raise InputError(
                f"{entry.file}: tensor {full!r} has type {entry.dtype}, expected one of"
                f" {', '.join(types)}"
            )
        self.names.append(full)
        return entry

    def fail(self, message: str) -> InputError:
        return InputError(f"{self.source}: module {self.module!r} {message}")


def packed_matrix(
    entries: Mapping[str, Entry], module: str, shape: tuple[int, int], scheme: QuantScheme,
    source: Path,
) -> PackedMatrix | None:  # fmt: skip
    """A quantised module, or None where the checkpoint keeps a plain weight.

    Parameters
    ----------
    entries : the checkpoint's tensors. module : name without its last part. shape : rows and
    columns that the configuration gives the matrix. source : the file, for messages.

    Raises
    ------
    InputError : when a part is missing, or has another shape or type than the layout asks for.
    """
    parts = _Parts(entries, module, source)
    kinds = {"gptq": _of_gptq, "awq": _of_awq, "awq-gemv": _of_gemv, "packed": _of_packed}
    first = {"packed": "weight_packed", "plain": "weight"}.get(scheme.layout, "qweight")
    if not parts.has(first) or (scheme.layout == "plain" and not parts.has("weight_scale")):
        return None
    rows, columns = shape
    if scheme.layout == "awq" and rows % 8:
        raise parts.fail(f"has {rows} rows, which are no multiple of 8")
    module_read = kinds.get(scheme.layout, _of_plain)(parts, rows, columns, scheme)
    kind = None if scheme.bits == 8 else partial(module_read.kind, scheme)
    return PackedMatrix(shape, tuple(parts.names), module_read.codes, kind)


def _words(count: int, bits: int) -> int:
    return -(-count * bits // 32)


def _array(entry: Entry) -> NDArray[Any]:
    tensor = entry.read()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _affine(
    codes: NDArray[np.uint8], zeros: NDArray[np.integer[Any]], scales: NDArray[np.float32],
    group: int, bits: int, places: NDArray[np.int64] | None = None,
) -> Codes:  # fmt: skip
    """Codes with zero points in one layout: codes [rows, columns], the others [rows, groups]."""
    kind = np.int8 if bits < 8 else np.int16
    levels: NDArray[Any] = np.ascontiguousarray(codes).astype(kind)
    made = Codes(
        levels, np.ascontiguousarray(scales, np.float32), group, bits,
        zeros=np.ascontiguousarray(zeros).astype(np.int16), places=places,
    )  # fmt: skip
    levels -= made.spread(zeros.astype(kind))
    return made


def _places(entry: Entry | None, columns: int, group: int, groups: int) -> NDArray[np.int64] | None:
    """The group of each column where they are not consecutive, else None."""
    if entry is None:
        return None
    found: NDArray[np.int64] = _array(entry).astype(np.int64)
    if found.min(initial=0) < 0 or found.max(initial=0) >= groups:
        raise InputError(f"{entry.file}: g_idx names a group that is not among {groups}")
    return None if np.array_equal(found, np.arange(columns) // group) else found


def _of_gptq(parts: _Parts, rows: int, columns: int, scheme: QuantScheme) -> _Module:
    bits, group = scheme.bits, scheme.per_scale(columns)
    groups = -(-columns // group)
    weight = parts.take("qweight", (_words(columns, bits), rows), ("int32",))
    zero = parts.take("qzeros", (groups, _words(rows, bits)), ("int32",))
    scale = parts.take("scales", (groups, rows), _FLOATS)
    index = parts.take("g_idx", (columns,), _INTEGERS) if parts.has("g_idx") else None

    def zeros() -> NDArray[np.integer[Any]]:
        # What is stored is the zero point less one, modulo the width.
        stored = unpack_stream(_array(zero), bits, rows).astype(np.int16) + scheme.zero_offset
        return (stored % (1 << bits)).T

    def places() -> NDArray[np.int64] | None:
        return _places(index, columns, group, groups)

    def read() -> Codes:
        codes = unpack_stream(_array(weight).T, bits, columns)
        return _affine(codes, zeros(), _array(scale).T, group, bits, places())

    return _Module(read, zeros, places)


def _of_awq(parts: _Parts, rows: int, columns: int, scheme: QuantScheme) -> _Module:
    group = scheme.per_scale(columns)
    groups = -(-columns // group)
    weight = parts.take("qweight", (columns, rows // 8), ("int32",))
    zero = parts.take("qzeros", (groups, rows // 8), ("int32",))
    scale = parts.take("scales", (groups, rows), _FLOATS)

    def zeros() -> NDArray[np.integer[Any]]:
        return unpack_awq(_array(zero), rows).T

    def read() -> Codes:
        codes = unpack_awq(_array(weight), rows).T
        return _affine(codes, zeros(), _array(scale).T, group, 4)

    return _Module(read, zeros)


def _of_gemv(parts: _Parts, rows: int, columns: int, scheme: QuantScheme) -> _Module:
    group = scheme.per_scale(columns)
    groups = -(-columns // group)
    weight = parts.take("qweight", (rows, _words(columns, 4)), ("int32",))
    zero = parts.take("qzeros", None, ("int32",))
    scale = parts.take("scales", None, _FLOATS)
    if zero.shape[:1] + scale.shape[:1] != (rows, rows) or len(zero.shape + scale.shape) != 4:
        raise parts.fail(f"has zero points {list(zero.shape)} and scales {list(scale.shape)}")
    if zero.shape[1] * 8 < groups or scale.shape[1] < groups:
        raise parts.fail(f"has fewer scales or zero points than {groups} groups")

    def zeros() -> NDArray[np.integer[Any]]:
        return unpack_stream(_array(zero), 4, groups)

    def read() -> Codes:
        codes = unpack_stream(_array(weight), 4, columns)
        return _affine(codes, zeros(), _array(scale)[:, :groups], group, 4)

    return _Module(read, zeros)


def _signed_zeros(
    parts: _Parts, rows: int, groups: int, bits: int
) -> Callable[[], NDArray[np.int16]]:  # fmt: skip
    """Zero points of compressed-tensors, signed [rows, groups]: packed along rows, plain, or 0."""
    if not parts.has("weight_zero_point"):
        return lambda: np.zeros((rows, groups), np.int16)
    entry = parts.take("weight_zero_point", None, ("int32", "int8", "int16", "int64"))
    packed = (_words(rows, bits), groups)
    if entry.dtype == "int32" and entry.shape == packed:
        half = 1 << (bits - 1)
        return lambda: unpack_stream(_array(entry).T, bits, rows).T.astype(np.int16) - half
    shapes = ((rows, groups), (1,), (rows,), ()) if groups == 1 else ((rows, groups),)
    if entry.shape not in shapes:
        raise parts.fail(f"has zero points {list(entry.shape)}, expected {[rows, groups]}")
    return lambda: np.broadcast_to(
        _array(entry).astype(np.int16).reshape(-1, groups), (rows, groups)
    )


def _scales(
    parts: _Parts, rows: int, groups: int
) -> Callable[[], NDArray[np.float32]]:  # fmt: skip
    entry = parts.take("weight_scale", None, _FLOATS)
    shapes = ((rows, 1), (rows,), (1,), ()) if groups == 1 else ((rows, groups),)
    if entry.shape not in shapes:
        raise parts.fail(f"has scales {list(entry.shape)}, expected {[rows, groups]}")
    return lambda: np.broadcast_to(_array(entry).reshape(-1, groups), (rows, groups))


def _of_packed(parts: _Parts, rows: int, columns: int, scheme: QuantScheme) -> _Module:
    bits, group = scheme.bits, scheme.per_scale(columns)
    groups = -(-columns // group)
    weight = parts.take("weight_packed", (rows, _words(columns, bits)), ("int32",))
    if parts.has("weight_shape"):
        parts.take("weight_shape", (2,), _INTEGERS)
    scales, signed = _scales(parts, rows, groups), _signed_zeros(parts, rows, groups, bits)
    index = parts.take("weight_g_idx", (columns,), _INTEGERS) if parts.has("weight_g_idx") else None
    half = 1 << (bits - 1)

    def zeros() -> NDArray[np.integer[Any]]:
        return signed() + half

    def places() -> NDArray[np.int64] | None:
        return _places(index, columns, group, groups)

    def read() -> Codes:
        codes = unpack_stream(_array(weight), bits, columns)
        return _affine(codes, zeros(), scales(), group, bits, places())

    return _Module(read, zeros, places)


def _of_plain(parts: _Parts, rows: int, columns: int, scheme: QuantScheme) -> _Module:
    group = scheme.per_scale(columns)
    groups = -(-columns // group)
    weight = parts.take("weight", (rows, columns), ("int8",))
    scales, signed = _scales(parts, rows, groups), _signed_zeros(parts, rows, groups, 8)

    def zeros() -> NDArray[np.integer[Any]]:
        return signed() + 128

    def read() -> Codes:
        levels: NDArray[np.int16] = _array(weight).astype(np.int16)
        return _affine((levels + 128).astype(np.uint8), zeros(), scales(), group, 8)

    return _Module(read, zeros)
