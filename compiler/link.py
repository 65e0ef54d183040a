"""Link: code and quantised tensors to one program, its memory segments filled on demand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from flightllm.compiler.allocate import Layout
from flightllm.compiler.shape import ModelShape, linear_of
from flightllm.compiler.tile import CoreTile, Span
from flightllm.models.quantized import QuantLinear, QuantModel
from flightllm.spec.formats import pack_matrix, row_shares
from flightllm.spec.image import Piece, Segment
from flightllm.spec.quant import QuantTensor

__all__ = ["fill", "pieces"]

U8 = NDArray[np.uint8]
Contents = dict[tuple[int, str], Callable[[], U8]]


def fill(model: QuantModel, shape: ModelShape, parts: list[CoreTile], layouts: list[Layout]
         ) -> Contents:  # fmt: skip
    """For each read-only segment of each core, what makes its bytes [channels, size]."""
    out: Contents = {}
    for part, layout in zip(parts, layouts):
        filler = _Filler(model, shape, part, layout)
        for name, segment in layout.memory.segments.items():
            if not segment.writable:
                out[part.core, name] = getattr(filler, name)
    return out


def pieces(model: QuantModel, shape: ModelShape, parts: list[CoreTile], layouts: list[Layout]
           ) -> dict[tuple[int, str], Callable[[], Iterator[Piece]]]:  # fmt: skip
    """For each core's segment of matrices, what makes it piece by piece, a matrix at a time."""
    return {
        (part.core, "weights"): _Filler(model, shape, part, layout).weight_pieces
        for part, layout in zip(parts, layouts)
        if "weights" in layout.memory.segments
    }


def rows_of(tensor: QuantTensor, span: Span) -> QuantTensor:
    """Rows of a quantised tensor."""
    rows = slice(span.start, span.stop)
    return dataclasses.replace(
        tensor,
        levels=tensor.levels[rows],
        scales=tensor.scales[rows],
        minima=None if tensor.minima is None else tensor.minima[rows],
        zeros=None if tensor.zeros is None else tensor.zeros[rows],
        mask=None if tensor.mask is None else tensor.mask[rows],
    )


class _Filler:
    """Contents of one core's segments; each method is named after its segment."""

    def __init__(
        self, model: QuantModel, shape: ModelShape, part: CoreTile, layout: Layout
    ) -> None:
        self.model, self.shape, self.part, self.layout = model, shape, part, layout

    def _empty(self, name: str) -> tuple[Segment, U8]:
        segment = self.layout.memory.segments[name]
        return segment, np.zeros((self.part.channels, segment.size), np.uint8)

    def _table(self, name: str, values: NDArray[np.generic]) -> U8:
        """Rows of spread vectors [rows, n] as a segment."""
        segment, out = self._empty(name)
        for channel, (a, b) in enumerate(row_shares(values.shape[1], self.part.channels)):
            part = np.ascontiguousarray(values[:, a:b]).view(np.uint8)
            rows = out[channel][: len(values) * segment.row].reshape(len(values), segment.row)
            rows[:, : part.shape[1]] = part
        return out

    def weights(self) -> U8:
        """All matrices of this core."""
        _, out = self._empty("weights")
        for channel, at, data in self.weight_pieces():
            out[channel, at : at + len(data)] = data
        return out

    def weight_pieces(self) -> Iterator[Piece]:
        """Channel, place and bytes of each matrix' share, layer by layer."""
        count = len(self.model.layers)
        for index in range(count):
            layer = self.model.layers[index]
            for name in self.shape.matrices:
                yield from self._matrix(index, name, linear_of(layer, name))
        yield from self._matrix(count, "head", self.model.head)

    def _matrix(self, layer: int, name: str, linear: QuantLinear) -> Iterator[Piece]:
        at = self.layout.memory.matrices[layer, name]
        for rows in self.part.pieces(self.shape, name):
            if rows.size:
                packed = pack_matrix(rows_of(linear.weight, rows), self.part.channels)
                yield from ((channel, at, data) for channel, data in enumerate(packed))
                at += max(map(len, packed))

    def vectors(self) -> U8:
        """Norm gains and biases, one record a layer and one for the end."""
        _, out = self._empty("vectors")
        model, memory = self.model, self.layout.memory
        for layer in range(len(model.layers) + 1):
            last = layer == len(model.layers)
            for name, offset in memory.vectors.items():
                value = self._final(name) if last else self._vector(layer, name)
                if value is not None:
                    self._spread(out, layer * memory.vector_stride + offset, value)
        return out

    def _vector(self, layer: int, name: str) -> NDArray[np.float32] | None:
        part = self.model.layers[layer]
        if name in ("attn_norm", "mlp_norm"):
            gain: NDArray[np.float32] = getattr(part, name)
            return gain[self.part.dim.start : self.part.dim.stop]
        matrix = name.removeprefix("bias_")
        if matrix == "head":
            return None
        return self._bias(linear_of(part, matrix).bias, matrix)

    def _final(self, name: str) -> NDArray[np.float32] | None:
        if name == "attn_norm":
            return self.model.final_norm[self.part.dim.start : self.part.dim.stop]
        return self._bias(self.model.head.bias, "head") if name == "bias_head" else None

    def _bias(self, bias: NDArray[np.float32] | None, name: str) -> NDArray[np.float32] | None:
        rows = self.part.rows(self.shape, name)
        return None if bias is None else bias[rows.start : rows.stop]

    def _spread(self, out: U8, at: int, values: NDArray[np.float32]) -> None:
        for channel, (a, b) in enumerate(row_shares(len(values), self.part.channels)):
            raw = np.ascontiguousarray(values[a:b], np.float32).view(np.uint8)
            out[channel, at : at + len(raw)] = raw

    def embed(self) -> U8:
        """This core's slice of the embedding."""
        return self._table("embed", self.model.embed[:, self.part.dim.start : self.part.dim.stop])

    def positions(self) -> U8:
        """This core's slice of the learned positions."""
        assert self.model.positions is not None
        rows = self.model.positions[: self.layout.max_length]
        return self._table("positions", rows[:, self.part.dim.start : self.part.dim.stop])

    def rope(self) -> U8:
        """Cosines and sines of each position."""
        assert self.model.cos is not None and self.model.sin is not None
        both = np.concatenate([self.model.cos, self.model.sin], axis=1)
        return self._table("rope", both[: self.layout.max_length].astype(np.float32))
