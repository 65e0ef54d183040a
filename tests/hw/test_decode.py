"""hw.decode: every slice of every form against `spec.formats`, with random stalls on both sides."""

import functools
import itertools

import numpy as np
import pytest
from decode_cases import FIELDS, DecodeBench, command_row, expected, rows_of, slice_arrays
from long_lists import one_in
from random_quantized import random_tensor

from flightllm.hw.decode import DecodeUnit
from flightllm.sim.rtl.vectors import build
from flightllm.spec import formats
from flightllm.spec.formats import MatrixFormat, Second, format_for, pack_matrix

SHAPES = {"tiny": (16, 32), "wide": (64, 64), "narrow": (32, 16)}
"""Beat bytes and lanes."""
EACH = one_in(3, SHAPES)

BLOCKED = {
    **{f"w{bits}": {"bits": bits} for bits in range(2, 9)},
    "w3g128": {"bits": 3, "group": 128},
    "w4g64": {"bits": 4, "group": 64},
    "w7g128": {"bits": 7, "group": 128},
    "w8g128": {"bits": 8, "group": 128},
    "minima": {"bits": 4, "minima": True},
    "zeros": {"bits": 5, "zeros": True},
    "zeros7": {"bits": 7, "zeros": True, "group": 64},
    "table4": {"bits": 4, "table": True},
    "table2": {"bits": 2, "table": True, "group": 64},
    "sparse8": {"bits": 4, "kept": 8},
    "sparse8g128": {"bits": 8, "kept": 8, "group": 128},
    "sparse4": {"bits": 5, "kept": 4},
    "sparse4g128": {"bits": 3, "kept": 4, "group": 128},
    "sparse2": {"bits": 3, "kept": 2},
    "sparse2g128": {"bits": 8, "kept": 2, "group": 128},
    "private8": {"bits": 4, "kept": 8, "private": True},
    "private4": {"bits": 7, "kept": 4, "private": True, "group": 128},
    "private2": {"bits": 6, "kept": 2, "private": True, "group": 64},
    "private8-minima": {"bits": 8, "kept": 8, "private": True, "minima": True, "group": 128},
    "sparse4-table": {"bits": 3, "kept": 4, "table": True, "group": 64},
}


@pytest.fixture(scope="module")
def programs(rtl_cache):
    """`programs(shape)`, built when it is first asked for."""

    @functools.cache
    def make(shape):
        return build({shape: DecodeBench(DecodeUnit(*SHAPES[shape]))}, rtl_cache)[shape]

    return make


def blocked(rng, rows, columns, **form):
    """(format, bytes, pairs, kgroups, table) of a random matrix in one channel."""
    tensor = random_tensor(rng, rows, columns, **form)
    fmt = format_for(tensor)
    data = pack_matrix(tensor, 1)[0]
    return fmt, data, -(-rows // 2), formats.kgroups_for(columns, fmt.group), tensor.table


def raw(rng, fmt, rows, kgroups):
    """The same of random bytes in a cyclic or whole format."""
    size = formats.stream_bytes(fmt, rows, kgroups, 1)[0]
    return fmt, rng.integers(0, 256, size).astype(np.uint8), -(-rows // 2), kgroups, None


def check(program, shape, matrices, sums=False, **flow):
    """Run the matrices one after the other and compare every slice; gives cycles, beats, slices."""
    beat_bytes, k_lanes = shape
    rows, wanted, beats = [], [], 0
    for fmt, data, pairs, kgroups, table in matrices:
        rows.append(command_row(fmt, pairs, kgroups, beat_bytes, sums, table))
        rows.append(rows_of(data, beat_bytes))
        beats += len(rows[-1])
        wanted.append(expected(fmt, data, pairs, kgroups, k_lanes, table, sums))
    count = sum(len(part["span"]) for part in wanted)
    words, cycles = program.run(np.concatenate(rows), outputs=count, **flow)
    at = 0
    for part in wanted:
        size = len(part["span"])
        compare(slice_arrays(words[at : at + size], k_lanes), part)
        at += size
    return cycles, beats, count


def compare(found, wanted):
    for name in FIELDS:
        np.testing.assert_array_equal(found[name], wanted[name].astype(int), err_msg=name)
    np.testing.assert_array_equal(found["codes"], wanted["codes"])
    live = wanted["lanes"]
    np.testing.assert_array_equal(found["picks"][live], wanted["picks"][live])
    for name in ("scale", "second"):
        if name in wanted:
            np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


@pytest.mark.parametrize("shape", EACH)
@pytest.mark.parametrize("form", BLOCKED)
def test_slices_of_weights(programs, shape, form):
    rng = np.random.default_rng(len(form))
    options = BLOCKED[form]
    matrices = [
        blocked(rng, rows, columns, **options)
        for rows, columns in ((34, 256), (2, 128), (7, 144), (48, 128))
    ]
    for idle, stall in ((0, 0), (30, 0), (0, 60), (40, 40)):
        check(programs(shape), SHAPES[shape], matrices, idle=idle, stall=stall, seed=idle + stall)


@pytest.mark.parametrize("shape", EACH)
def test_slices_of_keys_and_values(programs, shape):
    rng = np.random.default_rng(5)
    matrices = []
    for bits in (4, 8):
        for group in (16, 48, 64, 80, 128, 256):
            fmt = MatrixFormat(
                bits, group, second=Second.EMIT, cyclic=True, bytewise=bits == 4
            )
            matrices.append(raw(rng, fmt, int(rng.integers(1, 100)), 1))
        for rows in (2, 18, 7, 64):
            fmt = MatrixFormat(bits, 32, scale=False, whole=True)
            matrices.append(raw(rng, fmt, rows, int(rng.integers(1, 5))))
    order = rng.permutation(len(matrices))
    for idle, stall in itertools.product((0, 40, 80), repeat=2):
        check(programs(shape), SHAPES[shape], [matrices[k] for k in order], idle=idle, stall=stall)


@pytest.mark.parametrize("shape", EACH[:2])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group, kept", [(32, 16), (64, 16), (128, 16), (32, 8), (128, 8)])
def test_a_beat_or_a_slice_a_cycle(programs, shape, bits, group, kept):
    """Both ends always willing: whichever of the two is the limit is kept busy."""
    rng = np.random.default_rng(bits)
    matrix = blocked(rng, 64, 512, bits=bits, group=group, kept=kept)
    cycles, beats, count = check(programs(shape), SHAPES[shape], [matrix])
    assert cycles <= 1.03 * max(beats, count) + 24
