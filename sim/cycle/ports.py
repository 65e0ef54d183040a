"""Reads of F and A that go before ST's: by MISC at F's second port, by the matrix engine at A's."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flightllm.sim.functional.dispatch import Step
from flightllm.spec import timing

__all__ = ["PortReads"]

Floats = NDArray[np.float64]
HISTORY = 1 << 12
"""Runs of windows that are kept; ST never looks far back."""


class PortReads:
    """Histories of one core's reads, see `kernels.note`.

    Parameters
    ----------
    lanes : of the special function unit.

    Members
    -------
    started : (start, step, values) of the MISC instructions whose reads are not in the history.
    others, windows : histories of F's port and of A's. before : both.
    seen : where ST looks next in each.
    """

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        self.started: deque[tuple[float, Step, Sequence[int]]] = deque(maxlen=16)
        self.windows = np.zeros((HISTORY, 2))
        self.others = np.zeros((1, 2))
        self.seen = np.zeros(2, np.int64)

    @property
    def before(self) -> tuple[Floats, Floats]:
        """Of F and of A."""
        return self.others, self.windows

    def catch_up(self, now: float) -> None:
        """Add the reads of MISC's instructions, as far as they lie behind a cycle."""
        if not self.started:
            return
        runs = [self.others[1:]]
        for start, step, values in self.started:
            begins, length = timing.misc_reads(step.kind.name, step.flags, step.named(values),
                                               self._lanes)  # fmt: skip
            first = start + np.array(begins, np.float64)
            runs.append(np.stack([first, first + length], axis=1))
        self.started.clear()
        made = np.concatenate(runs)
        made = made[made[:, 1] > now]
        self.others = np.concatenate([[[len(made), 0.0]], made])
        self.seen[0] = 0

    def trim(self) -> None:
        """Drop old runs of windows before the history is full."""
        count = int(self.windows[0, 0])
        if count < HISTORY // 2:
            return
        kept = HISTORY // 4
        self.windows[1 : kept + 1] = self.windows[count - kept + 1 : count + 1].copy()
        self.windows[0, 0] = kept
        self.seen[1] = max(0, self.seen[1] - (count - kept))
