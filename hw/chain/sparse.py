"""The sparse MUX: each lane picks its activation out of a window of 16."""

from amaranth.hdl import Array, Value
from amaranth.lib import data

__all__ = ["pick", "window_layout"]


def window_layout(k_lanes: int) -> data.ArrayLayout:
    """What a cell's lanes choose from: 16 activations for each 8 lanes.

    For a dense slice each window has 8 activations in its first places.
    """
    return data.ArrayLayout(data.ArrayLayout(8, 16), k_lanes // 8)


def pick(window: data.View, place: Value) -> Value:
    """The activation at `place` of a window, as a signed number: 16 to 1, 32 LUTs."""
    return Array(window[k] for k in range(16))[place].as_signed()
