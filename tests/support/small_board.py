"""A board with little of everything, so that its RTL is built in the time of a fast test."""

from __future__ import annotations

import dataclasses
from typing import Any

from flightllm.spec.config import HwConfig, load_config

__all__ = ["small_board"]


def small_board(**changes: Any) -> HwConfig:
    """One channel of 16 bytes, 32 MACs and 2 SFU lanes, but buffers for a small model."""
    fields: dict[str, Any] = {
        "name": "small", "sfu_lanes": 2, "prefetch_bytes": 2048, "act_bytes": 16384,
        "float_words": 16384, "prefill_tile": 8, "attention_tile": 8, "mv_vectors": 2,
        "program_words": 4096, "param_words": 4096, "top_k": 4,
    }  # fmt: skip
    return dataclasses.replace(load_config("formal"), **(fields | changes))
