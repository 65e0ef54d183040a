"""Tiling: which heads, rows and slices of each vector belong to which core.

Query, key and value rows follow their KV head, so attention stays inside a core. The rest is cut in
proportion to channels: the residual in multiples of 16 (one block of REDUCE), the MLP and the
vocabulary in pairs of rows, so that no channel has more of them than another. A core whose shares
of V are less even than the others' has a little less of the MLP.
"""

from __future__ import annotations

from dataclasses import dataclass

from flightllm.compiler.shape import ModelShape
from flightllm.spec.config import HwConfig
from flightllm.spec.errors import InputError
from flightllm.spec.formats import BLOCK as BLOCK_TOKENS
from flightllm.spec.formats import block_bytes, row_shares
from flightllm.spec.kvcache import value_format
from flightllm.spec.parameters import row_words

__all__ = ["CoreTile", "Span", "tile"]

NOMINAL = 1024
"""Tokens of context for which the MLP is balanced against attention."""
LISTED = 7
"""Cycles in which a lane of the special function unit takes a candidate of a list, nearly."""

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
    tail : rows of that which are a matrix of their own, the last ones.
    """

    core: int
    channels: int
    kv: Span
    dim: Span
    ffn: Span
    vocab: Span
    tail: int

    def rows(self, shape: ModelShape, name: str) -> Span:
        """Its rows of a matrix."""
        if name == "q":
            return self.kv.scaled(shape.group_heads * shape.head_dim)
        if name in ("k", "v"):
            return self.kv.scaled(shape.head_dim)
        if name in ("gate", "up"):
            return self.ffn
        return self.vocab if name == "head" else self.dim

    def pieces(self, shape: ModelShape, name: str) -> list[Span]:
        """Rows of the matrices that one is stored as: the head as two, any other as it is."""
        rows = self.rows(shape, name)
        if name != "head" or not self.tail:
            return [rows]
        edge = rows.stop - self.tail
        return [Span(rows.start, edge), Span(edge, rows.stop)]

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


def _mlp_weights(shape: ModelShape, heads: list[Span],
                 channels: tuple[int, ...]) -> tuple[int, ...]:  # fmt: skip
    """What cores have of the MLP, in proportion: as many row pairs a channel less as the busiest
    channel reads more of V than an even share would be."""
    fmt = value_format(shape.value_bits)
    names = [name for name in ("gate", "up") if name in shape.layers[0]]
    pair = sum(PAIR * shape.dim * shape.layers[0][name].fmt.bits / 8 for name in names)
    more = []
    for part, count in zip(heads, channels):
        largest = max(b - a for a, b in row_shares(shape.head_dim, count))
        even = shape.head_dim * BLOCK_TOKENS * shape.value_bits / 8 / count
        more.append(part.size * NOMINAL / BLOCK_TOKENS * (block_bytes(fmt, largest) - even) / pair)
    extra = sum(count * pairs for count, pairs in zip(channels, more))
    level = (shape.ffn_dim / PAIR + extra) / sum(channels)
    return tuple(round(count * max(0.0, level - pairs)) for count, pairs in zip(channels, more))


def _tail(rows: int, shape: ModelShape, channels: int, config: HwConfig) -> int:
    """Last rows of a core's vocabulary, whose logits come apart: while memory reads these rows, the
    largest of all other logits are found."""
    memory = config.memory
    rate = memory.peak_gb_s * 1000 / config.clock_mhz / sum(config.channels)  # bytes a cycle
    read = shape.dim * shape.head.fmt.bits / 8 / (channels * min(rate, config.beat_bytes))
    listed = LISTED / row_words(config)
    even = PAIR * channels
    return int(rows * listed / (listed + read)) // even * even


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
    vocab = _cut(shape.vocab, PAIR, config.channels)
    tails = [_tail(span.size, shape, channels, config)
             for span, channels in zip(vocab, config.channels)]  # fmt: skip
    heads = _cut(shape.kv_heads, 1, config.channels)
    parts = zip(
        heads,
        _cut(shape.dim, BLOCK, config.channels),
        _cut(shape.ffn_dim, PAIR, _mlp_weights(shape, heads, config.channels)),
        vocab,
        tails if all(tails) else [0] * config.cores,
    )
    return [
        CoreTile(core, channels, *part)
        for core, (channels, part) in enumerate(zip(config.channels, parts))
    ]
