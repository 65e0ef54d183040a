"""Programs of torch.export as operator graphs: the nodes of the archive's JSON in ONNX's operators.

Nothing of torch reads the archive, so that nothing in it is executed: the JSON is walked here, node
by node, and each ATen operator becomes what `aten_ops` says. One that has no translation stays in
the graph under its own name, to be reported by `check`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flightllm.models.aten_builder import BOOL, DOUBLE, LONG, Builder, Ref, computed
from flightllm.models.aten_ops_nn import ATEN, DROPPED, INLINED
from flightllm.models.export_archive import Archive, extents, numpy_type, open_archive
from flightllm.models.op_graph import MAX_NODES, Graph, GraphInput, ordered
from flightllm.spec.errors import InputError

__all__ = ["open_export"]

MAX_DEPTH = 16
"""Parts of a program inside one another."""
SCHEMA = 8
"""Major version of the program's JSON that is read."""
_SYMBOLS = {
    "as_sym_int": (LONG, "sym_int_values"), "as_sym_bool": (BOOL, "sym_bool_values"),
    "as_sym_float": (DOUBLE, "sym_float_values"),
}  # fmt: skip
_PLAIN = (
    "as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string", "as_strings",
    "as_scalar_type", "as_memory_format", "as_layout", "as_device", "as_operator", "as_int_lists",
)  # fmt: skip
_DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)
"""What a malformed record makes of the code that reads it."""


@dataclass(frozen=True)
class _Part:
    """A graph inside a node, and the values that the graph around it has."""

    graph: Mapping[str, Any]


class _Walker:
    """Goes through a program; `values` : what each name of the current graph stands for."""

    def __init__(self, archive: Archive) -> None:
        self.path, self.archive, self.builder = archive.path, archive, Builder()
        self.inputs: dict[str, GraphInput] = {}

    def fail(self, why: str) -> InputError:
        return InputError(f"{self.path}: {why}")

    # ------------------------------------------------------------------ values

    def _described(self, graph: Mapping[str, Any], name: str) -> Ref:
        """A tensor by its record in a graph."""
        meta = graph["tensor_values"].get(name)
        where = f"{self.path}: value {name!r}"
        if not isinstance(name, str) or not isinstance(meta, dict):
            raise InputError(f"{where}: its type and shape are missing")
        numpy_type(meta.get("dtype"), where)
        return Ref(name, meta["dtype"], extents(meta.get("sizes"), where))

    def _read(self, argument: Mapping[str, Any], values: Mapping[str, Ref]) -> Any:
        """An argument's value: numbers, text, values of the graph, or lists of them."""
        ((kind, value),) = argument.items()
        if kind == "as_none":
            return None
        if kind in ("as_tensor", "as_optional_tensor"):
            inner = value if "name" in value else value.get("as_tensor")
            return None if inner is None else values[inner["name"]]
        if kind == "as_tensors":
            return [values[entry["name"]] for entry in value]
        if kind == "as_optional_tensors":
            return [self._read({"as_optional_tensor": entry}, values) for entry in value]
        if kind in _SYMBOLS:
            return values[value["as_name"]] if "as_name" in value else [*value.values()][0]
        if kind.removesuffix("s") in _SYMBOLS:
            return [self._read({kind.removesuffix("s"): entry}, values) for entry in value]
        if kind == "as_graph":
            return _Part(value["graph"])
        if kind in _PLAIN:
            return value
        raise InputError(f"arguments of the kind {kind!r} are not supported")

    def _outputs(self, node: Mapping[str, Any], graph: Mapping[str, Any]) -> list[Ref]:
        """What a node makes, by names of the current graph."""
        out: list[Ref] = []
        for argument in node["outputs"]:
            ((kind, value),) = argument.items()
            if kind == "as_tensor":
                out.append(self._described(graph, value["name"]))
            elif kind == "as_tensors":
                out += [self._described(graph, entry["name"]) for entry in value]
            elif kind in _SYMBOLS:
                out.append(Ref(value["as_name"], _SYMBOLS[kind][0], ()))
            elif kind != "as_none":
                raise InputError(f"results of the kind {kind!r} are not supported")
        return out

    # ------------------------------------------------------------------ nodes

    def graph(self, graph: Mapping[str, Any], values: dict[str, Ref], depth: int = 0) -> None:
        """Add a graph's nodes; `values` gets what they make."""
        if depth > MAX_DEPTH:
            raise self.fail(f"parts of the program lie more than {MAX_DEPTH} deep")
        for index, node in enumerate(graph["nodes"]):
            if len(self.builder.nodes) > MAX_NODES:
                raise self.fail(f"the program has more than {MAX_NODES} operators")
            target = str(node["target"]).removeprefix("torch.ops.")
            name = node.get("name") or f"{target}_{index}"
            if target in DROPPED:
                continue
            try:
                outs = self._outputs(node, graph)
                arguments = [
                    (entry["name"] or place, self._read(entry["arg"], values))
                    for place, entry in enumerate(node["inputs"])
                ]
                self.builder.name, self.builder.origin = str(name), target
                made = self._made(target, dict(arguments), outs, depth)
            except InputError as error:
                raise self._about(name, target, error) from error
            except _DAMAGED as error:
                raise self.fail(
                    f"node {name!r} ({target}): its record is damaged"
                    f" ({type(error).__name__}: {error})"
                ) from error
            for out, value in zip(outs, made):
                if out.name in values:
                    raise self.fail(f"the value {out.name!r} of node {name!r} is made twice")
                values[out.name] = Ref(value, out.kind, out.shape)

    def _about(self, name: Any, target: str, error: InputError) -> InputError:
        text = str(error)
        return error if str(self.path) in text else self.fail(f"node {name!r} ({target}): {text}")

    def _made(
        self, target: str, arguments: dict[Any, Any], outs: list[Ref], depth: int
    ) -> Sequence[str]:
        """The values that are a node's results."""
        if target in INLINED:
            return self._inlined(arguments, depth)
        before = len(self.builder.nodes)
        emitter = ATEN.get(target)
        if emitter is None:
            return self._refused(target, arguments, outs)
        try:
            made = emitter(self.builder, arguments, outs)
        except InputError as error:
            return self._refused(target, arguments, outs, refused=str(error))
        names = [made] if isinstance(made, str) else list(made)
        if len(self.builder.nodes) == before:  # nothing is computed, but the node shows
            names = [self.builder.emit("Identity", name) for name in names]
        return names

    def _refused(
        self, target: str, arguments: dict[Any, Any], outs: list[Ref], **why: str
    ) -> Sequence[str]:
        """A node that stays as it is, so that `check` reports it with the others."""
        reads = [x.name for x in _refs(arguments.values())]
        self.builder.emit(target, *reads, outputs=max(1, len(outs)), **why)
        return self.builder.all_outputs()

    def _inlined(self, arguments: dict[Any, Any], depth: int) -> Sequence[str]:
        """The results of a graph inside a node, its own nodes added to this one's graph."""
        given = list(arguments.values())
        at = next((i for i, value in enumerate(given) if isinstance(value, _Part)), None)
        if at is None:
            raise InputError("it has no part of the program among its arguments")
        part, reads = given[at].graph, given[at + 1 :]
        names = [entry["as_tensor"]["name"] for entry in part["inputs"] if "as_tensor" in entry]
        reads = [value for value in reads if isinstance(value, Ref)]
        if len(names) != len(reads):
            raise InputError(f"{len(reads)} values are given to a part that takes {len(names)}")
        inner = dict(zip(names, reads))
        self.graph(part, inner, depth + 1)
        found = [self._read(entry, inner) for entry in part["outputs"]]
        return [value.name for value in _refs(found)]

    # ------------------------------------------------------------------ the whole

    def run(self) -> Graph:
        """The program's graph."""
        module = self.archive.program["graph_module"]
        graph, signature = module["graph"], module["signature"]
        values: dict[str, Ref] = {}
        for spec in signature["input_specs"]:
            self._input(graph, spec, values)
        self.graph(graph, values)
        outputs = tuple(self._output(spec, values) for spec in signature["output_specs"])
        kept = tuple(name for name in outputs if name)
        if not self.builder.nodes or not kept:
            raise self.fail("the program computes nothing")
        return ordered(self.path, self.builder.nodes, self.inputs, kept, self.builder.constants)

    def _input(
        self, graph: Mapping[str, Any], spec: Mapping[str, Any], values: dict[str, Ref]
    ) -> None:
        ((kind, entry),) = spec.items()
        keys = {"parameter": "parameter_name", "buffer": "buffer_name",
                "tensor_constant": "tensor_constant_name"}  # fmt: skip
        if kind == "constant_input" or (kind == "user_input" and "as_tensor" not in entry["arg"]):
            if kind == "user_input" and any(key in entry["arg"] for key in _SYMBOLS):
                raise self.fail("an input is a number, not a tensor: export with tensors alone")
            return
        if kind != "user_input" and kind not in keys:
            raise self.fail(f"has an input of the kind {kind!r}, which is not supported")
        ref = self._described(graph, (entry["arg"].get("as_tensor") or entry["arg"])["name"])
        if ref.name in values:
            raise self.fail(f"the input {ref.name!r} is there twice")
        values[ref.name] = ref
        if kind == "user_input":
            dtype = numpy_type(computed(ref.kind), f"{self.path}: input {ref.name!r}")
            self.inputs[ref.name] = GraphInput(dtype, ref.shape)
            return
        tensor = self.archive.tensors.get(entry[keys[kind]])
        if tensor is None:
            raise self.fail(f"tensor {entry[keys[kind]]!r} is not in the archive")
        if tensor.shape != ref.shape:
            raise self.fail(
                f"tensor {entry[keys[kind]]!r} has shape {list(tensor.shape)}, but the program"
                f" expects {list(ref.shape)}"
            )
        self.builder.constants[ref.name] = tensor

    def _output(self, spec: Mapping[str, Any], values: Mapping[str, Ref]) -> str | None:
        ((kind, entry),) = spec.items()
        if kind == "buffer_mutation":
            raise self.fail(
                f"the program writes to its buffer {entry['buffer_name']!r}, as a static cache"
                " does: export it without a cache (use_cache=False), or with the cache as inputs"
            )
        if kind != "user_output":
            raise self.fail(f"has an output of the kind {kind!r}: export for inference")
        found = self._read(entry["arg"], values)
        return found.name if isinstance(found, Ref) else None


def _refs(values: Any) -> list[Ref]:
    """Every value of the graph among arguments, also inside lists."""
    out: list[Ref] = []
    for value in values:
        if isinstance(value, Ref):
            out.append(value)
        elif isinstance(value, list):
            out += _refs(value)
    return out


def open_export(path: Path) -> Graph:
    """Read a program's graph.

    Raises
    ------
    InputError : when it is no archive of torch.export.save, is damaged, of another version, or
        keeps something pickled.
    """
    archive = open_archive(path)
    version = archive.program.get("schema_version")
    major = version.get("major") if isinstance(version, dict) else None
    if major != SCHEMA:
        raise InputError(f"{path}: has version {major!r} of the program's schema, not {SCHEMA}")
    try:
        return _Walker(archive).run()
    except InputError:
        raise
    except _DAMAGED as error:
        raise InputError(
            f"{path}: the program's record is damaged ({type(error).__name__}: {error})"
        ) from error
