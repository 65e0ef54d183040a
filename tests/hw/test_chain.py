"""hw.chain: every chain and cell against exact integers, and planted errors."""

import functools
import re

import numpy as np
import pytest
from amaranth.back import rtlil
from chain_cases import CellBench, ChainBench, cell_rows, chain_rows, corners, sums_of

from flightllm.hw.chain import (
    DSP48E1,
    DSP48E2,
    Cell,
    Dsp,
    InferredChain,
    PackedChain,
    TripleChain,
    packed,
)
from flightllm.hw.chain.packed import LARGEST, adjust_points
from flightllm.hw.floating import Streamed
from flightllm.sim.rtl.vectors import build

# Constructors that refuse leave an object behind.
pytestmark = pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")

COUNT = 3000
CHAINS = {
    "e2_1": (lambda: PackedChain(DSP48E2, 1, modelled=True), 1, 8),
    "e2_8": (lambda: PackedChain(DSP48E2, 8, modelled=True), 8, 8),
    "e2_9": (lambda: PackedChain(DSP48E2, 9, modelled=True), 9, 8),
    "e2_22": (lambda: PackedChain(DSP48E2, 22, modelled=True), 22, 8),
    "e1_7": (lambda: PackedChain(DSP48E1, 8, modelled=True), 8, 7),
    "e1_16": (lambda: PackedChain(DSP48E1, 16, (8,), modelled=True), 16, 7),
    "dsp58": (lambda: TripleChain(11, modelled=True), 11, 8),
    "inferred": (lambda: InferredChain(19), 19, 8),
}
NODES = (8, 12)
"""Of a chain of 18 whose Z-MUXes are driven."""
JOINS = {8: 0b00, 7: 0b10, 6: 0b11}
"""By width of the levels, which may join: 8, 16 or 32 products fit."""
CELLS = {
    "cell_dsp48e2": (32, "dsp48e2", 8), "cell_dsp58": (16, "dsp58", 2),
    "cell_dsp48e1": (16, "dsp48e1", 16), "cell_inferred": (32, "inferred", 8),
    "cell_single": (16, "dsp48e2", 1),
}  # fmt: skip


def joined():
    return PackedChain(DSP48E2, 18, NODES, modelled=True)


LONG = {"e2_22", "e1_16", "cell_dsp48e2", "cell_dsp48e1", "cell_single"}


def each(names):
    """The long ones, which take longest to build, are in the slow list."""
    return [pytest.param(n, marks=pytest.mark.slow if n in LONG else []) for n in names]


@pytest.fixture(scope="module")
def programs(rtl_cache):
    """`programs(name)`: the short ones are built together, a long one when it is asked for."""
    units = {
        f"chain_{name}": ChainBench(make(), lanes) for name, (make, lanes, _) in CHAINS.items()
    }
    units["chain_nodes"] = ChainBench(joined(), 18)
    units |= {name: CellBench(Cell(*size, modelled=True)) for name, size in CELLS.items()}
    units = {name: Streamed(unit) for name, unit in units.items()}
    short = {n: unit for n, unit in units.items() if n.removeprefix("chain_") not in LONG}
    short = build(short, rtl_cache)

    @functools.cache
    def program(name):
        return short.get(name) or build({name: units[name]}, rtl_cache)[name]

    return program


def found(program, rows, **flow):
    return program.run(rows, **flow)[0].view(np.int32)


@pytest.mark.parametrize("name", each(CHAINS))
@pytest.mark.parametrize("idle, stall", [(0, 0), (30, 40)])
def test_sums_are_exact(programs, name, idle, stall):
    _, lanes, bits = CHAINS[name]
    codes, x = corners(np.random.default_rng(lanes), COUNT, lanes, bits)
    rows = chain_rows(codes, x, join=0 if name == "e1_16" else None)
    sums = found(programs(f"chain_{name}"), rows, idle=idle, stall=stall)
    np.testing.assert_array_equal(sums, sums_of(codes, x))


@pytest.mark.parametrize("name", each(["e1_7", "e1_16"]))
def test_dsp48e1_takes_full_levels_row_by_row(programs, name):
    _, lanes, _ = CHAINS[name]
    rng = np.random.default_rng(3)
    codes, x = corners(rng, COUNT, lanes)
    rows = rng.integers(1, 3, COUNT)
    codes[rows == 1, 1] = 0
    codes[rows == 2, 0] = 0
    join = 0 if name == "e1_16" else None
    sums = found(programs(f"chain_{name}"), chain_rows(codes, x, rows, join), stall=20)
    np.testing.assert_array_equal(sums, sums_of(codes, x))


@pytest.mark.parametrize("bits", JOINS)
def test_z_muxes_join_what_fits_the_low_lane(programs, bits):
    rng = np.random.default_rng(bits)
    codes, x = corners(rng, COUNT, 18, bits)
    join = rng.integers(0, 4, COUNT) & JOINS[bits]
    sums = found(programs("chain_nodes"), chain_rows(codes, x, join=join), idle=20, stall=20)
    np.testing.assert_array_equal(sums, sums_of(codes, x))


@pytest.mark.parametrize("name", each(CELLS))
def test_cells_pick_and_sum(programs, name):
    lanes, kind, _ = CELLS[name]
    rng = np.random.default_rng(lanes)
    codes, _ = corners(rng, COUNT, lanes, 7 if kind == "dsp48e1" else 8)
    windows = rng.integers(-127, 128, (COUNT, lanes // 8, 16))
    picks = rng.integers(0, 16, (COUNT, lanes))
    rank = np.arange(lanes) % 8
    eighth = rank + rng.integers(0, 9, (COUNT, lanes))  # of 8 codes in 16 places
    picks = np.where(rank < 4, picks, eighth)
    x = np.take_along_axis(windows, picks.reshape(COUNT, -1, 8), axis=2).reshape(COUNT, lanes)
    sums = found(programs(name), cell_rows(codes, windows, picks), idle=10, stall=30)
    np.testing.assert_array_equal(sums, sums_of(codes, x))


@pytest.mark.parametrize("length", range(1, 80))
def test_the_low_lane_never_overflows(length):
    """The bound itself: no slice sums more than 18 bits hold."""
    points, held = adjust_points(length), 0
    for k in range(length):
        if k - 2 in points:
            held = (1 << packed.KEPT_BITS) - 1 + LARGEST  # what was kept, and slice k - 1
        held += LARGEST
        assert held < 1 << 17
    assert (length > 8) == bool(points)


@pytest.mark.parametrize("kind, name, lanes, count", [
    ("dsp48e2", "DSP48E2", 64, 64), ("dsp48e1", "DSP48E1", 16, 16), ("dsp58", "DSP58", 64, 44),
])  # fmt: skip
def test_synthesis_gets_the_primitives(kind, name, lanes, count):
    text = rtlil.convert(Cell(lanes, kind, 8), emit_src=False)
    assert len(re.findall(rf"cell \\{name} ", text)) == count
    assert "cell $mul" not in text


def test_impossible_chains_are_refused():
    with pytest.raises(ValueError, match="must be even"):
        PackedChain(DSP48E2, 8, (3,))
    with pytest.raises(ValueError, match="no adjust unit"):
        PackedChain(DSP48E1, 12)
    with pytest.raises(ValueError, match="cannot add C"):
        Dsp(DSP48E1, cascaded=True, corrected=True)
    with pytest.raises(ValueError, match="must be one of"):
        Cell(16, "dsp99", 8)


def chain(length):
    return ChainBench(PackedChain(DSP48E2, length, modelled=True), length), length, None


PLANTED = {
    "no borrow": (packed, "borrow", lambda high, low: high, lambda: chain(2)),
    "no overflow adjust": (packed, "adjust_points", lambda length: [], lambda: chain(12)),
    "adjust too late": (packed, "adjust_points", lambda length: [8], lambda: chain(12)),
    "Z-MUX stuck at the cascade": (
        PackedChain, "_operands", None, lambda: (ChainBench(joined(), 18), 18, 0)
    ),
}


def stuck_operands(self, m, k, dsp):
    OPERANDS(self, m, k, dsp)
    if k in self.nodes:
        m.d.comb += dsp.join.eq(1)


OPERANDS = PackedChain._operands


@pytest.mark.parametrize("error", PLANTED)
def test_a_planted_error_is_seen(rtl_cache, monkeypatch, error):
    where, name, value, make = PLANTED[error]
    monkeypatch.setattr(where, name, value or stuck_operands)
    bench, lanes, join = make()
    program = build({"planted_chain": Streamed(bench)}, rtl_cache)["planted_chain"]
    codes, x = corners(np.random.default_rng(1), COUNT, lanes)
    sums = found(program, chain_rows(codes, x, join=join))
    assert not np.array_equal(sums, sums_of(codes, x))
