"""A memory of several AXI4 channels for the Amaranth simulator; it checks what the masters do.

`AxiMemory.step` is called once a cycle, before the clock edge. It answers after a latency, stalls
at random, and raises `ProtocolError` for whatever IHI 0022 or this project's own rules forbid.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

__all__ = ["AxiMemory", "ProtocolError"]


class ProtocolError(AssertionError):
    """A master broke a rule."""


class _Stable:
    """Once valid, a channel keeps valid and payload until ready."""

    def __init__(self, axi: Any, prefix: str, fields: tuple[str, ...]) -> None:
        self._axi, self._prefix, self._fields = axi, prefix, fields
        self._held: tuple[int, ...] | None = None

    def look(self, ctx: Any, ready: bool) -> tuple[int, ...] | None:
        """The payload of a transfer in this cycle."""
        get = lambda name: ctx.get(getattr(self._axi, self._prefix + name))  # noqa: E731
        if not get("valid"):
            if self._held is not None:
                raise ProtocolError(f"{self._prefix}valid was taken back")
            return None
        payload = tuple(get(name) for name in self._fields)
        if self._held not in (None, payload):
            raise ProtocolError(f"{self._prefix} payload changed while it waited")
        self._held = None if ready else payload
        return payload if ready else None


class AxiMemory:
    """Memory behind read or write channels.

    Parameters
    ----------
    data : uint8 [channels, bytes], read and written in place.
    reads, writes : channel interfaces, one a channel; either may be empty.
    latency : cycles from address to first beat, and from last beat to response.
    stall : chance of each handshake to wait in a cycle.
    fail : byte addresses whose access answers with an error.
    patient : the master may refuse data and responses for a while.
    """

    def __init__(self, data: np.ndarray, reads: list[Any] = (), writes: list[Any] = (), *,
                 latency: int = 5, stall: float = 0.0, seed: int = 0,
                 fail: tuple[int, ...] = (), patient: bool = False) -> None:  # fmt: skip
        self.data, self.fail, self.patient = data, fail, patient
        self._reads = [_Reader(self, c, axi) for c, axi in enumerate(reads)]
        self._writes = [_Writer(self, c, axi) for c, axi in enumerate(writes)]
        self.latency, self.stall, self.cycle = latency, stall, 0
        self.rng = np.random.default_rng(seed)
        self.bursts: list[tuple[int, int, int]] = []
        """(channel, address, beats) of every burst, in order."""
        self.beats = 0

    def wait(self) -> bool:
        """Whether a handshake waits in this cycle."""
        return bool(self.stall) and self.rng.random() < self.stall

    def step(self, ctx: Any) -> None:
        """One cycle."""
        for port in (*self._reads, *self._writes):
            port.step(ctx)
        self.cycle += 1

    @property
    def quiet(self) -> bool:
        """Nothing is under way."""
        return not any(port.busy for port in (*self._reads, *self._writes))

    def check(self, channel: int, address: int, length: int, size: int, burst: int,
              width: int) -> None:  # fmt: skip
        """The rules of a request."""
        total = (length + 1) * width
        if 1 << size != width or burst != 1:
            raise ProtocolError(f"size {size} and burst {burst} are not full INCR beats")
        if length > 15:
            raise ProtocolError(f"burst of {length + 1} beats is longer than AXI3's 16")
        if address // 4096 != (address + total - 1) // 4096:
            raise ProtocolError(f"burst of {total} bytes at {address:#x} crosses 4 KiB")
        if address % width or address + total > self.data.shape[1]:
            raise ProtocolError(f"{total} bytes at {address:#x}: misaligned or outside")
        self.bursts.append((channel, address, length + 1))


class _Reader:
    def __init__(self, memory: AxiMemory, channel: int, axi: Any) -> None:
        self._memory, self._channel, self._axi = memory, channel, axi
        self._width = len(axi.rdata) // 8
        self._stable = _Stable(axi, "ar", ("addr", "len", "size", "burst"))
        self._queue: deque[tuple[int, int, bool, bool]] = deque()
        self._ready = False
        self._shown: tuple[int, int, bool, bool] | None = None

    @property
    def busy(self) -> bool:
        return bool(self._queue)

    def step(self, ctx: Any) -> None:
        memory, axi = self._memory, self._axi
        self._ready = not memory.wait()
        ctx.set(axi.arready, int(self._ready))
        request = self._stable.look(ctx, self._ready)
        if request is not None:
            address, length, size, burst = request
            memory.check(self._channel, address, length, size, burst, self._width)
            for k in range(length + 1):
                at = address + k * self._width
                self._queue.append((memory.cycle + memory.latency, at, k == length,
                                    at in memory.fail))  # fmt: skip
        if self._shown is None and self._queue and self._queue[0][0] <= memory.cycle:
            if not memory.wait():
                self._shown = self._queue[0]
        ctx.set(axi.rvalid, int(self._shown is not None))
        if self._shown is not None:
            _, at, last, bad = self._shown
            row = memory.data[self._channel, at : at + self._width]
            ctx.set(axi.rdata, int.from_bytes(row.tobytes(), "little"))
            ctx.set(axi.rlast, int(last))
            ctx.set(axi.rresp, 2 * bad)
            if not ctx.get(axi.rready):
                if memory.patient:
                    return
                raise ProtocolError("rready is low: the master promised room that it has not")
            self._queue.popleft()
            self._shown = None
            memory.beats += 1


class _Writer:
    def __init__(self, memory: AxiMemory, channel: int, axi: Any) -> None:
        self._memory, self._channel, self._axi = memory, channel, axi
        self._width = len(axi.wdata) // 8
        self._address = _Stable(axi, "aw", ("addr", "len", "size", "burst"))
        self._data = _Stable(axi, "w", ("data", "strb", "last"))
        self._bursts: deque[tuple[int, int]] = deque()
        self._beats: deque[tuple[int, int, int]] = deque()
        self._place = 0
        self._answers: deque[tuple[int, bool]] = deque()

    @property
    def busy(self) -> bool:
        return bool(self._bursts or self._beats or self._answers)

    def step(self, ctx: Any) -> None:
        memory, axi = self._memory, self._axi
        # Address and data are taken independently; data may run ahead of its address.
        ready = [not memory.wait(), not memory.wait()]
        ctx.set(axi.awready, int(ready[0]))
        ctx.set(axi.wready, int(ready[1]))
        request = self._address.look(ctx, ready[0])
        if request is not None:
            address, length, size, burst = request
            memory.check(self._channel, address, length, size, burst, self._width)
            self._bursts.append((address, length))
        beat = self._data.look(ctx, ready[1])
        if beat is not None:
            self._beats.append(beat)
            memory.beats += 1
        while self._bursts and self._beats:
            self._write(*self._beats.popleft())
        answer = bool(self._answers) and self._answers[0][0] <= memory.cycle and not memory.wait()
        ctx.set(axi.bvalid, int(answer))
        if answer:
            ctx.set(axi.bresp, 2 * self._answers[0][1])
            if ctx.get(axi.bready):
                self._answers.popleft()
            elif not memory.patient:
                raise ProtocolError("bready is low")

    def _write(self, value: int, strobe: int, last: int) -> None:
        memory = self._memory
        address, length = self._bursts[0]
        if last != (self._place == length):
            raise ProtocolError(f"wlast at beat {self._place} of {length + 1}")
        at = address + self._place * self._width
        new = np.frombuffer(value.to_bytes(self._width, "little"), np.uint8)
        mask = np.array([strobe >> k & 1 for k in range(self._width)], bool)
        memory.data[self._channel, at : at + self._width][mask] = new[mask]
        self._place += 1
        if last:
            self._place = 0
            self._bursts.popleft()
            self._answers.append((memory.cycle + memory.latency, address in memory.fail))
