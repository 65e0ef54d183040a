"""The decoder in an exported graph, by what its matrices read: layers of attention and MLP.

What stands between matrices may look in many ways. What a matrix depends on may not: the first
projections read the embedding; the output projection reads query, key and value alone; the MLP
reads the residual with it; and so on, layer by layer, to the head. `graph_probe` then checks by
numbers what lies between.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from flightllm.models.graph_weights import Linear, Lookup, Weights
from flightllm.models.onnx_ops_nn import ALL
from flightllm.models.op_graph import Graph, Node
from flightllm.spec.errors import InputError

__all__ = ["REMEDIES", "Decoder", "DecoderLayer", "find_decoder", "unsupported"]

_NO_DATA = ("Shape", "Size")
"""Operators that tell only how large a value is."""
REMEDIES = {
    "If": "export without a merged decoder (in Optimum: --no-post-process)",
    "Loop": "export the decoder alone, without the loop that generates",
    "Scan": "export the decoder alone, without the loop that generates",
    "MatMulInteger": "quantise in the QDQ format, or to MatMulNBits, or give the float model",
    "QLinearMatMul": "quantise in the QDQ format, or to MatMulNBits, or give the float model",
    "DynamicQuantizeLinear": "quantise in the QDQ format, or to MatMulNBits, or give the float"
    " model",
    "Conv": "only decoders of text are supported",
    "com.microsoft:MultiHeadAttention": "export without fusion of attention, or with"
    " GroupQueryAttention",
    "com.microsoft:Attention": "optimise without fusion of attention",
    "com.microsoft:DecoderMaskedMultiHeadAttention": "optimise without fusion of attention",
    "com.microsoft:DynamicQuantizeMatMul": "quantise in the QDQ format, or to MatMulNBits, or give"
    " the float model",
    "com.microsoft:QMoE": "mixtures of experts are not supported",
    "com.microsoft:MoE": "mixtures of experts are not supported",
    "aten.view_as_complex.*": "export a model that turns query and key by cosine and sine",
    "aten.index_put*": "export without a static cache (use_cache=False)",
    "aten.index_copy*": "export without a static cache (use_cache=False)",
    "aten.conv*": "only decoders of text are supported",
    "higher_order.*": "export without branches and loops (torch.cond, scan, while_loop)",
    "quantized_decomposed.*": "export the float model, and choose --weights",
    "torchao.*": "export the float model, and choose --weights",
}
"""Operators that are met in exports, and what to do about each."""


@dataclass(frozen=True)
class DecoderLayer:
    """The matrices of a layer: one or three of attention's input, one or two of the MLP's."""

    attention: tuple[Linear, ...]
    output: Linear
    inner: tuple[Linear, ...]
    down: Linear


@dataclass(frozen=True)
class Decoder:
    """The whole of it. `lookups` : the embedding, and the positions where they are learned."""

    graph: Graph
    weights: Weights
    lookups: tuple[Lookup, ...]
    layers: tuple[DecoderLayer, ...]
    head: Linear
    logits: str


def unsupported(graph: Graph) -> list[tuple[Node, str]]:
    """Nodes that cannot be evaluated, each with what to do about it."""
    return [
        (node, node.attributes.get("refused") or _remedy(node.op))
        for node in sorted(graph.nodes, key=graph.place)
        if node.op not in ALL and node.op != "com.microsoft:MatMulNBits"
    ]


def _remedy(op: str) -> str:
    for name, remedy in REMEDIES.items():
        if op == name or (name.endswith("*") and op.startswith(name[:-1])):
            return remedy
    if op.startswith("aten.") and op.split(".")[1].endswith("_"):
        return "it writes in place: call run_decompositions() on the program before it is saved"
    return "replace it, or export the model without it"


def _sources(
    graph: Graph, weights: Weights, lookups: Collection[str] = ()
) -> dict[str, frozenset[str]]:
    """For each value, the outputs of matrices, and of these look-ups, that it is made from."""
    found: dict[str, frozenset[str]] = {}
    none: frozenset[str] = frozenset()
    for node in graph.nodes:
        reads = none
        if node.op not in _NO_DATA:
            reads = none.union(*(found.get(name, none) for name in node.inputs if name))
        for name in filter(None, node.outputs):
            if name in weights.linears:
                found[name] = frozenset((weights.linears[name].output,))
            elif name in lookups:
                found[name] = frozenset((name,))
            else:
                found[name] = reads
    return found


class _Finder:
    """Walks a graph's matrices in the order in which a decoder must have them."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.weights = graph, Weights(graph)
        self.left = {linear.output: linear for linear in self.weights.linears.values()}
        self.logits = next((o for o in graph.outputs if "logits" in o), graph.outputs[0])
        self.head = self._head()
        # Look-ups of another width are of tables, such as the cosines of RoPE by position.
        wide = {n for n, x in self.weights.lookups.items() if x.shape[1] == self.head.columns}
        sources = _sources(graph, self.weights, wide)
        self.reads = {
            name: sources.get(linear.source, frozenset()) for name, linear in self.left.items()
        }

    def _head(self) -> Linear:
        ends = _sources(self.graph, self.weights).get(self.logits, frozenset())
        head = self.weights.linears.get(next(iter(ends), ""))
        if len(ends) != 1 or head is None:
            raise self.fail(
                f"the output {self.logits!r} does not come from one matrix but from {len(ends)}"
                " (a head's product, without anything behind it, is expected)"
            )
        return head

    def fail(self, why: str) -> InputError:
        return InputError(f"{self.graph.path}: is no decoder that is supported: {why}")

    def readers(self, of: frozenset[str]) -> tuple[Linear, ...]:
        """Matrices that read exactly this, in the graph's order; they are used up."""
        found = [name for name in self.left if self.reads[name] == of]
        linears = [self.left.pop(name) for name in found]
        return tuple(sorted(linears, key=lambda linear: self.graph.place(linear.node)))

    def named(self, linears: tuple[Linear, ...]) -> str:
        return ", ".join(repr(linear.node.name) for linear in linears) or "none"

    def layer(self, index: int, residual: frozenset[str]) -> DecoderLayer:
        attention = self.readers(residual)
        if len(attention) not in (1, 3):
            raise self.fail(
                f"in layer {index}, {len(attention)} matrices read the residual where attention"
                f" has 3, or 1 for all ({self.named(attention)}); attention and MLP side by side"
                " and norms behind attention are not supported"
            )
        output = self.readers(frozenset(linear.output for linear in attention))
        if len(output) != 1:
            raise self.fail(
                f"in layer {index}, {len(output)} matrices ({self.named(output)}) read query, key"
                " and value where attention's output has 1"
            )
        inner = self.readers(residual | {output[0].output})
        if len(inner) not in (1, 2):
            raise self.fail(
                f"in layer {index}, {len(inner)} matrices ({self.named(inner)}) read the residual"
                " behind attention where an MLP has 1 or 2"
            )
        down = self.readers(frozenset(linear.output for linear in inner))
        if len(down) != 1:
            raise self.fail(
                f"in layer {index}, {len(down)} matrices ({self.named(down)}) read the MLP's inner"
                " values where 1 does"
            )
        return DecoderLayer(attention, output[0], inner, down[0])

    def decoder(self) -> Decoder:
        head = self.head
        del self.left[head.output]
        starts = frozenset(name for name in self.reads[head.output] if name in self.weights.lookups)
        if not 1 <= len(starts) <= 2:
            raise self.fail(f"{len(starts)} look-ups begin it where an embedding (and learned"
                            " positions) do")  # fmt: skip
        residual, layers = starts, list[DecoderLayer]()
        while self.reads[head.output] != residual:
            if not residual < self.reads[head.output]:
                raise self.fail("the head does not read what the layers add up")
            layer = self.layer(len(layers), residual)
            layers.append(layer)
            residual = residual | {layer.output.output, layer.down.output}
        if not layers:
            raise self.fail("it has no layers")
        if self.left:
            raise self.fail(f"node {next(iter(self.left.values())).node.name!r} has no place in it")
        lookups = tuple(self.weights.lookups[name] for name in sorted(starts))
        return Decoder(self.graph, self.weights, lookups, tuple(layers), head, self.logits)


def find_decoder(graph: Graph) -> Decoder:
    """The layers of a graph.

    Raises
    ------
    InputError : naming the node and what to do when an operator is not supported, or the matrices
        do not read one another as a decoder's do.
    """
    for node, remedy in unsupported(graph):
        raise graph.fail(node, f"the operator is not supported: {remedy}")
    return _Finder(graph).decoder()
