"""sim.rtl.bus: how much time a look at a card takes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("amaranth")

from flightllm.sim.rtl.bus import CYCLES_A_LOOK, RtlBus  # noqa: E402
from flightllm.sim.rtl.simulation import Stop  # noqa: E402
from flightllm.spec.registers import address  # noqa: E402


class Busy:
    """A traced design that is always busy: instructions end every 700 cycles, and a run comes back
    after one cycle while an end has not been taken."""

    def __init__(self) -> None:
        self.cycle, self.waiting = 0, 0

    def read(self, offset: int) -> int:
        return -1

    def run(self, cycles: int) -> Stop:
        left = 1 if self.waiting else 700 - self.cycle % 700
        self.cycle += min(left, cycles)
        self.waiting += self.cycle % 700 == 0
        return Stop.EVENT if self.waiting and cycles else Stop.LIMIT

    def events(self) -> Iterator[int]:
        while self.waiting:
            self.waiting -= 1
            yield 0


def test_a_look_takes_as_long_with_trace_ports() -> None:
    bus = RtlBus.__new__(RtlBus)
    bus.sim = Busy()  # type: ignore[assignment]
    bus.read(address("STATUS"))
    assert bus.sim.cycle == CYCLES_A_LOOK
