"""The ST unit: vectors of F and the KV cache's new tokens to memory."""

from functools import reduce
from operator import or_
from typing import Any

from amaranth.hdl import Cat, Module, ResetInserter, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.frontend import UnitFrontEnd, semaphore_signature
from flightllm.hw.memory.arithmetic import Arithmetic
from flightllm.hw.memory.axi import write_channel
from flightllm.hw.memory.buffers import read_port, window_port
from flightllm.hw.memory.key_store import KEY_OPERANDS, KeyStore
from flightllm.hw.memory.store_pipe import StorePipe
from flightllm.hw.memory.value_store import VALUE_OPERANDS, ValueStore
from flightllm.hw.memory.vector_store import VECTOR_OPERANDS, VectorStore
from flightllm.hw.memory.write_master import WriteBeat, WriteCommand, WriteMaster
from flightllm.hw.sharing import shared
from flightllm.spec.isa import Unit, by_name
from flightllm.spec.timing import WRITES

__all__ = ["StoreUnit"]


class _Control(wiring.Component):
    """Executes ST's instructions; everything of the unit but the masters.

    Members
    -------
    queue, semaphores, f_read, a_read : see `StoreUnit`.
    commands, beats : Out, streams for a master each. written : In, every response has come.
    busy : Out. settling, outside, requested : Out, see `StoreUnit`.
    """

    def __init__(self, channels: int, beat_bytes: int, channel_bytes: int, lanes: int,
                 window: int) -> None:  # fmt: skip
        self._channels, self._shape = channels, (channels, beat_bytes, lanes)
        self._pipe = StorePipe(channels, beat_bytes, channel_bytes, lanes, window)
        address_bits = self._pipe.address_bits
        super().__init__({
            "queue": In(stream.Signature(32)),
            "semaphores": Out(semaphore_signature),
            "f_read": Out(read_port(lanes)),
            "a_read": Out(window_port(window)),
            "commands": Out(
                stream.Signature(WriteCommand(beat_bytes, address_bits))
            ).array(channels),
            "beats": Out(stream.Signature(WriteBeat(beat_bytes))).array(channels),
            "written": In(1),
            **dict.fromkeys(("busy", "settling", "outside"), Out(1)),
            "requested": Out(range(max(channels, 2))),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.front = front = UnitFrontEnd(Unit.ST)
        m.submodules.pipe = pipe = self._pipe
        m.submodules.arithmetic = arithmetic = Arithmetic(self._channels)
        walks: dict[str, Any] = {
            "st.vec": VectorStore(*self._shape),
            "st.keys": KeyStore(*self._shape),
            "st.values": ValueStore(*self._shape),
        }
        operands = dict(zip(walks, (VECTOR_OPERANDS, KEY_OPERANDS, VALUE_OPERANDS)))
        wiring.connect(m, wiring.flipped(self.queue), front.queue)
        wiring.connect(m, front.semaphores, wiring.flipped(self.semaphores))
        for name in ("f_read", "a_read"):
            wiring.connect(m, getattr(pipe, name), wiring.flipped(getattr(self, name)))
        for mine, outer in zip((*pipe.commands, *pipe.beats), (*self.commands, *self.beats)):
            wiring.connect(m, mine, wiring.flipped(outer))
        walked, known = Signal(), Signal()
        for name, walk in walks.items():
            m.submodules[name.replace(".", "_")] = walk
            mine = Signal(name=name.replace(".", "_is_"))
            m.d.comb += [
                mine.eq(front.function == by_name(name).function),
                walk.go.eq(front.start & mine),
            ]
            for operand in operands[name]:
                m.d.comb += getattr(walk, operand).eq(front.operand(name, operand))
            with m.If(mine):
                m.d.comb += [
                    known.eq(1),
                    walked.eq(walk.done),
                    pipe.jobs.payload.eq(walk.jobs.payload),
                    pipe.jobs.valid.eq(walk.jobs.valid),
                    walk.jobs.ready.eq(pipe.jobs.ready),
                ]
        self._share(m, arithmetic, [walk.math for walk in walks.values()])
        waiting = Signal()  # for the last responses
        with m.If(walked | (front.start & ~known)):
            m.d.sync += waiting.eq(1)
        with m.Elif(front.done):
            m.d.sync += waiting.eq(0)
        m.d.comb += [
            front.done.eq(waiting & pipe.empty & self.written),
            self.busy.eq(~front.idle),
            self.settling.eq(waiting),
            self.outside.eq(pipe.outside),
            self.requested.eq(pipe.requested),
        ]
        return m

    def _share(self, m: Module, arithmetic: Any, users: list[Any]) -> None:
        """The walks run one at a time, the others drive 0."""
        for name in ("start", "divide", "a", "b"):
            joined = reduce(or_, (getattr(user, name) for user in users))
            m.d.comb += getattr(arithmetic, name).eq(joined)
        for user in users:
            for name in ("done", "product", "quotient", "remainder"):
                m.d.comb += getattr(user, name).eq(getattr(arithmetic, name))


@shared()
class StoreUnit(wiring.Component):
    """ST and the channels' write masters. An instruction is done when every response has come.

    Parameters
    ----------
    channels, beat_bytes : of the core. lanes : words of an access to F.
    window : bytes of a read of A, at least a beat.
    channel_bytes : memory of a channel. outstanding : bursts under way a channel.

    Members
    -------
    queue : In, words of instructions. semaphores : Out.
    f_read, a_read : Out, ports of F and A.
    axi : Out, a write channel each.
    abort : In, a pulse drops everything; bursts that were begun end with empty strobes,
        instructions after it wait for that.
    busy : Out, an instruction runs or waits. idle : Out, none does, and the bus is quiet.
    settling : Out, everything is sent, responses are missing.
    error : Out, one bit a channel, sticky until abort: an error response.
    outside : Out, a pulse: an address lies outside the channel; nothing is written there.
    requested : Out, the channel of that transfer.
    """

    def __init__(self, channels: int, beat_bytes: int, lanes: int, window: int,
                 channel_bytes: int = 1 << 32, outstanding: int = WRITES) -> None:  # fmt: skip
        self._channels, address_bits = channels, (channel_bytes - 1).bit_length()
        self._control = _Control(channels, beat_bytes, channel_bytes, lanes, window)
        self._master = (beat_bytes, address_bits, outstanding)
        super().__init__({
            "queue": In(stream.Signature(32)),
            "semaphores": Out(semaphore_signature),
            "f_read": Out(read_port(lanes)),
            "a_read": Out(window_port(window)),
            "axi": Out(write_channel(beat_bytes, address_bits)).array(channels),
            "abort": In(1),
            **dict.fromkeys(("busy", "idle", "settling", "outside"), Out(1)),
            "requested": Out(range(max(channels, 2))),
            "error": Out(channels),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        control = self._control
        m.submodules.control = ResetInserter(self.abort)(control)
        masters = [WriteMaster(*self._master) for _ in range(self._channels)]
        wiring.connect(m, wiring.flipped(self.queue), control.queue)
        for name in ("semaphores", "f_read", "a_read"):
            wiring.connect(m, getattr(control, name), wiring.flipped(getattr(self, name)))
        for channel, master in enumerate(masters):
            m.submodules[f"master{channel}"] = master
            wiring.connect(m, master.axi, wiring.flipped(self.axi[channel]))
            wiring.connect(m, control.commands[channel], master.i)
            wiring.connect(m, control.beats[channel], master.data)
            m.d.comb += master.abort.eq(self.abort)
        quiet = Cat(master.idle for master in masters).all()
        m.d.comb += [
            control.written.eq(quiet),
            *(getattr(self, name).eq(getattr(control, name))
              for name in ("busy", "settling", "outside", "requested")),
            self.idle.eq(~control.busy & quiet),
            self.error.eq(Cat(master.error for master in masters)),
        ]
        return m
