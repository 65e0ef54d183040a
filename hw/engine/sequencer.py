"""The one walk that all channels follow: which slice meets which vectors, and when."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.decode.layout import KGROUPS_BITS, PAIRS_BITS, log2
from flightllm.hw.engine.job import Job
from flightllm.hw.engine.size import BLOCK_PAIRS, EngineSize
from flightllm.spec.formats import BLOCK

__all__ = ["FLAGS", "INTEGER_DISTANCE", "Sequencer", "Step"]

FLAGS = ("first", "last", "again", "sums", "dense", "join", "couple")
"""What the sequencer wants to know of a slice; see `hw.decode.layout.Slice`."""
INTEGER_DISTANCE = 3
"""Cycles between two visits of an integer accumulator, at least."""
CHUNK_PAIRS = BLOCK // 2


class Step(data.StructLayout):
    """A slice and a batch of vectors, as they pass through the array.

    Members
    -------
    fresh, fresh_ones : the group's sum (sum of activations) begins.
    ones : the slice is of ones. end : the group is complete.
    begin, finish : the group is the first, the last one of the reduction.
    batch : of vectors. entry : the accumulator.
    couple : the slice's second part is of the next pair.
    half, pair : place in the result memory. close : the block's results are complete.
    """

    def __init__(self, size: EngineSize) -> None:
        super().__init__({
            "fresh": 1, "fresh_ones": 1, "ones": 1, "end": 1, "begin": 1, "finish": 1,
            "batch": range(size.batches), "entry": range(size.accumulators),
            "couple": 1, "half": 1, "pair": log2(BLOCK_PAIRS), "close": 1,
        })  # fmt: skip


class Sequencer(wiring.Component):
    """Starts a step a cycle, unless something is missing.

    A step needs a slice of every channel that has rows here, its group's windows, an accumulator
    whose last sum is back, and for the last group a free half of the result memory.

    Parameters
    ----------
    size : of the engine. distance : cycles between two visits of a float32 accumulator, at least.

    Members
    -------
    job, start : In, see `WindowStore`.
    has_last : In, a bit a channel: it has a row pair (cyclic: a chunk) in the last place.
    valid, flags : In, of each channel's slice. ready : Out, the slice is taken.
    full, batches : In, from `WindowStore`. free, batch, place, half, dense, join : Out, to it.
    step_valid, step : Out, to the array.
    freed : In, the epilogue is done with a half of the result memory.
    fault : Out, a pulse: a whole matrix has more row pairs than there are accumulators.
    """

    def __init__(self, size: EngineSize, distance: int) -> None:
        self.size, self.distance = size, distance
        super().__init__({
            "job": In(Job(size)), "start": In(1), "has_last": In(size.channels),
            "valid": In(size.channels), "ready": Out(size.channels),
            "flags": In(data.ArrayLayout(
                data.StructLayout(dict.fromkeys(FLAGS, 1)), size.channels
            )),
            "full": In(1), "batches": In(range(size.batches)), "free": Out(1),
            "batch": Out(range(size.batches)), "place": Out(log2(size.windows)),
            "half": Out(1), "dense": Out(1), "join": Out(1),
            "step_valid": Out(1), "step": Out(Step(size)),
            "freed": In(1), "fault": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        self.pair, self.group = Signal(PAIRS_BITS), Signal(KGROUPS_BITS)
        self.running, self.final_pair, self.block_end = Signal(), Signal(), Signal()
        self.upper = Signal.like(self.pair)  # the last pair of the slice
        self.active = Signal(self.size.channels)
        self.flag = Signal(data.StructLayout(dict.fromkeys(FLAGS, 1)))
        job, step = self.job, self.step
        last_chunk = self.pair >> log2(CHUNK_PAIRS) == (job.pairs - 1) >> log2(CHUNK_PAIRS)
        # A couple may lack its second pair in some channels; its first is in all.
        final = Mux(job.word.cyclic, last_chunk, self.pair == job.pairs - 1)
        m.d.comb += [
            self.upper.eq(self.pair | step.couple),
            self.final_pair.eq(self.upper == job.pairs - 1),
            self.block_end.eq(
                self.final_pair | (~job.word.whole & self.upper[: log2(BLOCK_PAIRS)].all())
            ),
            self.active.eq(self.has_last | (~final).replicate(self.size.channels)),
            step.begin.eq(self.group == 0),
            step.finish.eq(self.group == job.kgroups - 1),
        ]
        for name in FLAGS:
            m.d.comb += self.flag[name].eq(Cat(
                self.flags[c][name] & self.active[c] for c in range(self.size.channels)
            ).any())  # fmt: skip
        last_batch, ends = Signal(), Signal()
        m.d.comb += [
            last_batch.eq(self.batch == self.batches),
            step.batch.eq(self.batch),
            step.end.eq(self.flag.last),
            step.ones.eq(self.flag.sums),
            step.fresh.eq(self.flag.first),
            step.pair.eq(self.pair),
            step.couple.eq(self.flag.couple),
            self.join.eq(self.flag.join),
            ends.eq(self.step_valid & last_batch),
            self.ready.eq(Mux(ends, self.active, 0)),
        ]
        self._issue(m)
        self._places(m, ends)
        self._walk(m, ends)
        return m

    def _issue(self, m: Module) -> None:
        """Whether a step can start."""
        recent, seen = Signal(self.distance - 1), Signal(range(self.distance))
        entries, used = Signal.like(self.step.entry), Signal(2)
        blocked, hazard = Signal(), Signal()
        step = self.step
        watched = Mux(self.job.word.scale, recent, recent[: INTEGER_DISTANCE - 1])
        m.d.comb += [
            seen.eq(sum(watched)),
            # An accumulator was last visited as many group ends ago as there are accumulators.
            hazard.eq(step.end & ~step.begin & (seen > entries)),
            blocked.eq(step.finish & (used == 2)),
            self.step_valid.eq(
                self.running & self.full & ~hazard & ~blocked
                & (self.valid | ~self.active).all()
            ),
        ]  # fmt: skip
        m.d.sync += recent.eq(Cat(self.step_valid & step.end, recent))
        with m.If(self.free):
            m.d.sync += entries.eq(step.entry)  # less one
        m.d.sync += used.eq(used + (self.step_valid & step.close) - self.freed)
        with m.If(self.start):
            m.d.sync += used.eq(0)

    def _places(self, m: Module, ends: Signal) -> None:
        """Where in the group the slice lies, in units of k_lanes; which sums begin with it."""
        place, next_place = Signal(log2(self.size.windows) + 1), Signal(log2(self.size.windows) + 1)
        previous, ones_seen = Signal.like(place), Signal()
        with m.If(self.flag.first):
            m.d.comb += place.eq(0)
        with m.Elif(self.flag.again):
            m.d.comb += place.eq(previous)
        with m.Else():
            m.d.comb += place.eq(next_place)
        m.d.comb += [
            self.place.eq(place >> 1),
            self.half.eq(place[0]),
            self.dense.eq(self.flag.dense),
            self.step.fresh_ones.eq(self.flag.sums & ~ones_seen),
        ]
        with m.If(ends):
            m.d.sync += [
                previous.eq(place),
                next_place.eq(place + Mux(self.flag.dense & ~self.flag.join, 1, 2)),
                ones_seen.eq((ones_seen | self.flag.sums) & ~self.flag.last),
            ]
        with m.If(self.start):
            m.d.sync += ones_seen.eq(0)

    def _walk(self, m: Module, ends: Signal) -> None:
        """Batch, pair, group, block."""
        _job, step = self.job, self.step
        pair_end, out_end = Signal(), Signal()
        first_pair, half, entry = Signal(PAIRS_BITS), Signal(), Signal.like(step.entry)
        m.d.comb += [
            step.entry.eq(entry),
            pair_end.eq(ends & step.end),
            out_end.eq(self.final_pair | self.upper[: log2(BLOCK_PAIRS)].all()),
            step.half.eq(half),
            step.close.eq(pair_end & step.finish & out_end),
            self.free.eq(pair_end & self.block_end),
        ]
        with m.If(self.step_valid):
            m.d.sync += self.batch.eq(Mux(ends, 0, self.batch + 1))
            with m.If(step.end):
                m.d.sync += entry.eq(entry + 1)
                last = entry == self.size.accumulators - 1
                m.d.comb += self.fault.eq(last & ~self.free)
        with m.If(pair_end):
            m.d.sync += [self.pair.eq(self.upper + 1), half.eq(half ^ step.close)]
        with m.If(self.free):
            m.d.sync += entry.eq(0)
            with m.If(step.finish):
                m.d.sync += [self.group.eq(0), first_pair.eq(self.upper + 1)]
                with m.If(self.final_pair):
                    m.d.sync += self.running.eq(0)
            with m.Else():
                m.d.sync += [self.group.eq(self.group + 1), self.pair.eq(first_pair)]
        with m.If(self.start):
            m.d.sync += [
                self.running.eq(1), self.batch.eq(0), self.pair.eq(0), self.group.eq(0),
                first_pair.eq(0), half.eq(0), entry.eq(0),
            ]  # fmt: skip
