"""ONNX files: the graph as plain records, constants read when they are asked for.

Weights beside the file (external data) are memory-mapped and must lie in the model's own folder.
Nothing in a file is executed: no custom operator, no function, no script.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flightllm.models.onnx_fused import take_apart
from flightllm.models.op_graph import MAX_NODES, Graph, GraphInput, Node, ordered
from flightllm.spec.errors import InputError, MissingToolError

__all__ = ["open_onnx"]

Array = NDArray[Any]
OLDEST = 13
"""Version of ONNX's operators from which on they are evaluated as they mean."""


class OnnxConstant:
    """A constant of the graph: type and shape are known, the values are read by `load`."""

    def __init__(self, tensor: Any, folder: Path, where: str) -> None:
        self._tensor, self._folder, self._where = tensor, folder, where
        self.shape = tuple(int(extent) for extent in tensor.dims)
        if any(extent < 0 for extent in self.shape):
            raise InputError(f"{where}: has the shape {list(self.shape)}")

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def kind(self) -> str:
        """Name of the element type, "FLOAT", "INT4"."""
        import onnx

        name: str = onnx.TensorProto.DataType.Name(self._tensor.data_type)
        return name

    def load(self) -> Array:
        """The values; of external data a view of the mapped file."""
        import onnx
        from onnx import numpy_helper

        tensor = self._tensor
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            try:
                return np.asarray(numpy_helper.to_array(tensor))
            except Exception as error:  # whatever a damaged tensor makes of numpy
                raise InputError(f"{self._where}: cannot be read ({error})") from error
        return self._external()

    def part(self, rows: slice) -> Array:
        """Some rows of the values."""
        return self.load()[rows]

    def _external(self) -> Array:
        import onnx
        from onnx import numpy_helper

        facts = {entry.key: entry.value for entry in self._tensor.external_data}
        path = _inside(self._folder, facts.get("location", ""), self._where)
        try:
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self._tensor.data_type))
            offset = int(facts.get("offset", 0))
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"{self._where}: external data of no known type or place") from error
        if self.kind.endswith("INT4"):  # two codes a byte
            size = (self.size + 1) // 2
        else:
            size = self.size * dtype.itemsize
        have = path.stat().st_size
        if offset < 0 or offset + size > have:
            raise InputError(
                f"{self._where}: {size} bytes at {offset} of {path.name} end beyond its {have}"
            )
        if not size:
            return np.zeros(self.shape, dtype)
        raw = np.memmap(path, np.uint8, "c", offset, (size,))
        if self.kind.endswith("INT4"):
            made = onnx.TensorProto()
            made.CopyFrom(self._tensor)
            made.ClearField("external_data")
            made.data_location = onnx.TensorProto.DEFAULT
            made.raw_data = raw.tobytes()
            return np.asarray(numpy_helper.to_array(made))
        return raw.view(dtype).reshape(self.shape)


def _inside(folder: Path, location: str, where: str) -> Path:
    """A file of external data, which must lie in the model's folder."""
    path = folder / location
    try:
        outside = not location or folder.resolve() not in path.resolve().parents
        found = path.is_file()
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: external data lies in no file of a possible name") from error
    if outside:
        raise InputError(f"{where}: external data {location!r} lies outside the model's folder")
    if not found:
        raise InputError(f"{where}: the file {location!r} with its data is missing")
    return path


def open_onnx(path: Path) -> Graph:
    """Read a file's graph.

    Raises
    ------
    InputError : when it is no ONNX file, its graph is damaged or runs in a circle, or a constant
        has no place.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingToolError(
            "ONNX files need the package onnx: pip install 'flightllm[onnx]'"
        ) from error
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except (DecodeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: is no ONNX file, or damaged ({error})") from error
    graph = model.graph
    if not graph.node or not graph.output:
        raise InputError(f"{path}: is no ONNX model: it has no nodes or no outputs")
    for what, count in (("nodes", len(graph.node)), ("constants", len(graph.initializer))):
        if count > MAX_NODES:
            raise InputError(f"{path}: {count} {what} are more than {MAX_NODES}")
    if model.functions:
        raise InputError(
            f"{path}: has local functions ({model.functions[0].name!r}): inline them with"
            " onnx.inliner.inline_local_functions"
        )
    version = next((x.version for x in model.opset_import if x.domain in ("", "ai.onnx")), OLDEST)
    if version < OLDEST:
        raise InputError(
            f"{path}: has opset {version}, and {OLDEST} is the oldest that is read: export anew, or"
            " raise it with onnx.version_converter"
        )
    constants = {
        tensor.name: OnnxConstant(tensor, path.parent, f"{path}: constant {tensor.name!r}")
        for tensor in graph.initializer
    }
    nodes = [_node(i, node, path) for i, node in enumerate(graph.node)]
    nodes = take_apart([node for node in nodes if not _take_constant(node, constants, path)])
    inputs = {
        value.name: _input(value, path) for value in graph.input if value.name not in constants
    }
    outputs = tuple(value.name for value in graph.output)
    return ordered(path, nodes, inputs, outputs, constants)


def _node(index: int, node: Any, path: Path) -> Node:
    from onnx import AttributeProto, helper

    attributes = {}
    for attribute in node.attribute:
        if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            attributes[attribute.name] = attribute
            continue
        try:
            attributes[attribute.name] = helper.get_attribute_value(attribute)
        except Exception as error:
            raise InputError(
                f"{path}: attribute {attribute.name!r} of node {node.name!r} is damaged"
            ) from error
    op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}:{node.op_type}"
    name = node.name or f"{node.op_type}_{index}"
    return Node(name, op, tuple(node.input), tuple(node.output), attributes)


def _take_constant(node: Node, constants: dict[str, OnnxConstant], path: Path) -> bool:
    """Turn a Constant node that holds a tensor into a constant."""
    from onnx import TensorProto

    value = node.attributes.get("value")
    if node.op != "Constant" or not isinstance(value, TensorProto) or len(node.outputs) != 1:
        return False
    constants[node.outputs[0]] = OnnxConstant(value, path.parent, f"{path}: node {node.name!r}")
    return True


def _input(value: Any, path: Path) -> GraphInput:
    import onnx

    tensor = value.type.tensor_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: input {value.name!r} is no tensor of a known type") from error
    extents = (
        extent.dim_value if extent.HasField("dim_value") and extent.dim_value > 0 else None
        for extent in tensor.shape.dim
    )
    return GraphInput(dtype, tuple(extents))
