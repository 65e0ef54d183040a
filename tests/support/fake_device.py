"""A device without hardware: its model hashes the tokens so far; it talks as any other does."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from flightllm.models.tokenizer import Tokenizer
from flightllm.spec.config import load_config
from flightllm.spec.device import RunResult, check_program, read_row, write_row
from flightllm.spec.image import CoreCode, ModelFacts, Program, Segment, round_up
from flightllm.spec.isa import Register

CYCLES_A_TOKEN = 100


def fake_logits(ids, vocab: int) -> np.ndarray:
    """What follows `ids`, float32 [vocab]: a function of all of them and their order."""
    seed = zlib.crc32(np.asarray(ids, np.int32).tobytes())
    return (3 * np.random.default_rng(seed).standard_normal(vocab)).astype(np.float32)


def fake_program(
    board: str = "tiny-2core", vocab: int = 75, max_length: int = 70, eos=()
) -> Program:
    """A program with the segments that a host uses, and no instruction."""
    config = load_config(board)
    cut = vocab // 2 + 1 if config.cores == 2 else vocab
    shares = ((0, cut), (cut, vocab))[: config.cores]
    segments = []
    for core in range(config.cores):
        base = 64
        for name, row, rows in (
            ("kv", round_up(4 * max_length), 1),
            ("tokens", round_up(4 * config.prefill_tile), 1),
            ("logits", round_up(4 * vocab), config.prefill_tile),
            ("topk", round_up(8 * config.top_k), 64),
        ):
            segments.append(Segment(name, core, base, row * rows, True, row))
            base += row * rows
        segments.append(Segment("weights", core, 0, 64, False))
    model = ModelFacts(
        "fake", vocab, max_length, 1, tuple(eos), 1, 16, 1, 1, 16, config.top_k, shares
    )
    code = CoreCode(np.zeros(1, np.uint32), np.zeros(1, np.uint32), {"prefill": 0, "decode": 0})
    image = {
        (core, "weights"): lambda count=count: np.zeros((count, 64), np.uint8)
        for core, count in enumerate(config.channels)
    }
    return Program(config, model, [code] * config.cores, segments, image)


class FakeDevice:
    """Keeps the tokens in its KV segment and makes logits of them."""

    name = "fake"

    def __init__(self, config) -> None:
        self.config = config
        self.runs: list[tuple[str, dict]] = []
        self.closed = False

    def load(self, program: Program) -> None:
        check_program(self.config, program)
        self.program = program
        size = max(s.base + s.size for s in program.segments)
        self.memory = [[bytearray(size) for _ in range(n)] for n in self.config.channels]

    def write(self, core: int, channel: int, address: int, data: bytes) -> None:
        self.memory[core][channel][address : address + len(data)] = data

    def read(self, core: int, channel: int, address: int, size: int) -> bytes:
        return bytes(self.memory[core][channel][address : address + size])

    def close(self) -> None:
        self.closed = True

    def run(self, entry: str, registers: Mapping[Register, int]) -> RunResult:
        self.runs.append((entry, dict(registers)))
        position, tokens = registers[Register.POS], registers[Register.NTOK]
        wanted = registers.get(Register.LOGITS, 0)
        ids = self._tokens(0)
        assert all(ids == self._tokens(core) for core in range(self.config.cores))
        steps = registers[Register.STEPS] if entry == "decode" else 1
        for step in range(steps):
            history = [*self._history()[: position + step], *ids[:tokens]]
            self._remember(history)
            rows = [self._logits(history[: len(history) - back]) for back in range(wanted)]
            for row, logits in enumerate(reversed(rows)):
                self._put_logits(row, logits)
            if rows:
                self._put_top(step, rows[0])
                ids = [int(rows[0].argmax())]
        cycles = CYCLES_A_TOKEN * tokens * steps
        return RunResult(cycles, {"mm.busy": tokens, "runs": 1})

    def _logits(self, history) -> np.ndarray:
        return fake_logits(history, self.program.model.vocab)

    def _tokens(self, core: int) -> list[int]:
        segment = self.program.segment(core, "tokens")
        return read_row(self, segment, 0, self.config.prefill_tile, np.int32).tolist()

    def _history(self) -> list[int]:
        segment = self.program.segment(0, "kv")
        return read_row(self, segment, 0, self.program.model.max_length, np.int32).tolist()

    def _remember(self, history) -> None:
        row = np.zeros(self.program.model.max_length, np.int32)
        row[: len(history)] = history
        for core in range(self.config.cores):
            write_row(self, self.program.segment(core, "kv"), 0, row)

    def _put_logits(self, row: int, logits: np.ndarray) -> None:
        for core, (a, b) in enumerate(self.program.model.vocab_shares):
            write_row(self, self.program.segment(core, "logits"), row, logits[a:b])

    def _put_top(self, step: int, logits: np.ndarray) -> None:
        order = np.argsort(-logits, kind="stable")[: self.config.top_k].astype(np.int32)
        pairs = np.stack([logits[order].view(np.int32), order], axis=1).reshape(-1)
        for core in range(self.config.cores):
            write_row(self, self.program.segment(core, "topk"), step, pairs)


class LetterTokenizer(Tokenizer):
    """One token a character: "<" begins a text, ids are code points less 48."""

    def __init__(self, vocab: int = 75) -> None:
        super().__init__(vocab, ord("<") - 48, ())

    def encode(self, text: str, bos: bool = True) -> list[int]:
        return [ord(letter) - 48 for letter in ("<" * bos) + text]

    def decode(self, ids) -> str:
        return "".join(chr(48 + token) for token in ids if token != self.bos)
