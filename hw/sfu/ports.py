"""What the SFU reads and writes: vectors of consecutive words of F and bytes of A.

The SFU comes first at its ports: a request is taken in its cycle, always.
"""

from typing import Any

from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["READ_LATENCY", "read_signature", "write_signature"]

READ_LATENCY = 2
"""Cycles from a read request to its data."""


def read_signature(lanes: int) -> Any:
    """A reader's side: `data` holds the `lanes` words from `addr` on, `READ_LATENCY` after `en`."""
    return wiring.Signature(
        {"en": Out(1), "addr": Out(32), "data": In(data.ArrayLayout(32, lanes))}
    )


def write_signature(lanes: int, width: int) -> Any:
    """A writer's side: the first `count` elements of `data` go to `addr` and behind."""
    return wiring.Signature(
        {
            "en": Out(1),
            "addr": Out(32),
            "count": Out(range(lanes + 1)),
            "data": Out(data.ArrayLayout(width, lanes)),
        }
    )
