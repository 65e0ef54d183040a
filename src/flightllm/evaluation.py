"""How good a quantised model is: perplexity in float, quantised in torch, and executed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flightllm.api import Board, Progress, build, load
from flightllm.compilation import Compilation, write_report
from flightllm.runtime.likelihood import Likelihood, split_text
from flightllm.runtime.likelihood import evaluate as execute
from flightllm.spec.errors import InputError

if TYPE_CHECKING:
    from flightllm.models.checkpoint import Checkpoint
    from flightllm.models.quantized import QuantModel

__all__ = ["CONTEXT", "Evaluation", "evaluate"]

CONTEXT = 1024
"""Tokens that are scored together, where neither model nor program takes fewer."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one text.

    Members
    -------
    ppl_float : of the checkpoint in float32. ppl_quantized : of the quantised model in torch.
    ppl_executed : of the program on the executor. tokens : predicted tokens; executed_tokens : of
        them on the executor, the others being taken from torch.
    top1_agreement : share of places where the executor's likeliest token is the float model's.
    sequences, context : how many pieces of text, and how long they may be.
    """

    ppl_float: float
    ppl_quantized: float
    ppl_executed: float
    tokens: int
    top1_agreement: float
    sequences: int
    context: int
    executor: str
    executed_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def evaluate(
    model: str | Path,
    text: str,
    board: Board = "tiny",
    *,
    text_format: str | None = None,
    context: int | None = None,
    on: str = "functional",
    pieces: int | None = None,
    report: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Evaluation:
    """Score a model on a text three times: float, quantised in torch, executed.

    Parameters
    ----------
    model, board : as for `flightllm.compile`; the model must have weights and a tokeniser.
    text : the text itself.
    text_format : "documents" or "continuous"; see `flightllm.runtime.likelihood.split_text`.
    context : tokens scored together; left out, 1024 or as many as model and program take.
    on : the executor. pieces : documents or windows that it executes, the first ones; left out,
        all. What torch finds for the others is the same, to the bit.
    report : as for `flightllm.compile`, with the scores.
    options : quantisation, as for `flightllm.compile`.

    Raises
    ------
    InputError
        For a model without weights or tokeniser, a text too short, or a context too long.
    """
    if pieces is not None and pieces < 1:
        raise InputError(f"pieces: {pieces} is not at least 1")
    if report is not None:
        from flightllm.compiler.report_page import check_target

        check_target(report)
    made = build(model, board, progress=progress, **options)
    if made.quantised is None:
        raise InputError(f"{made.checkpoint.source} is a shape without weights: nothing to score")
    sequences, width = _sequences(made, text, text_format, context)
    total = sum(len(ids) - 1 for ids in sequences)

    def tell(stage: str) -> Callable[[int], None]:
        return lambda done: progress(stage, done, total) if progress is not None else None

    exact = _exact(made.checkpoint, sequences, tell("float"))
    quantised = _score(_integer_logits(made.quantised.model), sequences, tell("quantised in torch"))
    with load(made.program, on, tokenizer=made.tokenizer) as loaded:
        executed = execute(loaded.session, sequences[:pieces], tell("executed"))
        name, count = loaded.session.device.name, executed.tokens
    executed.extend(quantised)
    if report is not None:
        write_report(
            report, made.checkpoint, made.quantised, executed.perplexity, exact.perplexity
        )
    return Evaluation(
        exact.perplexity, quantised.perplexity, executed.perplexity, total,
        executed.agreement(exact), len(sequences), width, name, count,
    )  # fmt: skip


def _sequences(
    made: Compilation, text: str, text_format: str | None, context: int | None
) -> tuple[list[list[int]], int]:
    """Token ids that are scored together, and how many at most."""
    if made.tokenizer is None:
        raise InputError(f"{made.checkpoint.source}: has no tokenizer, so no text can be scored")
    longest = made.program.model.max_length
    if context is not None and context > longest:
        raise InputError(f"context: {context} exceeds the program's maximum length of {longest}")
    width = min(CONTEXT, longest) if context is None else context
    return split_text(made.tokenizer, text, width, text_format), width


_FLOAT: dict[tuple[str | None, int], Likelihood] = {}


def _exact(
    checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], progress: Callable[[int], None]
) -> Likelihood:
    """The float model's score; of the same files and the last text it is made once."""
    key = (checkpoint.identity(), hash(tuple(map(tuple, sequences))))
    if key not in _FLOAT:
        found = _score(_float_logits(checkpoint), sequences, progress)
        if key[0] is None:
            return found
        _FLOAT.clear()
        _FLOAT[key] = found
    return _FLOAT[key]


def _score(
    logits_of: Callable[[Sequence[int]], NDArray[np.float32]],
    sequences: Sequence[Sequence[int]],
    progress: Callable[[int], None],
) -> Likelihood:
    out = Likelihood()
    for ids in sequences:
        out.add(logits_of(ids[:-1]), ids[1:])
        progress(out.tokens)
    return out


def _float_logits(checkpoint: Checkpoint) -> Callable[[Sequence[int]], NDArray[np.float32]]:
    import torch

    from flightllm.models.reference import FloatModel

    model = FloatModel.load(checkpoint)

    def logits(ids: Sequence[int]) -> NDArray[np.float32]:
        with torch.no_grad():
            out: NDArray[np.float32] = model.forward(torch.tensor([list(ids)]))[0].numpy()
        return out

    return logits


def _integer_logits(model: QuantModel) -> Callable[[Sequence[int]], NDArray[np.float32]]:
    from flightllm.models.integer import IntegerModel

    return IntegerModel(model).forward
