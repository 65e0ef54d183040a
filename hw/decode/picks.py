"""From a bitmap or a list of 4-bit indices to each lane's place in its window of 16."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data

__all__ = ["aligned_index", "choose", "ranks", "ranks_layout"]


def aligned_index(block: Value, place: Value, dense: Value, width: int) -> Value:
    """`width` bits of `block` from bit 16 * `place` on; of a dense slice each window's first 8.

    A mask is as long as a power of two and lies at a multiple of its length: where `place` has a
    bit set, no more bits are wanted than that bit is worth.
    """
    out = block
    for k in reversed(range(len(place))):
        half = 16 << k
        out = Cat(Mux(place[k], out[half : 2 * half], out[:half]), out[half:])
    return Mux(dense, Cat(Const(0x00FF, 16) for _ in range(0, width, 16)), out[:width])


def ranks_layout(k_lanes: int) -> data.StructLayout:
    """The index bits, and of each window how many are set in its first 4, 8 and 12 bits."""
    return data.StructLayout({
        "bits": 2 * k_lanes,
        "below": data.ArrayLayout(data.ArrayLayout(4, 3), k_lanes // 8),
    })  # fmt: skip


def ranks(m: Module, bits: Value, out: Any) -> None:
    """Count the set bits of each window, at most 8, by fours."""
    m.d.comb += out.bits.eq(bits)
    for w, window in enumerate(out.below):
        fours = [_ones(bits[16 * w + four :][:4]) for four in range(0, 12, 4)]
        first = Cat(fours[0], Const(0, 1))
        second = _plus(first, fours[1])
        for count, value in zip(window, (first, second, _plus(second, fours[2]))):
            m.d.comb += count.eq(value)


def _ones(bits: Value) -> Value:
    """How many of four bits are set, in look-up tables rather than carry chains: 3 bits."""
    a, b, c, d = bits
    both = (a & b) ^ (c & d) ^ ((a ^ b) & (c ^ d))
    return Cat(bits.xor(), both & ~bits.all(), bits.all())


def _plus(count: Value, more: Value) -> Value:
    """A count of 4 bits and one of 3, as `_ones`; the sum is at most 8."""
    carry: Value = Const(0, 1)
    out = []
    for x, y in zip(count, Cat(more, Const(0, 1))):
        out.append(x ^ y ^ carry)
        carry = (x & y) | (carry & (x ^ y))
    return Cat(out)


def choose(m: Module, ranked: Any, indices: Value, kept: Value, name: str) -> list[Signal]:
    """The pick of each lane: lane 8w + j takes the set bit of rank j of window w.

    The four bits that hold it come first, then the bit in them by its rank there.

    Parameters
    ----------
    ranked : what `ranks` made; of dense slices from masks of 8 bits, see `aligned_index`.
    kept : exponent of N in N:16; with `indices` 1 or 2.
    """
    bits, picks = ranked.bits, []
    for w, below in enumerate(ranked.below):
        fours = [bits[16 * w + k :][:4] for k in range(0, 16, 4)]
        for j in range(8):
            behind = [count <= j for count in below]  # which fours end before it
            four = Cat((behind[0] & ~behind[1]) | behind[2], behind[1])
            own, before = Signal(4, name=f"{name}_four_{w}_{j}"), Signal(2)
            pick = Signal(4, name=f"{name}_{w}_{j}")
            with m.Switch(four):
                for k, value in enumerate(fours):
                    with m.Case(k):
                        m.d.comb += [own.eq(value), before.eq(below[k - 1] if k else 0)]
            m.d.comb += pick.eq(Cat(_place(own, before, j), four))
            if j < 4:
                with m.If(indices):
                    whole = bits[16 * w + 4 * j :][:4]
                    half = bits[8 * w + 4 * (j & 1) :][:4]
                    m.d.comb += pick.eq(Mux(kept == 1, half, whole) if j < 2 else whole)
            picks.append(pick)
    return picks


def _place(four: Value, before: Value, j: int) -> Value:
    """Where in four bits the one of rank j - before (modulo 4) is."""
    found = []
    for k in range(4):
        ones = _ones(Cat(four[:k], Const(0, 4 - k)))[:2]
        found.append(four[k] & ~(((before + ones) ^ j)[:2].any()))
    return Cat(found[1] | found[3], found[2] | found[3])
