"""Every operation against docs/number-formats.md on single numbers, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scalar_formats as scalar
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_quantized import random_tensor

from flightllm.models import integer_ops as ops
from flightllm.spec.quant import QuantTensor

torch.set_num_threads(1)

TINY = 2.0**-126
SPECIAL = [0.0, -0.0, TINY, -TINY, 2.0**-64, 1.0, -1.0, 127.0, 0.5, 1 / 3, 3e4, -3e4, 1e-20, 1e-30]
SEEDS = st.integers(0, 2**32 - 1)


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def bits(values: object) -> list[int]:
    """The bits of float32 values: -0 differs from +0."""
    return np.asarray(values, np.float32).view(np.int32).ravel().tolist()


def wide(rng: np.random.Generator, count: int, low: int = -40, high: int = 40) -> list[float]:
    """Random float32 values of either sign, exponents from low to high."""
    mantissa = rng.uniform(-1, 1, count)
    return (mantissa * 2.0 ** rng.integers(low, high, count)).astype(np.float32).tolist()


# --- rounding, special values ---


def test_flush_keeps_the_sign_and_the_smallest_normal() -> None:
    below = TINY - 2.0**-149
    given_values = [below, -below, TINY, -TINY, 2.0**-149, 0.0, -0.0, math.inf, -math.inf, 1.0]
    expected = [0.0, -0.0, TINY, -TINY, 0.0, 0.0, -0.0, math.inf, -math.inf, 1.0]
    assert bits(ops.flush(tensor(given_values))) == bits(expected)
    assert torch.isnan(ops.flush(tensor([math.nan]))).all()


def test_flush_follows_rounding() -> None:
    """A product just below 2^-126 that float32 rounds up to it stays."""
    product = ops.mul(tensor([1 - 2.0**-24]), tensor([TINY]))
    assert bits(product) == bits([TINY]) == bits([scalar.F((1 - 2.0**-24) * TINY)])


def test_to_fp16_saturates_and_keeps_subnormals() -> None:
    values = [65504.0, 65519.0, 65520.0, 1e9, 2.0**-24, 2.0**-25, 3 * 2.0**-26, 1.00048828125]
    expected = [65504.0, 65504.0, 65504.0, 65504.0, 2.0**-24, 0.0, 2.0**-24, 1.0]
    assert ops.to_fp16(tensor(values)).tolist() == expected == [scalar.half(v) for v in values]


def test_rint_takes_halves_to_even() -> None:
    assert ops.rint(tensor([0.5, 1.5, 2.5, -0.5, -1.5, 126.5])).tolist() == [0, 2, 2, 0, -2, 126]


@given(SEEDS, st.integers(1, 700))
def test_reduce(seed: int, count: int) -> None:
    values = wide(np.random.default_rng(seed), count, -20, 20)
    assert bits(ops.reduce(tensor(values))) == bits([scalar.reduce(values)])


@given(SEEDS, st.integers(0, 40), st.integers(1, 300), st.integers(0, 300))
def test_reduce_ignores_zeros_around(seed: int, blocks: int, count: int, behind: int) -> None:
    """Zeros behind change no bit, nor do whole accumulator rounds before."""
    values = wide(np.random.default_rng(seed), count)
    padded = [0.0] * (256 * (blocks // 16)) + values + [0.0] * behind
    assert bits(ops.reduce(tensor(padded))) == bits(ops.reduce(tensor(values)))


# --- table functions ---


TABLE_FUNCTIONS: dict[str, tuple[Callable, Callable, list[float], float]] = {
    "recip": (ops.recip, scalar.recip, [TINY, 1.0, 2 - 2.0**-23, 2.0**127, 2.0**126, 3e38], 2e-7),
    "rsqrt": (ops.rsqrt, scalar.rsqrt, [TINY, 1.0, 2.0, 4 - 2.0**-22, 2.0**127, 0.5], 2e-7),
    "exp": (
        ops.exp,
        scalar.exp,
        [0.0, -0.0, -1e-10, 1e-10, -87.3, -87.4, -103.9, -1e30, 88.0, 1e30, -0.6931472, 0.6931472],
        5e-6,
    ),
    "sigmoid": (ops.sigmoid, scalar.sigmoid, [0.0, -0.0, 20.0, -80.0, 1e9, -1e9, -87.4], 5e-6),
}
EXACT: dict[str, Callable] = {
    "recip": lambda x: 1 / x,
    "rsqrt": lambda x: x**-0.5,
    "exp": math.exp,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
}


@pytest.mark.parametrize("name", TABLE_FUNCTIONS)
def test_table_function_bits(name: str) -> None:
    ours, slow, special, _ = TABLE_FUNCTIONS[name]
    rng = np.random.default_rng(1)
    positive = name in ("recip", "rsqrt")
    spread = np.abs(wide(rng, 2000, -120, 127)) + TINY if positive else rng.normal(0, 30, 2000)
    values = tensor(special + spread.tolist()).tolist()
    assert bits(ours(tensor(values))) == bits([slow(v) for v in values])


@pytest.mark.parametrize("name", TABLE_FUNCTIONS)
def test_table_function_is_close_to_the_function(name: str) -> None:
    ours, _, _, bound = TABLE_FUNCTIONS[name]
    low, high = (0.01, 1000.0) if name in ("recip", "rsqrt") else (-80.0, 80.0)
    values = torch.linspace(low, high, 20001)
    exact = np.array([EXACT[name](float(v)) for v in values])
    assert np.max(np.abs(ours(values).numpy() / exact - 1)) < bound


# --- quantising ---


@given(SEEDS, st.integers(1, 300), st.sampled_from([7, 127]))
def test_quant(seed: int, count: int, qmax: int) -> None:
    values = wide(np.random.default_rng(seed), count, -8, 8)
    levels, largest = ops.quant(tensor([values]), qmax)
    assert (levels[0].tolist(), largest.item()) == scalar.quant(values, qmax)


@pytest.mark.parametrize("values", [[0.0, -0.0], [2.0**-70, -(2.0**-71)], SPECIAL, [1e30, 1.0]])
def test_quant_of_special_values(values: list[float]) -> None:
    values = tensor(values).tolist()
    levels, largest = ops.quant(tensor([values]), 127)
    assert (levels[0].tolist(), largest.item()) == scalar.quant(values, 127)
    _, scale = ops.quantise(tensor([values]))
    assert bits(scale) == bits([scalar.F(largest.item() * scalar.single(1 / 127))])


@given(SEEDS, st.integers(1, 300))
def test_norm_quant(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    x, gain = wide(rng, count, -6, 6), wide(rng, count, -2, 2)
    levels, scale = ops.norm_quant(tensor([x]), tensor(gain), 1e-5)
    slow_levels, slow_scale = scalar.norm_quant(x, gain, 1e-5)
    assert levels[0].tolist() == slow_levels
    assert bits(scale) == bits([slow_scale])


@pytest.mark.parametrize(("kv_bits", "qmax"), [(8, 127), (4, 7)])
def test_head_quant(kv_bits: int, qmax: int) -> None:
    heads = [wide(np.random.default_rng(s), 16, -3, 3) for s in range(20)]
    heads += [[0.0] * 16, [1e9] + [1.0] * 15]
    levels, scales = ops.head_quant(tensor(heads), kv_bits)
    for head, got, scale in zip(tensor(heads).tolist(), levels, scales):
        expected, a = scalar.quant(head, qmax)
        assert got.tolist() == expected
        assert scale.item() == scalar.half(scalar.F(a * scalar.single(1 / qmax)))


def test_query_quant_folds_the_root_of_head_dim() -> None:
    x = wide(np.random.default_rng(0), 32, -3, 3)
    levels, scale = ops.query_quant(tensor([x]))
    expected, a = scalar.quant(x, 127)
    assert levels[0].tolist() == expected
    assert bits(scale) == bits([scalar.F(a * scalar.single(1 / (127 * 32**0.5)))])


# --- linear ---

FORMS: list[dict] = [
    {},
    {"minima": True},
    {"kept": 8},
    {"kept": 4, "private": True, "minima": True},
    {"kept": 2, "minima": True},
    {"zeros": True},
    {"table": True},
]


def activations(
    rng: np.random.Generator, tokens: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    x = rng.integers(-127, 128, (tokens, columns)).astype(np.int8)
    return x, rng.uniform(1e-4, 1e-1, tokens).astype(np.float32)


def run_linear(x: np.ndarray, s: np.ndarray, weight: QuantTensor) -> list[int]:
    y = ops.linear(torch.from_numpy(x), torch.from_numpy(s), ops.GroupedWeight(weight))
    return bits(y)


def slow_linear(x: np.ndarray, s: np.ndarray, weight: QuantTensor) -> list[int]:
    return bits([
        [scalar.linear_row(row.tolist(), float(scale), weight, r) for r in range(weight.shape[0])]
        for row, scale in zip(x, s)
    ])


@given(
    SEEDS,
    st.sampled_from(FORMS),
    st.sampled_from([2, 3, 4, 5, 8]),
    st.sampled_from([32, 64, 128]),
    st.integers(2, 14),
)
def test_linear(seed: int, form: dict, width: int, group: int, sixteens: int) -> None:
    rng = np.random.default_rng(seed)
    width = min(width, 4) if form.get("table") else min(width, 7) if form.get("zeros") else width
    columns = 16 * sixteens - (0 if form.get("kept") else int(rng.integers(0, 16)))
    weight = random_tensor(rng, 5, columns, width, group, **form)
    x, s = activations(rng, 3, columns)
    assert run_linear(x, s, weight) == slow_linear(x, s, weight)


def test_linear_adds_bias_and_residual_last() -> None:
    rng = np.random.default_rng(5)
    weight = ops.GroupedWeight(random_tensor(rng, 6, 64))
    x, s = (torch.from_numpy(part) for part in activations(rng, 2, 64))
    plain, addend = ops.linear(x, s, weight), tensor(rng.normal(0, 1, (2, 6)))
    assert bits(ops.linear(x, s, weight, addend)) == bits(ops.add(plain, addend))
    assert bits(ops.linear(x, s, weight, addend[0])) == bits(ops.add(plain, addend[0]))


def test_linear_in_chunks_from_int8_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    weight = random_tensor(rng, 7, 172, minima=True)
    x, s = activations(rng, 11, 172)
    whole = run_linear(x, s, weight)
    monkeypatch.setattr(ops, "LINEAR_CHUNK", 100)
    monkeypatch.setattr(ops, "HELD_WEIGHTS", 0)
    assert run_linear(x, s, weight) == whole


def test_int_linear_is_exact_beyond_24_bits() -> None:
    """3000 products of 127 * 127 need 26 bits: the sum is rounded once, to even."""
    x = torch.full((1, 3000), 127, dtype=torch.int8)
    levels = torch.full((3000, 3), 127, dtype=torch.int8)
    levels[0], levels[1, 1], levels[1, 2] = -126, 126, 125
    sums = [127 * int(levels[:, j].to(torch.int64).sum()) for j in range(3)]
    assert min(sums) > 2**24 and any(scalar.single(v) != v for v in sums)
    got = ops.int_linear(x, levels, tensor([0.3]))
    assert bits(got) == bits([scalar.F(scalar.single(v) * scalar.single(0.3)) for v in sums])


# --- attention and activations ---


@given(SEEDS, st.integers(1, 3), st.integers(1, 40))
def test_scores(seed: int, tokens: int, keys: int) -> None:
    rng = np.random.default_rng(seed)
    q, q_scale = activations(rng, tokens, 16)
    k, k_scale = activations(rng, keys, 16)
    k_scale = k_scale.astype(np.float16)
    got = ops.scores(*(torch.from_numpy(part) for part in (q, q_scale, k, k_scale)))
    sums = q.astype(int) @ k.astype(int).T
    assert bits(got) == bits([
        [scalar.F(scalar.F(float(v) * float(ks)) * float(qs)) for v, ks in zip(row, k_scale)]
        for row, qs in zip(sums, q_scale)
    ])


@given(SEEDS, st.integers(1, 300), st.booleans())
def test_softmax_prob(seed: int, keys: int, windowed: bool) -> None:
    rng = np.random.default_rng(seed)
    score = tensor(rng.normal(0, 5, keys)).tolist()
    v_scale = np.abs(rng.normal(0, 0.02, keys)).astype(np.float16)
    first = int(rng.integers(0, keys)) if windowed else 0
    valid = [first <= t for t in range(keys)]
    prob, scale = ops.softmax_prob(
        tensor([score]), torch.from_numpy(v_scale), torch.tensor([valid])
    )
    slow_prob, slow_scale = scalar.softmax_prob(score, v_scale.astype(float).tolist(), valid)
    assert prob[0].tolist() == slow_prob
    assert bits(scale) == bits([slow_scale])


@pytest.mark.parametrize("v_scale", [[0.0, 0.0, 0.0], [0.0, 1e-7, 0.0], [65504.0, 1.0, 0.0]])
def test_softmax_prob_of_extreme_v_scales(v_scale: list[float]) -> None:
    halves = [scalar.half(v) for v in v_scale]
    score, valid = tensor([[1.0, -200.0, 90.0]]), [True, True, False]
    prob, scale = ops.softmax_prob(
        score, torch.tensor(halves, dtype=torch.float16), torch.tensor([valid])
    )
    slow_prob, slow_scale = scalar.softmax_prob(score[0].tolist(), halves, valid)
    assert prob[0].tolist() == slow_prob
    assert bits(scale) == bits([slow_scale])


def test_rope() -> None:
    rng = np.random.default_rng(2)
    x, angle = tensor(rng.normal(0, 1, (4, 3, 8))), rng.uniform(0, 6, (4, 4))
    cos, sin = tensor(np.cos(angle)), tensor(np.sin(angle))
    got = ops.rope(x, cos, sin)
    for t in range(4):
        for h in range(3):
            slow = scalar.rope(x[t, h].tolist(), cos[t].tolist(), sin[t].tolist())
            assert bits(got[t, h]) == bits(slow)


def test_activations() -> None:
    rng = np.random.default_rng(3)
    x = tensor(SPECIAL + [-87.34, 87.34, 200.0, -200.0] + rng.normal(0, 4, 500).tolist())
    up = tensor(rng.normal(0, 1, len(x)))
    pairs = list(zip(x.tolist(), up.tolist()))
    assert bits(ops.activation("silu", up, x)) == bits([scalar.silu(g, u) for g, u in pairs])
    assert bits(ops.activation("gelu", x)) == bits([scalar.gelu(v) for v, _ in pairs])
    assert bits(ops.activation("relu", x)) == bits([max(v, 0.0) + 0.0 for v, _ in pairs])


@pytest.mark.parametrize(("kind", "gate"), [("silu", False), ("relu", True), ("tanh", False)])
def test_activation_refuses_what_it_cannot_do(kind: str, gate: bool) -> None:
    x = torch.zeros(3)
    with pytest.raises(ValueError, match=f"activation: '{kind}' with"):
        ops.activation(kind, x, x if gate else None)


# --- planted errors: the comparison above must see each ---


def half_up(x: torch.Tensor) -> torch.Tensor:
    return torch.floor(x + 0.5)


def backwards(terms: torch.Tensor) -> torch.Tensor:
    total = torch.zeros_like(terms[0])
    for term in terms.flip(0):
        total = ops.add(total, term)
    return total


def at_once(terms: torch.Tensor) -> torch.Tensor:
    return terms.double().sum(0).float()


@pytest.mark.parametrize("error", [backwards, at_once])
def test_planted_order_of_groups_is_seen(monkeypatch: pytest.MonkeyPatch, error: Callable) -> None:
    rng = np.random.default_rng(7)
    weight = random_tensor(rng, 16, 172, minima=True)
    x, s = activations(rng, 4, 172)
    slow = slow_linear(x, s, weight)
    assert run_linear(x, s, weight) == slow
    monkeypatch.setattr(ops, "accumulate", error)
    assert run_linear(x, s, weight) != slow


def test_planted_fused_multiply_add_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    weight = random_tensor(rng, 16, 500, 8, 128)
    x, s = activations(rng, 4, 500)
    slow = slow_linear(x, s, weight)
    assert run_linear(x, s, weight) == slow
    monkeypatch.setattr(ops, "mul", lambda a, b: a.double() * b.double())
    monkeypatch.setattr(ops, "add", lambda a, b: ops.flush((a.double() + b.double()).float()))
    assert run_linear(x, s, weight) != slow


def test_planted_rounding_half_up_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [127.0] + [n + 0.5 for n in range(100)]
    slow, _ = scalar.quant(values, 127)
    assert ops.quant(tensor(values), 127)[0].tolist() == slow
    monkeypatch.setattr(ops, "rint", half_up)
    assert ops.quant(tensor(values), 127)[0].tolist() != slow


def test_planted_missing_flush_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    x, up = [-88.0, -60.0, 1e-30], [1e-3, 1e-20, 1e-12]
    slow = bits([scalar.silu(scalar.single(g), scalar.single(u)) for g, u in zip(x, up)])
    assert bits(ops.silu(tensor(x), tensor(up))) == slow
    monkeypatch.setattr(ops, "flush", lambda v: v)
    assert bits(ops.silu(tensor(x), tensor(up))) != slow


@pytest.mark.parametrize("error", [lambda v: v.sum(-1), lambda v: v.double().sum(-1).float()])
def test_planted_order_of_reduce_is_seen(error: Callable) -> None:
    values = tensor(wide(np.random.default_rng(9), 5000, -4, 4)).view(10, 500)
    slow = bits([scalar.reduce(row) for row in values.tolist()])
    assert bits(ops.reduce(values)) == slow
    assert bits(error(values)) != slow
