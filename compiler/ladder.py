"""The ladder of passes: what each one changes, on the calibration text that is held out.

Beside the two streams of calibration a few texts go through the model as it stands after each pass:
in float, with INT8 vectors, with V and then K in 4 bits where the cache has them, with its channels
scaled, with K smoothed, pruned, and rounded. Each step's perplexity and residual errors tell what
its pass costs, or wins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from flightllm.compiler.fold import FoldedEnds, FoldedLayer
from flightllm.compiler.streams import Streams

__all__ = ["FLOAT", "Ladder", "perplexity"]

FLOAT = "float"
"""The step that the others are held against; it computes without INT8 vectors."""


def perplexity(logits: Tensor, ids: Tensor, valid: Tensor) -> float | None:
    """Of the tokens that follow valid ones and are valid themselves; None where there are none.

    Parameters
    ----------
    logits : float32 [B, T, vocab]. ids : int64 [B, T]. valid : bool [B, T].
    """
    counted = valid[:, :-1] & valid[:, 1:]
    if not bool(counted.any()):
        return None
    log = torch.log_softmax(logits[:, :-1][counted].double(), -1)
    return math.exp(-float(log.gather(1, ids[:, 1:][counted][:, None]).mean()))


class Ladder:
    """Residual streams of the held-out texts, one for each step.

    Parameters
    ----------
    streams : at the embedding.

    Members
    -------
    errors : {step: relative residual error after each layer}.
    """

    def __init__(self, streams: Streams) -> None:
        held = streams.held.any(1)
        self._ids, self._valid = streams.ids[held], streams.held[held]
        rounded = streams.rounded
        self._rounded = rounded
        self._special = {
            FLOAT: streams.exact,
            "vectors": replace(rounded, key_bits=8, value_bits=8),
            "values": replace(rounded, key_bits=8),
        }
        self._start = {True: streams.x[held], False: streams.y[held]}
        self._x: dict[str, Tensor] = {}
        self.errors: dict[str, list[float]] = {}

    def step(self, layers: Mapping[str, FoldedLayer]) -> None:
        """Take every step's stream through its version of the next layer.

        The steps, in the order of the passes, are the same at each layer; `FLOAT` is the first.
        "vectors" has a cache of 8 bits, "values" one with the stream's bits for V alone, and all
        that follow have the stream's.
        """
        for name, layer in layers.items():
            exact = name == FLOAT
            x = self._x.get(name, self._start[exact])
            self._x[name] = self._special.get(name, self._rounded).run(layer, x)
            miss = (self._x[name] - self._x[FLOAT])[self._valid].norm()
            size = self._x[FLOAT][self._valid].norm().clamp(min=1e-20)
            self.errors.setdefault(name, []).append(float(miss / size))

    def finish(self, ends: Mapping[str, FoldedEnds]) -> dict[str, float | None]:
        """Perplexity of each step, with the norm and the head that it has."""
        found = {}
        for name, part in ends.items():
            block = self._special.get(name, self._rounded)
            found[name] = perplexity(block.logits(self._x[name], part), self._ids, self._valid)
        return found
