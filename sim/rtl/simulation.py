"""A built design that runs: its clock, its registers and its memory, from Python."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntFlag
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flightllm.sim.rtl.toolchain import SimulationError
from flightllm.spec.dram import DramTiming
from flightllm.spec.errors import InputError

__all__ = ["ChannelCounts", "Event", "Fault", "MemoryModel", "Simulation", "Stop", "dram_times"]

U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]
STALLED = ("ar", "r", "aw", "w", "b")
"""AXI channels that can pause."""


class Stop(IntFlag):
    """Why `Simulation.run` came back; `harness.cpp` has the same."""

    LIMIT = 0
    INTERRUPT = 1
    EVENT = 2
    FAILED = 4


class Fault(IntFlag):
    """What is wrong with a range of memory: error responses, or none at all."""

    READ = 1
    WRITE = 2
    SILENT = 4


@dataclass(frozen=True)
class MemoryModel:
    """How the memory behaves.

    Parameters
    ----------
    latency : cycles from a read's address to its first beat.
    write_latency : cycles from a write's last beat to its response.
    bytes_per_cycle : most that a channel moves, reads and writes together; 0 is no limit.
    outstanding : bursts that a channel takes before it answers, each way.
    stalls : share of cycles in which each AXI channel pauses; by name ("ar", "r", "aw", "w", "b")
        or one number for all. seed : of the pauses.
    dram : rows, refresh and turnaround in place of the latencies; None for a plain memory.
    clock_mhz : of the design, which makes cycles of nanoseconds.

    Raises
    ------
    InputError
        For a value out of range; names it.
    """

    latency: int = 100
    write_latency: int = 20
    bytes_per_cycle: float = 0.0
    outstanding: int = 32
    stalls: float | Mapping[str, float] = 0.0
    seed: int = 1
    dram: DramTiming | None = None
    clock_mhz: float = 200.0

    def __post_init__(self) -> None:
        for name, least in (("latency", 1), ("write_latency", 1), ("outstanding", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: {getattr(self, name)} is not at least {least}")
        if self.bytes_per_cycle < 0:
            raise InputError(f"bytes_per_cycle: {self.bytes_per_cycle} is negative")
        for name, share in self.pauses().items():
            if name not in STALLED:
                raise InputError(f"stalls: {name!r} is none of {', '.join(STALLED)}")
            if not 0 <= share <= 0.95:
                raise InputError(f"stalls of {name}: {share} is not between 0 and 0.95")

    def pauses(self) -> Mapping[str, float]:
        """The share of pauses of each AXI channel."""
        if isinstance(self.stalls, Mapping):
            return self.stalls
        return dict.fromkeys(STALLED, self.stalls)


class _DramSetup(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in (
            "period", "hit", "activate", "precharge", "row_cycle", "write_to_read",
            "read_to_write", "refresh_interval", "refresh", "bytes_per_ns", "same_group",
        )),
        *((name, ctypes.c_uint32) for name in (
            "banks", "row_bytes", "granule", "groups", "enabled",
        )),
    ]  # fmt: skip


class _MemorySetup(ctypes.Structure):
    _fields_ = [
        ("seed", ctypes.c_uint64), ("bytes_per_cycle", ctypes.c_double),
        ("latency", ctypes.c_uint32), ("write_latency", ctypes.c_uint32),
        ("outstanding", ctypes.c_uint32), ("stall", ctypes.c_uint32 * len(STALLED)),
        ("dram", _DramSetup),
    ]  # fmt: skip


class _ChannelSetup(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("base", ctypes.c_uint64), ("size", ctypes.c_uint64),
    ]  # fmt: skip


class ChannelCounts(ctypes.Structure):
    """What a memory channel saw: bursts, beats, the cycles of its first address and last beat."""

    _fields_ = [
        (name, ctypes.c_uint64) for name in (
            "read_bursts", "read_beats", "write_bursts", "write_beats", "first_address",
            "last_beat",
        )
    ]  # fmt: skip


WORDS = 32
"""Most words of an instruction in an `Event`."""


class Event(ctypes.Structure):
    """An instruction that is done: its words, and the cycles in which it started and ended."""

    _fields_ = [
        ("start", ctypes.c_uint64), ("end", ctypes.c_uint64),
        *((name, ctypes.c_uint32) for name in ("core", "unit", "address", "count")),
        ("words", ctypes.c_uint32 * WORDS),
    ]  # fmt: skip


_CALLS: dict[str, tuple[Any, list[Any]]] = {
    "open": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_void_p]),
    "close": (None, [ctypes.c_void_p]),
    "reset": (None, [ctypes.c_void_p, ctypes.c_uint32]),
    "cycle": (ctypes.c_uint64, [ctypes.c_void_p]),
    "failure": (ctypes.c_char_p, [ctypes.c_void_p]),
    "run": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint64]),
    "read": (ctypes.c_uint32, [ctypes.c_void_p, ctypes.c_uint32]),
    "write": (None, [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32]),
    "write_words": (
        None, [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint64],
    ),
    "fault": (
        None,
        [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32],
    ),
    "clear_faults": (None, [ctypes.c_void_p]),
    "outstanding": (ctypes.c_uint32, [ctypes.c_void_p, ctypes.c_uint32]),
    "counts": (None, [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_int]),
    "buffers": (
        None,
        [ctypes.c_void_p, ctypes.c_uint32, *[ctypes.c_void_p, ctypes.c_uint64] * 2],
    ),
    "event": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p]),
    "running": (ctypes.c_int, [ctypes.c_void_p, *[ctypes.c_uint32] * 2, ctypes.c_void_p]),
    "clear_trace": (None, [ctypes.c_void_p]),
    "dram": (None, [ctypes.c_void_p, ctypes.c_uint64, *[ctypes.c_void_p] * 6]),
    "wave": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64]),
}  # fmt: skip
"""Result and arguments of each function of harness.cpp, whose names begin with sim_."""


def _dram(timing: DramTiming, clock_mhz: float) -> _DramSetup:
    out = _DramSetup(1000 / clock_mhz, enabled=1)
    for entry in fields(timing):
        setattr(out, entry.name, getattr(timing, entry.name))
    return out


def _setup(model: MemoryModel) -> _MemorySetup:
    pauses = [round(1000 * model.pauses().get(name, 0.0)) for name in STALLED]
    return _MemorySetup(
        model.seed, model.bytes_per_cycle, model.latency, model.write_latency, model.outstanding,
        (ctypes.c_uint32 * len(STALLED))(*pauses),
        _DramSetup() if model.dram is None else _dram(model.dram, model.clock_mhz),
    )  # fmt: skip


def _open_library(path: Path) -> Any:
    calls = ctypes.CDLL(str(path))
    for name, (result, arguments) in _CALLS.items():
        call = getattr(calls, f"sim_{name}")
        call.restype, call.argtypes = result, arguments
    return calls


def dram_times(library: Path, timing: DramTiming, now: F64, address: NDArray[np.uint64],
               size: NDArray[np.uint32], write: NDArray[np.bool_]) -> tuple[F64, F64]:  # fmt: skip
    """What the memory of a library's design makes of accesses to one channel.

    Returns
    -------
    Begin and end of each on the data bus, as `flightllm.spec.dram.DramChannel.access` gives them.
    """
    begin, end = np.empty(len(now)), np.empty(len(now))
    arrays = [np.ascontiguousarray(a, t) for a, t in (
        (now, np.float64), (address, np.uint64), (size, np.uint32), (write, np.uint8),
    )]  # fmt: skip
    _open_library(library).sim_dram(
        ctypes.byref(_dram(timing, 1000.0)), len(now),
        *(array.ctypes.data for array in (*arrays, begin, end)),
    )  # fmt: skip
    return begin, end


class Simulation:
    """One instance of a design, in reset state.

    Parameters
    ----------
    library : from `build_library`.
    memories : uint8, one contiguous array a channel; the design reads and writes them in place.
    bases : where each channel lies on its bus.
    model : how the memory behaves.

    Raises
    ------
    SimulationError
        From any call, once the design has broken a rule of AXI or does not answer.
    """

    def __init__(self, library: Path, memories: Sequence[U8], bases: Sequence[int],
                 model: MemoryModel) -> None:  # fmt: skip
        self._handle: int | None = None
        self._calls = _open_library(library)
        for memory in memories:
            assert memory.dtype == np.uint8 and memory.flags.c_contiguous
        self._memories: list[NDArray[Any]] = list(memories)  # the design holds their addresses
        places = (_ChannelSetup * len(memories))(
            *(_ChannelSetup(m.ctypes.data, base, m.size) for m, base in zip(memories, bases))
        )
        setup = _setup(model)
        self._handle = self._calls.sim_open(ctypes.byref(setup), places)
        self._check()

    def close(self) -> None:
        """End the simulation; a waveform is complete then."""
        if self._handle is not None:
            self._calls.sim_close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.close()

    def _check(self) -> None:
        said = self._calls.sim_failure(self._handle)
        if said:
            raise SimulationError(said.decode())

    @property
    def cycle(self) -> int:
        """Clock cycles since the beginning."""
        return int(self._calls.sim_cycle(self._handle))

    def reset(self, cycles: int = 4) -> None:
        """Hold the reset; the memory forgets what was under way."""
        self._calls.sim_reset(self._handle, cycles)

    def run(self, cycles: int) -> Stop:
        """Run until the interrupt is high, an instruction is done (with a trace), or so many
        cycles have passed."""
        stop = Stop(self._calls.sim_run(self._handle, cycles))
        self._check()
        return stop

    def read(self, address: int) -> int:
        """A host register."""
        value = int(self._calls.sim_read(self._handle, address))
        self._check()
        return value

    def write(self, address: int, value: int) -> None:
        """Write a host register."""
        self._calls.sim_write(self._handle, address, value)
        self._check()

    def write_words(self, address: int, words: NDArray[np.uint32]) -> None:
        """Write one word after the other to the same host register."""
        data = np.ascontiguousarray(words, np.uint32)
        self._calls.sim_write_words(self._handle, address, data.ctypes.data, len(data))
        self._check()

    def buffers(self, core: int, f: NDArray[np.uint32], a: U8) -> None:
        """Where every write to a core's F and A buffers goes as well; needs trace ports."""
        self._memories += [f, a]
        self._calls.sim_buffers(self._handle, core, f.ctypes.data, f.size, a.ctypes.data, a.size)

    def events(self) -> Iterator[Event]:
        """The instructions that are done since the last call."""
        event = Event()
        while self._calls.sim_event(self._handle, ctypes.byref(event)):
            yield event
            event = Event()

    def running(self, core: int, unit: int) -> Event:
        """The instruction that a unit is at; SimulationError where it is idle."""
        event = Event()
        if not self._calls.sim_running(self._handle, core, unit, ctypes.byref(event)):
            raise SimulationError(f"core {core}: unit {unit} runs nothing")
        return event

    def clear_trace(self) -> None:
        """Forget instructions that never ended."""
        self._calls.sim_clear_trace(self._handle)

    def fault(self, channel: int, address: int, size: int, kind: Fault) -> None:
        """Let accesses to bytes of a channel go wrong from now on."""
        self._calls.sim_fault(self._handle, channel, address, address + size - 1, kind)

    def clear_faults(self) -> None:
        """The memory is sound again; a silent access stays silent until the reset."""
        self._calls.sim_clear_faults(self._handle)

    def outstanding(self, channel: int) -> int:
        """Bursts of a channel that were taken and not answered."""
        return int(self._calls.sim_outstanding(self._handle, channel))

    def counts(self, channel: int, clear: bool = False) -> ChannelCounts:
        """What a channel saw since the beginning or the last `clear`."""
        out = ChannelCounts()
        self._calls.sim_counts(self._handle, channel, ctypes.byref(out), clear)
        return out

    def wave(self, path: Path, first: int = 0) -> None:
        """Write a waveform (VCD) from cycle `first` on.

        Raises
        ------
        InputError
            When the library was built without waveforms.
        """
        if not self._calls.sim_wave(self._handle, str(path).encode(), first):
            raise InputError(f"{path}: this design was built without waveforms")
