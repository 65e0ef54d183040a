"""Reads of F and A that go before others': MISC's before the engine's and ST's, the engine's before
ST's."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flightllm.sim.functional.dispatch import Step
from flightllm.spec import timing

__all__ = ["ENGINE_F", "ST_A", "ST_F", "PortReads"]

Floats = NDArray[np.float64]
ST_F, ST_A, ENGINE_F = range(3)
"""Who waits at which buffer."""
HISTORY = 1 << 12
"""Runs of windows that are kept; ST never looks far back."""
RECENT = 16
"""Instructions of MISC that are kept; it executes one at a time."""


class PortReads:
    """Histories of one core's reads, see `kernels.note`.

    Parameters
    ----------
    lanes : of the special function unit.

    Members
    -------
    before : of each port. seen : where it is looked at next, by port.
    """

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        self._recent: dict[int, deque[tuple[float, Step, Sequence[int]]]] = {
            port: deque(maxlen=RECENT) for port in (ST_F, ENGINE_F)
        }
        self.before = [np.zeros((1, 2)), np.zeros((HISTORY, 2)), np.zeros((1, 2))]
        self.seen = np.zeros(3, np.int64)

    def start(self, at: float, step: Step, values: Sequence[int]) -> None:
        """MISC starts an instruction."""
        for recent in self._recent.values():
            recent.append((at, step, values))

    def catch_up(self, port: int, now: float) -> None:
        """Add MISC's reads to the history of a port of F, as far as they lie behind a cycle."""
        recent = self._recent[port]
        if not recent:
            return
        runs = [self.before[port][1:]]
        for start, step, values in recent:
            made = timing.misc_reads(step.kind.name, step.flags, step.named(values), self._lanes,
                                     port == ST_F)  # fmt: skip
            runs.append(start + np.array(made, np.float64).reshape(-1, 2))
        recent.clear()
        joined = np.concatenate(runs)
        joined = joined[joined[:, 1] > now]
        self.before[port] = np.concatenate([[[len(joined), 0.0]], joined])
        self.seen[port] = 0

    def trim(self) -> None:
        """Drop old runs of windows before their history is full."""
        windows = self.before[ST_A]
        count = int(windows[0, 0])
        if count < HISTORY // 2:
            return
        kept = HISTORY // 4
        windows[1 : kept + 1] = windows[count - kept + 1 : count + 1].copy()
        windows[0, 0] = kept
        self.seen[ST_A] = max(0, self.seen[ST_A] - (count - kept))
