"""The hand-over from bitstream to runtime: hardware.json beside a bitstream says what it holds.

`flightllm bitstream` writes it; the runtime refuses a bitstream whose bytes it does not describe,
and a program whose configuration differs, naming the field.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flightllm.spec.config import HwConfig
from flightllm.spec.errors import InputError
from flightllm.spec.registers import MAP_VERSION

__all__ = [
    "CONTROL_PORT", "Handoff", "INSTANCE", "KERNEL", "VLNV", "handoff_body", "handoff_path",
    "load_handoff", "master_ports", "port_bytes", "save_handoff", "wants_half_ports",
]  # fmt: skip

KERNEL = "flightllm"
"""Name of the top module, of the Vitis kernel, and of the IP."""
INSTANCE = f"{KERNEL}_1"
"""Name of its one instance in every block design and link configuration."""
VLNV = f"flightllm:accelerator:{KERNEL}:{MAP_VERSION}.0"
"""Vendor, library, name and version of the IP: what PYNQ binds the driver by. The version is that
of the register map, so that a driver never meets another map."""
CONTROL_PORT = "s_axi_control"
FORMAT = "flightllm-hardware"


@dataclass(frozen=True)
class Handoff:
    """What one bitstream holds.

    Parameters
    ----------
    config : of its accelerator.
    memories : for each channel, core by core, the memory it is connected to, by the name that PYNQ
        gives it; "" for the processing system's own.
    bitstream : file name, beside the hand-over. sha256 : of that file, hex.
    tool : what made it, with its version.
    """

    config: HwConfig
    memories: tuple[str, ...]
    bitstream: str
    sha256: str
    tool: str

    def __post_init__(self) -> None:
        channels = sum(self.config.channels)
        if len(self.memories) != channels:
            raise InputError(f"memories: {len(self.memories)} names for {channels} channels")


def master_ports(config: HwConfig) -> list[str]:
    """Names of the AXI4 masters of the top, one for each channel, core by core."""
    return [f"m_axi_{channel:02d}" for channel in range(sum(config.channels))]


def wants_half_ports(config: HwConfig) -> bool:
    """Whether a channel is twice as wide as the memory's port: the top then halves the width of
    each master and runs it in a clock domain of its own, of `port_mhz`."""
    return 8 * config.beat_bytes == 2 * config.memory.port_bits


def port_bytes(config: HwConfig) -> int:
    """Width of the top's masters."""
    return config.beat_bytes // (2 if wants_half_ports(config) else 1)


def handoff_path(bitstream: Path) -> Path:
    """Where the hand-over of a bitstream lies."""
    return bitstream.with_suffix(".hardware.json")


def _digest(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            total.update(part)
    return total.hexdigest()


def handoff_body(
    config: HwConfig, memories: tuple[str, ...], bitstream: str, sha256: str, tool: str
) -> dict[str, Any]:
    """What a hand-over file holds, as plain values."""
    return {
        "format": FORMAT,
        "registers": MAP_VERSION,
        "config": config.to_dict(),
        "config_digest": config.digest,
        "memories": list(memories),
        "bitstream": bitstream,
        "sha256": sha256,
        "tool": tool,
    }


def save_handoff(
    bitstream: Path, config: HwConfig, memories: tuple[str, ...], tool: str
) -> Handoff:
    """Write the hand-over of a bitstream that is there, beside it."""
    handoff = Handoff(config, memories, bitstream.name, _digest(bitstream), tool)
    body = handoff_body(config, memories, handoff.bitstream, handoff.sha256, tool)
    handoff_path(bitstream).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return handoff


def load_handoff(bitstream: Path) -> Handoff:
    """The hand-over of a bitstream, checked against it.

    Raises
    ------
    InputError
        When there is no bitstream or hand-over, or the two do not belong together; names the field.
    """
    path = handoff_path(bitstream)
    for needed in (bitstream, path):
        if not needed.is_file():
            raise InputError(f"bitstream {bitstream}: there is no file {needed}")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["format"] != FORMAT:
            raise InputError(f"{path} is not a hand-over of this toolkit")
        config = HwConfig.from_dict(body["config"], source=str(path))
        handoff = Handoff(
            config, tuple(body["memories"]), body["bitstream"], body["sha256"], body["tool"]
        )
        claimed, version = body["config_digest"], body["registers"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a hand-over of a bitstream ({error})") from None
    if version != MAP_VERSION:
        raise InputError(
            f"{path}: registers: map {version}, this runtime drives map {MAP_VERSION}"
        )
    if claimed != config.digest:
        raise InputError(f"{path}: config_digest: {claimed[:16]}, the fields give another one")
    if _digest(bitstream) != handoff.sha256:
        raise InputError(
            f"{path}: sha256: the file {bitstream.name} is not the one that was described here"
        )
    return handoff
