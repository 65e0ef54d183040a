"""A board through PYNQ as a Device: local Zynq and Versal, Alveo cards, boards on the network."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flightllm.runtime.board import BoardDevice
from flightllm.spec.config import HwConfig
from flightllm.spec.errors import DeviceError, InputError
from flightllm.spec.handoff import load_handoff
from flightllm.spec.trace import TraceRecord

__all__ = ["PynqDevice", "find_device"]

REMOTE = "remote:"


def find_device(name: str | None) -> Any:
    """A device that PYNQ or this package knows.

    Parameters
    ----------
    name : tag ("embedded_xrt0", "alveo1") or name of the device; "remote:ADDRESS" for a board on
        the network that runs PYNQ's server; None for the one that PYNQ would take.

    Raises
    ------
    DeviceError
        When there is no such device; says which there are.
    """
    if name is not None and name.startswith(REMOTE):
        return _remote(name.removeprefix(REMOTE))
    import pynq

    from flightllm.runtime import pynq_xrt  # noqa: F401  # registers Alveo cards with PYNQ

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is none is said below
        devices = list(pynq.Device.devices)
    if name is None and devices:
        return devices[0]
    for device in devices:
        if name in (device.tag, getattr(device, "name", None)):
            return device
    there = ", ".join(device.tag for device in devices) or "none"
    raise DeviceError(f"device {name or 'of any name'}: PYNQ finds {there} on this machine")


def _remote(address: str) -> Any:
    # PYNQ looks at this when it is imported, to leave out what needs a local board.
    os.environ.setdefault("PYNQ_REMOTE_DEVICES", address)
    from pynq.pl_server.remote_device import RemoteDevice

    try:
        return RemoteDevice(0, address, tag=f"{REMOTE}{address}")
    except Exception as error:  # gRPC raises types of its own
        raise DeviceError(f"device {REMOTE}{address}: {error}") from error


class PynqDevice(BoardDevice):
    """A board programmed with a bitstream of this toolkit.

    Parameters
    ----------
    bitstream : .bit, .pdi or .xclbin, with its hand-over (and for the first two a .hwh) beside it.
    device : PYNQ's device, or the name of one (see `find_device`).
    config : the hardware expected; left out, whatever the bitstream holds.
    timeout, watchdog, trace, progress : see `BoardDevice`.

    Raises
    ------
    InputError
        When the bitstream is not the one of its hand-over, or is for other hardware than `config`;
        names the field.
    DeviceError
        When the device is in use or does not answer as the bitstream should.
    """

    def __init__(
        self,
        bitstream: Path,
        device: Any = None,
        *,
        config: HwConfig | None = None,
        timeout: float = 10.0,
        watchdog: int = 1 << 28,
        trace: Callable[[TraceRecord], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        handoff = load_handoff(bitstream)
        if config is not None:
            difference = handoff.config.difference(config.to_dict())
            if difference:
                raise InputError(f"{bitstream}: {difference}; compile for this bitstream's board")
        found = find_device(device) if device is None or isinstance(device, str) else device
        from flightllm.runtime.pynq_link import PynqLink

        self._pynq = found
        link = PynqLink(found, bitstream, handoff)
        try:
            super().__init__(
                link, handoff.config, timeout=timeout, watchdog=watchdog, trace=trace,
                progress=progress,
            )  # fmt: skip
        except BaseException:
            link.close()
            raise

    def power(self) -> float | None:
        """Watts that the board draws now, None where PYNQ knows no sensor of it."""
        own = getattr(self._pynq, "power", None)
        if callable(own):
            watts = own()
            return None if watts is None else float(watts)
        if self._pynq.has_capability("REMOTE"):
            return None
        import pynq

        rails = pynq.get_rails()
        values = [rail.power.value for rail in rails.values() if rail.power is not None]
        return float(sum(values)) if values else None
