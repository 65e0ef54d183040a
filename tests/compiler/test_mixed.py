"""Mixed widths: the optimum under the budget, and the rule for shapes."""

import itertools
import time

import numpy as np
import pytest
from random_checkpoint import random_config

from flightllm.compiler.mixed import (
    candidate_widths,
    matrix_sizes,
    mixed_widths_for_shapes,
    solve_widths,
)
from flightllm.models.config import ModelConfig, RopeConfig
from flightllm.spec.errors import InputError


def average(config: ModelConfig, widths: tuple[dict[str, int], ...]) -> float:
    sizes = matrix_sizes(config)
    return sum(size * widths[i][m] for (i, m), size in sizes.items()) / sum(sizes.values())


def test_candidates() -> None:
    assert candidate_widths(3.5) == (2, 3, 4, 5)
    assert candidate_widths(2.2) == (2, 3, 4)
    assert candidate_widths(7.5) == (6, 7, 8)


@pytest.mark.parametrize("seed", range(4))
def test_solver_finds_the_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    widths, sizes = (2, 3, 4, 5), rng.integers(1, 9, 5).tolist()
    losses = np.sort(rng.random((5, 4)), axis=1)[:, ::-1].copy()
    chosen = solve_widths(losses, sizes, widths, 3.4)

    def loss(pick: tuple[int, ...]) -> float:
        return float(sum(losses[i, widths.index(w)] for i, w in enumerate(pick)))

    allowed = [
        pick
        for pick in itertools.product(widths, repeat=5)
        if np.dot(pick, sizes) <= 3.4 * sum(sizes) + 1e-9
    ]
    assert tuple(chosen) in allowed
    assert loss(tuple(chosen)) == pytest.approx(min(map(loss, allowed)))


def test_more_bits_never_count_as_worse() -> None:
    """A measurement that says otherwise is noise."""
    losses = np.array([[0.1, 0.2, 0.3], [0.5, 0.4, 0.1]])
    assert solve_widths(losses, [1, 1], (2, 3, 4), 3)[1] == 4


def test_impossible_budget() -> None:
    with pytest.raises(InputError, match="no mixture of widths"):
        solve_widths(np.ones((2, 2)), [1, 1], (3, 4), 2.5)


def test_rule_for_shapes() -> None:
    llama2_7b = ModelConfig(
        family="llama", vocab=32000, dim=4096, layers=32, heads=32, kv_heads=32, head_dim=128,
        ffn_dim=11008, max_length=4096, rope=RopeConfig(),
    )  # fmt: skip
    start = time.perf_counter()
    widths = mixed_widths_for_shapes(llama2_7b, 3.5)
    assert time.perf_counter() - start < 1
    assert 3.49 < average(llama2_7b, widths) <= 3.5
    assert all(layer[m] == 4 for layer in widths for m in "qkvo")
    assert {layer[m] for layer in widths for m in ("gate", "up", "down")} == {3, 4}
    assert widths == mixed_widths_for_shapes(llama2_7b, 3.5)


@pytest.mark.parametrize("bits", [2.3, 3, 3.5, 6.9, 8])
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_rule_keeps_the_budget(bits: float, name: str) -> None:
    config = random_config(name)
    widths = mixed_widths_for_shapes(config, bits)
    assert len(widths) == config.layers
    assert ("gate" in widths[0]) == config.gated
    assert bits - 0.6 < average(config, widths) <= bits + 1e-9
    if bits == int(bits):
        assert {w for layer in widths for w in layer.values()} == {bits}
