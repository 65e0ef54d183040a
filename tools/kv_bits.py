"""What a KV cache of 4 bits costs, K and V apart, with and without K smoothing.

Run as ``python tools/kv_bits.py``: perplexities of the subjects of docs/accuracy.md, with
INT8 vectors and float weights, so that nothing but the cache differs between rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from accuracy import Subject, subjects

from flightllm.compiler import smooth
from flightllm.compiler.block import Block
from flightllm.compiler.calibrate import Calibration, float_model, sample
from flightllm.compiler.fold import FoldedEnds, FoldedLayer, fold_ends, fold_layer
from flightllm.compiler.ladder import perplexity
from flightllm.compiler.streams import Streams
from flightllm.models.checkpoint import Checkpoint, open_checkpoint
from flightllm.prompts import tokenizer_of
from flightllm.runtime.likelihood import split_text

__all__ = ["main", "scored", "smoothed", "table"]

CONTEXT = 512
TEXTS, LENGTH = 16, 128
"""Sampled texts on which K is smoothed."""


def smoothed(checkpoint: Checkpoint, key_bits: int) -> list[FoldedLayer]:
    """Every layer with its K smoothed for a cache of `key_bits`."""
    text = sample(float_model(checkpoint), TEXTS, min(LENGTH, checkpoint.config.max_length))
    streams = Streams(checkpoint.config, fold_ends(checkpoint), text, key_bits)
    made, x = [], streams.x
    for index in range(checkpoint.config.layers):
        layer = fold_layer(checkpoint, index)
        h = streams.exact.norm(x, layer.attn_norm)
        q, k, _ = streams.heads(layer, h, streams.exact)
        found = smooth.smoothing_from_heads(q, k, streams.rounded)
        made.append(smooth.apply_smoothing(layer, found))
        x = streams.run(layer, x, streams.exact)
    return made


def scored(
    ends: FoldedEnds, layers: Sequence[FoldedLayer], block: Block, text: Calibration
) -> float | None:
    """Perplexity of a text."""
    x = ends.embed[text.ids]
    if ends.positions is not None:
        x = x + ends.positions[: text.ids.shape[1]]
    for layer in layers:
        x = torch.cat([block.run(layer, part) for part in x.split(2)])
    return perplexity(block.logits(x, ends), text.ids, text.valid)


def _text(checkpoint: Checkpoint, subject: Subject) -> Calibration:
    tokenizer = tokenizer_of(checkpoint)
    assert tokenizer is not None
    width = min(CONTEXT, checkpoint.config.max_length)
    parts = split_text(tokenizer, subject.text, width, subject.text_format)
    ids = torch.zeros(len(parts), max(map(len, parts)), dtype=torch.int64)
    valid = torch.zeros_like(ids, dtype=torch.bool)
    for row, part in enumerate(parts):
        ids[row, : len(part)], valid[row, : len(part)] = torch.tensor(part), True
    return Calibration(ids, valid, subject.about)


@torch.no_grad()
def table(subject: Subject) -> str:
    """A subject's rows."""
    checkpoint = open_checkpoint(subject.model)
    text, ends = _text(checkpoint, subject), fold_ends(checkpoint)
    plain = [fold_layer(checkpoint, index) for index in range(checkpoint.config.layers)]
    block = Block.of(checkpoint.config, text.ids.shape[1], 8, quantised=True)
    exact = scored(ends, plain, replace(block, quantised=False), text)
    assert exact is not None
    lines = [
        f"{subject.title}, float: {exact:.4f}", "", "| K | V | plain | K smoothed |",
        "|---:|---:|---:|---:|",
    ]  # fmt: skip
    eased = {bits: smoothed(checkpoint, bits) for bits in (8, 4)}
    for key, value in ((8, 8), (8, 4), (4, 8), (4, 4)):
        cache = replace(block, key_bits=key, value_bits=value)
        found = [scored(ends, layers, cache, text) for layers in (plain, eased[key])]
        shown = " | ".join("-" if part is None else f"{part / exact - 1:+.2%}" for part in found)
        lines.append(f"| {key} | {value} | {shown} |")
    return "\n".join(lines) + "\n"


def main(tell: Callable[[str], object] = print) -> int:
    """Print every subject's table."""
    for subject in subjects():
        tell(table(subject))
    return 0


if __name__ == "__main__":
    sys.exit(main())
