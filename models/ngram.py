"""The baseline the demo model must beat: an interpolated modified Kneser-Ney n-gram model.

Chen and Goodman, "An empirical study of smoothing techniques for language modeling" (1999),
equations 26 to 29: three discounts per order, estimated from counts of counts; lower orders count
distinct left contexts; the lowest is interpolated with the uniform distribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["NgramModel"]

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Order:
    """Statistics of one order n: of its n-grams and of their contexts of n - 1 symbols."""

    grams: Ids  # [G] packed, sorted
    discounted: Floats  # [G] count less its discount
    contexts: Ids  # [C] packed, sorted
    first: Ids  # [C + 1] place of each context's first n-gram in `grams`
    totals: Floats  # [C] sum of the counts after the context
    backoff: Floats  # [C] share of the probability left to the next lower order


class NgramModel:
    """Kneser-Ney model of documents of symbols.

    Parameters
    ----------
    documents : sequence of integer arrays or lists
        Training documents; each is preceded by `order` - 1 times the symbol `end` and followed
        by one, which is predicted as well.
    symbols : int
        Number of symbols; ids lie in [0, symbols).
    end : int
        Id of the symbol that begins and ends a document.
    order : int
        n of the longest n-gram; symbols ** order must fit 63 bits.

    Raises
    ------
    ValueError
        The order does not fit, or there is no training text.
    """

    def __init__(
        self, documents: Sequence[Sequence[int]], symbols: int, end: int, order: int = 5
    ) -> None:
        if order < 1 or symbols**order >= 2**63:
            raise ValueError(f"{symbols} symbols to the power of order {order} exceed 63 bits")
        if not documents:
            raise ValueError("an n-gram model needs at least one training document")
        self.symbols, self.end, self.order = symbols, end, order
        packed = np.concatenate([self._pack(document, order) for document in documents])
        grams, counts = np.unique(packed, return_counts=True)
        orders = [self._statistics(grams, counts)]
        for n in range(order - 1, 0, -1):
            # How often a shorter n-gram counts is how many different symbols precede it.
            grams, counts = np.unique(grams % symbols**n, return_counts=True)
            orders.append(self._statistics(grams, counts))
        self._orders = orders[::-1]

    def _pack(self, document: Sequence[int], order: int) -> Ids:
        """[T + 1] each symbol and the closing `end` with `order` - 1 before it, as one integer."""
        ends = np.full(order - 1, self.end)
        padded = np.concatenate([ends, np.asarray(document, np.int64), [self.end]])
        windows = np.lib.stride_tricks.sliding_window_view(padded.astype(np.int64), order)
        places = np.int64(self.symbols) ** np.arange(order - 1, -1, -1, dtype=np.int64)
        return np.asarray(windows @ places, np.int64)

    def _statistics(self, grams: Ids, counts: Ids) -> _Order:
        """Discounts and context sums of one order from its sorted n-grams and their counts."""
        discounts = _discounts(counts)[np.minimum(counts, 3)]
        contexts, start = np.unique(grams // self.symbols, return_index=True)
        totals = np.add.reduceat(counts, start).astype(np.float64)
        backoff = np.add.reduceat(discounts, start) / totals
        first = np.append(start, len(grams))
        return _Order(grams, counts - discounts, contexts, first, totals, backoff)

    def probabilities(self, grams: Ids) -> Floats:
        """[T] probability of each packed n-gram's last symbol after the symbols before it."""
        result = np.full(len(grams), 1.0 / self.symbols)
        for n, order in enumerate(self._orders, 1):
            wanted = grams % self.symbols**n
            context, known = _find(order.contexts, wanted // self.symbols)
            gram, seen = _find(order.grams, wanted)
            direct = np.where(seen, order.discounted[gram], 0.0) / order.totals[context]
            result = np.where(known, direct + order.backoff[context] * result, result)
        return result

    def bits(self, document: Sequence[int]) -> float:
        """Bits this model needs for a document and the `end` after it."""
        return float(-np.log2(self.probabilities(self._pack(document, self.order))).sum())

    def contexts(self, ids: Ids) -> Ids:
        """What each next symbol of running text depends on.

        Parameters
        ----------
        ids : int64 [B, order - 2 + T]
            Text that may hold several documents, each after an `end`.

        Returns
        -------
        int64 [B * T, order - 1]
            The context at each of the last T places; what lies before an `end` is `end` as well.
        """
        windows = np.lib.stride_tricks.sliding_window_view(ids, self.order - 1, axis=1)
        result = windows.reshape(-1, self.order - 1).copy()
        for column in range(self.order - 3, -1, -1):
            result[result[:, column + 1] == self.end, column] = self.end
        return result

    def distributions(self, contexts: Ids) -> npt.NDArray[np.float32]:
        """Probability of every symbol after each context.

        Parameters
        ----------
        contexts : int64 [T, order - 1]
            The symbols before, the latest last.

        Returns
        -------
        float32 [T, symbols]
        """
        if contexts.ndim != 2 or contexts.shape[1] != self.order - 1:
            raise ValueError(f"a context has {self.order - 1} symbols, not {contexts.shape[-1]}")
        packed = np.zeros(len(contexts), np.int64)
        for column in contexts.T:
            packed = packed * self.symbols + column
        result = np.full((len(contexts), self.symbols), 1 / self.symbols, np.float32)
        for n, order in enumerate(self._orders, 1):
            context, known = _find(order.contexts, packed % self.symbols ** (n - 1))
            result *= np.where(known, order.backoff[context], 1.0)[:, None].astype(np.float32)
            # The n-grams that begin with a context lie side by side: `count` from `first` on.
            first = order.first[context]
            count = np.where(known, order.first[context + 1] - first, 0)
            rows = np.repeat(np.arange(len(contexts)), count)
            grams = np.arange(count.sum()) + np.repeat(first - count.cumsum() + count, count)
            shares = order.discounted[grams] / order.totals[context][rows]
            result[rows, order.grams[grams] % self.symbols] += shares.astype(np.float32)
        return result


def _discounts(counts: Ids) -> Floats:
    """[4] discount of an n-gram seen 0, 1, 2, and 3 or more times."""
    n1, n2, n3, n4 = (max(int((counts == k).sum()), 1) for k in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    estimates = [0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    # Tiny texts give estimates outside (0, count); a discount must leave something for the symbols
    # seen and for those never seen.
    return np.array([np.clip(value, 0.05 * k, 0.95 * k) for k, value in enumerate(estimates)])


def _find(sorted_keys: Ids, wanted: Ids) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """Place of each wanted key (0 where absent) and whether it is there."""
    place = np.searchsorted(sorted_keys, wanted)
    place = np.where(place < len(sorted_keys), place, 0)
    found = sorted_keys[place] == wanted
    return np.where(found, place, 0), found
