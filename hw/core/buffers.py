"""A core's F and A buffers, their users' ports, and who goes first at each."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.memory.buffers import (
    ABuffer,
    FBuffer,
    ReadArbiter,
    WriteArbiter,
    read_port,
    window_port,
    write_port,
)
from flightllm.hw.sfu.ports import read_signature, write_signature
from flightllm.hw.sharing import shared

__all__ = ["CoreBuffers", "USERS", "written_signature"]

USERS = ("st", "engine", "ld", "misc", "sys")
"""Names of the users; `engine` stands for MM and MV."""
_F_READS = (("misc_x", "engine"), ("misc_y", "ld", "st", "sys"))
_F_WRITES = ("misc", "engine", "ld", "sys")
_A_READS = ("engine", "st", "sys")
_A_WRITES = ("misc", "sys")


def written_signature(lanes: int, width: int) -> Any:
    """A write that a buffer took.

    Members
    -------
    valid : there is one. user : index in `USERS`; in a trace the unit's number.
    addr, count, data : see `write_port`.
    """
    return wiring.Signature({
        "valid": Out(1), "user": Out(3), "addr": Out(32), "count": Out(range(lanes + 1)),
        "data": Out(lanes * width),
    })  # fmt: skip


@shared()
class CoreBuffers(wiring.Component):
    """Both buffers. The SFU comes first, is never refused. The engine's windows go before ST's
    codes: it asks ahead of its steps and leaves most cycles, ST would take every one.

    Parameters
    ----------
    words, size : words of F, bytes of A. lanes : words of an access to F, bytes of the SFU's writes
    to A. levels : bytes of SYS's, `lanes` or more. window : bytes of a read of A. engine_window :
    of those, what the engine takes.

    Members
    -------
    misc_x, misc_y : In(read_signature), misc_f, misc_a : In(write_signature), the SFU's.
    engine_f_read, engine_f_write, engine_a_read, ... : In, `user_port` for each other user.
    outside : Out, a bit for each user, a pulse: it addressed what is not there.
    f_written, a_written : Out, `written_signature`.
    busy : Out, some access is taken.
    """

    def __init__(self, words: int, size: int, lanes: int, levels: int, window: int,
                 engine_window: int) -> None:  # fmt: skip
        self._words, self._size, self._lanes, self._levels = words, size, lanes, levels
        self._window, self._engine_window = window, engine_window
        others = {
            **{f"{user}_f_read": read_port(lanes) for user in ("engine", "ld", "st", "sys")},
            **{f"{user}_f_write": write_port(lanes, 32) for user in _F_WRITES[1:]},
            "engine_a_read": window_port(engine_window),
            **{f"{user}_a_read": window_port(window) for user in ("st", "sys")},
            "sys_a_write": write_port(levels, 8),
        }
        super().__init__({
            "misc_x": In(read_signature(lanes)), "misc_y": In(read_signature(lanes)),
            "misc_f": In(write_signature(lanes, 32)), "misc_a": In(write_signature(lanes, 8)),
            **{name: In(port) for name, port in others.items()},
            "outside": Out(len(USERS)),
            "f_written": Out(written_signature(lanes, 32)),
            "a_written": Out(written_signature(levels, 8)),
            "busy": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        self._outside: list[tuple[Any, Any]] = []  # (condition, user)
        self._taken: list[Any] = []
        m.submodules.f = f = FBuffer(self._words, self._lanes)
        m.submodules.a = a = ABuffer(self._size, self._window, self._levels)
        for k, users in enumerate(_F_READS):
            self._read(m, f"f_read{k}", getattr(f, f"read{k}"), users, "f_read", self._words)
        self._read(m, "a_read", a.read0, _A_READS, "a_read", self._size)
        for name, buffer, users, size in (
            ("f", f, _F_WRITES, self._words), ("a", a, _A_WRITES, self._size),
        ):  # fmt: skip
            self._write(m, name, buffer.write, users, size)
        for k in range(len(USERS)):
            m.d.comb += self.outside[k].eq(Cat(
                condition & (user == k) for condition, user in self._outside
            ).any())  # fmt: skip
        m.d.comb += self.busy.eq(Cat(self._taken).any())
        return m

    def _first(self, m: Module, name: str, arbiter: Any, users: tuple[str, ...]) -> Signal:
        """Index in `USERS` of the user whose access is taken."""
        who = Signal(range(len(USERS)), name=f"{name}_user")
        for k, user in reversed(list(enumerate(users))):
            with m.If(getattr(arbiter, f"user{k}").valid):
                m.d.comb += who.eq(USERS.index(user.split("_")[0]))
        return who

    def _check(self, m: Module, name: str, port: Any, who: Signal, count: Any, size: int) -> None:
        end = Signal(34, name=f"{name}_end")
        taken = port.valid & port.ready
        m.d.comb += end.eq(port.addr + count)
        self._outside.append((taken & (end > size), who))
        self._taken.append(taken)

    def _read(self, m: Module, name: str, port: Any, users: tuple[str, ...], member: str,
              size: int) -> None:  # fmt: skip
        arbiter = ReadArbiter(port.signature.flip(), len(users))
        m.submodules[name] = arbiter
        wiring.connect(m, arbiter.port, port)
        for k, user in enumerate(users):
            mine = getattr(arbiter, f"user{k}")
            if user.startswith("misc"):
                theirs = getattr(self, user)
                m.d.comb += [
                    mine.valid.eq(theirs.en), mine.addr.eq(theirs.addr),
                    mine.count.eq(self._lanes), theirs.data.eq(mine.data),
                ]  # fmt: skip
                continue
            theirs = getattr(self, f"{user}_{member}")
            m.d.comb += [
                mine.valid.eq(theirs.valid), mine.addr.eq(theirs.addr),
                theirs.ready.eq(mine.ready), theirs.data.eq(mine.data),
            ]  # fmt: skip
            if hasattr(mine, "count"):
                m.d.comb += mine.count.eq(theirs.count)
        who = self._first(m, name, arbiter, users)
        # The SFU reads all lanes but uses those of its vector; a window may end behind it.
        precise = hasattr(port, "count")
        count = Mux(who == USERS.index("misc"), 1, port.count) if precise else 1
        self._check(m, name, arbiter.port, who, count, size)

    def _write(self, m: Module, name: str, port: Any, users: tuple[str, ...], size: int) -> None:
        arbiter = WriteArbiter(port.signature.flip(), len(users))
        m.submodules[f"{name}_write"] = arbiter
        wiring.connect(m, arbiter.port, port)
        for k, user in enumerate(users):
            mine = getattr(arbiter, f"user{k}")
            if user == "misc":
                theirs = getattr(self, f"misc_{name}")
                m.d.comb += [
                    mine.valid.eq(theirs.en), mine.addr.eq(theirs.addr),
                    mine.count.eq(theirs.count),
                    mine.data.as_value().eq(theirs.data.as_value()),
                ]  # fmt: skip
                continue
            wiring.connect(m, wiring.flipped(getattr(self, f"{user}_{name}_write")), mine)
        who = self._first(m, f"{name}_write", arbiter, users)
        self._check(m, f"{name}_write", arbiter.port, who, port.count, size)
        written = getattr(self, f"{name}_written")
        m.d.comb += [
            written.valid.eq(port.valid & port.ready), written.user.eq(who),
            written.addr.eq(port.addr), written.count.eq(port.count),
            written.data.eq(port.data.as_value()),
        ]  # fmt: skip
