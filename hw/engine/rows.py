"""Where each channel's rows lie in the result: kept for the epilogue, block by block."""

from typing import Any

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.decode.layout import PAIRS_BITS, log2
from flightllm.hw.engine.job import ROWS_BITS, Job
from flightllm.hw.engine.size import EngineSize
from flightllm.spec.formats import BLOCK, ROW_BLOCK

__all__ = ["RowPlaces"]


class RowPlaces(wiring.Component):
    """The first row of each channel's block, and the row at which the channel's rows end.

    Ready `channels` cycles after `start`: the shares are laid end to end, one channel a cycle.

    Members
    -------
    job, start : In. base : In, units (pairs, or chunks of a cyclic matrix) of every channel.
    next_block : In, on to the channels' next blocks of 16 rows.
    channel : In, of which `row` and `limit` are; out in the same cycle.
    ready : Out.
    """

    def __init__(self, size: EngineSize) -> None:
        self.size = size
        super().__init__({
            "job": In(Job(size)), "start": In(1), "base": In(PAIRS_BITS),
            "next_block": In(1), "channel": In(range(size.channels)),
            "row": Out(ROWS_BITS + 1), "limit": Out(ROWS_BITS + 1), "ready": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        channels, job = self.size.channels, self.job
        rows = Array(Signal(ROWS_BITS + 1, name=f"row_{c}") for c in range(channels))
        limits = Array(Signal(ROWS_BITS + 1, name=f"limit_{c}") for c in range(channels))
        place, count = Signal(range(channels)), Signal(range(channels + 1))
        edge, after, odd = Signal(ROWS_BITS + 1), Signal(ROWS_BITS + 1), Signal()
        units = self.base + (count < job.extra)
        m.d.comb += [
            self.row.eq(rows[self.channel]),
            self.limit.eq(limits[self.channel]),
            self.ready.eq(count == channels),
            after.eq(edge + Mux(job.word.cyclic, BLOCK, units << 1)),
        ]
        with m.If(self.start):
            m.d.sync += [place.eq(job.offset), count.eq(0), edge.eq(0), odd.eq(0)]
        with m.Elif(~self.ready):
            m.d.sync += [
                rows[place].eq(edge),
                limits[place].eq(Mux(job.word.cyclic | (after > job.rows), job.rows, after)),
                edge.eq(after),
                place.eq(Mux(place == channels - 1, 0, place + 1)),
                count.eq(count + 1),
            ]
        with m.Elif(self.next_block):
            chunk_over = job.word.cyclic & odd
            step = ROW_BLOCK + Mux(chunk_over, BLOCK * (channels - 1), 0)
            m.d.sync += [row.eq(row + step) for row in rows] + [odd.eq(~odd)]
        return m


assert log2(BLOCK) == log2(ROW_BLOCK) + 1
