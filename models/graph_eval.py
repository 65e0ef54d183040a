"""Evaluates parts of an exported graph: the values asked for, from values given."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flightllm.models.onnx_ops_nn import ALL
from flightllm.models.op_graph import Graph, Node
from flightllm.spec.errors import FlightError, InputError

__all__ = ["Evaluation", "needed", "run_node"]

Array = NDArray[Any]
BUDGET = 512 << 20
"""Bytes that the values of an evaluation may take."""


def run_node(node: Node, inputs: list[Any]) -> tuple[Any, ...]:
    """The outputs of one node.

    Raises
    ------
    InputError : when the operator is unknown, or cannot do this with these inputs.
    """
    operator = ALL.get(node.op)
    if operator is None:
        raise InputError(f"node {node.name!r}: the operator {node.op} is not supported")
    try:
        return operator(node, inputs)
    except FlightError as error:
        raise InputError(f"node {node.name!r} ({node.called}): {error}") from error
    except Exception as error:  # numpy refuses inputs that do not fit in many ways
        raise InputError(f"node {node.name!r} ({node.called}): {error}") from error


def wide(x: Array) -> Array:
    """Half precision as float32: what a graph means, not how it was to be computed."""
    return x.astype(np.float32) if x.dtype.itemsize == 2 and x.dtype.kind in "fV" else x


def needed(graph: Graph, targets: Collection[str], given: Collection[str]) -> list[Node]:
    """The nodes that targets depend on, but not through given values, in order."""
    wanted, todo = dict[int, Node](), [name for name in targets if name not in given]
    while todo:
        node = graph.producers.get(todo.pop())
        if node is not None and id(node) not in wanted:
            wanted[id(node)] = node
            todo += [name for name in node.inputs if name and name not in given]
    return sorted(wanted.values(), key=graph.place)


class Evaluation:
    """Values of a graph, made when they are asked for, from those that are given.

    float16 and bfloat16 are widened to float32, and a pair of QuantizeLinear and DequantizeLinear
    on a value that is no constant passes it on: the device quantises activations in its own way.

    Parameters
    ----------
    given : values by name: inputs of the graph, or any others in place of what their nodes make.

    Raises
    ------
    InputError : from `value`, when what is made takes `BUDGET` and 16 times the constants read.
    """

    def __init__(self, graph: Graph, given: Mapping[str, Array]) -> None:
        self.graph = graph
        self.values: dict[str, Array] = dict(given)
        self._left = BUDGET

    def _known(self, name: str) -> Any:
        if not name:
            return None
        if name not in self.values:
            if name not in self.graph.constants:
                raise InputError(f"{self.graph.path}: the input {name!r} has no value")
            self.values[name] = wide(self.graph.constants[name].load())
            self._left += 16 * self.values[name].nbytes
        return self.values[name]

    def _run(self, node: Node) -> None:
        if node.op == "DequantizeLinear":
            source = self.graph.producers.get(node.inputs[0])
            if source is not None and source.op == "QuantizeLinear":
                self.values[node.outputs[0]] = self._known(source.inputs[0])
                return
        given = [self._known(name) for name in node.inputs]
        try:
            results = run_node(node, given)
        except InputError as error:
            raise InputError(f"{self.graph.path}: {error}") from error
        for name, result in zip(node.outputs, results):
            if name and name not in self.values and result is not None:
                self.values[name] = made = wide(np.asarray(result))
                self._left -= made.nbytes if made.base is None else 0
        if self._left < 0:
            raise self.graph.fail(node, f"the values up to here take more than {BUDGET} bytes")

    def value(self, name: str) -> Array:
        """One value.

        Raises
        ------
        InputError : as `run_node`, or when it depends on an input that is not given.
        """
        for node in needed(self.graph, [name], self.values):
            self._run(node)
        made: Array = self._known(name)
        return made
