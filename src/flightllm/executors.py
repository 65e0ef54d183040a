"""The executors by name: what `--on` means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flightllm.spec.config import HwConfig
from flightllm.spec.device import Device
from flightllm.spec.errors import InputError
from flightllm.spec.trace import TraceRecord

__all__ = ["EXECUTORS", "open_device"]

Tracer = Callable[[TraceRecord], None]


def _functional(config: HwConfig, choice: str, trace: Tracer | None) -> Device:
    """`functional`, or `functional:SEED` for a random legal order of the units."""
    from flightllm.sim.functional import FunctionalDevice

    if choice and not choice.isdigit():
        raise InputError(f"executor 'functional:{choice}': {choice!r} is not a seed, a number")
    return FunctionalDevice(config, seed=int(choice) if choice else None, trace=trace)


def _cycle(config: HwConfig, choice: str, trace: Tracer | None) -> Device:
    """`cycle`, or `cycle:N` for an ideal memory that answers after N cycles."""
    from flightllm.sim.cycle import CycleDevice

    if choice and not choice.isdigit():
        raise InputError(f"executor 'cycle:{choice}': {choice!r} is not a latency, a number")
    return CycleDevice(config, trace=trace, latency=int(choice) if choice else None)


EXECUTORS: dict[str, Callable[[HwConfig, str, Any], Device]] = {
    "functional": _functional, "cycle": _cycle,
}  # fmt: skip
"""What makes each device from a configuration, the text behind the colon, and a tracer."""


def open_device(
    on: str,
    config: HwConfig,
    trace: Tracer | None = None,
    *,
    device: str | None = None,
    bitstream: Path | None = None,
) -> Device:
    """The executor called `on`, for programs of `config`.

    Parameters
    ----------
    on : a name of `EXECUTORS`, or "board"; "functional:SEED" runs its units in a random legal
        order.
    trace : called with a record for each executed instruction.
    device, bitstream : of a board; see `flightllm.board_devices.open_board`.

    Raises
    ------
    InputError
        When there is no such executor, or a device or bitstream is named and it is not a board.
    """
    name, _, choice = on.partition(":")
    if name == "board":
        from flightllm.board_devices import open_board

        return open_board(config, device or choice or None, bitstream, trace)
    if device is not None or bitstream is not None:
        raise InputError(f"executor {on!r}: a device and a bitstream go with the executor 'board'")
    if name not in EXECUTORS:
        raise InputError(
            f"executor {on!r} is not available; use {', '.join(EXECUTORS)} or board"
        )
    return EXECUTORS[name](config, choice, trace)
