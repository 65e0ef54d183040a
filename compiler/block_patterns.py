"""Patterns of block-sparse attention to choose from, and the choice without calibration."""

from __future__ import annotations

from flightllm.models.config import ModelConfig
from flightllm.models.patterns import DENSE, Pattern
from flightllm.spec.errors import InputError
from flightllm.spec.formats import BLOCK

__all__ = ["candidates", "refuse_window", "rule_patterns", "text_size", "too_little"]

LONGEST, TOKENS = 1024, 8192
"""Of the texts that patterns are chosen on: the longest, and tokens of all."""


def text_size(config: ModelConfig) -> tuple[int, int]:
    """Texts that patterns are chosen on, and tokens of each."""
    length = min(LONGEST, config.max_length)
    return max(4, min(16, TOKENS // length)), length


def too_little(density: float, tokens: int) -> InputError:
    """What to say of a density that no pattern has at `tokens` tokens."""
    least = min(pattern.density(tokens) for pattern in candidates(tokens))
    return InputError(
        f"density: {density:g} is less than the {least:.3f} that one block a query takes"
        f" at {tokens} tokens"
    )


def rule_patterns(config: ModelConfig, density: float) -> tuple[tuple[Pattern, ...], ...]:
    """Patterns by layer and KV head where there is nothing to calibrate: all heads keep the same,
    the most that the density allows at the length that calibration would have.

    Raises
    ------
    InputError : for a density that is too small, or a model with a sliding window.
    """
    if density == 1:
        return ()
    refuse_window(config)
    _, tokens = text_size(config)
    allowed = [p for p in candidates(tokens) if p.density(tokens) <= density]
    if not allowed:
        raise too_little(density, tokens)
    best = max(allowed, key=lambda pattern: (pattern.density(tokens), pattern.first == 1))
    return ((best,) * config.kv_heads,) * config.layers


def refuse_window(config: ModelConfig) -> None:
    """Raises InputError for a model with a sliding window."""
    if config.window is not None:
        raise InputError(
            f"attention density: {config.name} has a sliding window of {config.window} tokens,"
            " and block-sparse attention goes without one"
        )


def candidates(tokens: int) -> tuple[Pattern, ...]:
    """Patterns to choose from, dense among them."""
    count = -(-tokens // BLOCK)
    lasts = [last for last in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64) if last < count]
    sparse = [Pattern(first, last) for first in (0, 1, 2) for last in lasts if first + last < count]
    return (*sparse, DENSE)
