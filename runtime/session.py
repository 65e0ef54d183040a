"""A device holding one program and one sequence of tokens: prefill, decode, their results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from flightllm.spec.device import Device, RunResult, memory_sha256, read_row, write_row
from flightllm.spec.errors import InputError
from flightllm.spec.formats import row_shares
from flightllm.spec.image import Program, Segment
from flightllm.spec.isa import Register

__all__ = ["Session"]


class Session:
    """One sequence on one device.

    Parameters
    ----------
    device : takes `program`; whoever made it closes it.
    program : compiled for the device's hardware, with weights.

    Members
    -------
    position : tokens in the KV cache.

    Raises
    ------
    InputError
        When the program is for other hardware or has no weights.
    """

    def __init__(self, device: Device, program: Program) -> None:
        device.load(program)
        self.device, self.program, self.position = device, program, 0
        self._tokens = [program.segment(core, "tokens") for core in range(len(program.cores))]
        self._logits = [program.segment(core, "logits") for core in range(len(program.cores))]
        self._topk = program.segment(0, "topk")

    @property
    def room(self) -> int:
        """Tokens that still fit the KV cache."""
        return self.program.model.max_length - self.position

    @property
    def longest_run(self) -> int:
        """Most tokens that one run can decode: rows of the table of top logits."""
        return self._topk.size // self._topk.row

    def restart(self) -> None:
        """Begin a new sequence; what the KV cache holds of the old one is never read again."""
        self.position = 0

    def prefill(self, ids: Sequence[int]) -> list[RunResult]:
        """Process tokens behind those in the cache, keeping the logits of the last alone.

        Returns
        -------
        What each tile's run cost.

        Raises
        ------
        InputError
            For no tokens, an id outside the vocabulary, or more tokens than fit the cache.
        """
        self._check(ids)
        tile = self.program.config.prefill_tile
        results = []
        for start in range(0, len(ids), tile):
            part = ids[start : start + tile]
            last = start + tile >= len(ids)
            results.append(self._run_tile(part, wanted=int(last)))
        return results

    def score(self, ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Process tokens behind those in the cache and give the logits after every one.

        Yields
        ------
        float32 [tokens of a tile, vocab], tile by tile.

        Raises
        ------
        InputError
            As `prefill`.
        """
        self._check(ids)
        rows = min(segment.size // segment.row for segment in self._logits)
        tile = min(self.program.config.prefill_tile, rows)
        for start in range(0, len(ids), tile):
            part = ids[start : start + tile]
            self._run_tile(part, wanted=len(part))
            yield self.logits(len(part))

    def decode(self, token: int, steps: int = 1) -> RunResult:
        """Process `token`, and with more steps each time the likeliest token that follows.

        The token that follows step s is ``top(s)[1][0]``; the logits are those of the last step.

        Raises
        ------
        InputError
            For a token outside the vocabulary, or more steps than fit a run or the cache.
        """
        self._check([token], steps)
        if not 1 <= steps <= self.longest_run:
            raise InputError(f"steps: {steps} is not 1 to {self.longest_run}")
        self._write_tokens([token])
        registers = {Register.POS: self.position, Register.NTOK: 1}
        registers |= {Register.STEPS: steps, Register.LOGITS: 1}
        result = self.device.run("decode", registers)
        self.position += steps
        return result

    def top(self, step: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """The largest logits after a step of the last run, falling, and their token ids."""
        count = self.program.model.top_k
        pairs = read_row(self.device, self._topk, step, 2 * count, np.uint32).reshape(count, 2)
        return pairs[:, 0].copy().view(np.float32), pairs[:, 1].copy().view(np.int32)

    def logits(self, count: int = 1) -> NDArray[np.float32]:
        """The logits that the last run was asked for, float32 [count, vocab]."""
        model = self.program.model
        out = np.empty((count, model.vocab), np.float32)
        for segment, (start, stop) in zip(self._logits, model.vocab_shares):
            self._read_rows(segment, out[:, start:stop])
        return out

    def memory_sha256(self) -> str:
        """Digest of everything the program wrote: see `flightllm.spec.device.memory_sha256`."""
        return memory_sha256(self.device, self.program)

    def _check(self, ids: Sequence[int], steps: int = 1) -> None:
        model = self.program.model
        if not len(ids):
            raise InputError("the prompt is empty: give at least one token")
        if not 0 <= min(ids) <= max(ids) < model.vocab:
            bad = next(token for token in ids if not 0 <= token < model.vocab)
            raise InputError(f"token {bad} is outside {model.name}'s vocabulary of {model.vocab}")
        need = self.position + len(ids) * steps
        if need > model.max_length:
            raise InputError(
                f"{need} tokens exceed the program's maximum length of {model.max_length}:"
                " shorten the prompt, or compile with a larger --max-length"
            )

    def _run_tile(self, ids: Sequence[int], wanted: int) -> RunResult:
        self._write_tokens(ids)
        registers = {Register.POS: self.position, Register.NTOK: len(ids), Register.LOGITS: wanted}
        result = self.device.run("prefill", registers)
        self.position += len(ids)
        return result

    def _write_tokens(self, ids: Sequence[int]) -> None:
        # The row is spread as a whole tile, however few of its tokens there are.
        padded = np.zeros(self.program.config.prefill_tile, np.int32)
        padded[: len(ids)] = ids
        for segment in self._tokens:
            write_row(self.device, segment, 0, padded)

    def _read_rows(self, segment: Segment, out: NDArray[np.float32]) -> None:
        """Rows 0 .. len(out) - 1 of a table, one read a channel."""
        count, width = out.shape
        channels = self.device.config.channels[segment.core]
        for channel, (a, b) in enumerate(row_shares(width, channels)):
            if b > a:
                size = (count - 1) * segment.row + 4 * (b - a)
                raw = self.device.read(segment.core, channel, segment.base, size)
                full = np.zeros(count * segment.row, np.uint8)
                full[:size] = np.frombuffer(raw, np.uint8)
                rows = full.reshape(count, segment.row)[:, : 4 * (b - a)]
                out[:, a:b] = np.ascontiguousarray(rows).view(np.float32)
