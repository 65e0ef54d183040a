"""Where the KV cache's codes and scales lie: formats of K and V, and the place of every element.

A 32-token block of K is one chunk of `flightllm.spec.formats` (cyclic order): K block b of head h
lies in channel (b + start + h) mod channels at slot b // channels. A block of V (whole order) is
spread over all channels by rows, block b at b times its bytes. A stored byte never mixes tokens, so
that a token is appended by byte strobes, and nothing is read back.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flightllm.spec.formats import (
    ALIGN,
    BLOCK,
    MatrixFormat,
    Second,
    block_bytes,
    chunk_bytes,
    row_shares,
    section_bytes,
)

__all__ = [
    "key_bytes", "key_format", "key_places", "key_scale_places", "key_strobes", "value_bytes",
    "value_format", "value_places", "value_strobes",
]  # fmt: skip

Index = NDArray[np.intp]
U8 = NDArray[np.uint8]


def key_format(head_dim: int, kv_bits: int) -> MatrixFormat:
    """K's format for heads of `head_dim` in `kv_bits` (8 or 4); the group is the padded head."""
    group = -(-head_dim // 16) * 16
    return MatrixFormat(
        kv_bits, group, second=Second.EMIT, cyclic=True, bytewise=kv_bits == 4
    )  # fmt: skip


def value_format(kv_bits: int) -> MatrixFormat:
    """V's format in `kv_bits` (8 or 4)."""
    return MatrixFormat(kv_bits, BLOCK, scale=False, whole=True)


def _slots(fmt: MatrixFormat, pos: ArrayLike, channels: int, start: int) -> tuple[Index, Index]:
    """Channel and byte offset of the chunk that holds each position."""
    block = np.asarray(pos, np.intp) // BLOCK
    return (block + start) % channels, block // channels * chunk_bytes(fmt)


def key_places(fmt: MatrixFormat, pos: ArrayLike, element: ArrayLike, channels: int,
               start: int = 0) -> tuple[Index, Index, U8]:  # fmt: skip
    """Where K's code of (position, element) lies.

    Parameters
    ----------
    pos, element : broadcast against each other.
    start : channel of block 0; for head h the program's start + h.

    Returns
    -------
    channel, offset : byte offset from the head's K region. mask : the bits of that byte.
    """
    row, element = np.asarray(pos, np.intp) % BLOCK, np.asarray(element, np.intp)
    channel, offset = _slots(fmt, pos, channels, start)
    per_byte = 8 // fmt.bits
    inside = row // 2 * (2 * fmt.group // per_byte) + 2 * (element // per_byte) + row % 2
    offset, channel, mask = np.broadcast_arrays(
        offset + sum(section_bytes(fmt)[:3]) + inside, channel, _nibble(fmt, element)
    )
    return channel, offset, mask


def key_scale_places(fmt: MatrixFormat, pos: ArrayLike, channels: int,
                     start: int = 0) -> tuple[Index, Index, Index]:  # fmt: skip
    """Channel, byte offset of the fp16 K scale and of the fp16 V scale of each position."""
    channel, offset = _slots(fmt, pos, channels, start)
    scale = offset + 2 * (np.asarray(pos, np.intp) % BLOCK)
    return channel, scale, scale + ALIGN


def value_places(fmt: MatrixFormat, rows: int, pos: ArrayLike, element: ArrayLike,
                 channels: int) -> tuple[Index, Index, U8]:  # fmt: skip
    """Where V's code of (position, element) lies, for heads of `rows` elements.

    Returns
    -------
    channel, offset : byte offset from the head's V region. mask : the bits of that byte.
    """
    shares = row_shares(rows, channels)
    owner = np.repeat(np.arange(channels), [b - a for a, b in shares])
    begin = np.repeat([a for a, _ in shares], [b - a for a, b in shares])
    size = np.array([block_bytes(fmt, b - a) for a, b in shares], np.intp)
    pos, element = np.asarray(pos, np.intp), np.asarray(element, np.intp)
    channel, row = owner[element], element - begin[element]
    pair, token = row // 2, pos % BLOCK
    if fmt.bits == 8:
        inside = pair * (2 * BLOCK) + 2 * token + row % 2
    else:
        inside = pair * BLOCK + token
    offset, channel, mask = np.broadcast_arrays(
        pos // BLOCK * size[channel] + inside, channel, _nibble(fmt, row)
    )
    return channel, offset, mask


def _nibble(fmt: MatrixFormat, place: Index) -> U8:
    if fmt.bits == 8:
        return np.full(place.shape, 0xFF, np.uint8)
    return np.where(place % 2 == 0, 0x0F, 0xF0).astype(np.uint8)


def key_strobes(fmt: MatrixFormat, pos: NDArray[np.intp], channels: int,
                start: int = 0) -> tuple[Index, Index]:  # fmt: skip
    """Channel [T, 1] and byte offsets [T, n] at which `key_bytes` of positions [T] are written."""
    step = 8 // fmt.bits
    channel, offset, _ = key_places(
        fmt, pos[:, None], np.arange(0, fmt.group, step), channels, start
    )
    return channel[:, :1], offset


def value_strobes(fmt: MatrixFormat, rows: int, pos: NDArray[np.intp],
                  channels: int) -> tuple[Index, Index]:  # fmt: skip
    """Channel and byte offset [T, n] at which `value_bytes` of positions [T] are written."""
    channel, offset, _ = value_places(
        fmt, rows, pos[:, None], np.arange(0, rows, 8 // fmt.bits), channels
    )
    return channel, offset


def key_bytes(fmt: MatrixFormat, levels: NDArray[np.int8]) -> U8:
    """The stored bytes of K codes int8 [..., group]: uint8 [..., group * bits / 8]."""
    return _bytes(fmt, levels)


def value_bytes(fmt: MatrixFormat, levels: NDArray[np.int8]) -> U8:
    """The stored bytes of V codes int8 [..., rows], a missing partner row being 0."""
    if fmt.bits == 4 and levels.shape[-1] % 2:
        levels = np.concatenate([levels, np.zeros_like(levels[..., :1])], axis=-1)
    return _bytes(fmt, levels)


def _bytes(fmt: MatrixFormat, levels: NDArray[np.int8]) -> U8:
    codes = levels.view(np.uint8)
    if fmt.bits == 8:
        return codes
    # Neighbours of one token share a byte: two elements of a row in K, two rows in V.
    return codes[..., 0::2] & np.uint8(15) | codes[..., 1::2] << np.uint8(4)
