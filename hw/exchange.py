"""SYS and what lies between the cores: gather, barrier, halt.

Cores meet at a gather or barrier: `Exchange` waits until all are there, lets them go together, and
for a gather gives each in turn the one bus on which it sends its slice to all others. Registers on
every wire between a core and the bus let it cross from die to die.
"""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from flightllm.hw.frontend import UnitFrontEnd, semaphore_signature
from flightllm.hw.memory.buffers import READ_LATENCY, read_port, window_port, write_port
from flightllm.hw.sharing import shared
from flightllm.spec.isa import Unit, by_name

__all__ = ["Exchange", "Message", "SystemUnit", "link_signature"]

INBOX = 16
"""Messages a core can hold; more than are under way between a refusal and its effect."""


class Message(data.StructLayout):
    """A part of a slice on its way to the other cores.

    Members
    -------
    valid : there is one. last : the slice is complete; no elements come with it.
    act : for the A buffer, else for F. address, count, words : where, how many and which elements;
        bytes of A are in the low bits.

    Parameters
    ----------
    lanes : words of F. levels : bytes of A, at most 4 * lanes.
    """

    def __init__(self, lanes: int, levels: int) -> None:
        super().__init__({
            "valid": 1, "last": 1, "act": 1, "address": 32, "count": range(max(lanes, levels) + 1),
            "words": 32 * lanes,
        })  # fmt: skip


def link_signature(lanes: int, levels: int) -> Any:
    """A core's side of the exchange; see `Message` for its parameters.

    Members
    -------
    here : the core stands at a gather or barrier; barrier : at a barrier. go : all did; a pulse.
    astray : with `go`: core 0 stands at the other of the two.
    turn : the core may send. sent : its messages. received : those of the others.
    full : its inbox has little room. hold : some inbox has.
    """
    return wiring.Signature({
        "here": Out(1), "barrier": Out(1), "go": In(1), "astray": In(1), "turn": In(1),
        "sent": Out(Message(lanes, levels)), "received": In(Message(lanes, levels)),
        "full": Out(1), "hold": In(1),
    })  # fmt: skip


@shared()
class SystemUnit(wiring.Component):
    """Executes SYS.

    Parameters
    ----------
    lanes : words of an access to F. levels : bytes of a write to A. window : bytes of a read of A.
    cores : how many there are; a single one meets nobody.

    Members
    -------
    queue : In, words of instructions. semaphores : Out.
    f_read, a_read, f_write, a_write : Out, ports of the buffers. link : Out, to `Exchange`.
    quiet : In, every other unit is idle and no transfer is under way. halted : Out, a pulse.
    waiting : Out, for other cores. fault : Out, a pulse: the core came to a gather, core 0 to a
        barrier, or the other way round.
    """

    def __init__(self, lanes: int, levels: int, window: int, cores: int) -> None:
        self._lanes, self._levels, self._cores = lanes, levels, cores
        super().__init__({
            "queue": In(stream.Signature(32)),
            "semaphores": Out(semaphore_signature),
            "f_read": Out(read_port(lanes)),
            "a_read": Out(window_port(window)),
            "f_write": Out(write_port(lanes, 32)),
            "a_write": Out(write_port(levels, 8)),
            "link": Out(link_signature(lanes, levels)),
            "quiet": In(1),
            "halted": Out(1),
            "waiting": Out(1),
            "fault": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.front = front = UnitFrontEnd(Unit.SYS)
        wiring.connect(m, wiring.flipped(self.queue), front.queue)
        wiring.connect(m, front.semaphores, wiring.flipped(self.semaphores))
        gather, barrier, halt = (by_name(f"sys.{n}") for n in ("gather", "barrier", "halt"))
        link = self.link
        missing = Signal(range(self._cores + 1))
        begin, told, complete = Signal(), Signal(), Signal()
        m.d.comb += [
            link.barrier.eq(front.function == barrier.function),
            self.fault.eq(link.go & link.astray),
        ]
        with m.FSM():
            with m.State("idle"), m.If(front.start), m.Switch(front.function):
                with m.Case(gather.function, barrier.function):
                    m.next = "meet" if self._cores > 1 else "done"
                with m.Case(halt.function):
                    m.next = "halt"
                with m.Default():
                    m.next = "done"
            with m.State("meet"):
                m.d.comb += [link.here.eq(1), self.waiting.eq(1)]
                m.d.sync += missing.eq(self._cores - 1)
                with m.If(link.go):
                    m.d.comb += begin.eq(~link.barrier)
                    m.next = "exchange"
                    with m.If(link.barrier):
                        m.next = "done"
            with m.State("exchange"):
                m.d.comb += self.waiting.eq(~told)
                m.d.sync += missing.eq(missing - complete)
                with m.If(told & (missing == 0)):
                    m.next = "done"
            with m.State("halt"), m.If(self.quiet):
                m.d.comb += self.halted.eq(1)
                m.next = "done"
            with m.State("done"):
                m.d.comb += front.done.eq(1)
                m.next = "idle"
        if self._cores > 1:
            self._receive(m, complete)
            self._send(m, front, begin, told)
        return m

    def _receive(self, m: Module, complete: Signal) -> None:
        """Write what the others send; `complete` when it is the end of a slice."""
        message = Message(self._lanes, self._levels)
        m.submodules.inbox = inbox = SyncFIFO(width=message.size, depth=INBOX)
        first = data.View(message, inbox.r_data)
        taken = Signal()
        m.d.comb += [
            inbox.w_data.eq(self.link.received),
            inbox.w_en.eq(self.link.received.valid),
            self.link.full.eq(inbox.level >= INBOX // 4),
            taken.eq(inbox.r_rdy & (first.last | Mux(
                first.act, self.a_write.ready, self.f_write.ready
            ))),
            inbox.r_en.eq(taken),
            complete.eq(taken & first.last),
        ]  # fmt: skip
        for port, mine in ((self.f_write, ~first.act), (self.a_write, first.act)):
            m.d.comb += [
                port.valid.eq(inbox.r_rdy & ~first.last & mine),
                port.addr.eq(first.address), port.count.eq(first.count),
                port.data.as_value().eq(first.words),
            ]  # fmt: skip

    def _send(self, m: Module, front: UnitFrontEnd, begin: Signal, told: Signal) -> None:
        """Walk the slice while it is this core's turn."""
        n, rows = (front.operand("sys.gather", name) for name in ("n", "n1"))
        act = front.flags[by_name("sys.gather").flags.index("act")]
        row, at, left, rows_left = Signal(32), Signal(32), Signal(32), Signal(32)
        free, asking, asked, last_part = Signal(), Signal(), Signal(), Signal()
        part = Signal(Message(self._lanes, self._levels))
        most = Mux(act, self._levels, self._lanes)
        m.d.comb += [
            last_part.eq(left <= most),
            part.act.eq(act), part.address.eq(at),
            part.count.eq(Mux(last_part, left, most)),
            free.eq(self.link.turn & ~told & ~self.link.hold),
            asking.eq(free & (rows_left != 0)),
            self.f_read.valid.eq(asking & ~act), self.a_read.valid.eq(asking & act),
            self.f_read.addr.eq(at), self.f_read.count.eq(part.count), self.a_read.addr.eq(at),
            asked.eq(asking & Mux(act, self.a_read.ready, self.f_read.ready)),
            part.last.eq(free & (rows_left == 0)),
            part.valid.eq(asked | part.last),
        ]  # fmt: skip
        with m.If(part.last):
            m.d.sync += told.eq(1)
        with m.If(asked):
            m.d.sync += [at.eq(at + most), left.eq(left - most)]
            with m.If(last_part):
                following = row + front.operand("sys.gather", "stride")
                m.d.sync += [
                    row.eq(following), at.eq(following), left.eq(n), rows_left.eq(rows_left - 1),
                ]  # fmt: skip
        with m.If(begin):
            address = front.operand("sys.gather", "addr")
            m.d.sync += [
                told.eq(0), row.eq(address), at.eq(address), left.eq(n),
                rows_left.eq(Mux(n == 0, 0, rows)),
            ]  # fmt: skip
        for k in range(READ_LATENCY):
            later = Signal(part.shape(), name=f"part_{k + 1}")
            m.d.sync += later.eq(part)
            part = later
        sent = self.link.sent
        with m.If(part.valid):  # else all 0: the bus is the OR of what all send
            m.d.comb += sent.eq(part)
            m.d.comb += sent.words.eq(Mux(
                part.act, self.a_read.data.as_value()[: 8 * self._levels],
                self.f_read.data.as_value(),
            ))  # fmt: skip


@shared()
class Exchange(wiring.Component):
    """Lets the cores meet, and passes their messages on.

    Parameters
    ----------
    lanes, levels, cores : see `SystemUnit`.

    Members
    -------
    core0, core1, ... : In, `link_signature`, one a core.
    """

    WIRE = 2
    """Registers between a core and the bus, each way."""

    def __init__(self, lanes: int, levels: int, cores: int) -> None:
        self._message, self._cores = Message(lanes, levels), cores
        link = link_signature(lanes, levels)
        super().__init__({f"core{c}": In(link) for c in range(cores)})

    def _wired(self, m: Module, value: Any, name: str) -> Any:
        """`value` after the registers of one way."""
        for k in range(self.WIRE):
            later = Signal(value.shape(), name=f"{name}_{k}")
            m.d.sync += later.eq(value)
            value = later
        return value

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        links = [getattr(self, f"core{c}") for c in range(self._cores)]
        there = [
            {
                name: self._wired(m, getattr(link, name), f"{name}_{c}")
                for name in ("here", "barrier", "sent", "full")
            }
            for c, link in enumerate(links)
        ]
        bus, turn, go = Signal(self._message), Signal(self._cores), Signal()
        hold = Signal()
        every = [part["sent"].as_value() for part in there]
        joined = every[0]
        for other in every[1:]:
            joined = joined | other
        m.d.comb += [
            bus.as_value().eq(joined),
            hold.eq(Cat(part["full"] for part in there).any()),
        ]
        for c, (link, part) in enumerate(zip(links, there)):
            mine = Signal(self._message, name=f"to_{c}")
            m.d.comb += [mine.eq(bus), mine.valid.eq(bus.valid & ~part["sent"].valid)]
            for name, value in (
                ("received", mine), ("turn", turn[c]), ("go", go), ("hold", hold),
                ("astray", part["barrier"] ^ there[0]["barrier"]),
            ):  # fmt: skip
                m.d.comb += getattr(link, name).eq(self._wired(m, value, f"{name}_{c}"))
        self._meet(m, there, bus, turn, go)
        return m

    def _meet(self, m: Module, there: Any, bus: Any, turn: Signal, go: Signal) -> None:
        round_trip = 2 * self.WIRE + 1
        settled = Signal(range(round_trip + 1))
        with m.FSM():
            with m.State("apart"), m.If(Cat(part["here"] for part in there).all()):
                m.d.comb += go.eq(1)
                m.d.sync += [settled.eq(round_trip), turn.eq(1)]
                m.next = "turns"
                with m.If(there[0]["barrier"]):
                    m.d.sync += turn.eq(0)
                    m.next = "leave"
            with m.State("turns"), m.If(bus.valid & bus.last):
                m.d.sync += turn.eq(turn << 1)
                with m.If(turn[-1]):
                    m.next = "leave"
            with m.State("leave"):  # until "here" of this meeting is gone from the wires
                m.d.sync += settled.eq(settled - 1)
                with m.If(settled == 0):
                    m.next = "apart"
