"""Codes packed into 32-bit words, as GPTQ, AWQ and compressed-tensors checkpoints hold them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["AWQ_ORDER", "unpack_awq", "unpack_stream"]

U8 = NDArray[np.uint8]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The column, out of eight, that each nibble of an AWQ word holds, lowest nibble first."""


def unpack_stream(words: NDArray[np.int32], bits: int, count: int) -> U8:
    """Codes along the last axis of packed words.

    Parameters
    ----------
    words : int32 [..., n], codes from the lowest bit up; 3-bit codes run on into the next word.
    bits : 2, 3, 4 or 8. count : codes wanted, at most 32 n / bits.

    Returns
    -------
    uint8 [..., count].
    """
    raw = np.ascontiguousarray(words.astype("<i4", copy=False)).view(np.uint8)
    if bits == 8:
        return raw[..., :count]
    if bits in (2, 4):
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        parts: U8 = (raw[..., None] >> shifts) & np.uint8((1 << bits) - 1)
        return parts.reshape(*raw.shape[:-1], -1)[..., :count]
    flat = np.unpackbits(raw, axis=-1, bitorder="little")
    whole = flat.shape[-1] // bits * bits
    split = flat[..., :whole].reshape(*flat.shape[:-1], -1, bits)
    weights = (1 << np.arange(bits)).astype(np.uint8)
    codes: U8 = (split * weights).sum(-1, dtype=np.uint8)
    return codes[..., :count]


def unpack_awq(words: NDArray[np.int32], count: int) -> U8:
    """4-bit codes along the last axis of AWQ's words, uint8 [..., count]."""
    nibbles = unpack_stream(words, 4, 8 * words.shape[-1])
    eights = nibbles.reshape(*nibbles.shape[:-1], -1, 8)
    out = np.empty_like(eights)
    out[..., list(AWQ_ORDER)] = eights
    return out.reshape(*nibbles.shape)[..., :count]
