"""Boards by name: what `--on board --device NAME` opens, real or simulated."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flightllm.spec.config import HwConfig
from flightllm.spec.errors import InputError
from flightllm.spec.trace import TraceRecord

if TYPE_CHECKING:
    from flightllm.runtime.board import BoardDevice
    from flightllm.runtime.pynq_device import PynqDevice
    from flightllm.sim.board.device import Bus

__all__ = ["SIMULATED", "open_board"]

WATCHDOG, TIMEOUT = 1 << 20, 60.0
"""Of simulated cards: fewer cycles than on a board, because each takes longer."""
SERIAL = "serial:"
_NUMBERS = itertools.count()

Tracer = Callable[[TraceRecord], None]


def _functional(config: HwConfig) -> Bus:
    from flightllm.sim.board.functional import FunctionalBus

    return FunctionalBus(config)


def _rtl(config: HwConfig) -> Bus:
    from flightllm.sim.rtl.bus import RtlBus

    return RtlBus(config)


SIMULATED: dict[str, Callable[[HwConfig], Bus]] = {
    "sim:functional": _functional, "sim:rtl": _rtl,
}  # fmt: skip
"""What stands behind the registers of each simulated device."""


def open_board(
    config: HwConfig,
    device: str | None = None,
    bitstream: Path | None = None,
    trace: Tracer | None = None,
    **options: Any,
) -> BoardDevice:
    """A board, programmed with a bitstream for `config`.

    Parameters
    ----------
    device : "sim:functional" or "sim:rtl"; "serial:PATH" for a board that was programmed already
        and is at the other end of a serial line; else as for
        `flightllm.runtime.pynq_device.find_device`.
    bitstream : a simulated device makes its own.
    trace, options : see `flightllm.runtime.pynq_device.PynqDevice`.

    Raises
    ------
    InputError
        When a real board is to be opened without a bitstream, or with one for other hardware.
    DeviceError
        When the device is in use or does not answer.
    """
    from flightllm.runtime.pynq_device import PynqDevice

    if device in SIMULATED:
        return _simulated(config, device, trace, options)
    if device is not None and device.startswith(SERIAL):
        return _serial(config, Path(device.removeprefix(SERIAL)), trace, options)
    if device is not None and device.startswith("sim:"):
        raise InputError(f"device {device!r} is not one of {', '.join(SIMULATED)}")
    if bitstream is None:
        raise InputError(
            "a board needs its bitstream: --bitstream FILE (flightllm bitstream makes one), or"
            f" --device {next(iter(SIMULATED))} for a simulated one"
        )
    return PynqDevice(bitstream, device, config=config, trace=trace, **options)


def _serial(
    config: HwConfig, path: Path, trace: Tracer | None, options: dict[str, Any]
) -> BoardDevice:
    from flightllm.runtime.board import BoardDevice
    from flightllm.runtime.serial_link import SerialLink, SerialPort
    from flightllm.spec.serial import BAUD

    link = SerialLink(SerialPort(path, BAUD), f"serial:{path}", config)
    try:
        return BoardDevice(link, config, trace=trace, **options)
    except BaseException:
        link.close()
        raise


def _simulated(
    config: HwConfig, device: str, trace: Tracer | None, options: dict[str, Any]
) -> PynqDevice:
    from flightllm.runtime.pynq_device import PynqDevice
    from flightllm.sim.board.device import SimulatedDevice, write_bitstream

    tag = f"{device}.{os.getpid()}.{next(_NUMBERS)}"
    card = SimulatedDevice(SIMULATED[device], tag, device)
    with tempfile.TemporaryDirectory(prefix="flightllm-card-") as folder:
        path = write_bitstream(Path(folder), config)
        options = {"watchdog": WATCHDOG, "timeout": TIMEOUT, **options}
        return PynqDevice(path, card, config=config, trace=trace, **options)
