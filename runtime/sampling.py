"""Choosing the next token on the host from logits: temperature, nucleus, reproducible by seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flightllm.spec.errors import InputError

__all__ = ["Sampler"]


class Sampler:
    """Draws tokens from the nucleus of softmax(logits / temperature), in float64.

    Parameters
    ----------
    temperature : above 0; 0 means that the device's own top-1 is taken and nothing is drawn.
    top_p : the likeliest tokens are kept until their probabilities reach it, in (0, 1].
    seed : of numpy's default generator; the same seed draws the same tokens from the same logits.

    Raises
    ------
    InputError
        For a value out of range.
    """

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> None:
        if not 0 <= temperature < float("inf"):
            raise InputError(f"temperature: {temperature} is not 0 (greedy) or above")
        if not 0 < top_p <= 1:
            raise InputError(f"top-p: {top_p} does not lie in (0, 1]")
        if seed < 0:
            raise InputError(f"seed: {seed} is negative")
        self.temperature, self.top_p = temperature, top_p
        self._random = np.random.default_rng(seed)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, which needs no logits on the host."""
        return self.temperature == 0

    def probabilities(
        self, logits: NDArray[np.float32]
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """The nucleus of logits [vocab]: ids, likeliest first, and what each is drawn with."""
        scaled = logits.astype(np.float64)
        scaled = (scaled - scaled.max()) / self.temperature
        weights = np.exp(scaled)
        ids = np.argsort(-weights, kind="stable")  # the lower id first among equals
        weights = weights[ids] / weights.sum()
        # The token that crosses top_p still belongs to the nucleus.
        before = np.cumsum(weights) - weights
        kept = max(1, int(np.count_nonzero(before < self.top_p)))
        return ids[:kept], weights[:kept] / weights[:kept].sum()

    def draw(self, logits: NDArray[np.float32]) -> int:
        """One token id from logits float32 [vocab]."""
        ids, weights = self.probabilities(logits)
        edges = np.cumsum(weights)
        place = int(np.searchsorted(edges, self._random.random() * edges[-1], side="right"))
        return int(ids[min(place, len(ids) - 1)])
