"""Block-sparse attention in prefill: which blocks of keys a KV head keeps for a block of queries.

Both are blocks of `BLOCK` positions from the beginning of the text, so what a query sees depends on
its position alone, not on how a prompt is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flightllm.spec.formats import BLOCK

__all__ = ["DENSE", "Pattern", "any_sparse"]


@dataclass(frozen=True)
class Pattern:
    """Blocks of `BLOCK` keys that a block of queries keeps.

    Members
    -------
    first : blocks at the beginning of the text. last : blocks up to the query's own, included.
    """

    first: int
    last: int

    def keeps(self, tokens: int) -> NDArray[np.bool_]:
        """bool [tokens, tokens]: key t for query s, causal or not."""
        block = np.arange(tokens) // BLOCK
        kept: NDArray[np.bool_] = (block[None] < self.first) | (
            block[None] > block[:, None] - self.last
        )
        return kept

    def density(self, tokens: int) -> float:
        """Blocks kept as a share of those that dense causal attention reads."""
        count = -(-tokens // BLOCK)
        kept = sum(min(query + 1, self.first + self.last) for query in range(count))
        return kept / (count * (count + 1) / 2)

    def __str__(self) -> str:
        return "dense" if self == DENSE else f"first {self.first} last {self.last}"


DENSE = Pattern(0, 1 << 20)


def any_sparse(patterns: Sequence[Pattern] | None) -> bool:
    """Whether one of a layer's patterns leaves something out."""
    return patterns is not None and any(pattern != DENSE for pattern in patterns)
