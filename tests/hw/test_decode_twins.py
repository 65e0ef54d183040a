"""hw.decode with twin slices: what two cells get of a beat of narrow codes."""

import numpy as np
import pytest
from decode_cases import FIELDS, DecodeBench, command_row, expected, rows_of, slice_arrays, twins
from random_quantized import random_tensor

from flightllm.hw.decode import DecodeUnit, levels, unit, walker
from flightllm.sim.rtl.vectors import SimulationError, build
from flightllm.spec import formats
from flightllm.spec.formats import MatrixFormat, Second, format_for, pack_matrix

SHAPES = {"narrow": (16, 16), "wide": (64, 64)}
"""Beat bytes and lanes."""
FORMS = [
    {"bits": bits, "group": group} for bits in (2, 3, 4, 5, 8) for group in (32, 64, 128)
] + [
    {"bits": 4, "minima": True, "group": 64},
    {"bits": 3, "zeros": True, "group": 32},
    {"bits": 2, "table": True, "group": 128},
    {"bits": 4, "kept": 8, "group": 128},
    {"bits": 7, "kept": 8, "group": 64, "minima": True},
    {"bits": 5, "kept": 4, "group": 128},
    {"bits": 8, "kept": 4, "group": 32, "zeros": False},
    {"bits": 3, "kept": 2, "group": 32},
    {"bits": 3, "kept": 8, "private": True, "group": 32},
]  # fmt: skip


@pytest.fixture(scope="module", params=["narrow", pytest.param("wide", marks=pytest.mark.slow)])
def unit_of(request, rtl_cache):
    """(program, shape)."""
    shape = SHAPES[request.param]
    name = f"twin_{request.param}"
    return build({name: DecodeBench(DecodeUnit(*shape, twin=True))}, rtl_cache)[name], shape


def weights(rng, rows, columns, singles, **form):
    """(format, bytes, pairs, kgroups, table, singles) of a random matrix in one channel."""
    form = {name: value for name, value in form.items() if value}
    tensor = random_tensor(rng, rows, columns, **form)
    fmt, pairs = format_for(tensor), -(-rows // 2)
    data = pack_matrix(tensor, 1)[0]
    return fmt, data, pairs, formats.kgroups_for(columns, fmt.group), tensor.table, singles


def raw(rng, fmt, rows, kgroups):
    size = formats.stream_bytes(fmt, rows, kgroups, 1)[0]
    return fmt, rng.integers(0, 256, size).astype(np.uint8), -(-rows // 2), kgroups, None, 0


def run(program, shape, matrices, twin=True, **flow):
    """Whether every slice of the matrices is right, one after the other."""
    beat_bytes, k_lanes = shape
    rows, wanted = [], []
    for fmt, data, pairs, kgroups, table, singles in matrices:
        sums = fmt.second == Second.MINIMUM and fmt.kept < 16
        rows.append(command_row(
            fmt, pairs, kgroups, beat_bytes, sums, table, twin=twin, singles=singles
        ))  # fmt: skip
        rows.append(rows_of(data, beat_bytes))
        slices = expected(fmt, data, pairs, kgroups, k_lanes, table, sums)
        total = pairs * kgroups
        units = [pairs] * kgroups if fmt.whole else [
            min(16, total - at) for at in range(0, total, 16)
        ]
        coupled = total - singles * kgroups if twin else 0
        if not twin:
            fmt = MatrixFormat(8, 256)  # which is never coupled or joined
        wanted.append(twins(fmt, slices, k_lanes, units, coupled))
    count = sum(len(part["span"]) for part in wanted)
    words, _ = program.run(np.concatenate(rows), outputs=count, **flow)
    at = 0
    for part in wanted:
        size = len(part["span"])
        if not same(slice_arrays(words[at : at + size], k_lanes, True), part):
            return False
        at += size
    return True


def same(found, wanted):
    live, two = wanted["lanes"], wanted["couple"]
    checks = [
        np.array_equal(found[name], wanted[name].astype(int))
        for name in (*FIELDS, "codes", "couple", "join")
    ]
    checks.append(np.array_equal(found["picks"][live], wanted["picks"][live]))
    for name in ("scale", "second"):
        if name in wanted:
            checks.append(np.array_equal(found[name][:, 0], wanted[name][:, 0]))
            checks.append(np.array_equal(found[name][two], wanted[name][two]))
    return all(checks)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_twins_of_weights(unit_of, form):
    rng = np.random.default_rng(len(str(form)))
    matrices = [
        weights(rng, rows, columns, singles, **form)
        for rows, columns, singles in ((34, 256, 1), (2, 128, 1), (16, 416, 0), (32, 160, 8))
    ]
    for twin in (True, False):
        for idle, stall in ((0, 0), (30, 60)):
            assert run(*unit_of, matrices, twin, idle=idle, stall=stall, seed=idle)


def test_twins_of_keys_and_values(unit_of):
    assert run(*unit_of, cache(5), stall=20)


def cache(seed):
    rng = np.random.default_rng(seed)
    matrices = []
    for bits in (4, 8):
        for group in (16, 48, 64, 80, 128, 256):
            fmt = MatrixFormat(bits, group, second=Second.EMIT, cyclic=True, bytewise=bits == 4)
            matrices.append(raw(rng, fmt, int(rng.integers(1, 100)), 1))
        for rows in (2, 18, 7, 64):
            fmt = MatrixFormat(bits, 32, scale=False, whole=True)
            matrices.append(raw(rng, fmt, rows, int(rng.integers(1, 5))))
    return matrices


def first_codes_twice(m, bits, select, source, first, out):
    m.d.comb += out.eq(first)


def couple_everywhere(self, m, plan, pair, unit_end):
    return plan.couple


PLANTED = {
    "the second part repeats the first": (unit, "extract_next", first_codes_twice),
    "pairs of a last block share slices": (walker.Walker, "_couples", couple_everywhere),
    "windows of a second part are live without a couple": (
        unit, "live_blocks", lambda span, dense, couple, blocks, part: levels.live_blocks(
            span, dense, 1, blocks, part
        ),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("error", PLANTED)
def test_a_planted_error_is_seen(rtl_cache, monkeypatch, error):
    where, name, value = PLANTED[error]
    monkeypatch.setattr(where, name, value)
    bench = DecodeBench(DecodeUnit(*SHAPES["narrow"], twin=True))
    program = build({"planted_twin": bench}, rtl_cache)["planted_twin"]
    rng = np.random.default_rng(1)
    matrices = [
        weights(rng, 34, 256, 1, bits=2, group=32),
        weights(rng, 10, 96, 5, bits=4, group=32, kept=8),
    ]
    try:
        assert not run(program, SHAPES["narrow"], matrices + cache(2))
    except SimulationError:
        return
