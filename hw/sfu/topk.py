"""The k largest of a row of logits: a sorted list that takes a candidate a cycle."""

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.sfu.passes import order_key

__all__ = ["SortedList"]

NOBODY = 0xFF800000
"""-inf: the value of places that no candidate took; their id is 2^31 - 1."""
NO_ID = 0x7FFFFFFF


class SortedList(wiring.Component):
    """Keeps the `k` largest values and their ids; of equal values the one inserted first leads.

    Parameters
    ----------
    k : places.

    Members
    -------
    clear : In. insert : In; value (float32 bits), id : In, the candidate.
    bar : Out, order key that a candidate must exceed to enter.
    place : In; place_value, place_id : Out, what stands there.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        super().__init__(
            {
                "clear": In(1),
                "insert": In(1),
                "value": In(32),
                "id": In(32),
                "bar": Out(32),
                "place": In(range(k)),
                "place_value": Out(32),
                "place_id": Out(32),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        values = [Signal(32, name=f"value{i}") for i in range(self.k)]
        ids = [Signal(32, name=f"id{i}") for i in range(self.k)]
        key = zero_merged(self.value)
        above = [key > zero_merged(value) for value in values]
        for i in range(self.k):
            before = above[i - 1] if i else 0
            with m.If(self.clear):
                m.d.sync += [values[i].eq(NOBODY), ids[i].eq(NO_ID)]
            with m.Elif(self.insert & above[i]):
                m.d.sync += [
                    values[i].eq(Mux(before, values[i - 1], self.value)),
                    ids[i].eq(Mux(before, ids[i - 1], self.id)),
                ]
        m.d.comb += [
            self.bar.eq(zero_merged(values[-1])),
            self.place_value.eq(Array(values)[self.place]),
            self.place_id.eq(Array(ids)[self.place]),
        ]
        return m


def zero_merged(bits: Any) -> Any:
    """`order_key`, -0 counting as +0."""
    negative_zero = Cat(bits[:31].any(), bits[31]) == 0b10
    return order_key(Mux(negative_zero, 0, bits)[:32])
