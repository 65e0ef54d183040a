"""Trace records of a simulated design, from the instructions that its units finish."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from flightllm.sim.functional.core import Buffer
from flightllm.sim.rtl.readback import CoreView, digests
from flightllm.sim.rtl.simulation import Event, Simulation
from flightllm.spec.config import HwConfig
from flightllm.spec.isa import UNITS, Instruction, Unit, find
from flightllm.spec.trace import TraceRecord

__all__ = ["RunTrace", "Tracer"]

Tracer = Callable[[TraceRecord], None]
GATHER = "sys.gather"
U8 = NDArray[np.uint8]
_Call = tuple[frozenset[str], dict[str, int]]


class RunTrace:
    """Copies of every core's buffers, and a record for each instruction that is done.

    Parameters
    ----------
    sim : of a design with trace ports, before it runs.
    memories : of all channels, core 0's first. tracer : gets the records.
    """

    def __init__(self, sim: Simulation, config: HwConfig, memories: Sequence[U8],
                 tracer: Tracer) -> None:  # fmt: skip
        self._sim, self._tracer = sim, tracer
        self._views: list[CoreView] = []
        first = 0
        for core, channels in enumerate(config.channels):
            f, a = np.zeros(config.float_words, np.uint32), np.zeros(config.act_bytes, np.uint8)
            sim.buffers(core, f, a)
            mine = memories[first : first + channels]
            self._views.append(CoreView(Buffer("F", f), Buffer("A", a), mine))
            first += channels
        self._gathers: list[list[_Call]] = [[] for _ in config.channels]

    def begin(self) -> None:
        """A new run: what an abandoned one left is forgotten."""
        self._sim.clear_trace()
        for calls in self._gathers:
            calls.clear()

    def take(self) -> None:
        """Make records of what was done in this cycle."""
        done = [(event, *_decode(event)) for event in self._sim.events()]
        for event, kind, call in done:
            if kind.name == GATHER:
                self._gathers[event.core].append(call)
        for event, kind, call in done:
            if kind.name == "sys.halt":  # the functional simulator's dispatcher keeps it to itself
                continue
            calls = self._all_slices(event.core) if kind.name == GATHER else [call]
            view = self._views[event.core]
            self._tracer(TraceRecord(
                event.core, UNITS[event.unit].name.lower(), event.address, kind.name, call[1],
                event.start, event.end, digests(view, kind.name, calls),
            ))  # fmt: skip

    def _all_slices(self, core: int) -> list[_Call]:
        """The calls of every core's gather that belongs to the last one of `core`.

        Cores meet at a gather, so those that are not done with it are in the middle of it.
        """
        place = len(self._gathers[core]) - 1
        calls = []
        for other, known in enumerate(self._gathers):
            if place < len(known):
                calls.append(known[place])
            else:
                calls.append(_decode(self._sim.running(other, Unit.SYS))[1])
        return calls



def _decode(event: Event) -> tuple[Instruction, _Call]:
    """Its kind; flags and operands, as the functional simulator gives them: signed, raw as bits."""
    kind = find(event.unit, event.words[0] >> 4 & 15)
    flags = event.words[0] >> 20
    named = {}
    for operand, word in zip(kind.operands, event.words[1 : event.count]):
        negative = not operand.raw and word >> 31
        named[operand.name] = word - (1 << 32) if negative else word
    return kind, (frozenset(f for k, f in enumerate(kind.flags) if flags >> k & 1), named)
