"""What a board draws while it decodes: a coarse model whose constants name their sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flightllm.spec.config import HwConfig

__all__ = ["board_power"]

MEMORY_PJ_PER_BIT = {"hbm2": 3.9, "hbm2e": 3.9, "ddr4": 20.0, "ddr3": 25.0, "sdram": 40.0}
"""HBM2: O'Connor et al., MICRO 2017 (DRAM and interface). The others are assumed."""
IDLE_WATTS = {"hbm2": 24.0, "hbm2e": 40.0, "ddr4": 4.0, "ddr3": 1.2, "sdram": 0.5}
"""Card or module with nothing running, by its memory; assumed."""
LOGIC_MICROWATTS = 11.0
"""A DSP and the logic around it, per MHz: what is left of FlightLLM's 45 W on the U280 (6,345 DSP,
225 MHz, about 160 GB/s; arXiv 2401.03868) behind idle card and memory."""
UNCERTAINTY = 0.35
"""The model meets AccLLM's 33 W on the same card (arXiv 2505.03745) within this share."""


def board_power(config: HwConfig, resources: Mapping[str, Any],
                bytes_per_second: float) -> dict[str, Any] | None:  # fmt: skip
    """Watts in decoding, by part, with `low` and `high`; None for boards that do not exist."""
    kind = config.memory.kind
    if kind == "ideal":
        return None
    memory = 8 * bytes_per_second * MEMORY_PJ_PER_BIT[kind] * 1e-12
    logic = resources["dsp"]["used"] * config.clock_mhz * LOGIC_MICROWATTS * 1e-6
    total = IDLE_WATTS[kind] + memory + logic
    return {
        "watts": round(total, 1),
        "low": round(total * (1 - UNCERTAINTY), 1),
        "high": round(total * (1 + UNCERTAINTY), 1),
        "idle": IDLE_WATTS[kind],
        "memory": round(memory, 2),
        "logic": round(logic, 2),
    }
