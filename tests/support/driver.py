"""Drives a device by hand, below the runtime: tiles of a prompt, decode steps, reading logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flightllm.spec.device import RunResult, read_row, write_row
from flightllm.spec.isa import Register


class Driver:
    """A loaded program on a device, one sequence; `results` are those of all runs."""

    def __init__(self, device, program) -> None:
        self.device, self.program, self.length = device, program, 0
        self.results: list[RunResult] = []
        device.load(program)

    def _tokens(self, ids: Sequence[int]) -> None:
        padded = np.zeros(self.program.config.prefill_tile, np.int32)
        padded[: len(ids)] = ids
        for core in range(self.program.config.cores):
            write_row(self.device, self.program.segment(core, "tokens"), 0, padded)

    def _logits(self, rows: int) -> np.ndarray:
        out = np.empty((rows, self.program.model.vocab), np.float32)
        for core, (a, b) in enumerate(self.program.model.vocab_shares):
            segment = self.program.segment(core, "logits")
            for row in range(rows):
                out[row, a:b] = read_row(self.device, segment, row, b - a)
        return out

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Logits of every token of `ids`, float32 [len(ids), vocab]."""
        tile, out = self.program.config.prefill_tile, []
        for at in range(0, len(ids), tile):
            part = ids[at : at + tile]
            self._tokens(part)
            self.results.append(self.device.run("prefill", {
                Register.POS: self.length, Register.NTOK: len(part), Register.LOGITS: len(part),
            }))  # fmt: skip
            self.length += len(part)
            out.append(self._logits(len(part)))
        return np.concatenate(out)

    def decode(self, token: int, steps: int = 1) -> np.ndarray:
        """Run `steps` greedy steps; the last one's logits, float32 [vocab]."""
        self._tokens([token])
        self.results.append(self.device.run("decode", {
            Register.POS: self.length, Register.NTOK: 1, Register.STEPS: steps, Register.LOGITS: 1,
        }))  # fmt: skip
        self.length += steps
        return self._logits(1)[0]

    def top(self, step: int) -> int:
        """The id that step `step` of the last run chose."""
        segment = self.program.segment(0, "topk")
        pairs = read_row(self.device, segment, step, 2 * self.program.model.top_k, np.int32)
        return int(pairs[1])
