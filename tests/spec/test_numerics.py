"""`spec.numerics` against the document restated on single numbers: support/scalar_formats.py."""

import warnings
from typing import Any

import numpy as np
import pytest
import scalar_formats as scalar
from hypothesis import given
from hypothesis import strategies as st

from flightllm.spec import numerics

F32 = np.float32
seeds = st.integers(0, 2**32)


def wide(rng: np.random.Generator, *shape: int, low: float = -60, high: float = 60) -> Any:
    """Both signs, exponents spread evenly over [low, high)."""
    return (rng.standard_normal(shape) * 2.0 ** rng.uniform(low, high, shape)).astype(F32)


def same_bits(a: Any, b: Any, dtype: Any = F32) -> bool:
    a, b = np.asarray(a), np.asarray(b, dtype)
    return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


def each(function: Any, *columns: Any) -> list[float]:
    return [function(*map(float, values)) for values in zip(*columns)]


@pytest.fixture(autouse=True)
def no_warning() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- single operations ---


def test_flush_keeps_the_sign_and_everything_else() -> None:
    edge = F32(2.0**-126)
    below = np.nextafter(edge, F32(0))
    x = np.array([edge, -edge, below, -below, 0.0, -0.0, 1e-45, -1e-45, np.inf, -np.inf, 3.5], F32)
    expected = [edge, -edge, 0.0, -0.0, 0.0, -0.0, 0.0, -0.0, np.inf, -np.inf, 3.5]
    assert same_bits(numerics.flush(x), expected)
    assert np.isnan(numerics.flush(np.array([np.nan], F32))).all()


@given(seeds)
def test_add_mul_sub(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = wide(rng, 200, low=-70), wide(rng, 200, low=-70)
    close = (a * rng.choice(np.array([1.0, 1.0000001, 0.9999999], F32), 200)).astype(F32)
    tiny = (a * F32(2.0**-50)).astype(F32)
    near = (close * F32(2.0**-50)).astype(F32)
    assert same_bits(numerics.mul(a, b), each(lambda x, y: scalar.F(x * y), a, b))
    assert same_bits(numerics.add(a, b), each(lambda x, y: scalar.F(x + y), a, b))
    assert same_bits(numerics.sub(tiny, near), each(lambda x, y: scalar.F(x - y), tiny, near))


def test_overflow_is_silent() -> None:
    big = np.array([3e38], F32)
    assert numerics.mul(big, big) == np.inf
    assert np.isnan(numerics.sub(np.array([np.inf], F32), np.array([np.inf], F32))).all()
    levels, a = numerics.quant(np.array([1.0, np.inf, -np.inf, np.nan], F32))
    assert levels.dtype == np.int8 and np.isnan(a)


@given(seeds)
def test_conversions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.concatenate([wide(rng, 100, low=-30, high=20), F32([65504, 65520, 1e9, -1e9, 0])])
    assert same_bits(numerics.to_fp16(x), each(scalar.half, x), np.float16)
    integers = rng.integers(-(2**31), 2**31, 100).astype(np.int32)
    assert same_bits(numerics.int_to_float(integers), each(scalar.single, integers))


# --- sums ---


@given(seeds, st.integers(1, 700), st.booleans())
def test_reduce(seed: int, n: int, positive: bool) -> None:
    rng = np.random.default_rng(seed)
    v = wide(rng, 2, n, low=-130, high=-110)
    v = np.abs(v) if positive else v
    v = numerics.flush(v)
    assert same_bits(numerics.reduce_sum(v), [scalar.reduce(row.tolist()) for row in v])
    assert same_bits(numerics.reduce_blocks(numerics.block_sums(v)), numerics.reduce_sum(v))
    assert same_bits(numerics.reduce_sum(v.T, axis=0), numerics.reduce_sum(v))


@given(seeds, st.integers(1, 300), st.integers(0, 600))
def test_reduce_goes_by_absolute_index(seed: int, n: int, start: int) -> None:
    v = wide(np.random.default_rng(seed), 3, n)
    whole = np.zeros((3, start + n + 40), F32)
    whole[:, start : start + n] = v
    assert same_bits(numerics.reduce_sum(v, start=start), numerics.reduce_sum(whole))
    blocks = numerics.block_sums(v, start)
    assert same_bits(numerics.reduce_blocks(blocks, start // 16), numerics.reduce_sum(whole))


def test_reduce_order_matters() -> None:
    v = wide(np.random.default_rng(0), 500, 300, low=-2, high=2)
    shifted = numerics.reduce_sum(v, start=16 * 3 + 5)
    assert np.allclose(shifted, numerics.reduce_sum(v), atol=1e-3)
    assert not same_bits(shifted, numerics.reduce_sum(v))
    assert not same_bits(v.sum(-1), numerics.reduce_sum(v))


# --- table functions ---


def edges() -> Any:
    """Both ends of every table segment at the lowest, a middle and the highest exponent."""
    fractions = np.arange(128, dtype=np.int64)[:, None] * 65536 + np.array([0, 1, 32768, 65535])
    exponents = np.array([1, 2, 126, 127, 128, 253, 254])[:, None, None] << 23
    return (exponents + fractions).astype(np.uint32).view(F32).ravel()


@given(seeds)
def test_recip_and_rsqrt(seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0x00800000, 0x7F800000, 500)
    x = bits.astype(np.uint32).view(F32)
    assert same_bits(numerics.recip(x), each(scalar.recip, x))
    assert same_bits(numerics.rsqrt(x), each(scalar.rsqrt, x))


def test_recip_and_rsqrt_at_the_edges() -> None:
    assert same_bits(numerics.recip(edges()), each(scalar.recip, edges()))
    assert same_bits(numerics.rsqrt(edges()), each(scalar.rsqrt, edges()))


@given(seeds)
def test_exp_and_sigmoid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.uniform(-110, 95, 300), wide(rng, 100, low=-140, high=3)]).astype(F32)
    assert same_bits(numerics.exp(x), each(scalar.exp, x))
    assert same_bits(numerics.sigmoid(x), each(scalar.sigmoid, x))


def test_exp_at_the_edges() -> None:
    steps = np.arange(-151 * 128, 127 * 128)[:, None] + np.array([-1e-5, 0, 1e-5])
    x = np.concatenate([(steps / 128 * np.log(2)).ravel(), [-1e-45, 1e-45, 0.0, -0.0, -2e-38]])
    x = x.astype(F32)[::5]
    assert same_bits(numerics.exp(x), each(scalar.exp, x))
    assert numerics.exp(np.array([-np.inf, np.inf], F32))[0] == 0


def errors(result: Any, exact: Any) -> Any:
    """Errors in units of the last place of the exact result."""
    place = 2.0 ** (np.floor(np.log2(exact)) - 23)
    return np.abs(result.astype(np.float64) - exact) / place


def test_accuracy() -> None:
    """The figures that the module's docstring states."""
    m = 1 + np.arange(0, 1 << 23, 5) / (1 << 23)
    one, two = m.astype(F32), (2 * m).astype(F32)
    assert errors(numerics.recip(one), 1 / m).max() <= 1.13
    assert errors(numerics.rsqrt(one), 1 / np.sqrt(m)).max() <= 1.04
    assert errors(numerics.rsqrt(two), 1 / np.sqrt(2 * m)).max() <= 1.04
    for limit, allowed in ((1, 1.6e-7), (10, 5.7e-7), (87, 3.9e-6)):
        x = np.linspace(-limit, limit, 500001).astype(F32)
        exact = np.exp(x.astype(np.float64))
        assert (np.abs(numerics.exp(x) - exact) / exact).max() <= allowed


def test_exact_values() -> None:
    assert numerics.recip(F32(1)) == 1 and numerics.rsqrt(F32(4)) == 0.5
    assert numerics.exp(F32(0)) == 1 and numerics.sigmoid(F32(0)) == 0.5
    assert isinstance(numerics.recip(F32(3)), np.float32)


# --- quantising ---


@given(seeds, st.integers(1, 70), st.sampled_from([127, 7]))
def test_quant(seed: int, n: int, qmax: int) -> None:
    rng = np.random.default_rng(seed)
    x = wide(rng, 6, n) * (2.0 ** rng.uniform(-60, 60, (6, 1))).astype(F32)
    x = numerics.flush(x)
    x[0] = 0
    levels, a = numerics.quant(x, qmax)
    expected = [scalar.quant(row.tolist(), qmax) for row in x]
    assert same_bits(levels, [q for q, _ in expected], np.int8)
    assert same_bits(a, [largest for _, largest in expected])
    assert same_bits(numerics.quant_levels(x, a, qmax), levels, np.int8)
    again, scale = numerics.quantise(x)
    assert same_bits(scale, each(lambda v: scalar.F(v * scalar.single(1 / 127)), a))
    assert qmax != 127 or same_bits(again, levels, np.int8)


@given(seeds, st.integers(1, 400))
def test_norm_quant(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    x, gain = wide(rng, 3, n, low=-70, high=10), wide(rng, n, low=-70, high=3)
    levels, scale = numerics.norm_quant(x, gain, 1e-5)
    expected = [scalar.norm_quant(row.tolist(), gain.tolist(), 1e-5) for row in x]
    assert same_bits(levels, [q for q, _ in expected], np.int8)
    assert same_bits(scale, [s for _, s in expected])
    a = np.abs(numerics.mul(x, gain)).max(-1)
    sums = numerics.reduce_sum(numerics.mul(x, x))
    assert same_bits(numerics.norm_scale(a, sums, F32(1 / n), F32(1e-5)), scale)
    assert same_bits(numerics.norm_quant(x[0], gain, 1e-5)[1], scale[0])


@given(seeds, st.integers(1, 32), st.booleans())
def test_heads(seed: int, half_size: int, half: bool) -> None:
    rng = np.random.default_rng(seed)
    x = wide(rng, 3, 2, 2 * half_size, low=-20, high=5)
    cos, sin = wide(rng, 3, half_size, low=-3, high=0), wide(rng, 3, half_size, low=-130, high=0)
    cos, sin = numerics.flush(cos), numerics.flush(sin)
    turned = numerics.rope(x, cos[:, None], sin[:, None])
    expected = [
        [scalar.rope(head.tolist(), c.tolist(), s.tolist()) for head in token]
        for token, c, s in zip(x, cos, sin)
    ]
    assert same_bits(turned, expected)
    alpha = numerics.I7 if half else numerics.query_alpha(2 * half_size)
    qmax = 7 if half else 127
    levels, scale = numerics.head_quant(turned, alpha, qmax, half)
    for index in np.ndindex(3, 2):
        q, a = scalar.quant(turned[index].tolist(), qmax)
        wanted = scalar.F(a * float(alpha))
        assert same_bits(levels[index], q, np.int8)
        assert same_bits(scale[index], scalar.half(wanted) if half else wanted)


# --- softmax and activations ---


@given(seeds, st.integers(1, 90), st.integers(0, 20), st.integers(1, 100))
def test_softmax(seed: int, n: int, block: int, window: int) -> None:
    rng = np.random.default_rng(seed)
    first = 32 * block
    scores = wide(rng, 3, 2, n, low=-4, high=5)
    vscale = np.abs(wide(rng, n, low=-12, high=3)).astype(np.float16).astype(F32)
    hi = first + rng.integers(1, n + 1, 3)
    lo = np.maximum(np.maximum(hi - window, 0), first)
    outside = first + np.arange(n) >= hi.max()
    vscale[outside] = np.nan
    scores[..., outside] = np.inf
    prob, factor = numerics.softmax_prob(scores, vscale, first, lo[:, None], hi[:, None])
    padded = [0.0] * first
    for t, h in np.ndindex(3, 2):
        valid = [False] * first + [bool(lo[t] <= first + i < hi[t]) for i in range(n)]
        values = padded + np.nan_to_num(scores[t, h], posinf=0.0).tolist()
        scales = padded + np.nan_to_num(vscale).tolist()
        q, c = scalar.softmax_prob(values, scales, valid)
        assert same_bits(prob[t, h], q[first:], np.int8)
        assert same_bits(factor[t, h], c)


def test_softmax_of_valid_columns_alone() -> None:
    rng = np.random.default_rng(0)
    scores, vscale = wide(rng, 4, 100, low=-2, high=3), np.abs(wide(rng, 100, low=-2, high=0))
    whole = numerics.softmax_prob(scores, vscale, 0, 32, 64)
    cut = numerics.softmax_prob(scores[:, 32:64], vscale[32:64], 32, 0, 64)
    assert same_bits(cut[0], whole[0][:, 32:64], np.int8) and same_bits(cut[1], whole[1])
    assert not whole[0][:, :32].any() and not whole[0][:, 64:].any()


@given(seeds)
def test_activations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, up = wide(rng, 100, low=-40, high=6), wide(rng, 100, low=-120, high=6)
    assert same_bits(numerics.activation("silu", x, up), each(scalar.silu, x, up))
    assert same_bits(numerics.activation("gelu", x), each(scalar.gelu, x))
    assert same_bits(numerics.activation("relu", x), each(lambda v: max(v, 0.0), x))


def test_relu_of_minus_zero_and_unknown_activations() -> None:
    assert same_bits(numerics.relu(np.array([-0.0, -1.0], F32)), [0.0, 0.0])
    x = np.ones(2, F32)
    for arguments in (("silu", x), ("relu", x, x), ("tanh", x)):
        with pytest.raises(ValueError, match="activation"):
            numerics.activation(*arguments)


# --- linear ---


@given(seeds, st.integers(1, 100), st.sampled_from(["plain", "minima", "sparse"]))
def test_linear(seed: int, columns: int, mode: str) -> None:
    from flightllm.spec.quant import QuantTensor

    rng = np.random.default_rng(seed)
    rows, vectors, group = 6, 2, 32
    columns = -(-columns // 16) * 16 if mode == "sparse" else columns
    groups = -(-columns // group)
    levels = rng.integers(-127, 128, (rows, columns)).astype(np.int8)
    scales, minima = (wide(rng, rows, groups, low=-8, high=8).astype(np.float16) for _ in "ab")
    mask = None
    if mode == "sparse":
        mask = np.tile(np.arange(16) % 2 == 0, (rows, columns // 16))
        levels = levels * mask
    tensor = QuantTensor(
        levels, scales, 8, group, minima=None if mode == "plain" else minima,
        kept=16 if mask is None else 8, mask=mask,
    )  # fmt: skip
    x = rng.integers(-127, 128, (vectors, columns)).astype(np.int8)
    s, addend = np.abs(wide(rng, vectors)), wide(rng, vectors, rows)
    offsets = None if tensor.minima is None else minima.astype(F32)
    acc = numerics.accumulate(x, levels, scales.astype(F32), group, offsets, mask)
    expected = [
        [scalar.linear_row(x[v].tolist(), float(s[v]), tensor, r) for r in range(rows)]
        for v in range(vectors)
    ]
    y = numerics.linear(acc, s)
    assert same_bits(y, expected)
    assert same_bits(numerics.linear(acc, s, addend), numerics.add(y, addend))


def test_int_linear() -> None:
    isum = np.array([[16777217, -3, 0]], np.int32)
    assert same_bits(numerics.int_linear(isum, F32([2.0])), [[33554432.0, -6.0, 0.0]])


# --- the oracle can fail ---


@pytest.mark.parametrize("table", ["RECIP", "RSQRT", "EXP"])
def test_a_planted_bit_in_a_table_is_caught(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from flightllm.spec import sfu_tables

    function = {"RECIP": "recip", "RSQRT": "rsqrt", "EXP": "exp"}[table]
    x = np.linspace(1.0, 4.0, 2000).astype(F32)
    right = each(getattr(scalar, function), x)
    assert same_bits(getattr(numerics, function)(x), right)
    wrong = getattr(sfu_tables, table).copy()
    wrong.view(np.uint32)[5, 0] ^= 1
    monkeypatch.setattr(sfu_tables, table, wrong)
    assert not same_bits(getattr(numerics, function)(x), right)


def test_a_missing_flush_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    x, up = wide(rng, 200, low=-40, high=6), wide(rng, 200, low=-130, high=-110)
    right = each(scalar.silu, x, up)
    assert same_bits(numerics.silu_mul(x, up), right)
    monkeypatch.setattr(numerics, "_flush", lambda v: v)
    assert not same_bits(numerics.silu_mul(x, up), right)
