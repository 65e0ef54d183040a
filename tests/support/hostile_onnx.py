"""Ways to spoil an ONNX file: its graph, its constants, where its data lies, how much it makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hostile import Spoiler
from hostile_spoilers import MARKER, extreme, of_bytes, pick, up_to
from onnx import TensorProto, helper, numpy_helper

__all__ = ["ONNX"]

Random = np.random.Generator
_FILE = "m.onnx"


def _edited(change: Callable[[Any, Random], None]) -> Spoiler:
    """A spoiler that changes the graph, once or a few times."""

    def spoil(folder: Path, random: Random) -> None:
        model = onnx.load(folder / _FILE)
        for _ in range(int(random.integers(1, 4))):
            change(model.graph, random)
        (folder / _FILE).write_bytes(model.SerializeToString())

    return spoil


def _cycle(graph: Any, random: Random) -> None:
    """A node that reads what a later one makes, or itself."""
    place = int(random.integers(len(graph.node)))
    node = graph.node[place]
    later = graph.node[int(random.integers(place, len(graph.node)))]
    if node.input and later.output:
        node.input[int(random.integers(len(node.input)))] = later.output[0]


def _rewired(graph: Any, random: Random) -> None:
    """Inputs, outputs and operators of nodes exchanged."""
    node, other = pick(random, graph.node), pick(random, graph.node)
    kind = int(random.integers(5))
    if kind == 0 and node.input:
        node.input[int(random.integers(len(node.input)))] = other.output[0]
    elif kind == 1:
        node.op_type = other.op_type
    elif kind == 2:
        del node.input[:]
    elif kind == 3:
        node.output[0] = other.output[0]
    else:
        node.input.append(pick(random, ["", "nothing", other.output[0]]))


def _operators(graph: Any, random: Random) -> None:
    """Any operator that can be evaluated in place of another, in this domain or onnxruntime's."""
    from flightllm.models.onnx_ops_nn import ALL

    node = pick(random, graph.node)
    domain, _, name = pick(random, sorted(ALL)).rpartition(":")
    node.op_type, node.domain = name, domain


def _shapes(graph: Any, random: Random) -> None:
    """Extents of a constant, or the numbers of a small one (a shape, an axis, a bound)."""
    tensor = pick(random, graph.initializer)
    value = extreme(random)
    if random.random() < 0.5 and tensor.dims:
        tensor.dims[int(random.integers(len(tensor.dims)))] = value
    elif random.random() < 0.3:
        tensor.dims.append(value)
    small = [node for node in graph.node if node.op_type == "Constant"]
    tensors = [*graph.initializer, *(node.attribute[0].t for node in small)]
    small = [t for t in tensors if t.data_type == 7 and len(t.raw_data) in (8, 16, 24, 32)]
    if small:
        chosen = pick(random, small)
        numbers = np.frombuffer(chosen.raw_data, np.int64).copy()
        numbers[int(random.integers(len(numbers)))] = value
        chosen.raw_data = numbers.tobytes()


def _types(graph: Any, random: Random) -> None:
    pick(random, graph.initializer).data_type = int(random.integers(0, 30))


def _attributes(graph: Any, random: Random) -> None:
    nodes = [node for node in graph.node if node.attribute]
    attribute = pick(random, pick(random, nodes).attribute)
    attribute.i = extreme(random)
    if attribute.ints:
        attribute.ints[int(random.integers(len(attribute.ints)))] = extreme(random)
    if random.random() < 0.2:
        attribute.type = int(random.integers(0, 14))


def _offsets(graph: Any, random: Random) -> None:
    """Data beside the file: beyond its end, outside the folder, in a device, in a directory."""
    tensor = pick(random, graph.initializer)
    tensor.data_location = TensorProto.EXTERNAL
    if random.random() < 0.5:
        tensor.ClearField("raw_data")
    location = pick(random, [_FILE, "", ".", "..", "../m.onnx", "/dev/zero", "/etc/passwd", "x\0y",
                             "a" * 5000, "/dev/stdin", "../../../../proc/self/mem"])  # fmt: skip
    facts = {"location": location, "offset": str(extreme(random)), "length": str(extreme(random))}
    for key, value in facts.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, pick(random, [value, value, "x"])


def _many(folder: Path, random: Random) -> None:
    """Hundreds of thousands of empty tensors or nodes, or one tensor of 10^9 by its shape."""
    path = folder / _FILE
    data = path.read_bytes()
    count = up_to(random, 20)
    kind = int(random.integers(3))
    if kind == 2:
        model = onnx.load(path)
        tensor = model.graph.initializer.add(name="large", data_type=TensorProto.FLOAT)
        tensor.dims.extend([10**9, int(random.integers(1, 10**9))])
        model.graph.node[0].input[0] = "large"
        path.write_bytes(model.SerializeToString())
        return
    one = b"\x0a\x00" if kind else b"\x2a\x00"  # GraphProto.node, GraphProto.initializer
    inner = one * count
    size = len(inner)
    length = bytearray()
    while size >= 128:
        length.append(size & 127 | 128)
        size >>= 7
    length.append(size)
    path.write_bytes(data + b"\x3a" + bytes(length) + inner)  # ModelProto.graph, merged


def _growth(graph: Any, random: Random) -> None:
    """A value that doubles, spreads or counts to no end, put where the graph computes."""
    node = pick(random, [n for n in graph.node if n.op_type in ("Add", "Mul", "Cast", "MatMul")])
    source, made = node.input[0], list[Any]()
    kind = int(random.integers(6))
    for step in range(up_to(random, 7)):
        name = f"grown.{len(graph.node)}.{step}"
        if kind == 0:
            made.append(helper.make_node("Concat", [source, source], [name], axis=-1))
        elif kind == 1:
            made.append(
                helper.make_node("Einsum", [source, source], [name], equation="...i,...j->...ij")
            )
        elif kind == 2:
            made.append(helper.make_node("Mul", [source, source], [name]))
        else:
            shape = numpy_helper.from_array(np.array([extreme(random)] * 2, np.int64), f"{name}.s")
            graph.initializer.append(shape)
            op = ("Expand", "Tile", "Reshape")[kind - 3]
            made.append(helper.make_node(op, [source, f"{name}.s"], [name]))
        source = name
    node.input[0] = source
    graph.node.extend(made)


def _control(graph: Any, random: Random) -> None:
    """Loops and branches, one inside the other, and operators of a domain of the file's own."""
    inner = helper.make_graph([], "inner", [], [])
    for _ in range(int(random.integers(1, 25))):
        node = helper.make_node(pick(random, ["If", "Loop", "Scan"]), [], ["x"], body=inner)
        inner = helper.make_graph([node], "inner", [], [])
    graph.node.append(inner.node[0])
    other = pick(random, graph.node)
    other.domain = pick(random, ["own", "ai.onnx.ml", "com.microsoft"])
    other.doc_string = f"open({str(MARKER)!r}, 'w')"


ONNX: dict[str, Spoiler] = {
    "bytes": of_bytes(_FILE, 1 << 20),
    "head": of_bytes(_FILE, 4096),
    "cycle": _edited(_cycle),
    "rewired": _edited(_rewired),
    "operators": _edited(_operators),
    "shapes": _edited(_shapes),
    "types": _edited(_types),
    "attributes": _edited(_attributes),
    "offsets": _edited(_offsets),
    "a billion tensors": _many,
    "growth": _edited(_growth),
    "control flow": _edited(_control),
}
"""Spoilers of m.onnx by name."""
