"""Scoring logits: equal bits give an equal perplexity, in whatever pieces they come."""

import math

import numpy as np
import pytest
from fake_device import FakeDevice, LetterTokenizer, fake_logits, fake_program
from hypothesis import given
from hypothesis import strategies as st

from flightllm.runtime.likelihood import Likelihood, evaluate, split_text
from flightllm.runtime.session import Session
from flightllm.spec.errors import InputError

SEQUENCES = [[12, *range(1, 40)], [12, 3], [12, *range(20, 37)]]


def expected(sequences: list[list[int]], vocab: int = 75) -> Likelihood:
    """The same score from logits of the whole sequence at once."""
    out = Likelihood()
    for ids in sequences:
        rows = [fake_logits(ids[: at + 1], vocab) for at in range(len(ids) - 1)]
        out.add(np.stack(rows), ids[1:])
    return out


@pytest.mark.parametrize("board", ["tiny", "tiny-2core"])
def test_device_scores_as_the_model_does(board: str) -> None:
    program = fake_program(board)
    told: list[int] = []
    found = evaluate(Session(FakeDevice(program.config), program), SEQUENCES, told.append)
    exact = expected(SEQUENCES)
    assert found.perplexity == exact.perplexity  # to the last digit
    assert found.tokens == exact.tokens == 39 + 1 + 17 == told[-1]
    assert found.agreement(exact) == 1.0


def test_one_wrong_bit_in_a_logit_shows() -> None:
    program = fake_program()

    class Faulty(FakeDevice):
        def _logits(self, history):
            out = super()._logits(history)
            if len(history) == 21:
                out[history[-1]] = np.nextafter(out[history[-1]], np.float32(9), dtype=np.float32)
            return out

    found = evaluate(Session(Faulty(program.config), program), SEQUENCES)
    assert found.nll != expected(SEQUENCES).nll


@given(st.integers(0, 1000), st.integers(1, 9))
def test_pieces_do_not_matter(seed: int, piece: int) -> None:
    random = np.random.default_rng(seed)
    logits = (10 * random.standard_normal((20, 33))).astype(np.float32)
    targets = random.integers(0, 33, 20).tolist()
    whole, parts = Likelihood(), Likelihood()
    whole.add(logits, targets)
    for at in range(0, 20, piece):
        parts.add(np.asfortranarray(logits[at : at + piece]), targets[at : at + piece])
    assert whole.nll == parts.nll and whole.top1 == parts.top1


def test_perplexity_is_that_of_the_softmax() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32))
    score = Likelihood()
    score.add(logits, [0, 1])
    exact = math.exp(-(math.log(0.5) + math.log(0.1)) / 2)
    assert math.isclose(score.perplexity, exact, rel_tol=1e-6)  # the logits are float32
    assert score.top1 == [0, 2]


def test_large_logits_do_not_overflow() -> None:
    score = Likelihood()
    score.add(np.array([[1e4, -1e4]], np.float32), [0])
    assert score.perplexity == 1.0


def test_agreement_counts_places() -> None:
    one, other = Likelihood(), Likelihood()
    one.add(np.eye(4, dtype=np.float32), [0, 0, 0, 0])
    other.add(np.eye(4, dtype=np.float32)[[0, 1, 2, 0]], [0, 0, 0, 0])
    assert one.agreement(other) == 0.75


def test_documents_are_stripped_and_cut() -> None:
    text = "\n1234\n56 <|endoftext|>\n \n<|endoftext|>789\n"
    tokenizer = LetterTokenizer()
    found = split_text(tokenizer, text, 7)
    assert [tokenizer.decode(ids) for ids in found] == ["1234 5", "789"]
    assert all(ids[0] == tokenizer.bos for ids in found)


def test_continuous_text_fills_every_window() -> None:
    tokenizer = LetterTokenizer()
    found = split_text(tokenizer, "0123456789", 5)
    assert [tokenizer.decode(ids) for ids in found] == ["0123", "4567", "89"]
    assert all(ids[0] == tokenizer.bos and len(ids) <= 5 for ids in found)


def test_continuous_without_a_first_token_uses_the_whole_window() -> None:
    tokenizer = LetterTokenizer()
    encode = LetterTokenizer.encode
    tokenizer.encode = lambda text, bos=True: encode(tokenizer, text, False)
    found = split_text(tokenizer, "0123456789", 4)
    assert [tokenizer.decode(ids) for ids in found] == ["0123", "4567", "89"]


def test_the_format_can_be_forced() -> None:
    tokenizer = LetterTokenizer()
    assert len(split_text(tokenizer, "01<|endoftext|>23", 99, "continuous")) == 1
    assert len(split_text(tokenizer, "0123", 3, "documents")) == 1


@pytest.mark.parametrize(
    ("text", "context", "kind", "message"),
    [
        ("", 8, None, "the text is too short"),
        ("<|endoftext|>", 8, None, "the text is too short"),
        ("0123", 1, None, "context: 1 tokens"),
        ("0123", 8, "lines", "'lines' is neither documents nor continuous"),
    ],
)
def test_wrong_input_is_refused(text: str, context: int, kind: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_text(LetterTokenizer(), text, context, kind)
