"""generate(): text from a prompt on any device, token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flightllm.models.tokenizer import Tokenizer
from flightllm.runtime.sampling import Sampler
from flightllm.runtime.session import Session
from flightllm.spec.device import RunResult
from flightllm.spec.errors import InputError

__all__ = ["Generation", "Generator", "TextStream", "encode_prompt", "generate"]


@dataclass(frozen=True)
class Generation:
    """What came of a prompt.

    Members
    -------
    prompt_ids, token_ids : the prompt and what was generated, an end token included.
    text : of the generated tokens. stop : "end" (an end token), "tokens" (as many as asked for) or
        "context" (the KV cache is full).
    seconds_per_token, cycles_per_token : mean over the decoded tokens after the first, which comes
        out of prefill; None for a single token, cycles None where the executor knows no time.
    prefill_seconds, prefill_cycles : of the whole prompt.
    counters : performance counters, summed over all runs.
    executor : the device's name. memory_sha256 : digest of everything the program wrote.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    stop: str
    seconds_per_token: float | None
    cycles_per_token: float | None
    prefill_seconds: float
    prefill_cycles: int | None
    counters: dict[str, int]
    executor: str
    memory_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "prompt_ids": [*self.prompt_ids], "token_ids": [*self.token_ids]}


class _Cost:
    """Sums what runs cost; cycles become None as soon as one run does not know them."""

    def __init__(self) -> None:
        self.cycles: int | None = 0
        self.counters: dict[str, int] = {}

    def add(self, results: Sequence[RunResult]) -> None:
        for result in results:
            if result.cycles is None or self.cycles is None:
                self.cycles = None
            else:
                self.cycles += result.cycles
            for name, count in result.counters.items():
                self.counters[name] = self.counters.get(name, 0) + count


class Generator:
    """Generates token ids; iterate over it, then read its members.

    Parameters
    ----------
    session : begins a new sequence.
    ids : the prompt's tokens.
    tokens : how many to generate at most.
    sampler : greedy when left out.
    end : ids that end the text; those of the program's model when left out, () for none.
    steps : tokens that the device decodes on its own before the host looks again (greedy only).
        Those it decoded behind an end token are dropped.

    Members
    -------
    token_ids : generated so far. stop : why it ended, "" before that.

    Raises
    ------
    InputError
        For a prompt that is empty, longer than the context or outside the vocabulary; for `tokens`
        or `steps` out of range.
    """

    def __init__(
        self,
        session: Session,
        ids: Sequence[int],
        tokens: int = 64,
        sampler: Sampler | None = None,
        end: Sequence[int] | None = None,
        steps: int = 1,
    ) -> None:
        self.sampler = sampler or Sampler()
        model = session.program.model
        if tokens < 1:
            raise InputError(f"tokens: {tokens} is not at least 1")
        if not 1 <= steps <= session.longest_run:
            raise InputError(f"steps: {steps} is not 1 to {session.longest_run}")
        if steps > 1 and not self.sampler.greedy:
            raise InputError(f"steps: {steps}, but sampling needs the host after every token")
        if len(ids) > model.max_length:
            raise InputError(
                f"the prompt has {len(ids)} tokens, but the program's maximum length is"
                f" {model.max_length}: shorten it, or compile with a larger --max-length"
            )
        self._session, self._ids, self._limit, self._steps = session, list(ids), tokens, steps
        self._end = frozenset(model.eos if end is None else end)
        self.token_ids: list[int] = []
        self.stop = ""
        self._prefill, self._decode = _Cost(), _Cost()
        self._prefill_seconds = self._decode_seconds = 0.0
        self._decoded = 0

    def __iter__(self) -> Iterator[int]:
        """Generate, one token id at a time."""
        begin = time.perf_counter()
        self._session.restart()
        self._prefill.add(self._session.prefill(self._ids))
        fresh = [self._choose(0)]
        self._prefill_seconds = time.perf_counter() - begin
        while True:
            for token in fresh:
                self.token_ids.append(token)
                yield token
                if token in self._end:
                    self.stop = "end"
                    return
            steps = min(self._steps, self._limit - len(self.token_ids), self._session.room)
            if steps < 1:
                self.stop = "tokens" if len(self.token_ids) >= self._limit else "context"
                return
            fresh = self._advance(steps)

    def _advance(self, steps: int) -> list[int]:
        begin = time.perf_counter()
        self._decode.add([self._session.decode(self.token_ids[-1], steps)])
        fresh = [self._choose(step) for step in range(steps)]
        self._decode_seconds += time.perf_counter() - begin
        self._decoded += steps
        return fresh

    def _choose(self, step: int) -> int:
        if self.sampler.greedy:
            return int(self._session.top(step)[1][0])
        return self.sampler.draw(self._session.logits()[0])

    def result(self, text: str = "") -> Generation:
        """What was generated so far, and what it cost."""
        decoded, decode, prefill = self._decoded, self._decode, self._prefill
        known = decoded and decode.cycles is not None
        names = prefill.counters.keys() | decode.counters.keys()
        return Generation(
            prompt_ids=tuple(self._ids),
            token_ids=tuple(self.token_ids),
            text=text,
            stop=self.stop,
            seconds_per_token=self._decode_seconds / decoded if decoded else None,
            cycles_per_token=(decode.cycles or 0) / decoded if known else None,
            prefill_seconds=self._prefill_seconds,
            prefill_cycles=prefill.cycles,
            counters={
                name: prefill.counters.get(name, 0) + decode.counters.get(name, 0)
                for name in sorted(names)
            },
            executor=self._session.device.name,
            memory_sha256=self._session.memory_sha256(),
        )


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a prompt, behind the one that begins a text where the model has one.

    Raises
    ------
    InputError
        When nothing is left to start from.
    """
    ids = tokenizer.encode(text)
    if not ids and tokenizer.bos is not None:
        ids = [tokenizer.bos]
    if not ids:
        raise InputError("the prompt is empty, and the model has no token that begins a text")
    return ids


class TextStream:
    """A prompt's continuation as text; iterate over it, then ask for the result.

    Parameters
    ----------
    tokenizer : of the program's model; None for a prompt of token ids and no text.
    prompt : text, or token ids.
    tokens, sampler, steps : as for `Generator`.

    Raises
    ------
    InputError
        As `Generator`; also when the tokeniser belongs to another model, or text has none.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer | None,
        prompt: str | Sequence[int],
        tokens: int = 64,
        sampler: Sampler | None = None,
        steps: int = 1,
    ) -> None:
        model = session.program.model
        if tokenizer is not None and tokenizer.vocab > model.vocab:
            raise InputError(
                f"{model.name}: the tokenizer has {tokenizer.vocab} ids, but the program's"
                f" vocabulary is {model.vocab}: they do not belong together"
            )
        if not isinstance(prompt, str):
            ids = list(prompt)
        elif tokenizer is not None:
            ids = encode_prompt(tokenizer, prompt)
        else:
            raise InputError(f"{model.name}: there is no tokenizer, so its prompts are token ids")
        self._run = Generator(session, ids, tokens, sampler, steps=steps)
        self._decoder = None if tokenizer is None else tokenizer.stream(ids)
        self._pieces: list[str] = []

    def __iter__(self) -> Iterator[str]:
        """Generate; each piece is whole characters, as soon as they are certain."""
        for token in self._run:
            if self._decoder is not None:
                yield from self._put(self._decoder.push(token))
        if self._decoder is not None:
            yield from self._put(self._decoder.finish())

    def _put(self, piece: str) -> Iterator[str]:
        if piece:
            self._pieces.append(piece)
            yield piece

    def result(self) -> Generation:
        """What was generated so far, and what it cost."""
        return self._run.result("".join(self._pieces))


def generate(
    session: Session,
    tokenizer: Tokenizer | None,
    prompt: str | Sequence[int],
    tokens: int = 64,
    sampler: Sampler | None = None,
    on_text: Callable[[str], None] | None = None,
    steps: int = 1,
) -> Generation:
    """Continue a prompt to its end; `on_text` gets the text piece by piece.

    The other parameters and the errors are those of `TextStream`.
    """
    stream = TextStream(session, tokenizer, prompt, tokens, sampler, steps)
    for piece in stream:
        if on_text is not None:
            on_text(piece)
    return stream.result()
