"""Rotary position embedding's tables: cosines and sines of every position, with context scaling.

Frequencies are formed in float64 and rounded to float32; a position times a frequency is rounded
to float32 before its cosine is taken, as transformers does, so that both see the same angles.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from flightllm.models.config import ModelConfig, RopeConfig
from flightllm.spec.errors import InputError

__all__ = ["inverse_frequencies", "rope_tables"]

F64 = NDArray[np.float64]


def _llama3(rope: RopeConfig, frequencies: F64) -> F64:
    """LLaMA 3.1: long wavelengths are stretched, short ones kept, the band between blended."""
    assert rope.original_length is not None
    rotations = rope.original_length * frequencies / (2 * math.pi)
    span = rope.high_freq_factor - rope.low_freq_factor
    kept: F64 = np.clip((rotations - rope.low_freq_factor) / span, 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / rope.factor)


def _yarn(rope: RopeConfig, frequencies: F64) -> F64:
    """YaRN (arXiv 2309.00071): a ramp over dimensions between kept and stretched frequencies."""
    assert rope.original_length is not None
    dims = 2 * len(frequencies)

    def dimension(rotations: float) -> float:
        turns = rope.original_length / (rotations * 2 * math.pi)  # type: ignore[operator]
        return dims * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    width = high - low if high != low else 0.001
    stretched = np.clip((np.arange(len(frequencies)) - low) / width, 0.0, 1.0)
    return frequencies * (stretched / rope.factor + (1 - stretched))


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> NDArray[np.float32]:
    """Radians a position turns each pair of dimensions by, float32 [head_dim // 2]."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    frequencies: F64 = rope.theta**-exponents
    match rope.kind:
        case "default":
            pass
        case "linear":
            frequencies = frequencies / rope.factor
        case "llama3":
            frequencies = _llama3(rope, frequencies)
        case "yarn":
            frequencies = _yarn(rope, frequencies)
        case "explicit":
            frequencies = np.array(rope.frequencies)
        case _:
            raise InputError(f"rope: {rope.kind!r} scaling is not supported")
    return frequencies.astype(np.float32)


def rope_tables(
    config: ModelConfig, length: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines for positions 0 to `length` - 1.

    Parameters
    ----------
    config : a model with RoPE.
    length : number of positions.

    Returns
    -------
    cos, sin : float32 [length, head_dim // 2]; YaRN's attention factor is included.

    Raises
    ------
    InputError : when the model has no RoPE.
    """
    if config.rope is None:
        raise InputError(f"{config.name}: the model has learned positions, not RoPE")
    frequencies = inverse_frequencies(config.rope, config.head_dim)
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies[None, :]
    factor = np.float64(config.rope.attention_factor)
    wide = angles.astype(np.float64)
    return (
        (np.cos(wide) * factor).astype(np.float32),
        (np.sin(wide) * factor).astype(np.float32),
    )
