"""MISC of the functional simulator against the scalar statement of the number formats."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scalar_formats as formats
from hand_program import Bench, board, chain, program
from hypothesis import given
from hypothesis import strategies as st
from scalar_formats import F, single

from flightllm.spec.encoding import Op
from flightllm.spec.errors import VerifyError

pytest.importorskip("numba")

COUNT = st.integers(1, 3)


def _bench(op: Op, seed: int = 0) -> Bench:
    """A bench whose buffers hold random values, F of several magnitudes."""
    bench = Bench(program(board(), [chain([op])]))
    rng = np.random.default_rng(seed)
    bench.f()[:] = rng.normal(size=len(bench.f())) * 10.0 ** rng.integers(-3, 2, len(bench.f()))
    bench.a()[:] = rng.integers(-128, 128, len(bench.a()))
    return bench


def _check(bench: Bench, f: dict[int, list[float]], a: dict[int, list[int]] | None = None) -> None:
    """Run, and hold both buffers against what must have changed in them, address -> values."""
    floats, codes = bench.f().copy(), bench.a().copy()
    for at, values in f.items():
        floats[at : at + len(values)] = values
    for at, levels in (a or {}).items():
        codes[at : at + len(levels)] = levels
    bench.run()
    assert np.array_equal(bench.f().view(np.uint32), floats.view(np.uint32))
    assert np.array_equal(bench.a(), codes)


def _row(bench: Bench, at: int, n: int) -> list[float]:
    values: list[float] = bench.f()[at : at + n].tolist()
    return values


@given(st.integers(1, 40), COUNT)
def test_add(n: int, n1: int) -> None:
    bench = _bench(Op.make("misc.add", a=0, a1=50, b=200, b1=0, dst=1000, dst1=41, n=n, n1=n1))
    want = {
        1000 + 41 * i: [F(x + y) for x, y in zip(_row(bench, 50 * i, n), _row(bench, 200, n))]
        for i in range(n1)
    }
    _check(bench, want)


@given(st.integers(1, 70), COUNT, st.booleans())
def test_stat(n: int, n1: int, norm: bool) -> None:
    flags = ["norm"] if norm else []
    bench = _bench(Op.make("misc.stat", *flags, src=0, src1=80, n=n, n1=n1, gain=500, sums=700,
                           sums1=9, amax=900, amax1=3))  # fmt: skip
    want: dict[int, list[float]] = {}
    gain = _row(bench, 500, n) if norm else [1.0] * n
    for i in range(n1):
        x = _row(bench, 80 * i, n)
        want[900 + 3 * i] = [max(abs(F(v * g)) for v, g in zip(x, gain))]
        if norm:
            squares = [F(v * v) for v in x] + [0.0] * (-n % 16)
            want[700 + 9 * i] = [
                formats.pairs(squares[b : b + 16]) for b in range(0, len(squares), 16)
            ]
    _check(bench, want)


@given(st.integers(1, 70), COUNT, st.booleans(), st.integers(1, 3))
def test_quant(n: int, n1: int, norm: bool, parts: int) -> None:
    """Maxima and sums are what other cores would add: they need not be those of the row."""
    blocks, pad, eps = 21, n + 5, 1e-5
    flags = ["norm"] if norm else []
    bench = _bench(Op.make(
        "misc.quant", *flags, src=0, src1=80, n=n, n1=n1, gain=500, sums=600, sums1=blocks,
        blocks=blocks, amax=800, amax1=4, parts=parts, dst=30, dst1=pad + 1, pad=pad, scale=900,
        alpha=1 / 127, inv_n=1 / 336, eps=eps,
    ))  # fmt: skip
    bench.f()[600:812] = np.abs(bench.f()[600:812])
    floats: dict[int, list[float]] = {}
    codes: dict[int, list[int]] = {}
    for i in range(n1):
        x = _row(bench, 80 * i, n)
        if norm:
            x = [F(v * g) for v, g in zip(x, _row(bench, 500, n))]
        a = max(_row(bench, 800 + 4 * i, parts))
        inv = F(formats.recip(max(a, 2.0**-64)) * 127)
        levels = [formats.clamp(formats.rint(F(v * inv)), 127) for v in x]
        scale = F(a * single(1 / 127))
        if norm:
            sums = _row(bench, 600 + blocks * i, blocks)
            lanes = [0.0] * 16
            for b, value in enumerate(sums):
                lanes[b % 16] = F(lanes[b % 16] + value)
            total = formats.pairs(lanes)
            scale = F(scale * formats.rsqrt(F(F(total * single(1 / 336)) + single(eps))))
        floats[900 + i], codes[30 + (pad + 1) * i] = [scale], levels + [0] * (pad - n)
    _check(bench, floats, codes)


@given(st.sampled_from([8, 12, 64]), st.integers(1, 3), COUNT, st.booleans(), st.booleans(),
       st.booleans())  # fmt: skip
def test_headq(size: int, heads: int, n1: int, rope: bool, nibble: bool, half: bool) -> None:
    flags = [name for name, on in (("rope", rope), ("nibble", nibble), ("half", half)) if on]
    pad, qmax = size + 4, 7 if nibble else 127
    bench = _bench(Op.make(
        "misc.headq", *flags, src=0, src1=heads * size + 2, heads=heads, size=size, n1=n1, dst=40,
        dst1=heads * pad, pad=pad, rope=1000, rope1=size + 1, scale=2000, scale1=heads,
        alpha=1 / qmax,
    ))  # fmt: skip
    floats: dict[int, list[float]] = {}
    codes: dict[int, list[int]] = {}
    for t in range(n1):
        turn = _row(bench, 1000 + t * (size + 1), size)
        for h in range(heads):
            x = _row(bench, t * (heads * size + 2) + h * size, size)
            if rope:
                x = formats.rope(x, turn[: size // 2], turn[size // 2 :])
            levels, a = formats.quant(x, qmax)
            scale = F(a * single(1 / qmax))
            floats[2000 + t * heads + h] = [formats.half(scale) if half else scale]
            codes[40 + (t * heads + h) * pad] = levels + [0] * (pad - size)
    _check(bench, floats, codes)


@given(st.integers(0, 3), st.integers(1, 60), st.integers(1, 3), st.integers(1, 2),
       st.sampled_from([5, 40, 1 << 20]))  # fmt: skip
def test_softmax(block: int, more: int, n1: int, n2: int, window: int) -> None:
    """Tokens at the end of what `base`, a multiple of 32, and `length` hold; a window that does not
    bind leaves out what lies before `base`."""
    base = 32 * block
    bound = block and window < 100
    pos = max(base + more - 1, base + window - 1) if bound else base + more - 1
    length = pos + n1 - base
    padded = -(-length // 32) * 32
    bench = _bench(Op.make(
        "misc.softmax", src=0, src1=n2 * 200, src2=200, vscale=3000, dst=10, dst1=n2 * padded,
        dst2=padded, scale=4000, scale1=n2, scale2=1, n1=n1, n2=n2, length=length, base=base,
        pos=pos, window=window,
    ), more)  # fmt: skip
    scales = np.random.default_rng(more).random(length).astype(np.float16)
    bench.f()[3000 : 3000 + length] = scales
    floats: dict[int, list[float]] = {}
    codes: dict[int, list[int]] = {}
    for t in range(n1):
        p = pos + t
        valid = [max(base, p - window + 1) <= q <= p for q in range(base + length)]
        for h in range(n2):
            scores = [0.0] * base + _row(bench, (t * n2 + h) * 200, length)
            vscale = [0.0] * base + scales.astype(float).tolist()
            levels, factor = formats.softmax_prob(scores, vscale, valid)
            floats[4000 + t * n2 + h] = [factor]
            codes[10 + (t * n2 + h) * padded] = levels[base:] + [0] * (padded - length)
    _check(bench, floats, codes)


def test_softmax_refuses_scores_that_miss_a_token() -> None:
    common = {"src": 0, "src1": 0, "src2": 0, "vscale": 500, "dst": 0, "dst1": 0, "dst2": 0,
              "scale": 900, "scale1": 0, "scale2": 0, "n1": 1, "n2": 1}  # fmt: skip
    bench = _bench(Op.make("misc.softmax", **common, length=8, base=32, pos=40, window=5))
    with pytest.raises(VerifyError, match="positions 36 to 40 are needed, .* 32 to 39"):
        bench.run()


@pytest.mark.parametrize("kind", ["silu", "relu", "gelu"])
@given(st.integers(1, 30), COUNT)
def test_act(kind: str, n: int, n1: int) -> None:
    bench = _bench(Op.make("misc.act", kind, a=0, a1=30, b=200, b1=31, dst=400, dst1=33, n=n, n1=n1,
                           amax=900, amax1=2), n)  # fmt: skip
    want: dict[int, list[float]] = {}
    for i in range(n1):
        x, up = _row(bench, 30 * i, n), _row(bench, 200 + 31 * i, n)
        if kind == "silu":
            y = [formats.silu(a, b) for a, b in zip(x, up)]
        else:
            y = [formats.gelu(a) if kind == "gelu" else max(a, 0.0) for a in x]
        want[400 + 33 * i], want[900 + 2 * i] = y, [max(map(abs, y))]
    _check(bench, want)


def _pairs(bench: Bench, at: int, k: int) -> list[tuple[float, int]]:
    ids = bench.f().view(np.int32)[at + 1 : at + 2 * k : 2]
    return list(zip(bench.f()[at : at + 2 * k : 2].tolist(), ids.tolist()))


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.integers(1, 8))
def test_topk_takes_the_lower_id_among_equals(values: list[int], k: int) -> None:
    bench = _bench(Op.make("misc.topk", src=0, n=len(values), k=k, base=1000, dst=100))
    bench.f()[: len(values)] = values
    bench.run()
    ranked = sorted(zip(values, range(1000, 2000)), key=lambda pair: (-pair[0], pair[1]))[:k]
    missing = [(-math.inf, 2**31 - 1)] * (k - len(ranked))
    assert _pairs(bench, 100, k) == ranked + missing


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=30), st.integers(1, 4), st.integers(1, 4))
def test_topk_of_parts_merges_to_the_topk_of_the_whole(
    values: list[int], k: int, parts: int
) -> None:
    cuts = [len(values) * i // parts for i in range(parts + 1)]
    ops = [
        Op.make("misc.topk", src=a, n=b - a, k=k, base=a, dst=100 + 10 * i)
        for i, (a, b) in enumerate(zip(cuts, cuts[1:]))
    ]
    ops += [Op.make("misc.merge", src=100, stride=10, parts=parts, k=k, dst=300),
            Op.make("misc.topk", src=0, n=len(values), k=k, base=0, dst=400)]  # fmt: skip
    bench = Bench(program(board(), [chain(ops)]))
    bench.f()[: len(values)] = values
    bench.run()
    assert _pairs(bench, 300, k) == _pairs(bench, 400, k)


def test_a_not_a_number_ranks_last() -> None:
    bench = _bench(Op.make("misc.topk", src=0, n=4, k=2, base=0, dst=100))
    bench.f()[:4] = [np.nan, 1, np.nan, 2]
    bench.run()
    assert _pairs(bench, 100, 2) == [(2.0, 3), (1.0, 1)]
