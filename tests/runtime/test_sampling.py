"""Temperature, nucleus and seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flightllm.runtime.sampling import Sampler
from flightllm.spec.errors import InputError

LOGITS = np.array([0.5, 2.0, -1.0, 2.0, 1.0], np.float32)


def test_without_temperature_nothing_is_drawn() -> None:
    assert Sampler().greedy
    assert not Sampler(0.1).greedy


def test_whole_vocabulary_at_top_p_one() -> None:
    ids, weights = Sampler(1.0).probabilities(LOGITS)
    assert ids.tolist() == [1, 3, 4, 0, 2]  # the lower id first among equals
    exact = np.exp(LOGITS.astype(np.float64))
    assert np.allclose(weights, np.sort(exact / exact.sum())[::-1], rtol=1e-14)


def test_token_that_crosses_top_p_is_kept() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2])).astype(np.float32)
    for top_p, kept in ((0.4, 1), (0.51, 2), (0.79, 2), (0.81, 3), (1.0, 3)):
        assert len(Sampler(1.0, top_p).probabilities(logits)[0]) == kept


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 5.0), st.floats(0.05, 1.0))
def test_nucleus_is_the_smallest_that_reaches_top_p(
    seed: int, temperature: float, top_p: float
) -> None:
    logits = np.random.default_rng(seed).standard_normal(40).astype(np.float32)
    ids, weights = Sampler(temperature, top_p).probabilities(logits)
    exact = np.exp(logits.astype(np.float64) / temperature)
    exact /= exact.sum()
    assert np.isclose(weights.sum(), 1)
    assert exact[ids].sum() >= top_p - 1e-9
    assert exact[ids[:-1]].sum() < top_p + 1e-9
    assert set(ids) == set(np.argsort(-exact)[: len(ids)])


def test_draws_follow_the_probabilities() -> None:
    sampler = Sampler(0.8, 1.0, seed=1)
    counts = np.bincount([sampler.draw(LOGITS) for _ in range(4000)], minlength=5) / 4000
    exact = np.exp(LOGITS.astype(np.float64) / 0.8)
    assert np.abs(counts - exact / exact.sum()).max() < 0.03


def test_low_temperature_is_greedy() -> None:
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    sampler = Sampler(1e-3, 1.0)
    assert {sampler.draw(logits) for _ in range(50)} == {1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((-0.1,), "temperature: -0.1"),
        ((float("nan"),), "temperature: nan"),
        ((float("inf"),), "temperature: inf"),
        ((1.0, 0.0), "top-p: 0.0"),
        ((1.0, 1.1), "top-p: 1.1"),
        ((1.0, 1.0, -1), "seed: -1"),
    ],
)
def test_wrong_values_are_refused(options: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampler(*options)
