"""Allocation: where everything lies in a core's memory and in its A and F buffers.

Memory is the same in every channel of a core. Buffers of the attention, the MLP and the head share
one arena, because they never live together; the semaphore pass sees the overlap and orders it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from flightllm.compiler.shape import ModelShape
from flightllm.compiler.tile import CoreTile, Span
from flightllm.spec.config import HwConfig
from flightllm.spec.dram import dram_timing
from flightllm.spec.errors import InputError
from flightllm.spec.formats import (
    BLOCK,
    MatrixFormat,
    block_bytes,
    chunk_bytes,
    kgroups_for,
    matrix_bytes,
    row_shares,
)
from flightllm.spec.image import Segment, round_up
from flightllm.spec.kvcache import key_format, value_format

__all__ = ["CoreMemory", "Layout", "Region", "allocate", "fit_length", "piece_bytes"]

TOPK_ROWS = 64
"""Decode steps whose results one run can leave in memory."""


@dataclass(frozen=True)
class Region:
    """Part of a buffer: `space` is "F" (words) or "A" (bytes)."""

    space: str
    start: int
    size: int

    @property
    def stop(self) -> int:
        """One past the end."""
        return self.start + self.size


@dataclass(frozen=True)
class CoreMemory:
    """Addresses in a core's channels, bytes.

    Members
    -------
    matrices : (layer, name) -> address; the head is (layers, "head").
    vectors : name -> offset in a layer's record; `vector_stride` bytes a layer. The record after
        the last layer holds final_norm and the head's bias.
    key_region, value_region, kv_stride : bytes from one head's K and V to the next one's, and of
        one layer's.
    """

    segments: dict[str, Segment]
    matrices: dict[tuple[int, str], int]
    vectors: dict[str, int]
    vector_stride: int
    key_region: int
    value_region: int
    kv_stride: int

    @property
    def top(self) -> int:
        """One past the end of the last segment."""
        return max(segment.base + segment.size for segment in self.segments.values())


@dataclass(frozen=True)
class Layout:
    """One core's memory and buffers for a maximum length and an attention tile.

    Members
    -------
    score_stride : words between score rows. attention_tile : tokens whose scores are on chip.
    score_sets : heads whose scores of such a tile are on chip in prefill, 1 or 2.
    """

    memory: CoreMemory
    regions: dict[str, Region]
    max_length: int
    score_stride: int
    attention_tile: int
    score_sets: int
    prefill_tile: int
    f_words: int
    a_bytes: int

    def __str__(self) -> str:
        lines = [
            f"max_length {self.max_length} attention_tile {self.attention_tile} "
            f"score_sets {self.score_sets}"
        ]
        for segment in self.memory.segments.values():
            lines.append(
                f"  memory {segment.name:10} {segment.base:#012x} {segment.size:12d} B a channel"
                f"{' writable' if segment.writable else ''}"
            )
        for name, region in self.regions.items():
            lines.append(f"  {region.space} {name:12} {region.start:8d} {region.size:8d}")
        return "\n".join(lines)


def _spread_bytes(count: int, channels: int, size: int) -> int:
    """Bytes of a spread vector in each channel."""
    if not count:
        return 0
    return round_up(max(b - a for a, b in row_shares(count, channels)) * size)


@dataclass
class _Stack:
    """A growing address space."""

    top: int = 0
    places: dict[str, int] = field(default_factory=dict)

    def take(self, name: str, size: int) -> int:
        self.places[name] = at = self.top
        self.top += size
        return at


def _vectors(shape: ModelShape, part: CoreTile) -> _Stack:
    stack = _Stack()
    sizes = {"attn_norm": part.dim.size, "mlp_norm": part.dim.size}
    for name in (*shape.matrices, "head"):
        if name in shape.biases:
            sizes[f"bias_{name}"] = part.rows(shape, name).size
    for name, count in sizes.items():
        stack.take(name, _spread_bytes(count, part.channels, 4))
    return stack


def piece_bytes(shape: ModelShape, name: str, fmt: MatrixFormat, rows: Span,
                channels: int) -> int:  # fmt: skip
    """Bytes in each channel of one of a matrix' pieces."""
    return matrix_bytes(fmt, rows.size, kgroups_for(shape.columns(name), fmt.group), channels)


def _spread_heads(size: int, config: HwConfig) -> int:
    """Bytes from one head's V to the next, which needs `size`: none that meet in a bank.

    ST writes a token to the same place of every head, one after the other. Where a head's V covers
    all banks, it takes whole rows, 3 more than a multiple of the banks: else these writes may all
    open rows of one bank, and with 1 more the first row of a head's V lies in the bank of the last
    of the head before it.
    """
    timing = dram_timing(config)
    if timing is None or size < timing.banks * timing.row_bytes:
        return size
    rows = -(-size // timing.row_bytes)
    return (rows + (3 - rows) % timing.banks) * timing.row_bytes


def _memory(shape: ModelShape, part: CoreTile, config: HwConfig, length: int,
            spread: bool = False) -> CoreMemory:  # fmt: skip
    """Where everything lies, with `spread` heads (see `_spread_heads`) or packed ones."""
    channels, segments, at = part.channels, {}, 0

    def segment(name: str, size: int, writable: bool, row: int = 0) -> None:
        nonlocal at
        segments[name] = Segment(name, part.core, at, round_up(size), writable, row)
        at += round_up(size)

    weights = _Stack()
    matrices: dict[tuple[int, str], int] = {}
    plans = [*shape.layers, {"head": shape.head}]
    for layer, plan in enumerate(plans):
        for name, matrix in plan.items():
            size = sum(
                piece_bytes(shape, name, matrix.fmt, rows, channels)
                for rows in part.pieces(shape, name)
            )
            matrices[layer, name] = weights.take(f"{layer}.{name}", size)
    segment("weights", weights.top, False)
    vectors = _vectors(shape, part)
    segment("vectors", vectors.top * (len(shape.layers) + 1), False)
    row = _spread_bytes(part.dim.size, channels, 2)
    segment("embed", row * shape.vocab, False, row)
    if shape.positions:
        segment("positions", row * length, False, row)
    if shape.rope:
        row = _spread_bytes(shape.head_dim, channels, 4)
        segment("rope", row * length, False, row)
    blocks = -(-length // BLOCK)
    keys = -(-blocks // channels) * chunk_bytes(key_format(shape.head_dim, shape.key_bits))
    share = max(b - a for a, b in row_shares(shape.head_dim, channels))
    values = blocks * block_bytes(value_format(shape.value_bits), share)
    if spread:
        values = _spread_heads(values, config)
    stride = part.kv.size * (keys + values)
    segment("kv", stride * len(shape.layers), True)
    for name, count, rows in (
        ("tokens", config.prefill_tile, 1),
        ("logits", part.vocab.size, config.prefill_tile),
        ("topk", 2 * config.top_k, TOPK_ROWS),
    ):
        row = _spread_bytes(count, channels, 4)
        segment(name, row * rows, True, row)
    return CoreMemory(segments, matrices, vectors.places, vectors.top, keys, values, stride)


def _pad_columns(count: int) -> int:
    """Bytes of an INT8 vector in A: whole groups of any size."""
    return -(-count // 128) * 128


def _regions(shape: ModelShape, part: CoreTile, config: HwConfig, stride: int, inner: int,
             sets: int = 1) -> tuple[dict[str, Region], int, int]:  # fmt: skip
    """All buffer regions, and the words of F and bytes of A they need."""
    tokens, cores = config.prefill_tile, config.cores
    heads, size = part.kv.size, shape.head_dim
    queries = heads * shape.group_heads
    padded = -(-size // 16) * 16
    score_rows = max(heads, inner * sets) * shape.group_heads
    lists, places = 2 * config.top_k, cores * len(part.pieces(shape, "head"))
    fixed = {  # what cores exchange comes first: it must lie at the same address in all of them
        "topk": max(lists, tokens + 1), "lists": lists * (places if places > 1 else 0),
        "amax": tokens * cores, "sums": tokens * -(-shape.dim // 16), "scale_x": tokens,
        "scale_a": tokens, "scale_m": tokens, "rope": tokens * size,
        "x": tokens * part.dim.size, "gain_mlp": part.dim.size, "gain_attn": part.dim.size,
    }  # fmt: skip
    for name in (*shape.matrices, "head"):
        if name in shape.biases:
            fixed[f"bias_{name}"] = part.rows(shape, name).size
    arenas = [
        {
            "q": tokens * queries * size, "k": tokens * heads * size, "v": tokens * heads * size,
            "qscale": tokens * queries, "kscale": tokens * heads, "vscale": tokens * heads,
            "scores": score_rows * stride, "vs": max(heads, 1) * stride, "factor": score_rows,
            "att": tokens * queries * size,
        },
        {"gate": tokens * part.ffn.size, "up": tokens * part.ffn.size},
        {"logits": part.vocab.size},
        {"positions": tokens * part.dim.size if shape.positions else 0},
    ]  # fmt: skip
    a_fixed = {"xq": tokens * _pad_columns(shape.dim)}
    a_arenas = [
        {
            "aq": tokens * _pad_columns(shape.heads * size),
            "qq": tokens * queries * padded, "kq": tokens * heads * padded,
            "vq": tokens * heads * size, "prob": score_rows * stride,
        },
        {"mq": tokens * _pad_columns(shape.ffn_dim)},
    ]  # fmt: skip
    regions: dict[str, Region] = {}
    f_words = _place(regions, "F", fixed, arenas, 1)
    a_bytes = _place(regions, "A", a_fixed, a_arenas, 64)
    return regions, f_words, a_bytes


def _place(regions: dict[str, Region], space: str, fixed: dict[str, int],
           arenas: list[dict[str, int]], align: int) -> int:  # fmt: skip
    def take(at: int, sizes: dict[str, int]) -> int:
        for name, size in sizes.items():
            regions[name] = Region(space, at, size)
            at += -(-size // align) * align
        return at

    base = take(0, fixed)
    return max([base, *(take(base, arena) for arena in arenas)])


def _score_stride(shape: ModelShape, length: int, inner: int) -> int:
    columns = length if shape.window is None else min(length, shape.window + inner + BLOCK)
    return -(-columns // BLOCK) * BLOCK


def allocate(shape: ModelShape, part: CoreTile, config: HwConfig, length: int, inner: int
             ) -> Layout:  # fmt: skip
    """Memory and buffers of one core; does not judge whether they fit (see `fit_length`)."""
    stride = _score_stride(shape, length, inner)
    for sets in (2, 1) if part.kv.size > 1 else (1,):
        regions, f_words, a_bytes = _regions(shape, part, config, stride, inner, sets)
        if f_words <= config.float_words and a_bytes <= config.act_bytes:
            break
    memory = _memory(shape, part, config, length, spread=True)
    if memory.top > config.channel_bytes:
        memory = _memory(shape, part, config, length)
    return Layout(
        memory, regions, length, stride, inner, sets, config.prefill_tile, f_words, a_bytes
    )  # fmt: skip


def _shortage(shape: ModelShape, parts: list[CoreTile], config: HwConfig, length: int, inner: int
              ) -> str | None:  # fmt: skip
    """What does not fit at this length, or None."""
    for part in parts:
        stride = _score_stride(shape, length, inner)
        _, f_words, a_bytes = _regions(shape, part, config, stride, inner)
        for name, need, have in (
            ("float_words", f_words, config.float_words),
            ("act_bytes", a_bytes, config.act_bytes),
        ):
            if need > have:
                return f"{name} must be {need}, board {config.name} has {have}"
        top = _memory(shape, part, config, length).top
        if top > config.channel_bytes:
            return (
                f"each channel must hold {top / 2**20:.1f} MiB, "
                f"board {config.name} has {config.memory.channel_mib} MiB"
            )
    return None


def fit_length(shape: ModelShape, parts: list[CoreTile], config: HwConfig, wanted: int | None
               ) -> tuple[int, int]:  # fmt: skip
    """The longest context that fits (at most `wanted`, else the model's), and its attention tile.

    Raises
    ------
    InputError
        When not even 32 tokens fit, or fewer than `wanted`; says what is too small.
    """
    longest = shape.max_length if wanted is None else min(wanted, shape.max_length)
    best, why = (0, 1), None
    # Queries of one tile keep the same blocks.
    inner = min(config.attention_tile, BLOCK) if shape.sparse else config.attention_tile
    while inner >= 1:
        low, high = 0, longest
        while low < high:
            middle = min(longest, -(-((low + high + 1) // 2) // BLOCK) * BLOCK)
            shortage = _shortage(shape, parts, config, middle, inner)
            if shortage is None:
                low = middle
            else:
                why, high = shortage, min(middle - 1, -(-(middle - BLOCK) // BLOCK) * BLOCK)
        if low > best[0]:
            best = (low, inner)
        if low >= min(longest, 4096):
            break
        inner //= 2
    if best[0] < min(BLOCK, longest) or (wanted is not None and best[0] < longest):
        remedy = "use fewer weight bits, " if why and "MiB" in why else "use "
        raise InputError(
            f"{shape.name} does not fit board {config.name} at {wanted or BLOCK} tokens: {why}; "
            f"{remedy}a shorter --max-length or a larger board"
        )
    return best
