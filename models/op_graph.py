"""Operator graphs as plain records: what a reader of exported models gives and the importer takes.

Operators are ONNX's, whatever the file: `onnx_file` reads them as they stand, `export_graph`
translates those of torch.export. `graph_eval` computes with them, `graph_model` finds the decoder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flightllm.spec.errors import InputError

__all__ = ["MAX_NODES", "Constant", "Graph", "GraphInput", "Node", "Value", "ordered"]

Array = NDArray[Any]
MAX_NODES = 1 << 17


@dataclass(frozen=True)
class Node:
    """One operator.

    Members
    -------
    name : of the node in the file. op : ONNX's name, with "domain:" in front unless the domain is
        ONNX's own. origin : the operator that the file names, where `op` is a part of its
        translation.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""

    @property
    def called(self) -> str:
        """The operator as the file names it."""
        return self.origin or self.op


@dataclass(frozen=True)
class GraphInput:
    """An input: its type and extents, None where they are left open."""

    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


class Constant(Protocol):
    """A constant of the graph: its shape is known, the values are read by `load`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents."""

    def load(self) -> Array:
        """The values; where the file allows it a view of the mapped file."""

    def part(self, rows: slice) -> Array:
        """Some rows of the values."""


@dataclass(frozen=True, eq=False)
class Value:
    """A constant in memory."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents."""
        return tuple(self.array.shape)

    def load(self) -> Array:
        """The values."""
        return self.array

    def part(self, rows: slice) -> Array:
        """Some rows."""
        return self.array[rows]


@dataclass(frozen=True)
class Graph:
    """A graph whose nodes are in an order in which they can be computed.

    Members
    -------
    producers : the node that makes a value. consumers : the nodes that read it.
    """

    path: Path
    nodes: tuple[Node, ...]
    inputs: Mapping[str, GraphInput]
    outputs: tuple[str, ...]
    constants: Mapping[str, Constant]
    producers: Mapping[str, Node]
    consumers: Mapping[str, Sequence[Node]]
    order: Mapping[int, int] = field(default_factory=dict, repr=False)

    def place(self, node: Node) -> int:
        """Where a node stands in the order of computation."""
        return self.order[id(node)]

    def fail(self, node: Node, why: str) -> InputError:
        """An error about one node, to be raised."""
        return InputError(f"{self.path}: node {node.name!r} ({node.called}): {why}")

    def counts(self) -> Counter[str]:
        """How many nodes of the file have each operator, as the file names it."""
        whole = Counter(node.op for node in self.nodes if not node.origin)
        translated = {(node.name, node.origin) for node in self.nodes if node.origin}
        return whole + Counter(origin for _, origin in translated)


def ordered(
    path: Path, nodes: Sequence[Node], inputs: Mapping[str, GraphInput], outputs: tuple[str, ...],
    constants: Mapping[str, Constant],
) -> Graph:  # fmt: skip
    """A graph of nodes sorted so that each follows what it reads.

    Raises
    ------
    InputError : naming the node when a value is made twice or never, or nodes run in a circle.
    """
    if len(nodes) > MAX_NODES:
        raise InputError(f"{path}: {len(nodes)} nodes are more than {MAX_NODES}")
    producers: dict[str, Node] = {}
    for node in nodes:
        for name in filter(None, node.outputs):
            if name in producers or name in constants or name in inputs:
                raise InputError(f"{path}: the value {name!r} of node {node.name!r} is made twice")
            producers[name] = node
    consumers: dict[str, list[Node]] = {}
    missing: dict[int, int] = {}
    for node in nodes:
        needed = {name for name in node.inputs if name}
        for name in needed:
            if name not in producers and name not in constants and name not in inputs:
                raise InputError(f"{path}: node {node.name!r} reads {name!r}, which nothing makes")
            consumers.setdefault(name, []).append(node)
        missing[id(node)] = sum(name in producers for name in needed)
    order = _sorted(nodes, consumers, missing)
    if len(order) < len(nodes):
        stuck = next(node for node in nodes if missing[id(node)])
        raise InputError(f"{path}: the graph runs in a circle through node {stuck.name!r}")
    for name in outputs:
        if name not in producers and name not in constants and name not in inputs:
            raise InputError(f"{path}: output {name!r} is made by no node")
    places = {id(node): place for place, node in enumerate(order)}
    return Graph(path, tuple(order), inputs, outputs, constants, producers, consumers, places)


def _sorted(
    nodes: Sequence[Node], consumers: Mapping[str, Sequence[Node]], missing: dict[int, int]
) -> list[Node]:
    """The nodes that can be computed, in order; `missing` counts what each still waits for."""
    ready = [node for node in nodes if not missing[id(node)]]
    order: list[Node] = []
    while ready:
        node = ready.pop()
        order.append(node)
        for name in dict.fromkeys(filter(None, node.outputs)):
            for reader in consumers.get(name, ()):
                missing[id(reader)] -= 1
                if not missing[id(reader)]:
                    ready.append(reader)
    return order
