"""Divides rows among channels, as `spec.formats.row_shares` and cyclic matrices do."""

from typing import Any

from amaranth.hdl import Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.engine.job import ROWS_BITS

__all__ = ["Divider", "reciprocal"]


def reciprocal(divisor: int) -> tuple[int, int]:
    """(factor, shift) of which i * factor >> shift is i // divisor for ROWS_BITS bits."""
    shift = ROWS_BITS + (divisor - 1).bit_length()
    return -(-(1 << shift) // divisor), shift


class Divider(wiring.Component):
    """Quotient and remainder by a constant, within the cycle.

    A power of two is a shift; another number a product with its rounded-up reciprocal.

    Members
    -------
    i : In, dividend. quotient, remainder : Out.
    """

    def __init__(self, divisor: int) -> None:
        self.divisor = divisor
        super().__init__({
            "i": In(ROWS_BITS), "quotient": Out(ROWS_BITS), "remainder": Out(range(divisor)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        bits = (self.divisor - 1).bit_length()
        quotient: Value
        if self.divisor == 1 << bits:
            quotient = self.i >> bits
        else:
            factor, shift = reciprocal(self.divisor)
            quotient = (self.i * factor) >> shift
        found = Signal(ROWS_BITS)
        m.d.comb += [
            found.eq(quotient),
            self.quotient.eq(found),
            self.remainder.eq(self.i - found * self.divisor),
        ]
        return m
