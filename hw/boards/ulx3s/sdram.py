"""Controller of a 16-bit SDRAM behind one AXI4 port of 16-byte beats.

For chips such as IS42S16160G (ISSI data sheet: 4 banks of 8,192 rows of 512 columns, 32 MiB; CAS
latency 2; 8,192 refreshes each 64 ms). A beat is a burst of eight words; a burst of the port stays
in one row, because it stays inside 256 bytes and a row holds 1,024. Rows are closed after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from flightllm.hw.memory.axi import BURST_BEATS, channel_signature

__all__ = ["SdramController", "SdramTiming", "pins_signature"]

ADDRESS_BITS = 64
WORDS = 8
"""Of a beat."""
ROW_BITS, COLUMN_BITS, BANK_BITS = 13, 9, 2
CAS = 2
# Commands as (ras, cas, we), each active low.
NOP, ACTIVE, READ, WRITE, PRECHARGE, REFRESH, MODE = 0b111, 0b011, 0b101, 0b100, 0b010, 0b001, 0b000
ALL_BANKS = 1 << 10
MODE_WORD = CAS << 4 | 0b011
"""Bursts of eight words, sequential, for reads and writes."""


@dataclass(frozen=True)
class SdramTiming:
    """Waits in clock cycles.

    Parameters
    ----------
    row : activate to read or write. precharge, refresh : after these commands. recover : from the
        last word written to a precharge. interval : between refreshes. start : after power-up.
    """

    row: int
    precharge: int
    refresh: int
    recover: int
    interval: int
    start: int

    @classmethod
    def at(cls, mhz: float) -> SdramTiming:
        """For a clock: tRCD and tRP 18 ns, tRFC 60 ns, tWR 14 ns, 7.8 us, 200 us."""
        cycles = (ceil(ns * mhz / 1000) for ns in (18, 18, 60, 14))
        row, precharge, refresh, recover = (max(1, count) for count in cycles)
        return cls(row, precharge, refresh, recover + 1, int(7.8 * mhz) - 150, ceil(200 * mhz))


def pins_signature() -> wiring.Signature:
    """The chip's pins but for its clock; data in both directions."""
    return wiring.Signature({
        "cke": Out(1), "cs_n": Out(1), "ras_n": Out(1), "cas_n": Out(1), "we_n": Out(1),
        "ba": Out(BANK_BITS), "a": Out(ROW_BITS), "dqm": Out(2),
        "dq_o": Out(16), "dq_oe": Out(1), "dq_i": In(16),
    })  # fmt: skip


class SdramController(wiring.Component):
    """Serves one port; reads and writes alternate where both wait.

    Parameters
    ----------
    timing : of the chip. read_delay : cycles from a command at the pins' registers to its first
        word in `dq_i`, as seen by this clock domain.

    Members
    -------
    axi : In, 16-byte beats. pins : Out.
    """

    def __init__(self, timing: SdramTiming, read_delay: int = CAS + 1) -> None:
        self._timing, self._delay = timing, read_delay
        super().__init__({
            "axi": In(channel_signature(2 * WORDS, ADDRESS_BITS)), "pins": Out(pins_signature()),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        axi = self.axi
        self.command, self.address, self.bank = Signal(3, init=NOP), Signal(ROW_BITS), Signal(2)
        self.wait = Signal(range(self._timing.start + 1), init=self._timing.start)
        self.due, self.turn = Signal(), Signal()
        self.at, self.beats, self.word = Signal(32), Signal(5), Signal(range(WORDS))
        self.writing, self.data, self.mask = Signal(), Signal(128), Signal(16)
        self.answer = Signal()
        self._out(m)
        self._refreshes(m)
        self._returns(m)
        m.d.comb += [
            axi.bvalid.eq(self.answer), axi.bresp.eq(0), axi.rresp.eq(0),
        ]  # fmt: skip
        with m.If(axi.bvalid & axi.bready):
            m.d.sync += self.answer.eq(0)
        m.d.sync += [self.command.eq(NOP), self.writing.eq(0)]
        with m.If(self.wait != 0):
            m.d.sync += self.wait.eq(self.wait - 1)
        with m.FSM():
            self._start(m)
            self._accept(m)
            self._bursts(m)
        return m

    def _out(self, m: Module) -> None:
        pins = self.pins
        m.d.comb += [
            pins.cke.eq(1), pins.cs_n.eq(0),
            Cat(pins.we_n, pins.cas_n, pins.ras_n).eq(self.command),
            pins.a.eq(self.address), pins.ba.eq(self.bank),
            pins.dq_o.eq(self.data[:16]), pins.dq_oe.eq(self.writing),
            pins.dqm.eq(Mux(self.writing, ~self.mask[:2], 0)),
        ]  # fmt: skip

    def _refreshes(self, m: Module) -> None:
        timer = Signal(range(self._timing.interval))
        with m.If(timer == 0):
            m.d.sync += [timer.eq(self._timing.interval - 1), self.due.eq(1)]
        with m.Else():
            m.d.sync += timer.eq(timer - 1)

    def _returns(self, m: Module) -> None:
        """Words on their way back become beats in a FIFO; a burst starts when it has room."""
        axi = self.axi
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=129, depth=2 * BURST_BEATS)
        self.room = fifo.w_rdy & (fifo.w_level <= BURST_BEATS)
        self.arriving, self.closing = Signal(), Signal()  # a read command goes out; its last
        path = [(self.arriving, self.closing)]
        for step in range(self._delay):
            begin, end = Signal(name=f"begin{step}"), Signal(name=f"end{step}")
            m.d.sync += [begin.eq(path[-1][0]), end.eq(path[-1][1])]
            path.append((begin, end))
        count, last, beat = Signal(range(WORDS + 1)), Signal(), Signal(112)
        begin, end = path[-1]
        first = begin
        with m.If(first):
            m.d.sync += [count.eq(WORDS - 1), last.eq(end)]
        with m.Elif(count != 0):
            m.d.sync += count.eq(count - 1)
        with m.If(first | (count != 0)):
            m.d.sync += beat.eq(Cat(beat[16:], self.pins.dq_i))
        m.d.comb += [
            fifo.w_data.eq(Cat(beat, self.pins.dq_i, last)), fifo.w_en.eq((count == 1) & ~first),
            axi.rvalid.eq(fifo.r_rdy), fifo.r_en.eq(axi.rready),
            axi.rdata.eq(fifo.r_data[:128]), axi.rlast.eq(fifo.r_data[128]),
        ]  # fmt: skip

    def _issue(self, m: Module, command: int, address: Any = 0, bank: Any = 0) -> None:
        m.d.sync += [self.command.eq(command), self.address.eq(address), self.bank.eq(bank)]

    def _start(self, m: Module) -> None:
        """What the chip needs after power-up: precharge, refreshes, mode."""
        steps = [
            (PRECHARGE, ALL_BANKS, self._timing.precharge),
            *[(REFRESH, 0, self._timing.refresh)] * 8, (MODE, MODE_WORD, 2),
        ]  # fmt: skip
        step = Signal(range(len(steps) + 1))
        commands, addresses, waits = (Array(column) for column in zip(*steps))
        with m.State("start"), m.If(self.wait == 0):
            with m.If(step == len(steps)):
                m.next = "idle"
            with m.Else():
                self._issue(m, commands[step], addresses[step])
                m.d.sync += [self.wait.eq(waits[step]), step.eq(step + 1)]

    def _accept(self, m: Module) -> None:
        axi = self.axi
        read = axi.arvalid & self.room
        write = axi.awvalid & ~self.answer
        column = Signal(BANK_BITS + ROW_BITS)
        m.d.comb += column.eq(self.at[COLUMN_BITS + 1 : COLUMN_BITS + 1 + BANK_BITS + ROW_BITS])
        with m.State("idle"):
            with m.If(self.wait != 0):
                pass
            with m.Elif(self.due):
                self._issue(m, REFRESH)
                m.d.sync += [self.due.eq(0), self.wait.eq(self._timing.refresh)]
            with m.Elif(read & (~write | ~self.turn)):
                m.d.comb += axi.arready.eq(1)
                m.d.sync += [self.at.eq(axi.araddr), self.beats.eq(axi.arlen), self.turn.eq(1)]
                m.next = "open_read"
            with m.Elif(write):
                m.d.comb += axi.awready.eq(1)
                m.d.sync += [self.at.eq(axi.awaddr), self.beats.eq(axi.awlen), self.turn.eq(0)]
                m.next = "open_write"
        for kind in ("read", "write"):
            with m.State(f"open_{kind}"):
                self._issue(m, ACTIVE, column[BANK_BITS:], column[:BANK_BITS])
                m.d.sync += [self.wait.eq(self._timing.row), self.word.eq(0)]
                m.next = kind

    def _bursts(self, m: Module) -> None:
        axi = self.axi
        place = self.at[1 : 1 + COLUMN_BITS]
        bank = self.at[COLUMN_BITS + 1 : COLUMN_BITS + 1 + BANK_BITS]
        with m.State("read"), m.If(self.wait == 0):
            self._issue(m, READ, place, bank)
            m.d.comb += [self.arriving.eq(1), self.closing.eq(self.beats == 0)]
            m.d.sync += [self.wait.eq(WORDS - 1), self.at.eq(self.at + 2 * WORDS)]
            m.d.sync += self.beats.eq(self.beats - 1)
            with m.If(self.beats == 0):
                m.next = "close"
        with m.State("write"):
            with m.If((self.wait == 0) & (self.word == 0) & axi.wvalid):
                self._issue(m, WRITE, place, bank)
                m.d.comb += axi.wready.eq(1)
                m.d.sync += [
                    self.data.eq(axi.wdata), self.mask.eq(axi.wstrb), self.writing.eq(1),
                    self.word.eq(WORDS - 1), self.at.eq(self.at + 2 * WORDS),
                ]  # fmt: skip
            with m.Elif(self.word != 0):
                m.d.sync += [
                    self.data.eq(self.data >> 16), self.mask.eq(self.mask >> 2),
                    self.writing.eq(1), self.word.eq(self.word - 1),
                ]  # fmt: skip
                with m.If(self.word == 1):
                    m.d.sync += self.beats.eq(self.beats - 1)
                    with m.If(self.beats == 0):
                        m.d.sync += [self.wait.eq(self._timing.recover), self.answer.eq(1)]
                        m.next = "close"
        with m.State("close"), m.If(self.wait == 0):
            self._issue(m, PRECHARGE, ALL_BANKS)
            m.d.sync += self.wait.eq(self._timing.precharge)
            m.next = "idle"
