"""Operands for chains and cells, and the exact sums that they must give."""

from __future__ import annotations

from typing import Any

import numpy as np
from amaranth.hdl import Module, signed
from amaranth.lib import data

from flightllm.hw.chain import window_layout
from flightllm.hw.chain.packed import chain_layout
from flightllm.hw.floating import Datapath

__all__ = ["CellBench", "ChainBench", "cell_rows", "chain_rows", "corners", "sums_of"]

X_CORNERS = np.array([-127, 127, 0, 1, -1])


class _Bench(Datapath):
    """A chain or a cell with its inputs in one payload."""

    def __init__(self, unit: Any, fields: dict[str, Any]) -> None:
        self.unit, self.fields = unit, tuple(fields)
        out = data.ArrayLayout(signed(32), 2)
        super().__init__(data.StructLayout(fields), out, unit.latency)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.unit = unit = self.unit
        m.d.comb += [getattr(unit, name).eq(self.i[name]) for name in self.fields]
        m.d.comb += unit.en.eq(self.en)
        m.d.comb += [self.o[row].eq(unit.sums[row]) for row in range(2)]
        return m


class ChainBench(_Bench):
    """Chains of `lanes` lanes; `join` where they have nodes."""

    def __init__(self, unit: Any, lanes: int) -> None:
        fields: dict[str, Any] = {
            "codes": chain_layout(lanes), "x": data.ArrayLayout(signed(8), lanes), "rows": 8,
        }  # fmt: skip
        if getattr(unit, "nodes", ()):
            fields["join"] = len(unit.nodes)
        super().__init__(unit, fields)


class CellBench(_Bench):
    """Cells."""

    def __init__(self, unit: Any) -> None:
        lanes = unit.k_lanes
        super().__init__(unit, {
            "codes": chain_layout(lanes), "windows": window_layout(lanes),
            "picks": data.ArrayLayout(4, lanes), "rows": 8,
        })  # fmt: skip


def words(*parts: Any) -> Any:
    """Rows of 32-bit words from byte arrays [n, any]."""
    joined = np.concatenate([part.astype(np.uint8) for part in parts], axis=1)
    joined = np.pad(joined, ((0, 0), (0, -joined.shape[1] % 4)))
    return np.ascontiguousarray(joined).view(np.uint32)


def chain_rows(codes: Any, x: Any, rows: Any = 3, join: Any = None) -> Any:
    """codes int [n, 2, lanes], x int [n, lanes], rows int [n], join int [n]."""
    count = len(codes)
    tail = [np.broadcast_to(rows, count)[:, None]]
    if join is not None:
        tail.append(np.broadcast_to(join, count)[:, None])
    return words(codes.reshape(count, -1), x, *tail)


def cell_rows(codes: Any, windows: Any, picks: Any, rows: Any = 3) -> Any:
    """windows int [n, lanes / 8, 16], picks int [n, lanes]; the others as in `chain_rows`."""
    count = len(codes)
    pairs = picks.reshape(count, -1, 2)
    nibbles = pairs[..., 0] | pairs[..., 1] << 4
    return words(
        codes.reshape(count, -1), windows.reshape(count, -1), nibbles,
        np.broadcast_to(rows, count)[:, None],
    )  # fmt: skip


def corners(rng: np.random.Generator, count: int, lanes: int, bits: int = 8) -> tuple[Any, Any]:
    """Levels [count, 2, lanes] and activations [count, lanes]: extremes, alternating signs, random.

    Half of the vectors hold one extreme in every lane of a row, the worst for a lane of a chain.
    """
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    levels = np.array([low, high, low + 1, 0, 1, -1])
    codes = rng.integers(low, high + 1, (count, 2, lanes))
    x = rng.integers(-127, 128, (count, lanes))
    kind = rng.integers(0, 6, count)
    flat = levels[rng.integers(0, 3, (count, 2, 1))] * np.ones((1, 1, lanes), int)
    extreme = X_CORNERS[rng.integers(0, 2, (count, 1))] * np.ones((1, lanes), int)
    sign = np.where(np.arange(lanes) % 2, -1, 1)
    codes = np.where((kind < 3)[:, None, None], flat, codes)
    x = np.where((kind < 2)[:, None], extreme, x)
    x = np.where((kind == 2)[:, None], extreme * sign, x)
    mixed = (kind == 3)[:, None]
    x = np.where(mixed, X_CORNERS[rng.integers(0, 5, (count, lanes))], x)
    codes = np.where(mixed[:, None], levels[rng.integers(0, 6, (count, 2, lanes))], codes)
    return codes, x


def sums_of(codes: Any, x: Any) -> Any:
    """int [n, 2]."""
    return np.einsum("nrl,nl->nr", codes, x)
