"""The F buffer (float32 words) and the A buffer (bytes): vectors from any address in one access.

A buffer's row is as wide as a read. Even and odd rows lie in two memories, so the two rows that a
vector at any address touches are read together; each element takes its row, and a rotator puts the
first element first. Further read ports have copies of their own.
"""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.memory.ram import Ram

__all__ = [
    "ADDRESS_BITS", "READ_LATENCY", "ABuffer", "Buffer", "FBuffer", "ReadArbiter", "WriteArbiter",
    "read_port", "window_port", "write_port",
]  # fmt: skip

ADDRESS_BITS = 32
"""Of every port: users compute addresses from operands and need not know a buffer's size."""
READ_LATENCY = 2
"""Cycles from a read's acceptance to its data."""


def read_port(lanes: int) -> Any:
    """A reader's side of F.

    The first `count` (1 to `lanes`) words from `addr` on are in `data` exactly `READ_LATENCY`
    cycles after the cycle in which `valid` and `ready` are high; the other lanes hold 0.
    """
    return wiring.Signature(
        {
            "addr": Out(ADDRESS_BITS),
            "count": Out(range(lanes + 1)),
            "valid": Out(1),
            "ready": In(1),
            "data": In(data.ArrayLayout(32, lanes)),
        }
    )


def window_port(window: int) -> Any:
    """A reader's side of A: as `read_port`, always `window` bytes."""
    return wiring.Signature(
        {
            "addr": Out(ADDRESS_BITS),
            "valid": Out(1),
            "ready": In(1),
            "data": In(data.ArrayLayout(8, window)),
        }
    )


def write_port(lanes: int, width: int) -> Any:
    """A writer's side: the first `count` elements of `data` go to `addr` and behind.

    A read accepted in a later cycle than the write sees it.
    """
    return wiring.Signature(
        {
            "addr": Out(ADDRESS_BITS),
            "count": Out(range(lanes + 1)),
            "data": Out(data.ArrayLayout(width, lanes)),
            "valid": Out(1),
            "ready": In(1),
        }
    )


def _rotated(m: Module, value: Value, places: Value, width: int, name: str) -> Value:
    """`value` with element `places` first, elements of `width` bits."""
    for k in range(len(places)):
        stage = Signal(len(value), name=f"{name}_rotated_{1 << k}")
        m.d.comb += stage.eq(Mux(places[k], value.rotate_right(width << k), value))
        value = stage
    return value


class Buffer(wiring.Component):
    """A memory with vector access at any address.

    Parameters
    ----------
    size : elements. width : bits of one.
    row : elements of a read, a power of two.
    lanes : elements of a write, at most `row`, a power of two.
    readers : read ports.
    port : signature of a read port; `read_port` or `window_port`.

    Members
    -------
    read0, read1, ... : In, read ports. write : In, the write port.
    """

    def __init__(
        self, size: int, width: int, row: int, lanes: int, readers: int, port: Any
    ) -> None:
        for name, value in (("row", row), ("lanes", lanes)):
            if value < 1 or value & (value - 1):
                raise ValueError(f"Buffer {name} must be a power of two, not {value!r}")
        if lanes > row:
            raise ValueError(f"Buffer lanes must be at most row {row}, not {lanes!r}")
        self._size, self._width, self._row, self._readers = size, width, row, readers
        ports = {f"read{i}": In(port) for i in range(readers)}
        super().__init__({**ports, "write": In(write_port(lanes, width))})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        rows = -(-self._size // self._row)
        pairs = [
            [Ram(self._row * self._width, -(-rows // 2), self._width) for _ in range(2)]
            for _ in range(self._readers)
        ]
        for i, pair in enumerate(pairs):
            m.submodules[f"even{i}"], m.submodules[f"odd{i}"] = pair
            self._read(m, getattr(self, f"read{i}"), pair, f"read{i}")
        self._write(m, pairs)
        return m

    def _split(self, addr: Value) -> tuple[Value, Value]:
        """Place in the row and row number of an address."""
        bits = self._row.bit_length() - 1
        return addr[:bits], addr[bits:]

    def _write(self, m: Module, pairs: Any) -> None:
        port, total = self.write, self._row * self._width
        place, row = self._split(port.addr)
        # Element i of the payload belongs to place `place + i` of the row, or of the next row.
        wanted, enable = Signal(self._row), Signal(self._row)
        padded, values, wrapped = Signal(total), Signal(total), Signal(self._row)
        backwards = (-place)[: len(place)]
        m.d.comb += [
            port.ready.eq(1),
            wanted.eq(Cat(port.valid & (i < port.count) for i in range(len(port.data)))),
            padded.eq(port.data.as_value()),
            enable.eq(_rotated(m, wanted, backwards, 1, "enable")),
            values.eq(_rotated(m, padded, backwards, self._width, "values")),
            wrapped.eq(Cat(i < place for i in range(self._row))),
        ]
        for even, odd in pairs:
            m.d.comb += [
                even.write_address.eq((row + 1) >> 1),
                odd.write_address.eq(row >> 1),
                even.write_enable.eq(enable & (wrapped ^ ~row[0].replicate(self._row))),
                odd.write_enable.eq(enable & (wrapped ^ row[0].replicate(self._row))),
                even.write_data.eq(values),
                odd.write_data.eq(values),
            ]

    def _read(self, m: Module, port: Any, pair: Any, name: str) -> None:
        even, odd = pair
        place, row = self._split(port.addr)
        taken, read_place = Signal(name=f"{name}_taken"), Signal.like(place, name=f"{name}_place")
        from_odd = Signal(self._row, name=f"{name}_from_odd")
        m.d.comb += [
            port.ready.eq(1),
            taken.eq(port.valid),
            even.read_enable.eq(taken),
            odd.read_enable.eq(taken),
            even.read_address.eq((row + 1) >> 1),
            odd.read_address.eq(row >> 1),
        ]
        with m.If(taken):
            m.d.sync += [
                read_place.eq(place),
                from_odd.eq(Cat((i < place) ^ row[0] for i in range(self._row))),
            ]
        width = self._width
        joined = Signal(self._row * width, name=f"{name}_joined")
        m.d.comb += joined.eq(Cat(
            Mux(from_odd[i], odd.read_data.word_select(i, width),
                even.read_data.word_select(i, width))
            for i in range(self._row)
        ))  # fmt: skip
        vector = _rotated(m, joined, read_place, width, name)
        if "count" in port.signature.members:
            count = Signal.like(port.count, name=f"{name}_count")
            m.d.sync += count.eq(port.count)
            vector = Cat(Mux(i < count, vector.word_select(i, width), 0) for i in range(self._row))
        m.d.sync += port.data.as_value().eq(vector)


class FBuffer(Buffer):
    """The F buffer: `words` float32 words, vectors of up to `lanes`.

    Parameters
    ----------
    words : size. lanes : words of an access, a power of two. readers : read ports.

    Members
    -------
    read0, ... : In(read_port(lanes)). write : In(write_port(lanes, 32)).
    """

    def __init__(self, words: int, lanes: int, readers: int = 2) -> None:
        super().__init__(words, 32, lanes, lanes, readers, read_port(lanes))


class ABuffer(Buffer):
    """The A buffer: `size` bytes, reads of `window` bytes, writes of up to `lanes`.

    Parameters
    ----------
    size : bytes. window : bytes of a read. lanes : bytes of a write; both powers of two.
    readers : read ports.

    Members
    -------
    read0, ... : In(window_port(window)). write : In(write_port(lanes, 8)).
    """

    def __init__(self, size: int, window: int, lanes: int, readers: int = 1) -> None:
        super().__init__(size, 8, window, lanes, readers, window_port(window))


class _Arbiter(wiring.Component):
    """Several users of one port; the lowest number that asks goes first.

    Members
    -------
    user0, user1, ... : In, the users. port : Out, to the buffer.
    """

    def __init__(self, port: Any, users: int) -> None:
        self._users = users
        super().__init__({f"user{i}": In(port) for i in range(users)} | {"port": Out(port)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        users = [getattr(self, f"user{i}") for i in range(self._users)]
        answers = "data" in self._answers()
        outward = [name for name in self._answers(False) if name != "valid"]
        m.d.comb += self.port.valid.eq(Cat(user.valid for user in users).any())
        for i, user in enumerate(users):
            before = Cat(other.valid for other in users[:i]).any() if i else 0
            m.d.comb += user.ready.eq(self.port.ready & ~before)
            if answers:
                m.d.comb += user.data.eq(self.port.data)
        for i, user in reversed(list(enumerate(users))):
            with m.If(user.valid if i < self._users - 1 else 1):
                m.d.comb += [getattr(self.port, n).eq(getattr(user, n)) for n in outward]
        return m

    def _answers(self, inward: bool = True) -> list[str]:
        """Members of the port that come from the buffer, or go to it."""
        flow = In if inward else Out
        members = self.port.signature.members
        return [name for name, member in members.items() if member.flow == flow]


class ReadArbiter(_Arbiter):
    """Users of one read port, by fixed priority; data goes to all, each knows when it asked.

    Parameters
    ----------
    port : `read_port(lanes)` or `window_port(window)`. users : how many.
    """


class WriteArbiter(_Arbiter):
    """Users of one write port, by fixed priority.

    Parameters
    ----------
    port : `write_port(lanes, width)`. users : how many.
    """
