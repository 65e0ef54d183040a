"""hw.decode: row-wise and ones slices, refused commands, and planted errors."""

import functools

import numpy as np
import pytest
from amaranth.hdl import Cat, Const
from decode_cases import DecodeBench, command_row, expected, rows_of, slice_arrays
from long_lists import one_in
from random_quantized import random_tensor

from flightllm.hw.decode import DecodeUnit, plan, ring, sections, unit
from flightllm.sim.rtl.vectors import SimulationError, build
from flightllm.spec.formats import MatrixFormat, format_for, kgroups_for, pack_matrix

# Constructors that refuse leave an object behind.
pytestmark = pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")

SHAPE = (16, 16)


@pytest.fixture(scope="module")
def programs(rtl_cache):
    """`programs(name)`, built when it is first asked for."""

    @functools.cache
    def make(name):
        bench = DecodeBench(DecodeUnit(*SHAPE, full_pairs=name == "decode_pairs"))
        return build({name: bench}, rtl_cache)[name]

    return make


def run(program, tensors, shape=SHAPE, sums=False, full_pairs=True, extra=(), **flow):
    """(slices found, slices wanted, cycles, beats) of some matrices; `extra` rows come first."""
    rows, wanted, beats = list(extra), [], 0
    for tensor in tensors:
        fmt, data = format_for(tensor), pack_matrix(tensor, 1)[0]
        pairs, kgroups = -(-tensor.shape[0] // 2), kgroups_for(tensor.shape[1], fmt.group)
        rows += [command_row(fmt, pairs, kgroups, shape[0], sums, tensor.table)]
        rows += [rows_of(data, shape[0])]
        beats += len(rows[-1])
        wanted.append(
            expected(fmt, data, pairs, kgroups, shape[1], tensor.table, sums, full_pairs)
        )
    count = sum(len(part["span"]) for part in wanted)
    words, cycles = program.run(np.concatenate(rows), outputs=count, **flow)
    joined = {
        name: np.concatenate([part[name] for part in wanted])
        for name in wanted[0]
        if all(name in part for part in wanted)
    }
    return slice_arrays(words, shape[1]), joined, cycles, beats


def same(found, wanted):
    live = wanted.pop("lanes")
    picks = wanted.pop("picks")
    return np.array_equal(found["picks"][live], picks[live]) and all(
        np.array_equal(found[name], part.astype(found[name].dtype)) for name, part in wanted.items()
    )


def mixture(seed):
    rng = np.random.default_rng(seed)
    return [
        random_tensor(rng, 10, 96, 8),
        random_tensor(rng, 7, 64, 4, table=True),
        random_tensor(rng, 6, 64, 3),
        random_tensor(rng, 6, 64, 4, kept=8, minima=True),
        random_tensor(rng, 4, 64, 2, table=True),
        random_tensor(rng, 9, 128, 5, zeros=True, group=64),
        random_tensor(rng, 9, 128, 8, kept=4, private=True),
        random_tensor(rng, 6, 64, 6, kept=2, private=True),
    ]


@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize("name", one_in(2, ["decode_pairs", "decode_rows"]))
def test_rows_and_ones_go_out_in_turn(programs, name, sums):
    full = name == "decode_pairs"
    for idle, stall in ((0, 0), (30, 30)):
        found, wanted, _, _ = run(
            programs(name), mixture(1), sums=sums, full_pairs=full, idle=idle, stall=stall
        )
        assert same(found, wanted)


def test_a_matrix_without_rows_gives_no_slice(programs):
    fmt = MatrixFormat(4, 32)
    extra = [command_row(fmt, 0, 3, SHAPE[0]), command_row(fmt, 3, 0, SHAPE[0])]
    assert same(*run(programs("decode_pairs"), mixture(2), extra=extra)[:2])


@pytest.mark.parametrize("fmt", [
    {"bits": 1}, {"bits": 9}, {"group": 0}, {"group": 17 * 16}, {"group": 48, "kept": 8},
    {"group": 256, "kept": 8, "private": True}, {"kept": 8, "indices": True},
    {"bits": 5, "table": True}, {"whole": True, "scale": True}, {"bits": 8, "bytewise": True},
], ids=str)  # fmt: skip
def test_formats_that_nobody_packs_are_dropped(programs, fmt):
    values = {"bits": 4, "group": 32, "kept": 16} | fmt
    word, at = 0, 0
    for name, bits in MatrixFormat.fields():
        value = int(values.get(name, 0))
        value = value // 16 if name == "group" else value
        value = (16, 2, 4, 8).index(value) if name == "kept" else value
        word |= value << at
        at += bits
    extra = [command_row(MatrixFormat(4, 32), 2, 2, SHAPE[0], word=word)]
    assert same(*run(programs("decode_pairs"), mixture(3)[:2], extra=extra)[:2])


@pytest.mark.parametrize("shape", [(16, 24), (16, 64), (48, 32), (16, 8)])
def test_impossible_sizes_are_refused(shape):
    with pytest.raises(ValueError, match="must be"):
        DecodeUnit(*shape)


def no_sign(m, store, codes, *others):
    return LEVELS(m, store, [[code & 0x7F for code in row] for row in codes], *others)


def unaligned(head, offset, k_lanes):
    return ALIGN(head, Cat(offset[:3], Const(0, 1)), k_lanes)


def one_bank(self, m, complete):
    m.d.sync += self.headers.eq(self.headers + complete - self.freed)


LEVELS, ALIGN = unit.levels, ring.align
PLANTED = {
    "codes lose their sign": (unit, "levels", no_sign),
    "the gear box forgets half a beat": (unit, "align", unaligned),
    "headers overwrite each other": (sections.Sections, "_headers", one_bank),
    "zero points are ignored": (plan, "Second", type("Wrong", (), {"ZERO": 3})),
}


@pytest.mark.parametrize("error", one_in(4, PLANTED))
def test_a_planted_error_is_seen(rtl_cache, monkeypatch, error):
    where, name, value = PLANTED[error]
    monkeypatch.setattr(where, name, value)
    program = build({"planted": DecodeBench(DecodeUnit(*SHAPE))}, rtl_cache)["planted"]
    try:
        found, wanted, _, _ = run(program, mixture(1), stall=70)
    except SimulationError:
        return
    assert not same(found, wanted)
