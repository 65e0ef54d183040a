"""From a bitmap or a list of 4-bit indices to each lane's place in its window of 16."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data

__all__ = ["aligned_index", "choose", "ranks", "ranks_layout"]


def aligned_index(block: Value, place: Value) -> Value:
    """`block` from bit 16 * `place` on.

    A mask is as long as a power of two and lies at a multiple of its length: where `place` has a
    bit set, no more bits are wanted than that bit is worth.
    """
    out = block
    for k in reversed(range(len(place))):
        width = 16 << k
        out = Cat(Mux(place[k], out[width : 2 * width], out[:width]), out[width:])
    return out


def ranks_layout(k_lanes: int) -> data.StructLayout:
    """The index bits, and for each bit how many are set below it in its 16 (modulo 8)."""
    return data.StructLayout({
        "bits": 2 * k_lanes,
        "below": data.ArrayLayout(data.ArrayLayout(3, 16), k_lanes // 8),
    })  # fmt: skip


def ranks(m: Module, bits: Value, out: Any) -> None:
    """Count the set bits below each bit of each window, by fours."""
    m.d.comb += out.bits.eq(bits)
    for w, window in enumerate(out.below):
        base: Value = Const(0, 3)
        for four in range(0, 16, 4):
            part = bits[16 * w + four :][:4]
            for k in range(4):
                m.d.comb += window[four + k].eq(base + _ones(part[:k]) if k else base)
            base = (base + _ones(part))[:3]


def _ones(bits: Value) -> Value:
    return sum(bits[1:], start=bits[0])


def choose(m: Module, ranked: Any, dense: Value, indices: Value, kept: Value,
           name: str) -> list[Signal]:  # fmt: skip
    """The pick of each lane: lane 8w + j takes the set bit of rank j of window w.

    Parameters
    ----------
    ranked : what `ranks` made. kept : exponent of N in N:16; with `indices` 1 or 2.
    """
    bits, picks = ranked.bits, []
    for w, below in enumerate(ranked.below):
        for j in range(8):
            found = [bits[16 * w + k] & (below[k] == j) for k in range(j, 16)]
            place = Cat(
                Cat(hit for k, hit in enumerate(found, j) if k >> b & 1).any() for b in range(4)
            )
            pick = Signal(4, name=f"{name}_{w}_{j}")
            with m.If(dense):
                m.d.comb += pick.eq(j)
            with m.Elif(indices):
                if j < 2:
                    four = bits[16 * w + 4 * j :][:4]
                    m.d.comb += pick.eq(Mux(kept == 1, bits[8 * w + 4 * j :][:4], four))
                elif j < 4:
                    m.d.comb += pick.eq(bits[16 * w + 4 * j :][:4])
            with m.Else():
                m.d.comb += pick.eq(place)
            picks.append(pick)
    return picks
