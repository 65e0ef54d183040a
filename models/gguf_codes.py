"""GGUF's block types as codes: what each block of a row holds, after ggml's ggml-common.h.

A type that is in `KEPT` is unpacked here, into levels, scales and minima of groups of columns. Any
other type that the `gguf` package can read gives float weights, without codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flightllm.models.codes import CodeKind, Codes
from flightllm.models.gguf_file import GgufFile, GgufTensor
from flightllm.spec.errors import InputError

__all__ = [
    "FATES", "IQ4_NL_LEVELS", "KEPT", "KINDS", "PLAIN", "codes_of", "float_of", "readable",
]  # fmt: skip

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

PLAIN = {"F32": "<f4", "F16": "<f2", "BF16": "<i2", "F64": "<f8"}
"""Types without blocks; BF16 is the upper half of a float32."""

IQ4_NL_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
MXFP4_LEVELS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def _half(part: U8) -> F32:
    """Two bytes a number, fp16, as float32 [..., n / 2]."""
    return np.ascontiguousarray(part).view("<f2").astype(np.float32)


def _nibbles(part: U8, run: int) -> U8:
    """Low nibbles of `run` bytes, then their high nibbles, run after run: [rows, blocks, codes]."""
    rows, blocks, count = part.shape
    runs = part.reshape(rows, blocks, count // run, 1, run)
    out: U8 = np.concatenate([runs & 15, runs >> 4], axis=3)
    return out.reshape(rows, blocks, 2 * count)


def _flat(levels: NDArray[Any]) -> NDArray[np.int8]:
    return levels.reshape(levels.shape[0], -1).view(np.int8)


def _columns(values: F32) -> F32:
    return np.ascontiguousarray(values.reshape(values.shape[0], -1))


def _q8_0(raw: U8) -> Codes:
    return Codes(_flat(np.ascontiguousarray(raw[..., 2:])), _columns(_half(raw[..., :2])), 32, 8)


def _q4_0(raw: U8) -> Codes:
    levels = _flat(_nibbles(raw[..., 2:], 16)) - np.int8(8)
    return Codes(levels, _columns(_half(raw[..., :2])), 32, 4)


def _q4_1(raw: U8) -> Codes:
    scale, low = _columns(_half(raw[..., :2])), _columns(_half(raw[..., 2:4]))
    return Codes(_flat(_nibbles(raw[..., 4:], 16)), scale, 32, 4, minima=low)


def _fifth_bits(part: U8) -> U8:
    """32 bits a block as 0 or 16 a code."""
    return np.unpackbits(part, axis=-1, bitorder="little") << np.uint8(4)


def _q5_0(raw: U8) -> Codes:
    codes = _nibbles(raw[..., 6:], 16) | _fifth_bits(np.ascontiguousarray(raw[..., 2:6]))
    return Codes(_flat(codes) - np.int8(16), _columns(_half(raw[..., :2])), 32, 5)


def _q5_1(raw: U8) -> Codes:
    codes = _nibbles(raw[..., 8:], 16) | _fifth_bits(np.ascontiguousarray(raw[..., 4:8]))
    scale, low = _columns(_half(raw[..., :2])), _columns(_half(raw[..., 2:4]))
    return Codes(_flat(codes), scale, 32, 5, minima=low)


def _k_scales(raw: U8) -> tuple[F32, F32]:
    """Scales and minima of the eight groups of a Q4_K or Q5_K block, float32 [rows, groups]."""
    low, high, rest = raw[..., 4:8], raw[..., 8:12], raw[..., 12:16]
    scale = np.concatenate([low & 63, (rest & 15) | ((low >> 2) & 48)], axis=-1)
    minimum = np.concatenate([high & 63, (rest >> 4) | ((high >> 2) & 48)], axis=-1)
    made = _half(raw[..., :2]) * scale.astype(np.float32)
    return _columns(made), _columns(-(_half(raw[..., 2:4]) * minimum.astype(np.float32)))


def _q4_k(raw: U8) -> Codes:
    scale, low = _k_scales(raw)
    return Codes(_flat(_nibbles(raw[..., 16:], 32)), scale, 32, 4, minima=low)


def _q5_k(raw: U8) -> Codes:
    scale, low = _k_scales(raw)
    planes = [(raw[..., 16:48] >> np.uint8(bit)) & 1 for bit in range(8)]
    fifth = np.concatenate(planes, axis=-1) << np.uint8(4)
    return Codes(_flat(_nibbles(raw[..., 48:], 32) | fifth), scale, 32, 5, minima=low)


def _q6_k(raw: U8) -> Codes:
    rows, blocks = raw.shape[:2]
    low = _nibbles(raw[..., :128], 64)
    pairs = raw[..., 128:192].reshape(rows, blocks, 2, 1, 32)
    high = np.concatenate([(pairs >> np.uint8(shift)) & 3 for shift in (0, 2, 4, 6)], axis=3)
    codes = low | (high.reshape(rows, blocks, 256) << np.uint8(4))
    scale = np.ascontiguousarray(raw[..., 192:208]).view(np.int8).astype(np.float32)
    return Codes(_flat(codes) - np.int8(32), _columns(_half(raw[..., 208:210]) * scale), 16, 6)


def _iq4_nl(raw: U8) -> Codes:
    levels = np.array(IQ4_NL_LEVELS, np.int8)[_nibbles(raw[..., 2:], 16)]
    return Codes(_flat(levels), _columns(_half(raw[..., :2])), 32, 4, table=IQ4_NL_LEVELS)


def _iq4_xs(raw: U8) -> Codes:
    low = raw[..., 4:8]
    low = np.stack([low & 15, low >> 4], axis=-1).reshape(*low.shape[:2], 8)
    high = np.ascontiguousarray(raw[..., 2:4]).view("<u2").astype(np.int32)
    high = (high >> np.arange(0, 16, 2)) & 3
    scale = (low | (high << 4)).astype(np.float32) - 32
    levels = np.array(IQ4_NL_LEVELS, np.int8)[_nibbles(raw[..., 8:], 16)]
    scales = _columns(_half(raw[..., :2]) * scale)
    return Codes(_flat(levels), scales, 32, 4, table=IQ4_NL_LEVELS)


def _mxfp4(raw: U8) -> Codes:
    exponent = raw[..., 0].astype(np.float64)
    levels = np.array(MXFP4_LEVELS, np.int8)[_nibbles(raw[..., 1:], 16)]
    scale = np.exp2(exponent - 128).astype(np.float32)
    return Codes(_flat(levels), _columns(scale), 32, 4, table=MXFP4_LEVELS)


KEPT: dict[str, Callable[[U8], Codes]] = {
    "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q4_K": _q4_k,
    "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs, "MXFP4": _mxfp4,
}  # fmt: skip
"""Block types that become codes: raw uint8 [rows, blocks, bytes] to codes."""


KINDS = {
    "Q8_0": CodeKind(8, 32), "Q4_0": CodeKind(4, 32), "Q4_1": CodeKind(4, 32, minima=True),
    "Q5_0": CodeKind(5, 32), "Q5_1": CodeKind(5, 32, minima=True),
    "Q4_K": CodeKind(4, 32, minima=True, wide=True),
    "Q5_K": CodeKind(5, 32, minima=True, wide=True), "Q6_K": CodeKind(6, 16, wide=True),
    "IQ4_NL": CodeKind(4, 32, table=IQ4_NL_LEVELS),
    "IQ4_XS": CodeKind(4, 32, table=IQ4_NL_LEVELS, wide=True),
    "MXFP4": CodeKind(4, 32, table=MXFP4_LEVELS),
}  # fmt: skip
"""What each type in `KEPT` holds."""

FATES = {
    **dict.fromkeys(("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4"), "kept exactly"),
    **dict.fromkeys(
        ("Q4_K", "Q5_K", "IQ4_XS"),
        "codes kept; scales (and minima) rounded to fp16, which changes the weights by less than"
        " 0.05 % of their root mean square",
    ),
    "Q6_K": "rounded anew to w8g32: its groups of 16 are smaller than the decode unit's",
}
"""What `--weights as-is` makes of each type in `KEPT` (tests hold it against what it does)."""


def readable(kind: str) -> bool:
    """Whether tensors of a type can be read at all."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import _type_traits

    return kind in PLAIN or kind in KEPT or GGMLQuantizationType[kind] in _type_traits


def _blocks(file: GgufFile, tensor: GgufTensor) -> U8:
    rows = 1
    for extent in tensor.shape[:-1]:
        rows *= extent
    count = tensor.shape[-1] // tensor.block[0]
    return file.raw(tensor).reshape(rows, count, tensor.block[1])


def codes_of(file: GgufFile, tensor: GgufTensor) -> Codes:
    """The codes of a matrix of a type in `KEPT`."""
    return KEPT[tensor.kind](_blocks(file, tensor))


def float_of(file: GgufFile, tensor: GgufTensor) -> NDArray[Any]:
    """A tensor's values in its shape: float16, float32 or float64 as stored, else float32.

    Raises
    ------
    InputError : when the `gguf` package cannot read the type either.
    """
    if tensor.kind == "BF16":
        upper = file.raw(tensor).view("<u2").astype(np.uint32) << np.uint32(16)
        return upper.view(np.float32).reshape(tensor.shape)
    if tensor.kind in PLAIN:
        return file.raw(tensor).view(PLAIN[tensor.kind]).reshape(tensor.shape)
    if tensor.kind in KEPT:
        return codes_of(file, tensor).weights().reshape(tensor.shape)
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        made = dequantize(
            file.raw(tensor).reshape(-1, tensor.block[1]), GGMLQuantizationType[tensor.kind]
        )
    except NotImplementedError as error:
        raise InputError(f"{file.path}: tensors of type {tensor.kind} cannot be read") from error
    return np.asarray(made, np.float32).reshape(tensor.shape)
