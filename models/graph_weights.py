"""The matrices of an exported graph: which nodes multiply by a constant, and what that constant is.

A weight is any matrix that depends on no input of the graph: plain, transposed, cast, or
dequantised (QDQ and MatMulNBits, whose codes are kept).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flightllm.models.codes import Codes
from flightllm.models.graph_eval import Evaluation
from flightllm.models.op_graph import Constant, Graph, Node
from flightllm.spec.errors import InputError

__all__ = ["Linear", "Lookup", "Weights"]

Array = NDArray[Any]
_NBITS = "com.microsoft:MatMulNBits"
_THROUGH = ("Cast", "Identity", "DequantizeLinear", "QuantizeLinear")


@dataclass(frozen=True)
class Linear:
    """y = x W^T + bias in a graph.

    Members
    -------
    node : that multiplies. source, output : names of x and of y. rows, columns : of W.
    weight : reads W, float32 [rows, columns]. codes : reads its codes, or None.
    bias : name of the constant, or None.
    """

    node: Node
    source: str
    output: str
    rows: int
    columns: int
    weight: Callable[[], Array]
    codes: Callable[[], Codes] | None
    bias: str | None


@dataclass(frozen=True)
class Lookup:
    """A row of a constant matrix for each index: `matrix` and `indices` are names of values."""

    node: Node
    matrix: str
    indices: str
    output: str
    shape: tuple[int, int]


class Weights:
    """What of a graph is constant.

    Members
    -------
    linears, lookups : by the name of each value that they make.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.fixed = set(graph.constants)
        for node in graph.nodes:
            if node.inputs and all(not name or name in self.fixed for name in node.inputs):
                if not self._positions(node):
                    self.fixed.update(filter(None, node.outputs))
        self.linears: dict[str, Linear] = {}
        self.lookups: dict[str, Lookup] = {}
        for node in graph.nodes:
            linear, lookup = self._linear(node), self._lookup(node)
            if linear is not None:
                self.linears[node.outputs[0]] = self.linears[linear.output] = linear
            elif lookup is not None:
                self.lookups[lookup.output] = lookup

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a constant value, without reading it where that is possible."""
        node = self.graph.producers.get(name)
        if node is None:
            return self.graph.constants[name].shape
        if node.op in _THROUGH:
            return self.shape(node.inputs[0])
        if node.op == "Transpose":
            inner = self.shape(node.inputs[0])
            order = node.attributes.get("perm", range(len(inner))[::-1])
            if sorted(order) != list(range(len(inner))):
                raise self.graph.fail(node, f"perm {list(order)} does not fit {list(inner)}")
            return tuple(inner[axis] for axis in order)
        return self.read(name).shape

    def stored(self, name: str) -> Constant | None:
        """The matrix in the file that a value is, perhaps turned; None when it is computed."""
        node = self.graph.producers.get(name)
        while node is not None and node.op in ("Transpose", "Cast", "Identity"):
            name = node.inputs[0]
            node = self.graph.producers.get(name)
        return self.graph.constants.get(name)

    def read(self, name: str) -> Array:
        """A constant value."""
        return Evaluation(self.graph, {}).value(name)

    def _matrix(self, name: str) -> tuple[int, int] | None:
        if name not in self.fixed:
            return None
        shape = self.shape(name)
        return (shape[0], shape[1]) if len(shape) == 2 and min(shape) else None

    def _positions(self, node: Node) -> bool:
        """Whether a look-up of fixed rows may be that of positions, in a graph of fixed length."""
        if node.op != "Gather" or node.attributes.get("axis", 0):
            return False
        matrix, indices = node.inputs
        if self._matrix(matrix) is None or len(self.shape(indices)) not in (1, 2):
            return False
        rows = self.read(indices).reshape(-1)
        return rows.size > 1 and bool((np.diff(rows) == 1).all())

    # ------------------------------------------------------------------ nodes

    def _lookup(self, node: Node) -> Lookup | None:
        if node.op != "Gather" or len(node.inputs) != 2 or node.attributes.get("axis", 0):
            return None
        matrix, indices = node.inputs
        shape = self._matrix(matrix) if node.outputs[0] not in self.fixed else None
        return None if shape is None else Lookup(node, matrix, indices, node.outputs[0], shape)

    def _linear(self, node: Node) -> Linear | None:
        if node.op == _NBITS:
            return self._n_bits(node)
        if node.op not in ("MatMul", "Gemm") or len(node.inputs) < 2:
            return None
        source, name = node.inputs[:2]
        shape = self._matrix(name) if source not in self.fixed else None
        if shape is None:
            return None
        flags = node.attributes
        if any(flags.get(key, usual) != usual for key, usual in _PLAIN.items()):
            return None
        as_rows = bool(flags.get("transB", 0))
        rows, columns = shape if as_rows else shape[::-1]
        bias, output = self._bias(node, rows)

        def weight() -> Array:
            made = self.read(name)
            return np.asarray(made if as_rows else made.T, np.float32)

        codes = self._codes(name, as_rows)
        return Linear(node, source, output, rows, columns, weight, codes, bias)

    def _bias(self, node: Node, rows: int) -> tuple[str | None, str]:
        """The bias of a product and the name of their sum."""
        if node.op == "Gemm" and len(node.inputs) > 2 and node.inputs[2] in self.fixed:
            return node.inputs[2], node.outputs[0]
        product = node.outputs[0]
        while True:
            readers = self.graph.consumers.get(product, ())
            if len(readers) != 1 or product in self.graph.outputs:
                return None, node.outputs[0]
            if readers[0].op not in ("Reshape", "Identity") or readers[0].inputs[0] != product:
                break
            product = readers[0].outputs[0]
        other = [name for name in readers[0].inputs if name != product]
        if readers[0].op == "Add" and len(other) == 1 and other[0] in self.fixed:
            if self.shape(other[0]) in ((rows,), (1, rows), (1, 1, rows)):
                return other[0], readers[0].outputs[0]
        return None, node.outputs[0]

    # ------------------------------------------------------------------ codes

    def _codes(self, name: str, as_rows: bool) -> Callable[[], Codes] | None:
        """Codes of a dequantised constant, [rows, columns] when `as_rows`, else the other way."""
        node = self.graph.producers.get(name)
        while node is not None and node.op in ("Transpose", "Cast", "Identity"):
            as_rows = as_rows != (node.op == "Transpose")
            node = self.graph.producers.get(node.inputs[0])
        if node is None or node.op != "DequantizeLinear":
            return None
        shape, scale = self.shape(node.inputs[0]), self.shape(node.inputs[1])
        axis = node.attributes.get("axis", 1) % 2
        block = node.attributes.get("block_size", 0)
        along_rows = axis == (0 if as_rows else 1)  # a scale a row
        single = int(np.prod(scale)) == 1
        if len(shape) != 2 or (not single and along_rows == bool(block)):
            return None  # a scale for each column, or for blocks of rows
        found: Node = node
        return lambda: self._dequantised(found, as_rows, block)

    def _dequantised(self, node: Node, as_rows: bool, block: int) -> Codes:
        stored, scales = self.read(node.inputs[0]), self.read(node.inputs[1]).astype(np.float32)
        bits, signed = _width(stored.dtype)
        zero = np.zeros(1, np.int16)
        if len(node.inputs) > 2 and node.inputs[2]:
            zero = self.read(node.inputs[2]).astype(np.int16)
        levels = stored.astype(np.int16)
        if not as_rows:
            levels = levels.T
        rows, columns = levels.shape

        def grouped(values: Array) -> Array:
            if not block:
                return np.broadcast_to(values.reshape(-1, 1), (rows, 1))
            return values if as_rows else values.T

        zeros = np.ascontiguousarray(np.broadcast_to(grouped(zero), grouped(scales).shape))
        made = Codes(
            np.ascontiguousarray(levels), np.ascontiguousarray(grouped(scales)),
            block or columns, bits, zeros=zeros + np.int16(signed << (bits - 1)),
        )  # fmt: skip
        return _centred(made, zeros)

    def _n_bits(self, node: Node) -> Linear:
        flags = node.attributes
        try:
            rows, columns = int(flags["N"]), int(flags["K"])
            bits, block = int(flags.get("bits", 4)), int(flags["block_size"])
        except KeyError as error:
            raise self.graph.fail(node, f"the attribute {error} is missing") from error
        inputs = [*node.inputs, *[""] * (6 - len(node.inputs))]
        if bits not in (2, 4, 8) or block < 16 or block % 16 or rows < 1 or columns < 1:
            raise self.graph.fail(node, f"{bits} bits in blocks of {block} are not supported")
        if any(name and name not in self.fixed for name in inputs[1:5]):
            raise self.graph.fail(node, "its codes are no constants")
        if inputs[4] and int(np.prod(self.shape(inputs[4]))) < columns:
            raise self.graph.fail(node, f"g_idx (act-order) has fewer than {columns} entries")
        blocks = -(-columns // block)
        size = int(np.prod(self.shape(inputs[1])))
        if size != rows * blocks * block * bits // 8:
            raise self.graph.fail(node, f"{size} bytes of codes do not make [{rows}, {columns}]")

        def codes() -> Codes:
            return self._unpacked(inputs, rows, columns, bits, block)

        bias, output = (inputs[5] or None), node.outputs[0]
        if bias is None:
            bias, output = self._bias(node, rows)
        return Linear(
            node, inputs[0], output, rows, columns, lambda: codes().weights(), codes, bias
        )

    def _unpacked(self, inputs: list[str], rows: int, columns: int, bits: int, block: int) -> Codes:
        blocks = -(-columns // block)
        places = self._act_order(inputs[4], columns, blocks, block)
        stored = _unpack(self.read(inputs[1]).reshape(rows, -1), bits, blocks * block)
        scales = self.read(inputs[2]).astype(np.float32).reshape(rows, blocks)
        zeros: Array = np.full((rows, blocks), 1 << (bits - 1), np.int16)
        if inputs[3]:
            given = self.read(inputs[3])
            if given.dtype != np.uint8:
                minima = -given.astype(np.float32).reshape(rows, blocks) * scales
                levels = stored[:, :columns].astype(np.int16)
                return Codes(levels, scales, block, bits, minima=minima, places=places)
            zeros = _unpack(given.reshape(rows, -1), bits, blocks).astype(np.int16)
        levels = stored[:, :columns].astype(np.int16)
        made = Codes(levels, scales, block, bits, zeros=zeros, places=places)
        return _centred(made, zeros)

    def _act_order(self, name: str, columns: int, blocks: int, block: int) -> Array | None:
        """The block of each column where they do not follow one another, else None."""
        if not name:
            return None
        found = self.read(name).reshape(-1)[:columns].astype(np.int64)
        if found.min(initial=0) < 0 or found.max(initial=0) >= blocks:
            raise InputError(f"{self.graph.path}: g_idx {name!r} names none of {blocks} blocks")
        return None if np.array_equal(found, np.arange(columns) // block) else found


_PLAIN = {"transA": 0, "alpha": 1.0, "beta": 1.0}


def _centred(codes: Codes, zeros: Array) -> Codes:
    """The codes with zero points taken off their levels."""
    levels = codes.levels - codes.spread(zeros.astype(np.int16))
    kind = np.int8 if codes.bits < 8 else np.int16
    return Codes(
        levels.astype(kind), codes.scales, codes.group, codes.bits, zeros=codes.zeros,
        places=codes.places,
    )  # fmt: skip


def _unpack(raw: Array, bits: int, count: int) -> Array:
    """Codes of bytes, lowest bits first, uint8 [rows, count]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = (raw.astype(np.uint8)[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return np.asarray(parts.reshape(len(raw), -1)[:, :count])


def _width(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Bits of an integer type, and whether it is signed."""
    name = dtype.name
    digits = name.removeprefix("u").removeprefix("int")
    if not digits.isdigit() or int(digits) not in (2, 4, 8):
        raise InputError(f"weights dequantised from {name} are not supported")
    return int(digits), int(not name.startswith("u"))
