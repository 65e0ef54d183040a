"""How matrices lie in a channel: the format word, and packing to and from bytes.

Rows come in pairs that share an activation. A *pair-group* is one group of the reduction for one
pair of rows; its codes alternate, row 0 then row 1, element by element, in a little-endian bit
stream. 16 pair-groups make a *chunk*:

    scales 16 x 2 fp16 | second section 16 x 2 x 16 bit | sparse index | codes

each section present as the format says and padded to 64 bytes. Three orders exist:

- *blocked* (weights): rows spread over channels in contiguous shares; inside a channel, for each
  block of 16 rows, for each group, for each pair.
- *cyclic* (K): rows are tokens, one group a row; each 32 rows are one chunk, chunk b lies in
  channel (b + start) mod channels at slot b // channels.
- *whole* (V): rows spread as for blocked; no header; for each 32-token block, for each pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from flightllm.spec.bitstream import deinterleave, interleave, pack_codes, unpack_codes
from flightllm.spec.errors import InputError
from flightllm.spec.quant import QuantTensor

__all__ = [
    "ALIGN", "BLOCK", "MatrixFormat", "Second", "Unpacked", "block_bytes", "chunk_bytes",
    "format_for", "kgroups_for", "matrix_bytes", "pack_matrix", "row_shares", "section_bytes",
    "stream_bytes", "unpack_matrix",
]  # fmt: skip

ALIGN = 64
"""Every section, and every address, is a multiple of this many bytes."""
BLOCK = 32
"""Tokens in a block of the KV cache; rows in a chunk."""
ROW_BLOCK = 16
PAIRS = BLOCK // 2
U8 = NDArray[np.uint8]


class Second(IntEnum):
    """What the second 16-bit section of a chunk holds."""

    NONE = 0
    MINIMUM = 1
    ZERO = 2
    EMIT = 3


_KEPT = (16, 2, 4, 8)
# (field, bits), from bit 0 up; group in units of 16, kept as an index into _KEPT
_FIELDS = (
    ("bits", 4), ("group", 5), ("scale", 1), ("second", 2), ("kept", 2), ("private", 1),
    ("indices", 1), ("bytewise", 1), ("cyclic", 1), ("whole", 1), ("table", 1),
)  # fmt: skip


@dataclass(frozen=True)
class MatrixFormat:
    """The format word of a matrix.

    Parameters
    ----------
    bits : width of a code, 2 to 8. group : elements that share a scale, a multiple of 16.
    scale : groups carry an fp16 scale; without, sums stay integers over the whole reduction.
    second : the second section. kept : N of N:16, 16 for dense.
    private : rows of a pair have masks of their own. indices : 4-bit indices instead of a bitmap.
    bytewise : 4-bit codes alternate byte by byte (two codes of one row), not code by code.
    cyclic, whole : the order (neither: blocked). table : codes are indices into a code table.
    """

    bits: int
    group: int
    scale: bool = True
    second: Second = Second.NONE
    kept: int = 16
    private: bool = False
    indices: bool = False
    bytewise: bool = False
    cyclic: bool = False
    whole: bool = False
    table: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise InputError(f"format bits: {self.bits} is not 2 to 8")
        if self.group % 16 or not 16 <= self.group <= 256:
            raise InputError(f"format group: {self.group} is not a multiple of 16 up to 256")
        if self.kept not in _KEPT:
            raise InputError(f"format kept: {self.kept} is not one of {sorted(_KEPT)}")

    @property
    def word(self) -> int:
        """The 32-bit format word."""
        out, shift = 0, 0
        for name, width in _FIELDS:
            value = int(getattr(self, name))
            if name == "group":
                value //= 16
            elif name == "kept":
                value = _KEPT.index(value)
            out |= value << shift
            shift += width
        return out

    @classmethod
    def from_word(cls, word: int) -> MatrixFormat:
        """The format of a word; InputError when it is none."""
        values: dict[str, int] = {}
        for name, width in _FIELDS:
            values[name] = word & ((1 << width) - 1)
            word >>= width
        if word:
            raise InputError("format word: reserved bits are set")
        return cls(
            values["bits"], values["group"] * 16, bool(values["scale"]),
            Second(values["second"]), _KEPT[values["kept"]],
            *(bool(values[name]) for name, _ in _FIELDS[5:]),
        )  # fmt: skip

    @staticmethod
    def fields() -> tuple[tuple[str, int], ...]:
        """(name, bits) of each field of the format word, from bit 0 up."""
        return _FIELDS

    @property
    def codes_per_group(self) -> int:
        """Stored codes of one row in one group."""
        return self.group * self.kept // 16


def format_for(tensor: QuantTensor) -> MatrixFormat:
    """The blocked format in which `tensor` is stored (4-bit indices at 2:16, else a bitmap)."""
    second = Second.NONE
    if tensor.minima is not None:
        second = Second.MINIMUM
    elif tensor.zeros is not None:
        second = Second.ZERO
    return MatrixFormat(
        tensor.bits, tensor.group, True, second, tensor.kept, tensor.private,
        indices=tensor.kept == 2, table=tensor.table is not None,
    )  # fmt: skip


def kgroups_for(columns: int, group: int) -> int:
    """Groups along a reduction of `columns`."""
    return -(-columns // group)


def row_shares(rows: int, channels: int) -> list[tuple[int, int]]:
    """Rows [start, stop) of each channel: contiguous, whole pairs, as even as pairs allow."""
    pairs = -(-rows // 2)
    base, extra = divmod(pairs, channels)
    edges = [2 * (base * c + min(c, extra)) for c in range(channels + 1)]
    return [(min(a, rows), min(b, rows)) for a, b in zip(edges, edges[1:])]


def _padded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def section_bytes(fmt: MatrixFormat) -> tuple[int, int, int, int]:
    """Bytes of a chunk's scale, second, index and code sections."""
    rows = BLOCK if fmt.private else PAIRS
    index = 0
    if fmt.kept != 16:
        bits = fmt.codes_per_group * 4 if fmt.indices else fmt.group
        index = _padded(rows * bits // 8)
    codes = _padded(BLOCK * fmt.codes_per_group * fmt.bits // 8)
    return ALIGN * fmt.scale, ALIGN * (fmt.second != Second.NONE), index, codes


def chunk_bytes(fmt: MatrixFormat) -> int:
    """Bytes of one chunk."""
    return sum(section_bytes(fmt))


def block_bytes(fmt: MatrixFormat, rows: int) -> int:
    """Bytes of one 32-token block of a `whole` matrix in a channel that holds `rows` rows."""
    return _padded(-(-rows // 2) * 2 * BLOCK * fmt.bits // 8)


def stream_bytes(fmt: MatrixFormat, rows: int, kgroups: int, channels: int, first: int = 0,
                 start: int = 0) -> list[int]:  # fmt: skip
    """Bytes that each channel streams for a matrix (see LD.stream)."""
    if fmt.cyclic:
        counts = _cyclic_counts(rows, channels, first, start)
        return [count * chunk_bytes(fmt) for count in counts]
    shares = [b - a for a, b in row_shares(rows, channels)]
    if fmt.whole:
        return [kgroups * block_bytes(fmt, share) for share in shares]
    return [-(-(-(-share // 2) * kgroups) // PAIRS) * chunk_bytes(fmt) for share in shares]


def _cyclic_counts(rows: int, channels: int, first: int, start: int) -> list[int]:
    blocks = np.arange(first, first + -(-rows // BLOCK))
    counts: list[int] = np.bincount((blocks + start) % channels, minlength=channels).tolist()
    return counts


def matrix_bytes(fmt: MatrixFormat, rows: int, kgroups: int, channels: int) -> int:
    """Bytes that a matrix takes in every channel: the largest share."""
    return max(stream_bytes(fmt, rows, kgroups, channels))


def _order(rows: int, kgroups: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(pair, group) of each pair-group of a channel with `rows` rows, in storage order."""
    pairs = -(-rows // 2)
    per = ROW_BLOCK // 2
    pair, group = np.divmod(np.arange(pairs * kgroups), kgroups)
    order = np.lexsort((pair, group, pair // per))
    return pair[order], group[order]


def _sectioned(parts: Sequence[U8], sizes: Sequence[int]) -> U8:
    """Chunks [n, bytes] from their sections [n, any], each padded to its size, flattened."""
    padded = [
        np.pad(part, ((0, 0), (0, size - part.shape[1])))
        for part, size in zip(parts, sizes)
        if size
    ]
    return np.concatenate(padded, axis=1).reshape(-1)


# ------------------------------------------------------------------------------------ blocked


def stored_codes(tensor: QuantTensor, columns: int) -> U8:
    """The unsigned codes of `tensor` [rows, columns].

    Columns beyond the tensor's hold code 0, whatever level that is: activations there are 0.

    Raises
    ------
    InputError
        When a level has no code of the tensor's width.
    """
    levels, limit = tensor.levels, 1 << (tensor.bits - 1)
    wrong = False
    if tensor.table is not None:
        lookup = np.full(256, 255, np.uint8)
        for index, level in reversed(list(enumerate(tensor.table))):
            lookup[level & 255] = index
        codes = lookup[levels.view(np.uint8)]
    elif tensor.zeros is not None:
        zeros = np.repeat(tensor.zeros, tensor.group, axis=1)[:, : levels.shape[1]]
        codes = (levels.astype(np.int16) + zeros).astype(np.uint8)
    else:
        wrong = levels.min(initial=0) < -limit or levels.max(initial=0) >= limit
        codes = levels.view(np.uint8) & np.uint8((1 << tensor.bits) - 1)
    if tensor.mask is not None:
        codes = codes * tensor.mask
    if wrong or codes.max(initial=0) >= 2 * limit:
        raise InputError(f"a weight's level has no code of {tensor.bits} bits")
    return np.pad(codes, ((0, 0), (0, columns - levels.shape[1])))


def pack_matrix(tensor: QuantTensor, channels: int) -> list[U8]:
    """The bytes of each channel's share of a blocked matrix.

    Parameters
    ----------
    tensor : this core's rows of the matrix.

    Returns
    -------
    list of uint8 [bytes], one a channel; `stream_bytes` tells the lengths.
    """
    fmt = format_for(tensor)
    rows, columns = tensor.shape
    kgroups = kgroups_for(columns, fmt.group)
    codes = stored_codes(tensor, kgroups * fmt.group)
    mask = None
    if tensor.mask is not None:
        mask = _padded_mask(tensor.mask, kgroups * fmt.group, fmt.kept)
    second = tensor.minima if tensor.minima is not None else tensor.zeros
    out = []
    for a, b in row_shares(rows, channels):
        part = None if second is None else second[a:b]
        share_mask = None if mask is None else mask[a:b]
        out.append(_pack_share(fmt, codes[a:b], tensor.scales[a:b], part, share_mask, kgroups))
    return out


def _padded_mask(mask: NDArray[np.bool_], columns: int, kept: int) -> NDArray[np.bool_]:
    """`mask` widened to `columns`, each aligned 16 holding exactly `kept` True."""
    rows, have = mask.shape
    wide = np.zeros((rows, columns), bool)
    wide[:, :have] = mask
    blocks = wide.reshape(rows, -1, 16)
    missing = kept - blocks.sum(-1, keepdims=True)
    free = np.cumsum(~blocks[..., ::-1], -1)[..., ::-1]  # free places from here to the end
    blocks |= ~blocks & (free <= missing)
    return wide


def _pack_share(fmt: MatrixFormat, codes: U8, scales: NDArray[np.float16],
                second: NDArray[np.generic] | None, mask: NDArray[np.bool_] | None,
                kgroups: int) -> U8:  # fmt: skip
    rows = len(codes)
    if not rows:  # more channels than pairs of rows
        return np.zeros(0, np.uint8)
    odd = rows % 2
    pair, group = _order(rows, kgroups)
    fill = -len(pair) % PAIRS

    def grouped(values: NDArray[np.generic], width: int) -> NDArray[np.generic]:
        """[rows, kgroups * width] -> [pair-groups, 2, width], padded to whole chunks."""
        padded = np.pad(values, ((0, odd), (0, 0)))
        shaped = padded.reshape(-1, 2, kgroups, width)
        return np.pad(shaped[pair, :, group], ((0, fill), (0, 0), (0, 0)))

    chunks = (len(pair) + fill) // PAIRS
    parts = [grouped(scales, 1).view(np.uint8).reshape(chunks, -1)] if fmt.scale else []
    sizes = [size for size in section_bytes(fmt) if size]
    if second is not None:
        wide = second if second.dtype == np.float16 else second.astype(np.int16)
        parts.append(grouped(wide, 1).view(np.uint8).reshape(chunks, -1))
    if mask is not None:
        keep = grouped(mask, fmt.group).astype(np.bool_)
        keep[len(pair) :].reshape(-1, 16)[:, : fmt.kept] = True
        if odd:  # the row that is not there keeps its partner's places
            keep[: len(pair)][pair == pair.max(), 1] = keep[: len(pair)][pair == pair.max(), 0]
        parts.append(_pack_index(fmt, keep, chunks))
        dense = grouped(codes, fmt.group)
        stored = dense[keep].reshape(chunks * PAIRS, 2, fmt.codes_per_group)
    else:
        stored = grouped(codes, fmt.group)
    flat = interleave(stored.astype(np.uint8, copy=False), fmt.bytewise)
    parts.append(pack_codes(flat, fmt.bits).reshape(chunks, -1))
    return _sectioned(parts, sizes)


def _pack_index(fmt: MatrixFormat, keep: NDArray[np.bool_], chunks: int) -> U8:
    rows = keep if fmt.private else keep[:, :1]
    if fmt.indices:
        places = np.nonzero(rows.reshape(-1, 16))[1].astype(np.uint8)
        return pack_codes(places.reshape(chunks, -1), 4)
    return np.packbits(rows.reshape(chunks, -1), axis=-1, bitorder="little")


# ------------------------------------------------------------------------------------ reading back


@dataclass(frozen=True)
class Unpacked:
    """What the decode units make of a matrix.

    Members
    -------
    levels : int8 [rows, kgroups * group]. scales : float32 [rows, kgroups] or None.
    second : float32 [rows, kgroups] (minima or emitted values) or None.
    kept : bool like `levels`, or None when dense.
    """

    levels: NDArray[np.int8]
    scales: NDArray[np.float32] | None
    second: NDArray[np.float32] | None
    kept: NDArray[np.bool_] | None


def unpack_matrix(fmt: MatrixFormat, data: Sequence[U8], rows: int, kgroups: int, first: int = 0,
                  start: int = 0, table: Sequence[int] | None = None) -> Unpacked:  # fmt: skip
    """Decode the streams of all channels of a core into one matrix.

    Parameters
    ----------
    data : uint8 per channel, `stream_bytes` long.
    table : 16 levels, when the format says so.
    """
    if fmt.whole:
        return _unpack_whole(fmt, data, rows, kgroups)
    if fmt.cyclic:
        stream = _join_cyclic(fmt, data, rows, first, start)
        return _rows_of(_unpack_chunks(fmt, stream, rows, 1, None, table), rows)
    shares = row_shares(rows, len(data))
    parts = [
        _unpack_chunks(fmt, part, b - a, kgroups, _order(b - a, kgroups), table)
        for (a, b), part in zip(shares, data)
        if b > a
    ]
    return parts[0] if len(parts) == 1 else _stack(parts)


def _stack(parts: Sequence[Unpacked]) -> Unpacked:
    def join(name: str) -> NDArray[np.generic] | None:
        pieces = [getattr(part, name) for part in parts]
        return None if pieces[0] is None else np.concatenate(pieces)

    return Unpacked(join("levels"), join("scales"), join("second"), join("kept"))  # type: ignore[arg-type]


def _rows_of(whole: Unpacked, rows: int) -> Unpacked:
    def cut(part: NDArray[np.generic] | None) -> NDArray[np.generic] | None:
        return None if part is None else part[:rows]

    return Unpacked(cut(whole.levels), cut(whole.scales), cut(whole.second), cut(whole.kept))  # type: ignore[arg-type]


def _join_cyclic(fmt: MatrixFormat, data: Sequence[U8], rows: int, first: int, start: int) -> U8:
    size, channels = chunk_bytes(fmt), len(data)
    if channels == 1:
        return data[0]
    blocks = np.arange(first, first + -(-rows // BLOCK))
    channel = (blocks + start) % channels
    out = np.empty((len(blocks), size), np.uint8)
    for c in range(channels):
        out[channel == c] = data[c].reshape(-1, size)
    return out.reshape(-1)


def _unpack_chunks(fmt: MatrixFormat, stream: U8, rows: int, kgroups: int,
                   order: tuple[NDArray[np.intp], NDArray[np.intp]] | None,
                   table: Sequence[int] | None) -> Unpacked:  # fmt: skip
    """Decode one channel's chunks; without `order` the pair-groups are the row pairs in order."""
    chunks = stream.reshape(-1, chunk_bytes(fmt))
    edges = np.cumsum((0, *section_bytes(fmt)))
    scale, second, index, code = (chunks[:, a:b] for a, b in zip(edges, edges[1:]))
    count = len(chunks) * PAIRS

    def placed(values: NDArray[np.generic], width: int) -> NDArray[np.generic]:
        """[pair-groups, 2, width] -> [rows, kgroups * width]."""
        if order is None:
            return values.reshape(-1, width)
        pair, group = order
        out = np.empty((-(-rows // 2), 2, kgroups, width), values.dtype)
        out[pair, :, group] = values[: len(pair)]
        return out.reshape(-1, kgroups * width)[:rows]

    def halves(section: U8, kind: type[np.generic]) -> NDArray[np.generic]:
        return np.ascontiguousarray(section[:, :ALIGN]).view(kind).reshape(count, 2, 1)

    per = fmt.codes_per_group
    stored = unpack_codes(code[:, : BLOCK * per * fmt.bits // 8], fmt.bits, BLOCK * per)
    levels = _levels(fmt, deinterleave(stored.reshape(count, 2 * per), fmt.bytewise), table)
    scales = placed(halves(scale, np.float16), 1).astype(np.float32) if fmt.scale else None
    extra = None
    if fmt.second == Second.ZERO:
        levels = (levels.astype(np.int16) - halves(second, np.int16)).astype(np.int8)  # type: ignore[operator]
    elif fmt.second != Second.NONE:
        extra = placed(halves(second, np.float16), 1).astype(np.float32)
    kept = None
    if fmt.kept != 16:
        keep = _unpack_index(fmt, index, count)
        dense = np.zeros((count, 2, fmt.group), np.int8)
        dense[keep] = levels.reshape(-1)
        levels, kept = dense, placed(keep, fmt.group)
    return Unpacked(placed(levels, fmt.group), scales, extra, kept)  # type: ignore[arg-type]


def _levels(fmt: MatrixFormat, codes: U8, table: Sequence[int] | None) -> NDArray[np.int8]:
    if fmt.table:
        if table is None:
            raise InputError("format: a code table is needed and none is given")
        return np.asarray(table, np.int8)[codes]
    if fmt.second == Second.ZERO:
        return codes.view(np.int8)
    shift = 8 - fmt.bits
    return (codes << np.uint8(shift)).view(np.int8) >> np.int8(shift)


def _unpack_index(fmt: MatrixFormat, index: U8, count: int) -> NDArray[np.bool_]:
    rows = 2 if fmt.private else 1
    if fmt.indices:
        places = unpack_codes(index, 4, PAIRS * rows * fmt.codes_per_group)
        keep = np.zeros((count * rows * fmt.group // 16, 16), bool)
        np.put_along_axis(keep, places.reshape(-1, fmt.kept).astype(np.intp), True, axis=1)
    else:
        used = index[:, : PAIRS * rows * fmt.group // 8]
        keep = np.unpackbits(used, axis=-1, bitorder="little").astype(bool)
    shaped = keep.reshape(count, rows, fmt.group)
    return np.broadcast_to(shaped, (count, 2, fmt.group))


def _unpack_whole(fmt: MatrixFormat, data: Sequence[U8], rows: int, kgroups: int) -> Unpacked:
    parts = []
    for (a, b), part in zip(row_shares(rows, len(data)), data):
        if b == a:
            continue
        pairs = -(-(b - a) // 2)
        used = part.reshape(kgroups, -1)[:, : pairs * BLOCK * 2 * fmt.bits // 8]
        codes = unpack_codes(used, fmt.bits, pairs * BLOCK * 2).reshape(kgroups, pairs, -1)
        levels = _levels(fmt, deinterleave(codes, fmt.bytewise), None)  # [blocks, pairs, 2, 32]
        parts.append(np.moveaxis(levels, 0, 2).reshape(2 * pairs, kgroups * BLOCK)[: b - a])
    return Unpacked(np.concatenate(parts), None, None, None)
