"""The Kneser-Ney baseline is a probability model and agrees with one written from the equations."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flightllm.models.ngram import NgramModel

SYMBOLS = 6
END = 0
DOCUMENTS = st.lists(
    st.lists(st.integers(1, SYMBOLS - 1), min_size=1, max_size=30), min_size=1, max_size=6
)


def plain_probability(
    documents: list[list[int]], order: int, context: tuple[int, ...], symbol: int
) -> float:
    """Interpolated modified Kneser-Ney, one n-gram at a time, from Chen and Goodman's equations."""
    grams: Counter[tuple[int, ...]] = Counter()
    for document in documents:
        text = [END] * (order - 1) + document + [END]
        grams.update(tuple(text[i : i + order]) for i in range(len(text) - order + 1))
    tables = {order: grams}
    for n in range(order - 1, 0, -1):
        tables[n] = Counter(gram[1:] for gram in tables[n + 1])
    result = 1 / SYMBOLS
    for n in range(1, order + 1):
        table = tables[n]
        n1, n2, n3, n4 = (max(sum(c == k for c in table.values()), 1) for k in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        raw = [0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
        discount = [min(max(value, 0.05 * k), 0.95 * k) for k, value in enumerate(raw)]
        here = context[len(context) - n + 1 :]
        after = {gram[-1]: count for gram, count in table.items() if gram[:-1] == here}
        if after:
            total = sum(after.values())
            left = sum(discount[min(count, 3)] for count in after.values()) / total
            count = after.get(symbol, 0)
            result = (count - discount[min(count, 3)]) / total + left * result
    return result


@given(DOCUMENTS, st.integers(1, 4), st.data())
def test_equals_the_equations(documents: list[list[int]], order: int, data: st.DataObject) -> None:
    context = data.draw(st.tuples(*[st.integers(0, SYMBOLS - 1)] * (order - 1)))
    found = NgramModel(documents, SYMBOLS, END, order).distributions(np.array([context]))[0]
    expected = [plain_probability(documents, order, context, s) for s in range(SYMBOLS)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert math.isclose(found.sum(), 1, rel_tol=1e-5)
    assert (found > 0).all()


def test_planted_error_is_caught() -> None:
    documents = [[1, 2, 1, 3, 1, 2, 4], [2, 1, 2]]
    model = NgramModel(documents, SYMBOLS, END, 3)
    model._orders[1].backoff[:] *= 1.01
    assert not math.isclose(model.distributions(np.array([[1, 2]])).sum(), 1, rel_tol=1e-4)


def test_bits_of_a_document_are_those_of_its_symbols_and_its_end() -> None:
    documents = [[1, 2, 1, 3], [2, 1, 2]]
    model = NgramModel(documents, SYMBOLS, END, 3)
    text = [END, END, 1, 3, END]
    table = model.distributions(np.array([text[i - 2 : i] for i in range(2, len(text))]))
    steps = table[np.arange(3), text[2:]]
    assert math.isclose(model.bits([1, 3]), -np.log2(steps).sum(), rel_tol=1e-5)


def test_known_text_costs_less_than_unknown() -> None:
    model = NgramModel([[1, 2, 3, 4] * 10], SYMBOLS, END)
    assert model.bits([1, 2, 3, 4] * 3) < model.bits([4, 2, 5, 1] * 3) / 3


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="exceed 63 bits"):
        NgramModel([[1]], 1 << 13, 0, 5)
    with pytest.raises(ValueError, match="at least one"):
        NgramModel([], 4, 0)
    with pytest.raises(ValueError, match="4 symbols, not 1"):
        NgramModel([[1]], 4, 0).distributions(np.array([[1]]))
