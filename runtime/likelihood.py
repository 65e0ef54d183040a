"""How well logits predict a text: negative log-likelihood in float64, and its perplexity.

Whatever computes the logits - torch or a device - is scored by `Likelihood.add`, row by row, so
that equal logits give an equal perplexity to the last digit, however they were split into tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from flightllm.models.tokenizer import Tokenizer
from flightllm.runtime.session import Session
from flightllm.spec.errors import InputError

__all__ = ["END_MARK", "Likelihood", "evaluate", "split_text"]

END_MARK = "<|endoftext|>"
"""What separates the documents of a text."""


def _token_nll(row: NDArray[np.float32], target: int) -> float:
    """-log softmax(row)[target] in float64, nats."""
    wide = row.astype(np.float64)
    top = wide.max()
    return float(np.log(np.exp(wide - top).sum()) + top - wide[target])


class Likelihood:
    """Collects the score of logits against the tokens that really came next.

    Members
    -------
    nll : negative log-likelihood of each token, nats. top1 : the likeliest token at each place.
    """

    def __init__(self) -> None:
        self.nll: list[float] = []
        self.top1: list[int] = []

    def add(self, logits: NDArray[np.float32], targets: Sequence[int]) -> None:
        """Score logits [T, vocab] against the T tokens that follow."""
        for row, target in zip(logits, targets):
            self.nll.append(_token_nll(np.ascontiguousarray(row), target))
            self.top1.append(int(row.argmax()))

    def extend(self, other: Likelihood) -> None:
        """Take over what `other` scored behind the tokens that are scored here."""
        done = self.tokens
        self.nll += other.nll[done:]
        self.top1 += other.top1[done:]

    @property
    def tokens(self) -> int:
        """Tokens scored."""
        return len(self.nll)

    @property
    def perplexity(self) -> float:
        """exp of the mean; the sum is exact, so that its order does not matter."""
        return math.exp(math.fsum(self.nll) / len(self.nll))

    def agreement(self, other: Likelihood) -> float:
        """Share of the places at which both find the same token likeliest."""
        same = sum(a == b for a, b in zip(self.top1, other.top1))
        return same / len(self.top1)


def split_text(
    tokenizer: Tokenizer, text: str, context: int, text_format: str | None = None
) -> list[list[int]]:
    """A text as sequences of tokens to score, each at most `context` long.

    Parameters
    ----------
    text_format : "documents": split at `END_MARK`, each stripped, newlines as spaces, behind the
        token that begins a text, cut at the context. "continuous": windows that do not overlap,
        each behind that token where the model has one. Left out: by whether the mark occurs.

    Raises
    ------
    InputError
        For another format, a context below 2, or a text without a token to predict.
    """
    if text_format is None:
        text_format = "documents" if END_MARK in text else "continuous"
    if context < 2:
        raise InputError(f"context: {context} tokens leave nothing to predict; give at least 2")
    if text_format == "documents":
        parts = (part.strip().replace("\n", " ") for part in text.split(END_MARK))
        sequences = [tokenizer.encode(part)[:context] for part in parts if part]
    elif text_format == "continuous":
        first = tokenizer.encode("")
        ids, width = tokenizer.encode(text, bos=False), context - len(first)
        sequences = [first + ids[at : at + width] for at in range(0, len(ids), width)]
    else:
        raise InputError(f"text format {text_format!r} is neither documents nor continuous")
    sequences = [ids for ids in sequences if len(ids) > 1]
    if not sequences:
        raise InputError("the text is too short: it has no token to predict")
    return sequences


def evaluate(
    session: Session,
    sequences: Sequence[Sequence[int]],
    progress: Callable[[int], None] | None = None,
) -> Likelihood:
    """Score sequences of tokens on a device, through prefill with logits for every token.

    Parameters
    ----------
    progress : called with the tokens scored so far.

    Raises
    ------
    InputError
        When a sequence does not fit the context or has an id outside the vocabulary.
    """
    out = Likelihood()
    for ids in sequences:
        session.restart()
        at = 1
        for logits in session.score(ids[:-1]):
            out.add(logits, ids[at : at + len(logits)])
            at += len(logits)
            if progress is not None:
                progress(out.tokens)
    return out
