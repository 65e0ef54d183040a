"""Tiling: which heads, rows and slices of each vector belong to which core.

Query, key and value rows follow their KV head, so attention stays inside a core. The rest is cut in
proportion to channels: the residual in multiples of 16 (one block of REDUCE), the MLP and the
vocabulary in pairs of rows, so that no channel has more of them than another.
"""

from __future__ import annotations

from dataclasses import dataclass

from flightllm.compiler.shape import ModelShape
from flightllm.spec.config import HwConfig
from flightllm.spec.errors import InputError

__all__ = ["CoreTile", "Span", "tile"]

BLOCK = 16
"""Elements of the residual that REDUCE adds up first."""
PAIR = 2
"""Rows that are stored together."""


@dataclass(frozen=True)
class Span:
    """A half-open range [start, stop)."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Length."""
        return self.stop - self.start

    def scaled(self, factor: int) -> Span:
        """Both ends times `factor`."""
        return Span(self.start * factor, self.stop * factor)

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"


@dataclass(frozen=True)
class CoreTile:
    """One core's part.

    Members
    -------
    kv : its KV heads. dim : its slice of the residual. ffn : of the MLP. vocab : of the head.
    """

    core: int
    channels: int
    kv: Span
    dim: Span
    ffn: Span
    vocab: Span

    def rows(self, shape: ModelShape, name: str) -> Span:
        """Its rows of a matrix."""
        if name == "q":
            return self.kv.scaled(shape.group_heads * shape.head_dim)
        if name in ("k", "v"):
            return self.kv.scaled(shape.head_dim)
        if name in ("gate", "up"):
            return self.ffn
        return self.vocab if name == "head" else self.dim

    def __str__(self) -> str:
        return (
            f"core {self.core}: channels {self.channels} kv_heads {self.kv} dim {self.dim} "
            f"ffn {self.ffn} vocab {self.vocab}"
        )


def _cut(total: int, unit: int, weights: tuple[int, ...]) -> list[Span]:
    """[0, total) in proportion to `weights`, inner edges at multiples of `unit`."""
    units, whole = -(-total // unit), sum(weights)
    edges, done = [0], 0
    for weight in weights:
        done += weight
        edges.append(min(total, unit * ((2 * units * done + whole) // (2 * whole))))
    return [Span(a, b) for a, b in zip(edges, edges[1:])]


def tile(shape: ModelShape, config: HwConfig) -> list[CoreTile]:
    """Each core's part of the model.

    Raises
    ------
    InputError
        When the model's shape cannot run on the hardware; says what to change.
    """
    if shape.heads % shape.kv_heads:
        raise InputError(f"{shape.name}: {shape.heads} heads over {shape.kv_heads} KV heads")
    if shape.head_dim % 2 or shape.head_dim > 256:
        raise InputError(f"{shape.name}: head size {shape.head_dim} is not even or above 256")
    if shape.group_heads > config.mv_vectors:
        raise InputError(
            f"{shape.name}: {shape.group_heads} query heads share a KV head, board {config.name} "
            f"takes {config.mv_vectors}; raise mv_vectors"
        )
    parts = zip(
        _cut(shape.kv_heads, 1, config.channels),
        _cut(shape.dim, BLOCK, config.channels),
        _cut(shape.ffn_dim, PAIR, config.channels),
        _cut(shape.vocab, PAIR, config.channels),
    )
    return [
        CoreTile(core, channels, *spans)
        for core, (channels, spans) in enumerate(zip(config.channels, parts))
    ]
