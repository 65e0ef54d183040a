"""Activations on their way to the cells: windows of one group of every vector, two groups deep."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.chain import window_layout
from flightllm.hw.decode.layout import KGROUPS_BITS, PAIRS_BITS, log2
from flightllm.hw.engine.job import Job
from flightllm.hw.engine.size import BLOCK_PAIRS, EngineSize
from flightllm.hw.engine.vectors import VectorWalker
from flightllm.hw.memory.buffers import READ_LATENCY, window_port
from flightllm.hw.memory.ram import Ram

__all__ = ["Filled", "WindowStore"]


class Filled(data.StructLayout):
    """A window that comes from A: where it belongs.

    Members
    -------
    valid : there is one. final : the last of its group. bank, batch, cell, place : of the window.
    over : the vector's last of this group.
    """

    def __init__(self, size: EngineSize) -> None:
        super().__init__({
            "valid": 1, "final": 1, "over": 1, "bank": 1, "batch": range(size.batches),
            "place": log2(size.windows), "cell": range(size.cells),
        })  # fmt: skip


class WindowStore(wiring.Component):
    """Reads a window of A a cycle; the cells read one each, at the same time.

    All row pairs of a block use the windows of a group, so A is read once for up to 8 pairs. While
    one bank is in use the other is filled with the next group; the order is that of the stream:
    block by block, group by group.

    Members
    -------
    job : In, the instruction, steady from `start` on. start : In, a pulse.
    a : Out, the port of A.
    full : Out, the bank in use is complete. free : In, the array is done with it.
    batches : Out, batches less one; steady once a bank is full.
    batch, place, half : In, which window of this bank; `half` of it for dense slices.
    dense : In, with the other three: 8 lanes take 8 activations, not 16.
    twin, join : In, the second cell's window is of the first cell's vector; with `join` it is the
        other half.
    windows : Out, one a cell, a cycle later.
    filled : Out, what comes from A in this cycle. bank : Out, the bank in use.
    """

    def __init__(self, size: EngineSize) -> None:
        self.size = size
        super().__init__({
            "job": In(Job(size)),
            "start": In(1),
            "a": Out(window_port(size.window_bytes)),
            "full": Out(1),
            "free": In(1),
            "batches": Out(range(size.batches)),
            "batch": In(range(size.batches)),
            "place": In(log2(size.windows)),
            "half": In(1),
            "dense": In(1), "twin": In(1), "join": In(1),
            "windows": Out(data.ArrayLayout(window_layout(size.k_lanes), size.cells)),
            "filled": Out(Filled(size)), "bank": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        filled = Signal(2)
        read_bank = Signal()
        target = Signal(Filled(self.size))
        self._ask(m, target)
        for _ in range(READ_LATENCY):
            after = Signal.like(target)
            m.d.sync += after.eq(target)
            target = after
        self._store(m, target, read_bank)
        m.d.comb += [self.filled.eq(target), self.bank.eq(read_bank)]
        m.d.comb += self.full.eq(filled.bit_select(read_bank, 1))
        with m.If(self.free):
            m.d.sync += [read_bank.eq(~read_bank), filled.bit_select(read_bank, 1).eq(0)]
        with m.If(target.valid & target.final):
            m.d.sync += filled.bit_select(target.bank, 1).eq(1)
        with m.If(self.start):
            m.d.sync += [filled.eq(0), read_bank.eq(0)]
        return m

    def _ask(self, m: Module, target: Any) -> None:
        """Requests to A: for each block and group, each vector's windows."""
        job, size = self.job, self.size
        m.submodules.walker = walker = VectorWalker(size, 1)
        active, bank, taken = Signal(), Signal(), Signal(2)  # banks asked for and not free
        offset, window = Signal(KGROUPS_BITS + 8), Signal(log2(size.windows))
        group, blocks = Signal(KGROUPS_BITS), Signal(PAIRS_BITS)
        move, last_window, last = Signal(), Signal(), Signal()
        shift = log2(size.window_bytes)
        elements = Signal(9)
        m.d.comb += [
            elements.eq(job.word.group << 4),
            walker.n1.eq(job.n1), walker.n2.eq(job.n2),
            walker.base[0].eq(job.src),
            walker.stride1[0].eq(job.src1), walker.stride2[0].eq(job.src2),
            walker.restart.eq(self.start),
            walker.advance.eq(move & last_window),
            self.a.addr.eq(walker.address[0] + offset + (window << shift)),
            self.a.valid.eq(active & (taken != 2)),
            move.eq(self.a.valid & self.a.ready),
            last_window.eq(window == (elements - 1) >> shift),
            last.eq(last_window & walker.last),
            target.valid.eq(move), target.final.eq(last), target.over.eq(last_window), target.bank.eq(bank),  # noqa: E501
            target.batch.eq(walker.batch), target.place.eq(window), target.cell.eq(walker.cell),
        ]  # fmt: skip
        with m.If(move):
            m.d.sync += window.eq(Mux(last_window, 0, window + 1))
        m.d.sync += taken.eq(taken + (move & last) - self.free)
        with m.If(move & last):
            m.d.sync += [bank.eq(~bank), self.batches.eq(walker.batch)]
            with m.If(group == job.kgroups - 1):
                m.d.sync += [group.eq(0), offset.eq(0), blocks.eq(blocks - 1)]
                with m.If(blocks == 0):
                    m.d.sync += active.eq(0)
            with m.Else():
                m.d.sync += [group.eq(group + 1), offset.eq(offset + elements)]
        with m.If(self.start):
            count = Mux(job.word.whole, 0, (job.pairs - 1) >> log2(BLOCK_PAIRS))
            m.d.sync += [
                active.eq(1), bank.eq(0), taken.eq(0), window.eq(0), group.eq(0), offset.eq(0),
                blocks.eq(count),
            ]  # fmt: skip

    def _takes(self, target: Any, cell: int) -> Any:
        own = target.cell == cell
        return own | self.twin if self.size.twin and cell == 1 else own

    def _store(self, m: Module, target: Any, read_bank: Signal) -> None:
        """A memory a cell, a window a word."""
        size, shape = self.size, window_layout(self.size.k_lanes)
        halves, dense = Signal(2), Signal()
        m.d.sync += [halves.eq(Cat(self.half, self.half | self.join)), dense.eq(self.dense)]
        depth = 1 << len(Cat(target.batch, target.place, target.bank))
        for cell in range(size.cells):
            memory = Ram(8 * size.window_bytes, depth)
            m.submodules[f"cell{cell}"] = memory
            m.d.comb += [
                memory.write_enable.eq(target.valid & self._takes(target, cell)),
                memory.write_address.eq(Cat(target.batch, target.place, target.bank)),
                memory.write_data.eq(self.a.data),
                memory.read_enable.eq(1),
                memory.read_address.eq(Cat(self.batch, self.place, read_bank)),
            ]
            wide = data.View(shape, memory.read_data)
            half = halves[1] if size.twin and cell == 1 else halves[0]
            narrow = memory.read_data.word_select(half, 8 * size.k_lanes)
            for k in range(size.k_lanes // 8):
                low = narrow[64 * k : 64 * (k + 1)]
                m.d.comb += self.windows[cell][k].eq(Mux(dense, low, wide[k].as_value()))
