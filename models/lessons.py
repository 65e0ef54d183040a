"""What the demo model learns from: windows of its text, and text sampled from n-gram models.

A third of a megabyte is little for two million parameters: left alone the model learns the text by
heart and loses to the n-gram baseline. Two remedies, both from knowledge distillation (Hinton et
al., arXiv 1503.02531): a window's targets are mixed with the predictions of an n-gram model that
has not seen the window's document, and a part of every batch is text sampled from the n-gram model
of the whole training text, whose targets are that model's predictions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from flightllm.models.ngram import NgramModel

__all__ = ["Lessons", "SampledWindows", "TextWindows"]

Ids = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float32]

FOLDS = 8
BLOCK = 512
"""Windows that are sampled at once: one call of the n-gram model per token for all of them."""


@dataclass(frozen=True)
class TextWindows:
    """Windows of the training text.

    Attributes
    ----------
    ids, targets : int64 [B, T]
    beliefs : float32 [B * T, vocab]
        Probability of each target by an n-gram model that has not seen its document.
    """

    ids: Ids
    targets: Ids
    beliefs: Shares


@dataclass(frozen=True)
class SampledWindows:
    """Windows sampled from the n-gram model: ids [B, T] and its own predictions [B * T, vocab]."""

    ids: Ids
    beliefs: Shares


class Lessons:
    """Batches by step number: the same step of the same seed always gives the same batch.

    Parameters
    ----------
    documents : sequence of lists of int
        Training documents without special tokens.
    vocabulary : int
        Number of token ids.
    end : int
        Id of the token that begins and ends a document.
    seed : int
        Of the order of documents, the windows and the sampled text.
    order : int
        Of the n-gram models.
    """

    def __init__(
        self,
        documents: Sequence[Sequence[int]],
        vocabulary: int,
        end: int,
        seed: int,
        order: int = 5,
    ) -> None:
        self.seed, self.order, self.end = seed, order, end
        self._documents = [np.asarray([end, *document], np.int64) for document in documents]
        self._fold = _folds([len(document) for document in documents])
        self._whole = NgramModel(documents, vocabulary, end, order)
        self._others = []
        for fold in range(FOLDS):
            rest = [document for document, own in zip(documents, self._fold) if own != fold]
            self._others.append(NgramModel(rest, vocabulary, end, order))
        self._block = lru_cache(maxsize=1)(self._sample_block)

    @property
    def tokens(self) -> int:
        """Tokens of the training text, one `end` a document included."""
        return sum(map(len, self._documents))

    def text(self, step: int, batch: int, length: int) -> TextWindows:
        """`batch` windows at random places of the documents in random order."""
        rng = np.random.default_rng([self.seed, step, 0])
        order = rng.permutation(len(self._documents))
        lead = np.full(self.order - 2, self.end)
        stream = np.concatenate([lead, *(self._documents[i] for i in order)])
        folds = [np.full(len(self._documents[i]), self._fold[i]) for i in order]
        fold = np.concatenate([np.zeros(len(lead), np.int64), *folds])
        starts = len(lead) + rng.integers(self.tokens - length, size=batch)
        window = starts[:, None] + np.arange(-len(lead), length)
        targets = stream[starts[:, None] + np.arange(1, length + 1)]
        contexts = self._whole.contexts(stream[window])
        # A document is predicted by the model that lacks it; its closing `end` opens the next.
        own = fold[starts[:, None] + np.arange(length)].reshape(-1)
        beliefs = np.empty((len(contexts), self._whole.symbols), np.float32)
        for part in np.unique(own):
            beliefs[own == part] = self._others[part].distributions(contexts[own == part])
        return TextWindows(stream[window[:, len(lead) :]], targets, beliefs)

    def sampled(self, step: int, batch: int, length: int) -> SampledWindows:
        """`batch` windows sampled from the n-gram model of all training documents."""
        per_block = BLOCK // batch
        block = self._block(step // per_block, length)
        first = step % per_block * batch
        rows = block[first : first + batch]
        contexts = self._whole.contexts(rows)
        return SampledWindows(rows[:, self.order - 2 :], self._whole.distributions(contexts))

    def _sample_block(self, number: int, length: int) -> Ids:
        """[BLOCK, order - 2 + length] text that continues random places of the training text."""
        rng = np.random.default_rng([self.seed, number, 1])
        model, lead = self._whole, self.order - 1
        stream = np.concatenate(self._documents)
        starts = rng.integers(len(stream) - lead, size=BLOCK)
        text = np.zeros((BLOCK, lead + length), np.int64)
        text[:, :lead] = stream[starts[:, None] + np.arange(lead)]
        for place in range(lead, lead + length):
            shares = model.distributions(model.contexts(text[:, place - lead : place]))
            cumulative = shares.cumsum(axis=1)
            drawn = rng.random((BLOCK, 1)) * cumulative[:, -1:]
            text[:, place] = np.minimum((cumulative < drawn).sum(axis=1), model.symbols - 1)
        return text[:, 1 : lead + length]


def _folds(sizes: Sequence[int]) -> Ids:
    """A fold for each document, the folds' sums of sizes as equal as placing by size makes them."""
    fold, load = np.zeros(len(sizes), np.int64), np.zeros(FOLDS, np.int64)
    for index in np.argsort(-np.asarray(sizes), kind="stable"):
        fold[index] = load.argmin()
        load[fold[index]] += sizes[index]
    return fold
