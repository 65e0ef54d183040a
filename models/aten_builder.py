"""Builds an operator graph in ONNX's operators from the nodes of a torch.export program.

`aten_ops` says what each ATen operator is made of; here are the values that it works on. Half
precision is computed in float32: what a program means, not how it was to be computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flightllm.models.export_archive import BFLOAT16, numpy_type
from flightllm.models.op_graph import Constant, Node, Value
from flightllm.spec.errors import InputError

__all__ = ["BOOL", "FLOAT", "LONG", "Builder", "Ref", "computed"]

LONG, HALF, FLOAT, DOUBLE, BOOL = 5, 6, 7, 8, 12
_ONNX_TYPES = {1: 2, 2: 3, 3: 5, 4: 6, LONG: 7, FLOAT: 1, DOUBLE: 11, BOOL: 9}
"""Numbers of ONNX's types by torch's."""


def computed(kind: int) -> int:
    """The type that values of a type are computed in."""
    return FLOAT if kind in (HALF, BFLOAT16) else kind


@dataclass(frozen=True)
class Ref:
    """A value of the graph: its name there, torch's number of its type, extents or None."""

    name: str
    kind: int
    shape: tuple[int | None, ...]

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def axis(self, dim: int) -> int:
        """An axis counted from the front.

        Raises
        ------
        InputError : when there is no such axis.
        """
        if not -self.rank <= dim < max(self.rank, 1):
            raise InputError(f"has no axis {dim}")
        return dim + self.rank if dim < 0 else dim


Operand = Ref | bool | int | float


class Builder:
    """Nodes and constants as they are added.

    Members
    -------
    name, origin : of the file's node that is translated.
    batched : matrices by the name of a value that is the same matrix for each entry of a batch.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, Constant] = {}
        self.name = self.origin = ""
        self.batched: dict[str, Ref] = {}
        self._known: dict[tuple[Any, ...], str] = {}

    def emit(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add an operator; gives the name of its first output, `all_outputs` those of all."""
        made = tuple(f"{self.name}#{len(self.nodes)}.{i}" for i in range(outputs))
        self.nodes.append(Node(self.name, op, inputs, made, attributes, self.origin))
        return made[0]

    def all_outputs(self) -> tuple[str, ...]:
        """Every output of the operator added last."""
        return self.nodes[-1].outputs

    def constant(self, value: Any, kind: int = LONG) -> str:
        """A constant of torch's type `kind`."""
        array = np.asarray(value, numpy_type(computed(kind), "a constant"))
        key = array.dtype, array.shape, array.tobytes()
        if key not in self._known:
            self._known[key] = f"constant#{len(self._known)}"
            self.constants[self._known[key]] = Value(array)
        return self._known[key]

    def cast(self, ref: Ref, kind: int) -> str:
        """A value as another type."""
        wanted = computed(kind)
        if computed(ref.kind) == wanted:
            return ref.name
        if wanted not in _ONNX_TYPES:
            raise InputError(f"the type {kind} is not supported")
        return self.emit("Cast", ref.name, to=_ONNX_TYPES[wanted])

    def operand(self, value: Operand, kind: int) -> str:
        """A value or a number, as a type."""
        return self.cast(value, kind) if isinstance(value, Ref) else self.constant(value, kind)

    def ints(self, values: Sequence[int | Ref]) -> str:
        """Whole numbers as a vector, int64 [n]."""
        if not any(isinstance(value, Ref) for value in values):
            return self.constant(list(values))
        parts = [
            self.emit("Reshape", value.name, self.constant([1])) if isinstance(value, Ref)
            else self.constant([value])
            for value in values
        ]  # fmt: skip
        return self.emit("Concat", *parts, axis=0)

    def extent(self, ref: Ref, axis: int) -> str:
        """One extent of a value, int64 []."""
        fixed = ref.shape[axis]
        if fixed is not None:
            return self.constant(fixed)
        shape = self.emit("Shape", ref.name, start=axis, end=axis + 1)
        return self.emit("Reshape", shape, self.constant(np.zeros(0, np.int64)))
