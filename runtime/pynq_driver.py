"""The PYNQ driver of the accelerator's IP, bound by its VLNV, and finding it in an overlay."""

from __future__ import annotations

from typing import Any

import pynq

from flightllm.spec.errors import DeviceError
from flightllm.spec.handoff import VLNV

__all__ = ["AcceleratorDriver", "find_driver"]


class AcceleratorDriver(pynq.DefaultIP):  # type: ignore[misc]  # pynq is untyped
    """Host registers over MMIO, and the interrupt where the overlay connects one.

    Members
    -------
    interrupt : `pynq.Interrupt`, or None.
    """

    bindto = [VLNV]
    interrupt: Any = None


def find_driver(overlay: pynq.Overlay, name: str) -> AcceleratorDriver:
    """The one accelerator of an overlay.

    Parameters
    ----------
    name : of the device, for errors.

    Raises
    ------
    DeviceError
        When the overlay holds no accelerator, several, or one of another register map.
    """
    kind = VLNV.rpartition(":")[0]
    found = [path for path, entry in overlay.ip_dict.items() if entry["type"].startswith(kind)]
    if len(found) != 1:
        what = "no accelerator" if not found else f"several accelerators: {', '.join(found)}"
        raise DeviceError(f"{name}: the bitstream holds {what} (IP of type {kind})")
    entry = overlay.ip_dict[found[0]]
    if entry["type"] != VLNV:
        raise DeviceError(f"{name}: IP {found[0]} is of type {entry['type']}, expected {VLNV}")
    place: Any = overlay
    for part in found[0].split("/"):
        place = getattr(place, part)
    if not isinstance(place, AcceleratorDriver):
        raise DeviceError(f"{name}: IP {found[0]} is bound to {type(place).__name__}")
    return place
