"""The sparse MUX: each lane picks its activation out of a window of 16."""

from amaranth.hdl import Array, Const, Mux, Value
from amaranth.lib import data

__all__ = ["pick", "window_layout"]


def window_layout(k_lanes: int) -> data.ArrayLayout:
    """What a cell's lanes choose from: 16 activations for each 8 lanes.

    For a dense slice each window has 8 activations in its first places.
    """
    return data.ArrayLayout(data.ArrayLayout(8, 16), k_lanes // 8)


def pick(window: data.View, place: Value, lane: int) -> Value:
    """The activation at `place` of lane `lane`'s window, as a signed number.

    Lanes 4 to 7 of a window hold the code of rank j = 4 to 7 of eight, which stands at j to j + 8:
    9 to 1, three look-up tables a bit rather than five. One takes the upper four places, or those
    below 8 where they are free; one the places from 8 on; the ninth enters the last. Elsewhere such
    a lane has no code, and takes any activation.
    """
    j = lane % 8
    if j < 4:
        return Array(window[k] for k in range(16))[place].as_signed()
    low, upper = place[:2], place[3]
    middle = Array(window[k] for k in range(8, 12))[low]
    if j == 7:
        last = Mux(place[2], Array(window[k] for k in range(12, 16))[low], middle)
        return Mux(upper, last, window[7]).as_signed()
    outer = Array(window[12 + k if k < j - 4 else 4 + k] for k in range(4))[low]
    ninth = {4: Const(1), 5: place[0], 6: place[1]}[j]
    last = Mux(place[2], Mux(ninth, window[j + 8], outer), middle)
    return Mux(upper, last, outer).as_signed()
