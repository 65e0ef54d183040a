"""The model as a graph of operations on one tile of tokens, with a text form and a verifier.

Values are named; T stands for the tile's tokens and S for the cached positions. The layers are one
body that repeats, so the graph of a deep model is no larger than that of a shallow one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from flightllm.compiler.shape import ModelShape
from flightllm.spec.errors import VerifyError

__all__ = ["Graph", "Node", "build_graph", "verify_graph"]

Dim = int | str
ARITY = {
    "embed": 1, "positions": 1, "norm": 1, "quantise": 1, "linear": 1, "bias": 1, "rope": 1,
    "quantise_heads": 1, "append": 2, "scores": 2, "softmax": 2, "values": 2, "add": 2, "silu": 2,
    "relu": 1, "gelu": 1, "topk": 1, "norm_quant": 1, "head_quant": 1, "attention": 2,
    "act_quant": None, "linear_add": 2,
}  # fmt: skip
"""Inputs of each operation; None where it depends on the activation."""


@dataclass(frozen=True)
class Node:
    """One operation: its result, its inputs, its weights' name, and what the tile pass needs."""

    result: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[Dim, ...]
    dtype: str
    weight: str = ""
    attrs: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        dims = "x".join(str(d) for d in self.shape)
        weight = f" @{self.weight}" if self.weight else ""
        attrs = "".join(f" {k}={v}" for k, v in self.attrs.items())
        inputs = ", ".join(f"%{name}" for name in self.inputs)
        return f"%{self.result}:{self.dtype}[{dims}] = {self.op}({inputs}){weight}{attrs}"


@dataclass(frozen=True)
class Graph:
    """Prologue, the body of the layers, epilogue. The body's `x` is the residual it hands on."""

    name: str
    layers: int
    prologue: tuple[Node, ...]
    body: tuple[Node, ...]
    epilogue: tuple[Node, ...]

    def nodes(self) -> Iterator[Node]:
        """All nodes in order, the body once."""
        yield from (*self.prologue, *self.body, *self.epilogue)

    def __str__(self) -> str:
        lines = [f"graph {self.name}(%ids:int32[T])"]
        lines += [f"  {node}" for node in self.prologue]
        lines += [f"  repeat {self.layers} (%x)"]
        lines += [f"    {node}" for node in self.body]
        lines += [f"  {node}" for node in self.epilogue]
        return "\n".join(lines) + "\n"


def build_graph(shape: ModelShape) -> Graph:
    """The graph of a decoder-only model as its mathematics says, before any fusion."""
    s, out = shape, []

    def node(result: str, op: str, inputs: str, dims: tuple[Dim, ...], dtype: str = "f32",
             weight: str = "", **attrs: object) -> None:  # fmt: skip
        out.append(Node(result, op, tuple(inputs.split()), dims, dtype, weight, attrs))

    def linear(result: str, source: str, name: str) -> str:
        """A projection and, where the model has one, its bias."""
        raw = f"{result}_mm" if name in s.biases else result
        node(raw, "linear", source, ("T", s.rows(name)), weight=name)
        if name in s.biases:
            node(result, "bias", raw, ("T", s.rows(name)), weight=name)
        return result

    width = ("T", s.dim)
    node("x", "embed", "ids", width)
    if s.positions:
        node("x", "positions", "x", width)
    prologue, out = tuple(out), []

    node("h", "norm", "x", width, weight="attn_norm")
    node("hq", "quantise", "h", width, "i8")
    # Keys and values come first: they are in the cache before it is read, behind q's projection.
    for name, heads in (("k", s.kv_heads), ("v", s.kv_heads), ("q", s.heads)):
        value = linear(name, "hq", name)
        dims = ("T", heads, s.head_dim)
        if s.rope and name != "v":
            node(f"{name}r", "rope", value, dims)
            value = f"{name}r"
        bits = {"q": 8, "k": s.key_bits, "v": s.value_bits}[name]
        node(f"{name}q", "quantise_heads", value, dims, f"i{bits}", of=name)
        if name == "v":
            stored = "/".join(f"i{bits}" for bits in dict.fromkeys((s.key_bits, s.value_bits)))
            node("cache", "append", "kq vq", ("S", s.kv_heads, s.head_dim), stored)
    node("s", "scores", "qq cache", ("T", s.heads, "S"))
    node("p", "softmax", "s cache", ("T", s.heads, "S"), "i8", window=s.window)
    node("a", "values", "p cache", ("T", s.heads * s.head_dim))
    node("aq", "quantise", "a", ("T", s.heads * s.head_dim), "i8")
    linear("y", "aq", "o")
    node("x", "add", "x y", width)
    node("g", "norm", "x", width, weight="mlp_norm")
    node("gq", "quantise", "g", width, "i8")
    hidden = ("T", s.ffn_dim)
    if s.gated:
        linear("gate", "gq", "gate")
        linear("up", "gq", "up")
        node("m", "silu", "gate up", hidden)
    else:
        linear("up", "gq", "up")
        node("m", s.activation, "up", hidden)
    node("mq", "quantise", "m", hidden, "i8")
    linear("z", "mq", "down")
    node("x", "add", "x z", width)
    body, out = tuple(out), []

    node("f", "norm", "x", width, weight="final_norm")
    node("fq", "quantise", "f", width, "i8")
    linear("logits", "fq", "head")
    node("next", "topk", "logits", ("T", 2), "f32")
    return Graph(s.name, len(s.layers), prologue, body, tuple(out))


def verify_graph(graph: Graph) -> Graph:
    """Check that every input is defined before use, arities hold, and integers feed linears.

    Raises
    ------
    VerifyError
        Names the node and what is wrong.
    """
    known = {"ids": "int32"}
    for node in graph.nodes():
        if node.op not in ARITY:
            raise VerifyError(f"{graph.name}: %{node.result}: unknown operation {node.op}")
        arity = ARITY[node.op]
        if arity is not None and len(node.inputs) != arity:
            raise VerifyError(f"{graph.name}: %{node.result}: {node.op} takes {arity} inputs")
        for name in node.inputs:
            if name not in known:
                raise VerifyError(f"{graph.name}: %{node.result} uses %{name} before it is made")
        if node.op in ("linear", "linear_add") and known[node.inputs[0]] != "i8":
            raise VerifyError(f"{graph.name}: %{node.result}: input of {node.op} is not i8")
        known[node.result] = node.dtype
    return graph
