"""What all units share: where the registers of a pipeline lie, and streams around it."""

from types import SimpleNamespace
from typing import Any

from amaranth.hdl import Module, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Datapath", "Streamed", "delay"]


def _shape(value: Any) -> Any:
    return value.shape() if isinstance(value, data.View) else Value.cast(value).shape()


def delay(m: Module, en: Value, value: Any, cycles: int, name: str) -> Any:
    """`value`, `cycles` enabled cycles later: a chain of registers without reset."""
    for k in range(cycles):
        later = Signal(_shape(value), name=f"{name}_{k + 1}", reset_less=True)
        with m.If(en):
            m.d.sync += later.eq(value)
        value = later
    return value


class Datapath(wiring.Component):
    """A pipeline without control: `o` follows from `i`, `latency` enabled cycles later.

    A simple unit names its cuts, the places where registers may lie, in `CUTS` from input to
    output, and in `ORDER` by how much a register there helps; the first `latency` of `ORDER` get
    one. The last cut is the output and comes first.

    Parameters
    ----------
    i, o : shapes of the payloads.
    latency : cycles, from 1 to the number of cuts; a unit made of others gives their sum.

    Members
    -------
    en : In(1), the pipeline steps; while low it keeps everything.
    i : In(i), operands.
    o : Out(o), result.

    Raises
    ------
    ValueError
        For a latency that the unit cannot have.
    """

    CUTS: Any = ()
    ORDER: Any = ()

    def __init__(self, i: Any, o: Any, latency: int) -> None:
        if self.CUTS and latency not in range(1, len(self.CUTS) + 1):
            raise ValueError(
                f"{type(self).__name__} latency must be an integer from 1 to {len(self.CUTS)}, "
                f"not {latency!r}"
            )
        self.latency = latency
        super().__init__({"en": In(1), "i": In(i), "o": Out(o)})

    def cut(self, m: Module, cut: str, **values: Any) -> SimpleNamespace:
        """Pass named values through a cut: registers where `latency` asks for them, else wires."""
        passed = {}
        registered = cut in self.ORDER[: self.latency]
        for name, value in values.items():
            signal = Signal(_shape(value), name=f"{cut}_{name}", reset_less=registered)
            if registered:
                with m.If(self.en):
                    m.d.sync += signal.eq(value)
            else:
                m.d.comb += signal.eq(value)
            passed[name] = signal
        return SimpleNamespace(**passed)


class Streamed(wiring.Component):
    """A unit between two streams, its whole pipeline under one enable.

    The pipeline steps unless it holds a result that is not taken; it takes an operand whenever it
    steps. Bubbles are not squeezed out. `ready` of the input follows `ready` of the output within
    the cycle.

    Parameters
    ----------
    unit : Datapath, which becomes a submodule.

    Members
    -------
    i : In(stream.Signature(unit's i)).
    o : Out(stream.Signature(unit's o)).
    """

    def __init__(self, unit: Datapath) -> None:
        self.unit = unit
        members = unit.signature.members
        super().__init__({
            "i": In(stream.Signature(members["i"].shape)),
            "o": Out(stream.Signature(members["o"].shape)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.unit = unit = self.unit
        valid = Signal(unit.latency)
        step = Signal()
        m.d.comb += [
            step.eq(self.o.ready | ~valid[-1]),
            unit.en.eq(step),
            unit.i.eq(self.i.payload),
            self.i.ready.eq(step),
            self.o.valid.eq(valid[-1]),
            self.o.payload.eq(unit.o),
        ]
        with m.If(step):
            m.d.sync += valid.eq((valid << 1) | self.i.valid)
        return m
