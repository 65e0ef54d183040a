"""What the demo model is taught: windows of the text, and the n-gram models' beliefs about them."""

import numpy as np
import pytest

from flightllm.models.lessons import FOLDS, Lessons
from flightllm.models.ngram import NgramModel

VOCABULARY = 12
ORDER = 3
RNG = np.random.default_rng(7)
DOCUMENTS = [RNG.integers(1, VOCABULARY, size=size).tolist() for size in range(20, 36)]


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    return Lessons(DOCUMENTS, VOCABULARY, 0, seed=3, order=ORDER)


def plain_context(window: list[int], place: int) -> list[int]:
    """The two symbols up to `place`, those before a document's beginning replaced by its end."""
    before, last = ([0, *window])[place], window[place]
    return [0, 0] if last == 0 else [before, last]


def test_windows_are_the_text_and_what_follows_it(lessons: Lessons) -> None:
    found = lessons.text(step=5, batch=6, length=16)
    assert found.ids.shape == found.targets.shape == (6, 16)
    np.testing.assert_array_equal(found.ids[:, 1:], found.targets[:, :-1])
    inside = {tuple(d[i : i + 8]) for d in DOCUMENTS for i in range(len(d) - 7)}
    for row in found.ids:
        runs = [tuple(row[i : i + 8].tolist()) for i in range(9)]
        assert any(run in inside for run in runs)
        assert all(run in inside for run in runs if 0 not in run)


def owner(run: list[int]) -> int:
    """Number of the one document that the symbols are from."""
    text = str(run)[1:-1]
    (number,) = (i for i, document in enumerate(DOCUMENTS) if text in str(document)[1:-1])
    return number


def held_apart(lessons: Lessons, fold: np.ndarray) -> bool:
    """Whether the beliefs about a window are those of a model without the window's document."""
    found = lessons.text(step=9, batch=24, length=8)
    beliefs = found.beliefs.reshape(24, 8, VOCABULARY)
    right = []
    for row, belief in zip(found.ids.tolist(), beliefs):
        if 0 in row:
            continue
        rest = [d for d, own in zip(DOCUMENTS, fold) if own != fold[owner(row)]]
        model = NgramModel(rest, VOCABULARY, 0, ORDER)
        for place in range(1, 8):
            expected = model.distributions(np.array([plain_context(row, place)]))[0]
            right.append(np.allclose(belief[place], expected, rtol=1e-5))
    assert right
    return all(right)


def test_beliefs_come_from_a_model_that_has_not_seen_the_document(lessons: Lessons) -> None:
    assert len(set(lessons._fold)) == FOLDS
    assert held_apart(lessons, lessons._fold)


def test_planted_fold_error_is_caught(lessons: Lessons) -> None:
    assert not held_apart(lessons, (lessons._fold + np.arange(len(DOCUMENTS)) % 2) % FOLDS)


def test_same_step_gives_the_same_batch_and_another_a_different_one(lessons: Lessons) -> None:
    again = Lessons(DOCUMENTS, VOCABULARY, 0, seed=3, order=ORDER)
    first = [again.sampled(step, 4, 8) for step in (200, 0, 1)]
    second = [lessons.sampled(step, 4, 8) for step in (200, 0, 1)]
    for one, other in zip(first, second):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.beliefs, other.beliefs)
    assert len({one.ids.tobytes() for one in first}) == 3
    text = [lessons.text(step, 4, 8).ids.tobytes() for step in (0, 1, 0)]
    assert text[0] == text[2] != text[1]


def test_sampled_text_follows_the_model_of_all_documents(lessons: Lessons) -> None:
    model = NgramModel(DOCUMENTS, VOCABULARY, 0, ORDER)
    found = lessons.sampled(0, 512, 16)
    place, row = 6, found.ids[0].tolist()
    expected = model.distributions(np.array([plain_context(row, place)]))[0]
    np.testing.assert_allclose(found.beliefs.reshape(512, 16, -1)[0, place], expected, rtol=1e-5)
    # What was drawn has, on average, the probability that the model gives it.
    beliefs = found.beliefs.reshape(512, 16, -1)[:, 1:-1].reshape(-1, VOCABULARY)
    drawn = found.ids[:, 2:].reshape(-1)
    shares = np.bincount(drawn, minlength=VOCABULARY) / len(drawn)
    np.testing.assert_allclose(shares, beliefs.mean(axis=0), atol=0.02)
