"""A board behind its host registers: upload, run, watch, stop, and say what went wrong.

Everything a host does with an accelerator, over a `Link` that knows how registers and memory are
reached: PYNQ, a serial line, or a simulation of either. See docs/registers.md for the registers.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from flightllm.runtime.board_upload import upload
from flightllm.spec.config import HwConfig
from flightllm.spec.device import RunResult, check_program
from flightllm.spec.errors import DeviceError, InputError
from flightllm.spec.faults import explain
from flightllm.spec.image import Program
from flightllm.spec.isa import UNITS, Register
from flightllm.spec.registers import (
    DEVICE_REGISTERS,
    IDENTIFICATION,
    MAP_VERSION,
    BitField,
    address,
)
from flightllm.spec.trace import TraceRecord

__all__ = ["BoardDevice", "Link"]

HOST_REGISTERS = (Register.POS, Register.NTOK, Register.STEPS, Register.LOGITS)
COUNTERS = {
    "busy": "COUNT_BUSY",
    "wait": "COUNT_WAIT",
    "instructions": "COUNT_INSTRUCTIONS",
    "beats": "COUNT_BEATS",
}
RESET_SECONDS = 2.0
"""A reset waits for outstanding transfers; a bus that owes one for this long is lost."""
MARK_BITS = 16

_DEVICE = {register.name: register for register in DEVICE_REGISTERS}


def _field(register: str, name: str) -> BitField:
    return _DEVICE[register].field(name)


_START, _RESET = _field("CONTROL", "start").mask, _field("CONTROL", "reset").mask
_BUSY, _ERROR = _field("STATUS", "busy").mask, _field("STATUS", "error").mask
_ABORTED = _field("STATUS", "aborted").mask


class Link(Protocol):
    """How registers and memory of one accelerator are reached.

    Members
    -------
    name : of the device, for reports and errors.
    """

    name: str

    def read(self, offset: int) -> int:
        """A register's value; `offset` in bytes."""

    def write(self, offset: int, value: int) -> None:
        """Write a register."""

    def reserve(self, sizes: Sequence[Sequence[int]]) -> list[list[int]]:
        """Reserve bytes for each channel of each core; gives their addresses on the bus."""

    def put(self, core: int, channel: int, address: int, data: bytes | memoryview) -> None:
        """Write reserved memory of a channel."""

    def get(self, core: int, channel: int, address: int, size: int) -> bytes:
        """Read reserved memory of a channel."""

    def settle(self) -> None:
        """Return when everything `put` is in the device's memory."""

    def pause(self, seconds: float) -> None:
        """Wait for the interrupt, or a moment that suits a run that has taken `seconds`."""

    def close(self) -> None:
        """Give the device back."""


class BoardDevice:
    """An accelerator behind a link, as a `flightllm.spec.device.Device`.

    Parameters
    ----------
    link : closed with the device.
    config : the hardware that the bitstream was made for; the device must carry its digest.
    timeout : seconds without any progress after which a run has failed.
    watchdog : core cycles without progress after which the device itself ends a run, about.
    trace : called with a record for each unit after each run: a board keeps no trace of single
        instructions.
    progress : called with bytes uploaded and bytes in all.

    Raises
    ------
    DeviceError
        When what answers is not this accelerator; names the register.
    """

    def __init__(
        self,
        link: Link,
        config: HwConfig,
        *,
        timeout: float = 10.0,
        watchdog: int = 1 << 28,
        trace: Callable[[TraceRecord], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.name = f"board:{link.name}"
        self.config = config
        self.trace = trace
        self._link, self._timeout, self._progress = link, timeout, progress
        self._watchdog = watchdog >> MARK_BITS << MARK_BITS
        self._mark = 0
        self._program: Program | None = None
        self._elapsed = 0
        self._check_identity()

    # ------------------------------------------------------------------------- Device

    def load(self, program: Program) -> None:
        """Upload a program and read it back; the device refuses to run until that has ended.

        Raises
        ------
        InputError
            When the program was made for other hardware or carries no weights.
        DeviceError
            When what was read back is not what was written; names the segment.
        """
        self._program = None
        check_program(self.config, program)
        self._check_identity()
        self._reset()
        upload(self._link, program, self._progress)
        # The low bits are drawn anew for each upload. No one else writes this register, and a reset
        # clears it: while it reads back, the device holds what was uploaded.
        self._mark = self._watchdog | 1 + secrets.randbelow((1 << MARK_BITS) - 1)
        self._write("WATCHDOG", self._mark)
        events = _field("INTERRUPT_ENABLE", "done").mask | _field("INTERRUPT_ENABLE", "error").mask
        self._write("INTERRUPT_ENABLE", events)
        self._program, self._elapsed = program, 0

    def write(self, core: int, channel: int, address: int, data: bytes) -> None:
        """Write `data` to the memory of a channel."""
        self._loaded()
        self._link.put(core, channel, address, data)

    def read(self, core: int, channel: int, address: int, size: int) -> bytes:
        """Read `size` bytes of the memory of a channel."""
        self._loaded()
        return self._link.get(core, channel, address, size)

    def run(self, entry: str, registers: Mapping[Register, int]) -> RunResult:
        """Run every core from an entry point to its halt.

        An interrupted or failed run leaves the device reset and the program loaded: the same run
        may be tried again, and writes the same places.

        Raises
        ------
        DeviceError
            When the device stops with an error or makes no progress; names core, unit and what it
            waits for.
        """
        program = self._loaded()
        strange = set(registers) - set(HOST_REGISTERS)
        if strange:
            raise ValueError(f"{min(strange).name} is not a register that a host sets")
        self._check_untouched()
        for core, code in enumerate(program.cores):
            if entry not in code.entries:
                raise InputError(f"core {core}: the program has no entry {entry!r}")
            self._write("ENTRY", code.entries[entry], core=core)
        for register in HOST_REGISTERS:
            self._write(register.name, registers.get(register, 0) & 0xFFFFFFFF)
        self._write("INTERRUPT_STATUS", 0xFFFFFFFF)
        try:
            self._write("CONTROL", _START)
            self._wait()
        except BaseException:  # Ctrl-C too: no run may outlive its caller
            self._reset()
            raise
        return self._result(entry, program)

    def close(self) -> None:
        """Give the device back."""
        self._program = None
        self._link.close()

    # ------------------------------------------------------------------------- parts of a run

    def _loaded(self) -> Program:
        if self._program is None:
            raise InputError("no program is loaded: call load(program) first")
        return self._program

    def _read(self, name: str, index: int = 0, core: int = 0) -> int:
        return self._link.read(address(name, index, core))

    def _write(self, name: str, value: int, index: int = 0, core: int = 0) -> None:
        self._link.write(address(name, index, core), value)

    def _check_identity(self) -> None:
        """Compare what the device says of itself with the configuration, register by register."""
        found = self._read("ID")
        if found != IDENTIFICATION:
            raise DeviceError(
                f"{self.name}: ID reads {found:#010x}, not {IDENTIFICATION:#010x}: there is no"
                " accelerator of this toolkit behind these registers"
            )
        cores = _field("SHAPE", "cores").of(self._read("SHAPE"))
        for name, have, want in (
            ("VERSION", self._read("VERSION"), MAP_VERSION),
            ("SHAPE.cores", cores, self.config.cores),
        ):
            if have != want:
                raise DeviceError(f"{self.name}: {name} reads {have}, expected {want}")
        count = _DEVICE["CONFIG_DIGEST"].count
        digest = "".join(f"{self._read('CONFIG_DIGEST', i):08x}" for i in range(count))
        if digest != self.config.digest:
            raise DeviceError(
                f"{self.name}: CONFIG_DIGEST reads {digest[:16]}..., but {self.config.name} has"
                f" {self.config.digest[:16]}...: the device holds another bitstream"
            )

    def _check_untouched(self) -> None:
        """Refuse to run when the device lost its program since the upload."""
        if self._read("ID") == IDENTIFICATION and self._read("WATCHDOG") == self._mark:
            return
        self._program = None
        raise DeviceError(
            f"{self.name}: the device was reset or programmed anew after the upload; load the"
            " program again"
        )

    def _wait(self) -> None:
        begin = moved = time.monotonic()
        seen = -1
        while True:
            status = self._read("STATUS")
            if not status & _BUSY:
                break
            now = time.monotonic()
            if now - moved > self._timeout:
                done = self._work_done()
                if done == seen:
                    raise DeviceError(
                        f"{self.name}: no progress for {self._timeout:g} s: "
                        + self._explain()
                    )
                seen, moved = done, now
            self._link.pause(now - begin)
        if status & (_ERROR | _ABORTED):
            raise DeviceError(f"{self.name}: {self._explain()}")

    def _explain(self) -> str:
        words = [code.words.tolist() for code in self._loaded().cores]
        return explain(self._read, self.config.cores, words)

    def _work_done(self) -> int:
        """A number that grows while any unit of any core gets on."""
        return sum(
            self._read(name, unit, core)
            for core in range(self.config.cores)
            for unit in range(len(UNITS))
            for name in ("COUNT_INSTRUCTIONS", "COUNT_BEATS")
        )

    def _reset(self) -> None:
        """Stop whatever runs and clear the cores' state; memory keeps its contents."""
        self._write("CONTROL", _RESET)
        end = time.monotonic() + RESET_SECONDS
        while self._read("STATUS") & _BUSY:
            if time.monotonic() > end:
                self._program = None
                raise DeviceError(
                    f"{self.name}: a reset does not end, a memory transfer is outstanding; program"
                    " the bitstream again"
                )
            self._link.pause(0.0)

    def _result(self, entry: str, program: Program) -> RunResult:
        cycles = self._read("CYCLES_LOW")
        cycles |= self._read("CYCLES_HIGH") << 32
        total: dict[str, int] = {}
        for core in range(self.config.cores):
            for place, unit in enumerate(UNITS):
                counts = {
                    kind: self._read(name, place, core) for kind, name in COUNTERS.items()
                }
                for kind, count in counts.items():
                    key = f"{unit.name.lower()}.{kind}"
                    total[key] = total.get(key, 0) + count
                if self.trace is not None:
                    self.trace(TraceRecord(
                        core, unit.name.lower(), program.cores[core].entries[entry], entry, counts,
                        self._elapsed, self._elapsed + cycles,
                    ))  # fmt: skip
        self._elapsed += cycles
        return RunResult(cycles or None, total)  # 0: a simulation that knows no time
