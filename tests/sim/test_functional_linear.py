"""MM and MV of the functional simulator against the number formats, element by element."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hand_program import Bench, board, chain, program
from hypothesis import given
from hypothesis import strategies as st
from random_quantized import random_tensor
from scalar_formats import F, linear_row

from flightllm.spec import kvcache
from flightllm.spec.encoding import Op
from flightllm.spec.errors import VerifyError
from flightllm.spec.formats import ALIGN, format_for, kgroups_for, matrix_bytes, pack_matrix
from flightllm.spec.quant import QuantTensor

pytest.importorskip("numba")

FORMS: list[dict[str, Any]] = [
    {}, {"bits": 3}, {"bits": 8, "group": 64}, {"minima": True}, {"zeros": True, "bits": 5},
    {"table": True}, {"table": True, "bits": 2, "minima": True}, {"kept": 8}, {"kept": 2},
    {"kept": 4, "private": True}, {"kept": 8, "minima": True, "group": 64},
]  # fmt: skip


def _image(tensor: QuantTensor, channels: int) -> np.ndarray:
    fmt = format_for(tensor)
    groups = kgroups_for(tensor.shape[1], fmt.group)
    out = np.zeros((channels, matrix_bytes(fmt, tensor.shape[0], groups, channels)), np.uint8)
    for c, data in enumerate(pack_matrix(tensor, channels)):
        out[c, : len(data)] = data
    return out


def _tables(tensor: QuantTensor) -> list[int]:
    levels = [level & 255 for level in (tensor.table or ())]
    raw = bytes(levels + [0] * (16 - len(levels)))
    return [0, 0, *(int.from_bytes(raw[i : i + 4], "little") for i in range(0, 16, 4))]


def _run(tensor: QuantTensor, unit: str, n1: int, n2: int, add: bool, channels: int) -> None:
    rows, columns = tensor.shape
    fmt = format_for(tensor)
    groups = kgroups_for(columns, fmt.group)
    width = groups * fmt.group
    matrix = {"rows": rows, "kgroups": groups, "fmt": fmt.word, "first": 0, "start": 0}
    apart = {"src2": width + 16, "scale2": 3, "dst2": rows + 1, "n2": n2}
    if unit == "mm":
        apart |= {"src1": n2 * (width + 16), "scale1": 3 * n2, "dst1": n2 * (rows + 1), "n1": n1,
                  "add1": rows}  # fmt: skip
    flags = ["add"] if add else []
    ops = [
        Op.make("ld.stream", addr=1, **matrix),
        Op.make(f"{unit}.linear", *flags, src=7, scale=5, dst=2000, add=9000, emit=0, table=2,
                **matrix, **apart),
    ]  # fmt: skip
    bench = Bench(program(board([channels]), [chain(ops)], {"w": _image(tensor, channels)},
                          params=_tables(tensor)))  # fmt: skip
    rng = np.random.default_rng(rows)
    x = np.zeros((n1 * n2, width + 16), np.int8)
    x[:, :columns] = rng.integers(-127, 128, (n1 * n2, columns))
    bench.a()[7 : 7 + x.size] = x.reshape(-1)
    bench.f()[:] = rng.normal(size=len(bench.f()))
    before = bench.f().copy()
    bench.run()
    want = before.copy()
    for v in range(n1 * n2):
        for r in range(rows):
            y = linear_row(x[v, :columns].tolist(), float(before[5 + 3 * v]), tensor, r)
            if add:
                y = F(y + float(before[9000 + v // n2 * rows * (unit == "mm") + r]))
            want[2000 + v * (rows + 1) + r] = y
    assert np.array_equal(bench.f().view(np.uint32), want.view(np.uint32))


@given(st.sampled_from(FORMS), st.integers(1, 35), st.integers(1, 100), st.integers(1, 3),
       st.booleans())  # fmt: skip
def test_mv_linear(form: dict[str, Any], rows: int, columns: int, n2: int, add: bool) -> None:
    tensor = random_tensor(np.random.default_rng(rows), rows, columns, **form)
    _run(tensor, "mv", 1, n2, add, 2)


@given(st.sampled_from(FORMS), st.integers(1, 20), st.integers(1, 80), st.integers(1, 4),
       st.integers(1, 2), st.booleans(), st.integers(1, 4))  # fmt: skip
def test_mm_linear(form: dict[str, Any], rows: int, columns: int, n1: int, n2: int, add: bool,
                   channels: int) -> None:  # fmt: skip
    tensor = random_tensor(np.random.default_rng(rows), rows, columns, **form)
    _run(tensor, "mm", n1, n2, add, channels)


@given(st.integers(1, 3), st.sampled_from([4, 8]), st.integers(0, 3), st.integers(1, 70),
       st.integers(0, 2))  # fmt: skip
def test_scores_and_values_of_a_cached_head(
    channels: int, bits: int, first: int, rows: int, start: int
) -> None:
    """Streams from block `first` of K and V that st.keys and st.values wrote."""
    size, heads, end = 16, 3, 32 * first + rows
    key, value = kvcache.key_format(size, bits), kvcache.value_format(bits)
    blocks = -(-rows // 32)
    region = 12 * 1024
    k_base, v_base = 1, (64 + region + 64) // ALIGN
    keys = {"rows": rows, "kgroups": 1, "fmt": key.word, "first": first, "start": start}
    values = {"rows": size, "kgroups": blocks, "fmt": value.word, "first": first, "start": 0}
    stored = [
        Op.make("st.keys", addr=k_base, hstride=0, heads=1, fmt=key.word, pos=0, count=end,
                codes=0, codes1=size, kscale=0, vscale=500, scale1=1, start=start),
        Op.make("st.values", addr=v_base, hstride=0, heads=1, rows=size, fmt=value.word, pos=0,
                count=end, codes=10000, codes1=size, codes2=0),
    ]  # fmt: skip
    used = [
        Op.make("ld.stream", addr=k_base, **keys),
        Op.make("mv.linear", src=20000, src2=size, scale=1000, scale2=1, dst=2000, dst2=rows,
                add=0, n2=heads, emit=3000, table=0, **keys),
        Op.make("ld.stream", addr=v_base, **values),
        Op.make("mv.linear", src=30000, src2=blocks * 32, scale=1000, scale2=1, dst=4000, dst2=size,
                add=0, n2=heads, emit=0, table=0, **values),
    ]  # fmt: skip
    bench = Bench(program(board([channels]), [chain(stored + used)],
                          writable={"k": region, "v": region}))  # fmt: skip
    rng = np.random.default_rng(rows)
    top = 8 if bits == 4 else 128
    k, v = rng.integers(1 - top, top, (2, end, size)).astype(np.int8)
    q = rng.integers(-127, 128, (heads, size)).astype(np.int8)
    p = rng.integers(0, 128, (heads, blocks * 32)).astype(np.int8)
    p[:, rows:] = 0
    for at, part in ((0, k), (10000, v), (20000, q), (30000, p)):
        bench.a()[at : at + part.size] = part.reshape(-1)
    scales = rng.random((2, end)).astype(np.float16).astype(np.float32)
    factor = rng.random(heads).astype(np.float32)
    bench.f()[:end], bench.f()[500 : 500 + end], bench.f()[1000:1003] = *scales, factor
    bench.run()
    seen = slice(32 * first, end)
    for h in range(heads):
        for t in range(rows):
            isum = int(q[h].astype(int) @ k[32 * first + t].astype(int))
            want = F(F(isum * float(scales[0, 32 * first + t])) * float(factor[h]))
            assert bench.f()[2000 + h * rows + t] == np.float32(want)
        sums = p[h, :rows].astype(int) @ v[seen].astype(int)
        want = [F(float(np.float32(isum)) * float(factor[h])) for isum in sums.tolist()]
        assert np.array_equal(bench.f()[4000 + h * size :][:size], np.array(want, np.float32))
    assert np.array_equal(bench.f()[3000 : 3000 + rows], scales[1, seen])


@pytest.mark.parametrize("name", ["rows", "kgroups", "fmt", "first", "start"])
def test_another_matrix_in_the_fifo_is_an_error(name: str) -> None:
    tensor = random_tensor(np.random.default_rng(0), 20, 64)
    matrix = {"rows": 20, "kgroups": 2, "fmt": format_for(tensor).word, "first": 0, "start": 0}
    wrong = matrix | {name: matrix[name] + 1}
    ops = [
        Op.make("ld.stream", addr=1, **matrix),
        Op.make("mv.linear", src=0, src2=0, scale=0, scale2=0, dst=0, dst2=0, add=0, n2=1, emit=0,
                table=0, **wrong),
    ]  # fmt: skip
    bench = Bench(program(board(), [chain(ops)], {"w": _image(tensor, 2)}))
    with pytest.raises(VerifyError, match=f"mv.linear: {name}: .* the matrix in the weight FIFO"):
        bench.run()


def test_more_vectors_than_the_unit_takes_are_an_error() -> None:
    tensor = random_tensor(np.random.default_rng(0), 20, 64)
    matrix = {"rows": 20, "kgroups": 2, "fmt": format_for(tensor).word, "first": 0, "start": 0}
    ops = [
        Op.make("ld.stream", addr=1, **matrix),
        Op.make("mv.linear", src=0, src2=0, scale=0, scale2=0, dst=0, dst2=0, add=0, n2=9, emit=0,
                table=0, **matrix),
    ]  # fmt: skip
    bench = Bench(program(board(), [chain(ops)], {"w": _image(tensor, 2)}))
    with pytest.raises(VerifyError, match="n2: 9 vectors, the unit takes 8"):
        bench.run()


def test_a_cache_without_room_changes_nothing() -> None:
    tensor = random_tensor(np.random.default_rng(0), 20, 64)
    matrix = {"rows": 20, "kgroups": 2, "fmt": format_for(tensor).word, "first": 0, "start": 0}
    ops = [
        Op.make("ld.stream", addr=1, **matrix),
        Op.make("mv.linear", src=0, src2=0, scale=0, scale2=0, dst=100, dst2=0, add=0, n2=1,
                emit=0, table=0, **matrix),
    ]  # fmt: skip
    made = program(board(), [chain(ops)], {"w": _image(tensor, 2)})
    outs = []
    for cache in (0, 1 << 20):
        bench = Bench(made, cache_bytes=cache)
        bench.a()[:64] = np.arange(64)
        for _ in range(2):
            bench.f()[0] = 0.5
            bench.run()
        outs.append(bench.f()[100:120].copy())
        assert bool(bench.state().matrices._held) == bool(cache)
    assert np.array_equal(*outs) and outs[0].any()
