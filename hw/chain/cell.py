"""The cell: a slice of two rows meets one vector's window of activations."""

from typing import Any

from amaranth.hdl import Module, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.chain.inferred import InferredChain, tree, tree_cycles
from flightllm.hw.chain.packed import PackedChain, chain_layout, sum_bits
from flightllm.hw.chain.primitive import DSP48E1, DSP48E2
from flightllm.hw.chain.sparse import pick, window_layout
from flightllm.hw.chain.triple import TripleChain
from flightllm.hw.floating.pipeline import delay
from flightllm.hw.sharing import shared

__all__ = ["Cell", "cell_latency", "chain_for", "chain_lanes"]

KINDS = ("dsp48e2", "dsp58", "dsp48e1", "inferred")
UNADJUSTED = 8
"""Slices that DSP48E1, which has no adjust unit, cascades at most."""


def chain_lanes(dsp_kind: str, chain_length: int) -> int:
    """Lanes of a chain of `chain_length` slices: one a slice, on DSP58 three."""
    return chain_length * (3 if dsp_kind == "dsp58" else 1)


def chain_latency(dsp_kind: str, lanes: int) -> int:
    """Cycles of `chain_for`'s chain. ValueError for an unknown kind."""
    if dsp_kind == "dsp58":
        return TripleChain.cycles(lanes)
    if dsp_kind == "inferred":
        return InferredChain.cycles(lanes)
    if dsp_kind not in KINDS:
        raise ValueError(f"Multiplier must be one of {KINDS}, not {dsp_kind!r}")
    return PackedChain.cycles(DSP48E2 if dsp_kind == "dsp48e2" else DSP48E1, lanes)


def cell_chains(k_lanes: int, dsp_kind: str, chain_length: int) -> list[tuple[int, int]]:
    """First lane and number of lanes of each chain of a cell."""
    per = k_lanes if dsp_kind == "inferred" else chain_lanes(dsp_kind, chain_length)
    return [(begin, min(per, k_lanes - begin)) for begin in range(0, k_lanes, per)]


def cell_latency(k_lanes: int, dsp_kind: str, chain_length: int) -> int:
    """Cycles from a slice to its sums: sparse MUX, chains, the tree over them."""
    parts = cell_chains(k_lanes, dsp_kind, chain_length)
    chains = max(chain_latency(dsp_kind, lanes) for _, lanes in parts)
    return 1 + chains + tree_cycles(len(parts))


def chain_for(dsp_kind: str, lanes: int, modelled: bool = False) -> Any:
    """A chain with `lanes` lanes. ValueError for an unknown kind."""
    if dsp_kind == "dsp48e2":
        return PackedChain(DSP48E2, lanes, modelled=modelled)
    if dsp_kind == "dsp48e1":
        return PackedChain(DSP48E1, lanes, range(UNADJUSTED, lanes, UNADJUSTED), modelled)
    if dsp_kind == "dsp58":
        return TripleChain(lanes, modelled)
    if dsp_kind == "inferred":
        return InferredChain(lanes)
    raise ValueError(f"Multiplier must be one of {KINDS}, not {dsp_kind!r}")


@shared()
class Cell(wiring.Component):
    """Exact sums of levels times activations, of both rows of a slice, a slice every cycle.

    Parameters
    ----------
    k_lanes : lanes of a slice. dsp_kind, chain_length : see `MatrixParameters`.
    modelled : primitives are replaced by their simulation models.

    Attributes
    ----------
    latency : enabled cycles from a slice to its sums.

    Members
    -------
    en : In(1), all of it steps; high where nothing is connected.
    codes, picks : In, of a slice; picks as `pick` takes them.
    rows : In(2), of the slice; DSP48E1 needs it.
    windows : In(window_layout(k_lanes)).
    sums : Out, two signed numbers of `sum_bits(k_lanes)` bits.
    """

    def __init__(self, k_lanes: int, dsp_kind: str, chain_length: int,
                 modelled: bool = False) -> None:  # fmt: skip
        self.k_lanes, self._kind, self._modelled = k_lanes, dsp_kind, modelled
        self._parts = cell_chains(k_lanes, dsp_kind, chain_length)
        self.latency = cell_latency(k_lanes, dsp_kind, chain_length)
        super().__init__({
            "en": In(1, init=1),
            "codes": In(chain_layout(k_lanes)),
            "picks": In(data.ArrayLayout(unsigned(4), k_lanes)),
            "rows": In(2, init=3),
            "windows": In(window_layout(k_lanes)),
            "sums": Out(data.ArrayLayout(signed(sum_bits(k_lanes)), 2)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        codes = delay(m, self.en, self.codes, 1, "codes")
        rows = delay(m, self.en, self.rows, 1, "rows")
        x = Signal(data.ArrayLayout(signed(8), self.k_lanes), reset_less=True)
        with m.If(self.en):
            for lane in range(self.k_lanes):
                m.d.sync += x[lane].eq(pick(self.windows[lane // 8], self.picks[lane], lane))
        sums: list[list[Value]] = [[], []]
        chains = [chain_for(self._kind, lanes, self._modelled) for _, lanes in self._parts]
        depth = max(chain.latency for chain in chains)
        for number, ((begin, lanes), chain) in enumerate(zip(self._parts, chains)):
            m.submodules[f"chain_{number}"] = chain
            m.d.comb += [chain.en.eq(self.en), chain.rows.eq(rows)]
            for lane in range(lanes):
                m.d.comb += chain.x[lane].eq(x[begin + lane])
                m.d.comb += [
                    chain.codes[row][lane].eq(codes[row][begin + lane]) for row in range(2)
                ]
            for row in range(2):
                late = depth - chain.latency  # a last chain may be shorter
                sums[row].append(
                    delay(m, self.en, chain.sums[row], late, f"sum_{number}_{row}")
                )
        for row in range(2):
            total, _ = tree(m, self.en, sums[row], sum_bits(self.k_lanes), f"total_{row}")
            m.d.comb += self.sums[row].eq(total)
        return m
