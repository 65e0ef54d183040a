"""The device memory in time: banks, rows, refresh and turnaround of one channel, in nanoseconds.

`DramChannel` states the model once, for readers and tests. The memory of the RTL simulation
(`sim/rtl/memory.h`) and the cycle model take the same steps in the same order with the parameters
of `dram_timing`, so that the three agree.

Addresses of a channel: rows of `row_bytes` go round the banks; inside a row, granules of
`granule` bytes go round `groups` bank groups, between which columns follow at the full rate.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from flightllm.spec.config import HwConfig

__all__ = [
    "MEASURED", "MEASURED_ON", "DramChannel", "DramTiming", "Measurement", "dram_timing",
    "reproduce", "streaming", "throughput",
]  # fmt: skip


@dataclass(frozen=True)
class DramTiming:
    """One channel's memory; times in nanoseconds.

    Parameters
    ----------
    hit : from a read's address at the port to its first data, row open and nothing else going on.
    activate, precharge : more for a closed row (tRCD), and again more to close another one (tRP).
    row_cycle : between two activations of a bank (tRC).
    write_to_read, read_to_write : the data bus turns round.
    refresh_interval, refresh : every so often (tREFI) no column command for so long (tRFC, closing
        all rows before it, draining).
    bytes_per_ns : of the data bus or the port, whichever is less.
    banks, row_bytes : rows of an interleaved pair of banks count as one.
    granule, groups, same_group : columns of `granule` bytes; one that follows another of the same
        of `groups` bank groups waits this much longer (tCCD_L - tCCD_S).
    """

    hit: float
    activate: float
    precharge: float
    row_cycle: float
    write_to_read: float
    read_to_write: float
    refresh_interval: float
    refresh: float
    bytes_per_ns: float
    banks: int
    row_bytes: int
    granule: int
    groups: int
    same_group: float


_HBM2 = DramTiming(
    # Shuhai (arXiv 2005.04324), U280, 450 MHz port: 106.7 ns row hit, 122.2 closed, 137.8 conflict.
    hit=106.7, activate=15.5, precharge=15.6,
    # JESD235: tRAS 33 ns + tRP. tWTR, tRTW at 900 MHz, in the order of 8 and 4 clocks.
    row_cycle=48.6, write_to_read=9.0, read_to_write=4.5,
    # PG276: tREFI 3.9 us, tRFC 260 ns for 4H stacks; with closing and draining, such that a stream
    # reaches what Shuhai measured, 425 of 460.8 GB/s.
    refresh_interval=3900.0, refresh=288.0,
    bytes_per_ns=14.4,
    # PG276's default map 14R-1BG-2B-5C-1BG: a column of 32 bytes, the next in another bank group;
    # 32 columns of both make 2 KiB. tCCD_S 2, tCCD_L 4 clocks of 900 MHz.
    banks=8, row_bytes=2048, granule=32, groups=2, same_group=20 / 9,
)  # fmt: skip

_DDR4 = DramTiming(
    # Given as Shuhai's, U280's DDR4-2400, 300 MHz: 73.3 ns row hit, 89.9 closed, 106.6 conflict.
    hit=73.3, activate=16.6, precharge=16.7,
    # JESD79-4: tRAS 32 ns + tRP; tWTR_L 7.5 ns behind the write; tREFI 7.8 us, tRFC 350 ns (8 Gb),
    # with closing and draining such that a stream reaches Shuhai's 18.0 of 19.2 GB/s.
    row_cycle=46.0, write_to_read=10.0, read_to_write=5.0,
    refresh_interval=7800.0, refresh=471.0,
    bytes_per_ns=19.2,
    banks=8, row_bytes=8192, granule=64, groups=2, same_group=1.67,
)  # fmt: skip

_KINDS = {
    "hbm2": _HBM2,
    # Nothing is published of HBM2e behind Versal's network on chip: HBM2's figures, and a share of
    # 90 % of the peak for a stream. All of it is assumed.
    "hbm2e": dataclasses.replace(_HBM2, refresh=374.4, bytes_per_ns=12.8),
    "ddr4": _DDR4,
    # JESD79-3 (DDR3-1066, 4 Gb): tRCD = tRP = 13.1 ns, tRC 50.6 ns, tRFC 300 ns; the rest as DDR4.
    "ddr3": dataclasses.replace(
        _DDR4, activate=13.1, precharge=13.1, row_cycle=50.6, refresh=400.0, groups=1,
        same_group=0.0,
    ),
    # 256 Mb SDRAM (Micron MT48LC16M16A2, -7E): tRCD = tRP = 15 ns, tRC 60 ns, tRFC 66 ns, 8,192
    # rows in 64 ms; latency of the controller assumed.
    "sdram": DramTiming(
        hit=80.0, activate=15.0, precharge=15.0, row_cycle=60.0, write_to_read=15.0,
        read_to_write=15.0, refresh_interval=7812.5, refresh=96.0, bytes_per_ns=0.2, banks=4,
        row_bytes=1024, granule=16, groups=1, same_group=0.0,
    ),
}  # fmt: skip


def dram_timing(config: HwConfig, efficiency: float | None = None) -> DramTiming | None:
    """The memory of one of the configuration's channels, or None where it is ideal.

    Parameters
    ----------
    efficiency : share of the peak that a long stream reaches, in place of the kind's own: refresh
        takes as long as that needs.
    """
    memory = config.memory
    if memory.kind == "ideal":
        return None
    kind = _KINDS[memory.kind]
    port = memory.port_bits / 8 * memory.port_mhz / 1000
    rate = min(port, memory.peak_gb_s / sum(config.channels))
    refresh = kind.refresh
    if efficiency is not None:
        refresh = (1 - efficiency) * kind.refresh_interval - kind.activate
    return dataclasses.replace(kind, bytes_per_ns=rate, refresh=refresh)


def streaming(timing: DramTiming) -> float:
    """Bytes a nanosecond of one long read: each refresh costs itself and a row's activation."""
    lost = timing.refresh + timing.activate
    return timing.bytes_per_ns * (1 - lost / timing.refresh_interval)


class DramChannel:
    """One channel: accesses in the order in which they arrive.

    Parameters
    ----------
    timing : of the memory.
    """

    def __init__(self, timing: DramTiming) -> None:
        self.timing = timing
        self.rows = [-1] * timing.banks
        self.free = [0.0] * timing.banks  # when the bank takes the next command
        self.activated = [-timing.row_cycle] * timing.banks
        self.bus = 0.0  # when the data bus is free
        self.resumed = 0.0  # end of the last refresh
        self.refreshes = 0.0
        self.group = -1
        self.writing = False

    def access(self, now: float, address: int, size: int, write: bool) -> tuple[float, float]:
        """Begin and end on the data bus of `size` bytes at `address`, asked for at `now`."""
        begin, row_bytes = -1.0, self.timing.row_bytes
        while size:
            part = min(size, row_bytes - address % row_bytes)
            at = self._row(now, address, part, write)
            begin = at if begin < 0 else begin
            address, size = address + part, size - part
        return begin, self.bus

    def _row(self, now: float, address: int, size: int, write: bool) -> float:
        t = self.timing
        page = address // t.row_bytes
        bank, row = page % t.banks, page // t.banks
        command = max(now, self.free[bank], self.resumed)
        if self.rows[bank] != row:
            closing = t.precharge if self.rows[bank] >= 0 else 0.0
            command = max(command + closing, self.activated[bank] + t.row_cycle)
            self.activated[bank] = command
            command = command + t.activate
        command = self._refresh(max(command, self.bus - t.hit), bank)
        self.rows[bank] = row
        first, last = address // t.granule % t.groups, (address + size - 1) // t.granule % t.groups
        idle = self.bus
        if write != self.writing:
            idle = idle + (t.read_to_write if write else t.write_to_read)
        elif first == self.group:
            idle = idle + t.same_group
        begin = max(command + t.hit, idle)
        self.bus = begin + size / t.bytes_per_ns
        self.free[bank] = self.bus - t.hit
        self.group, self.writing = last, write
        return begin

    def _refresh(self, command: float, bank: int) -> float:
        """Hold a column command that a refresh comes before; that one closes every row."""
        t = self.timing
        number = float(math.floor(command / t.refresh_interval))
        if number > self.refreshes:
            self.refreshes = number
            self.resumed = max(number * t.refresh_interval, self.bus - t.hit) + t.refresh
            for other in range(t.banks):
                self.rows[other] = -1
            self.activated[bank] = max(command, self.resumed)
            command = self.activated[bank] + t.activate
        return command


@dataclass(frozen=True)
class Measurement:
    """A published figure of a memory.

    Members
    -------
    kind : of the memory. what : the figure. value, unit : as published. calibrated : the
        parameters were chosen by it; else it was kept out of the calibration.
    size, stride, window : a read of `size` bytes each `stride`, round `window`; throughput only.
    row : "hit", "closed" or "conflict"; latency only. source : where it was published.
    """

    kind: str
    what: str
    value: float
    unit: str
    calibrated: bool
    size: int = 0
    stride: int = 0
    window: int = 0
    row: str = ""
    source: str = "Shuhai, arXiv 2005.04324"


SECOND_HAND = "given as Shuhai's, not checked in the paper"
MEASURED = (
    Measurement("hbm2", "idle latency, row hit", 106.7, "ns", True, row="hit"),
    Measurement("hbm2", "idle latency, row closed", 122.2, "ns", True, row="closed"),
    Measurement("hbm2", "idle latency, row conflict", 137.8, "ns", True, row="conflict"),
    Measurement("hbm2", "stream, 32 channels", 425.0, "GB/s", True, 512, 512, 1 << 28),
    Measurement("hbm2", "32 bytes each 4 KiB in 8 KiB, a channel", 6.7, "GB/s", False,
                32, 4096, 8192, source=SECOND_HAND),
    Measurement("hbm2", "32 bytes each 4 KiB in 256 MiB, a channel", 2.4, "GB/s", False,
                32, 4096, 1 << 28, source=SECOND_HAND),
    Measurement("ddr4", "idle latency, row hit", 73.3, "ns", True, row="hit",
                source=SECOND_HAND),
    Measurement("ddr4", "idle latency, row closed", 89.9, "ns", True, row="closed",
                source=SECOND_HAND),
    Measurement("ddr4", "idle latency, row conflict", 106.6, "ns", True, row="conflict",
                source=SECOND_HAND),
    Measurement("ddr4", "stream, one channel", 18.0, "GB/s", True, 512, 512, 1 << 28,
                source=SECOND_HAND),
)  # fmt: skip

MEASURED_ON = {"hbm2": _HBM2, "ddr4": _DDR4}
"""What the measurements were made on: whole channels."""
_QUEUED = 1500.0
"""Nanoseconds between a read's address and its data where many reads are under way."""


def throughput(timing: DramTiming, size: int, stride: int, window: int,
               count: int = 60_000) -> float:  # fmt: skip
    """Bytes a nanosecond of `count` reads of `size` bytes each `stride`, round `window`."""
    channel, address, now = DramChannel(timing), 0, 0.0
    for _ in range(count):
        end = channel.access(now, address, size, False)[1]
        address, now = (address + stride) % window, max(now, end - _QUEUED)
    return count * size / channel.bus


def reproduce(point: Measurement, timing: DramTiming | None = None) -> float:
    """What the model, or another `timing`, gives for a measurement, in its unit."""
    timing = timing or MEASURED_ON[point.kind]
    if not point.row:
        channels = 32 if "32 channels" in point.what else 1
        return channels * throughput(timing, point.size, point.stride, point.window)
    channel = DramChannel(timing)
    if point.row != "closed":
        other = timing.row_bytes * timing.banks
        channel.access(0.0, other if point.row == "conflict" else 0, 64, False)
    return channel.access(1000.0, 0, 64, False)[0] - 1000.0
