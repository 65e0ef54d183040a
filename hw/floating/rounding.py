"""Shifts that keep what they lose, leading zeros, and the rounding of docs/number-formats.md."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value

from flightllm.hw.floating.layout import Float32

__all__ = [
    "NAN", "leading_bytes", "leading_zeros", "normalise_byte", "round_and_pack", "round_up",
    "shift_left", "shift_right",
]  # fmt: skip

NAN = 0x7FC00000
"""Bits of the NaN that arithmetic gives."""


def shift_right(m: Module, value: Value, amount: Value, name: str) -> tuple[Value, Value]:
    """Shift by stages of 1, 2, 4, ...

    Returns
    -------
    The shifted value, as wide as `value`, and whether a set bit was lost.
    """
    lost: Value = Const(0, 1)
    for k in range(len(amount)):
        step = Signal(len(value), name=f"{name}_by_{1 << k}")
        dropped = Signal(name=f"{name}_lost_{1 << k}")
        m.d.comb += [
            step.eq(Mux(amount[k], value >> (1 << k), value)),
            dropped.eq(lost | (amount[k] & value[: 1 << k].any())),
        ]
        value, lost = step, dropped
    return value, lost


def shift_left(m: Module, value: Value, amount: Value, name: str) -> Value:
    """Shift by stages of 1, 2, 4, ..., as wide as `value`; what leaves at the top is dropped."""
    width = len(value)
    for k in range(min(len(amount), width.bit_length())):
        step = Signal(width, name=f"{name}_by_{1 << k}")
        m.d.comb += step.eq(Mux(amount[k], (value << (1 << k))[:width], value))
        value = step
    return value


def leading_zeros(m: Module, value: Value, name: str) -> Value:
    """How many zeros stand above the highest set bit; all of them for 0. A tree of pairs."""
    width = 1 << (len(value) - 1).bit_length()
    below = width - len(value)
    padded = Cat(Const((1 << below) - 1, below), value)  # ones: a 0 counts len(value)
    counts = [~padded[k] for k in range(width)]
    while len(counts) > 1:
        pairs = []
        for k, (low, high) in enumerate(zip(counts[0::2], counts[1::2])):
            count = Signal(len(low) + 1, name=f"{name}_{len(counts) // 2}_{k}")
            # A count is full, all its bits being 0, where its top bit is set.
            rest = Mux(high[-1], low[:-1], high[:-1])
            m.d.comb += count.eq(Cat(rest, high[-1] & ~low[-1], high[-1] & low[-1]))
            pairs.append(count)
        counts = pairs
    return counts[0][: len(value).bit_length()]


def leading_bytes(m: Module, value: Value, name: str) -> tuple[Value, Value]:
    """The first half of a normalisation, by whole bytes: a shift of four ways a look-up table.

    Returns
    -------
    The value shifted left by its leading bytes of zeros, the last byte not being looked at, and
    how many they were.
    """
    width = len(value)
    last = -(-width // 8) - 1
    count = Signal(max(1, last.bit_length()), name=f"{name}_bytes")
    found: Value = Const(last)
    for k in reversed(range(last)):
        found = Mux(value[width - 8 * k - 8 : width - 8 * k].any(), k, found)
    m.d.comb += count.eq(found)
    return shift_left(m, value, Cat(Const(0, 3), count), f"{name}_by_bytes"), count


def normalise_byte(m: Module, value: Value, name: str) -> tuple[Value, Value]:
    """The second half: by less than a byte, looking at pairs of bits, then at the top one.

    Returns
    -------
    The value shifted left by its leading zeros, at most 7, and how many they were.
    """
    width = len(value)
    full = [value[width - 2 * k - 2 : width - 2 * k].any() for k in range(3)]
    pairs = Signal(2, name=f"{name}_pairs")
    shifted, out = (Signal(width, name=f"{name}_{part}") for part in ("by_pairs", "by_one"))
    m.d.comb += [
        pairs.eq(Mux(full[0], 0, Mux(full[1], 1, Mux(full[2], 2, 3)))),
        shifted.eq(Mux(
            pairs[1],
            Mux(pairs[0], value << 6, value << 4), Mux(pairs[0], value << 2, value),
        )),
        out.eq(Mux(shifted[-1], shifted, shifted << 1)),
    ]  # fmt: skip
    return out, Cat(~shifted[-1], pairs)


def round_up(last: Value, guard: Value, sticky: Value) -> Value:
    """Whether nearest, ties to even, is the next larger magnitude."""
    return guard & (sticky | last)


def round_and_pack(m: Module, x: Any, fine: bool = True, bounded: bool = False) -> Signal:
    """Round an exact result to a Float32.

    Just below 2^-126 (biased exponent 0) IEEE's last place is 2^-149, one bit coarser than the
    significand: what rounds to 2^-126 has all 24 bits set, and everything else flushes to zero.

    Parameters
    ----------
    x : has `sign`; `significand`, 24 bits, the top one set; `exponent`, signed and biased, maybe
        outside 1 .. 254; `guard`, half of the last place; `sticky`, whether there is less than
        half besides; and `zero`, `infinite`, `nan`, which override all that, the later the
        stronger.
    fine : results may have bits below 2^-149; sums of two float32 numbers have none.
    bounded : the exponent is inside 1 .. 254, and nothing is infinite or NaN.
    """
    edge = Signal(name="rounding_edge")  # rounds up to 2^-126
    up = Signal(name="rounding_up")
    magnitude = Signal(31, name="rounding_magnitude")
    result = Signal(Float32, name="rounded")
    m.d.comb += [
        edge.eq((x.exponent == 0) & x.significand.all() if fine else 0),
        up.eq(edge | round_up(x.significand[0], x.guard, x.sticky)),
        # The carry out of the fraction is the step of the exponent, up to infinity.
        magnitude.eq(Cat(x.significand[:23], x.exponent[:8]) + up),
        result.sign.eq(x.sign),
        result.exponent.eq(magnitude[23:]),
        result.fraction.eq(magnitude[:23]),
    ]
    if bounded:
        with m.If(x.zero):
            m.d.comb += [result.exponent.eq(0), result.fraction.eq(0)]
        return result
    with m.If(x.nan):
        m.d.comb += result.eq(NAN)
    with m.Elif(x.infinite | (~x.zero & (x.exponent >= 255))):
        m.d.comb += [result.exponent.eq(255), result.fraction.eq(0)]
    with m.Elif(x.zero | ((x.exponent <= 0) & ~edge)):
        m.d.comb += [result.exponent.eq(0), result.fraction.eq(0)]
    return result
