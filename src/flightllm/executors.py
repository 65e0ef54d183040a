"""The executors by name: what `--on` means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flightllm.spec.config import HwConfig
from flightllm.spec.device import Device
from flightllm.spec.errors import InputError
from flightllm.spec.trace import TraceRecord

__all__ = ["EXECUTORS", "Watch", "open_device"]

Tracer = Callable[[TraceRecord], None]


@dataclass(frozen=True)
class Watch:
    """What somebody wants to see of an executor at work.

    Members
    -------
    trace : called with a record for each executed instruction.
    wave : file for a waveform, from cycle `wave_from` on (rtl only).
    progress : told what a long build is doing (rtl only).
    """

    trace: Tracer | None = None
    wave: Path | None = None
    wave_from: int = 0
    progress: Callable[[str], None] | None = None


def _functional(config: HwConfig, choice: str, watch: Watch) -> Device:
    """`functional`, or `functional:SEED` for a random legal order of the units."""
    from flightllm.sim.functional import FunctionalDevice

    _no_wave("functional", watch)
    if choice and not choice.isdigit():
        raise InputError(f"executor 'functional:{choice}': {choice!r} is not a seed, a number")
    return FunctionalDevice(config, seed=int(choice) if choice else None, trace=watch.trace)


def _cycle(config: HwConfig, choice: str, watch: Watch) -> Device:
    """`cycle`, or `cycle:N` for a plain memory that answers after N cycles."""
    from flightllm.sim.cycle import CycleDevice, PlainMemory

    _no_wave("cycle", watch)
    if choice and not choice.isdigit():
        raise InputError(f"executor 'cycle:{choice}': {choice!r} is not a latency, a number")
    memory = PlainMemory(int(choice)) if choice else None
    return CycleDevice(config, trace=watch.trace, memory=memory)


def _rtl(config: HwConfig, choice: str, watch: Watch) -> Device:
    """`rtl`, or `rtl:SETTINGS` for another memory, see `flightllm.sim.rtl.options`."""
    from flightllm.sim.rtl.device import RtlDevice
    from flightllm.sim.rtl.options import memory_model

    return RtlDevice(
        config, memory=memory_model(config, choice), trace=watch.trace, wave=watch.wave,
        wave_from=watch.wave_from, progress=watch.progress,
    )  # fmt: skip


def _no_wave(name: str, watch: Watch) -> None:
    if watch.wave is not None:
        raise InputError(f"executor {name!r} has no waveform; use --on rtl")


EXECUTORS: dict[str, Callable[[HwConfig, str, Watch], Device]] = {
    "functional": _functional, "cycle": _cycle, "rtl": _rtl,
}  # fmt: skip
"""What makes each device from a configuration, the text behind the colon, and what to watch."""


def open_device(
    on: str,
    config: HwConfig,
    watch: Watch | None = None,
    *,
    device: str | None = None,
    bitstream: Path | None = None,
) -> Device:
    """The executor called `on`, for programs of `config`.

    Parameters
    ----------
    on : a name of `EXECUTORS`, or "board"; "functional:SEED" runs its units in a random legal
        order, "cycle:N" and "rtl:SETTINGS" change the memory.
    device, bitstream : of a board; see `flightllm.board_devices.open_board`.

    Raises
    ------
    InputError
        When there is no such executor, it cannot show what `watch` asks for, or a device or
        bitstream is named and it is not a board.
    """
    watch = watch or Watch()
    name, _, choice = on.partition(":")
    if name == "board":
        from flightllm.board_devices import open_board

        _no_wave("board", watch)
        return open_board(config, device or choice or None, bitstream, watch.trace)
    if device is not None or bitstream is not None:
        raise InputError(f"executor {on!r}: a device and a bitstream go with the executor 'board'")
    if name not in EXECUTORS:
        raise InputError(
            f"executor {on!r} is not available; use {', '.join(EXECUTORS)} or board"
        )
    return EXECUTORS[name](config, choice, watch)
