"""Little-endian bit streams of codes, and the order in which the codes of a row pair alternate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["deinterleave", "interleave", "pack_codes", "unpack_codes"]

U8 = NDArray[np.uint8]


def pack_codes(codes: U8, bits: int) -> U8:
    """Little-endian bit stream of the last axis; codes uint8 [..., n], n * bits a multiple of 8."""
    if bits == 8:
        return codes
    if bits in (2, 4):
        per = 8 // bits
        lanes = codes.reshape(*codes.shape[:-1], -1, per)
        out = np.zeros(lanes.shape[:-1], np.uint8)
        for lane in range(per):
            out |= lanes[..., lane] << np.uint8(lane * bits)
        return out
    planes = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little")
    return np.packbits(planes.reshape(*codes.shape[:-1], -1), axis=-1, bitorder="little")


def unpack_codes(data: U8, bits: int, count: int) -> U8:
    """The first `count` codes of each bit stream; inverse of `pack_codes`."""
    if bits == 8:
        return data[..., :count]
    if bits in (2, 4):
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        lanes = data[..., None] >> shifts & np.uint8((1 << bits) - 1)
        return lanes.reshape(*data.shape[:-1], -1)[..., :count]
    planes = np.unpackbits(data, axis=-1, count=count * bits, bitorder="little")
    planes = planes.reshape(*data.shape[:-1], count, bits)
    return np.packbits(planes, axis=-1, bitorder="little")[..., 0]


def interleave(codes: U8, bytewise: bool) -> U8:
    """[..., 2 rows, n] -> [..., 2n] in storage order."""
    *lead, _, n = codes.shape
    if bytewise:
        codes = codes.reshape(*lead, 2, n // 2, 2)
        return np.moveaxis(codes, -3, -2).reshape(*lead, 2 * n)
    return np.swapaxes(codes, -1, -2).reshape(*lead, 2 * n)


def deinterleave(codes: U8, bytewise: bool) -> U8:
    """Inverse of `interleave`."""
    *lead, n2 = codes.shape
    if bytewise:
        return np.moveaxis(codes.reshape(*lead, n2 // 4, 2, 2), -2, -3).reshape(*lead, 2, n2 // 2)
    return np.swapaxes(codes.reshape(*lead, n2 // 2, 2), -1, -2)
