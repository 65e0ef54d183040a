"""The parameter memory of a core: what differs from layer to layer."""

from __future__ import annotations

from dataclasses import dataclass

from flightllm.compiler.allocate import Layout
from flightllm.compiler.shape import MatrixPlan, ModelShape
from flightllm.compiler.tile import CoreTile
from flightllm.spec.formats import ALIGN

__all__ = ["Parameters", "parameters"]


@dataclass(frozen=True)
class Parameters:
    """The parameter memory: code tables, the head's record, then a record for each layer.

    A record holds, for each matrix, address (64-byte units), format word and, where the model has
    code tables, the address of its table. Behind them, at `masks`, it holds for each KV head of the
    core, where attention is block-sparse, the blocks kept at the beginning and those kept in all.
    """

    words: list[int]
    head: int
    layers: int
    stride: int
    width: int
    masks: int


def parameters(shape: ModelShape, layout: Layout, part: CoreTile) -> Parameters:
    """The parameter words of one core."""
    plans = [*(p for layer in shape.layers for p in layer.values()), shape.head]
    tables = sorted({p.table for p in plans if p.table is not None})
    words: list[int] = []
    places: dict[tuple[int, ...] | None, int] = {None: 0}
    for table in tables:
        places[table] = len(words)
        padded = [*table, *([0] * (16 - len(table)))]
        raw = bytes(level & 255 for level in padded)
        words += [int.from_bytes(raw[i : i + 4], "little") for i in range(0, 16, 4)]
    width = 3 if tables else 2

    def record(layer: int, name: str, plan: MatrixPlan) -> list[int]:
        address = layout.memory.segments["weights"].base + layout.memory.matrices[layer, name]
        return [address // ALIGN, plan.fmt.word, places[plan.table]][:width]

    head = len(words)
    words += record(len(shape.layers), "head", shape.head)
    first = len(words)
    for number, layer in enumerate(shape.layers):
        for name in shape.matrices:
            words += record(number, name, layer[name])
        for pattern in shape.patterns[number][part.kv.start : part.kv.stop] if shape.sparse else ():
            words += [pattern.first, pattern.first + pattern.last]
    masks = width * len(shape.matrices)
    stride = masks + (2 * part.kv.size if shape.sparse else 0)
    return Parameters(words, head, first, stride, width, masks)
