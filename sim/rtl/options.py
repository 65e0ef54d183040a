"""The text behind `rtl:`, which says how the simulated memory behaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flightllm.sim.rtl.simulation import MemoryModel
from flightllm.spec.config import HwConfig
from flightllm.spec.dram import dram_timing
from flightllm.spec.errors import InputError

__all__ = ["memory_model"]

_NUMBERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "latency": ("latency", int), "write-latency": ("write_latency", int),
    "bandwidth": ("bytes_per_cycle", float), "outstanding": ("outstanding", int),
    "stalls": ("stalls", float), "seed": ("seed", int),
}  # fmt: skip


def memory_model(config: HwConfig, text: str = "") -> MemoryModel:
    """The memory of a configuration, changed as `text` says.

    Parameters
    ----------
    text : settings between commas: `latency`, `write-latency` (cycles), `bandwidth` (bytes a cycle
        of a channel), `outstanding` (bursts), `stalls` (share of cycles), `seed`, each with a
        value, such as "latency=200,stalls=0.1"; and `dram`, the timing of the configuration's
        kind of memory.

    Raises
    ------
    InputError
        For a setting that is unknown or out of range.
    """
    values: dict[str, Any] = {
        "latency": config.memory.latency_cycles, "clock_mhz": config.clock_mhz,
    }  # fmt: skip
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if part == "dram":
            values["dram"] = dram_timing(config)
            if values["dram"] is None:
                raise InputError(
                    f"rtl:dram: board {config.name!r} has an ideal memory, which no timing is of"
                )
        elif name in _NUMBERS and equals:
            field, kind = _NUMBERS[name]
            try:
                values[field] = kind(value)
            except ValueError:
                raise InputError(f"rtl:{part}: {value!r} is not a number") from None
        else:
            known = ", ".join(f"{known}=N" for known in _NUMBERS)
            raise InputError(f"rtl:{part}: unknown, use {known} or dram")
    return MemoryModel(**values)
