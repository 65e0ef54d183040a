"""Fusion: graph to the operations the units execute, so that activations never leave the chip.

norm + quantise, RoPE + quantise of heads, activation + quantise, and bias or residual as the addend
of the projection before it. The cache is the only value in memory that is read again.
"""

from __future__ import annotations

import dataclasses

from flightllm.compiler.graph import Graph, Node
from flightllm.spec.errors import VerifyError

__all__ = ["fuse", "verify_fused"]

IN_MEMORY = ("cache",)
_MERGED = {
    ("norm", "quantise"): "norm_quant",
    ("rope", "quantise_heads"): "head_quant",
    ("silu", "quantise"): "act_quant",
    ("relu", "quantise"): "act_quant",
    ("gelu", "quantise"): "act_quant",
}


def fuse(graph: Graph) -> Graph:
    """The fused graph; bit for bit the same values."""
    return dataclasses.replace(
        graph,
        body=_residual(_addends(_pairs(graph.body))),
        epilogue=_addends(_pairs(graph.epilogue)),
    )


def _single_use(nodes: tuple[Node, ...], name: str) -> bool:
    return sum(name in node.inputs for node in nodes) == 1


def _pairs(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """Merge a producer into the quantiser that alone reads it."""
    out: list[Node] = []
    for node in nodes:
        before = next((n for n in out if n.result == node.inputs[0]), None)
        merged = _MERGED.get((before.op, node.op)) if before else None
        if merged and before and _single_use(nodes, before.result):
            out.remove(before)
            attrs = {**before.attrs, **node.attrs}
            if merged == "act_quant":
                attrs["kind"] = before.op
            if merged == "head_quant":
                attrs["rope"] = True
            node = dataclasses.replace(
                node, op=merged, inputs=before.inputs, weight=before.weight, attrs=attrs
            )
        elif node.op == "quantise_heads":
            node = dataclasses.replace(node, op="head_quant", attrs={**node.attrs, "rope": False})
        out.append(node)
    return tuple(out)


def _addends(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """Make a bias the addend of its projection."""
    out: list[Node] = []
    for node in nodes:
        if node.op == "bias":
            at = next(i for i, n in enumerate(out) if n.result == node.inputs[0])
            attrs = {**out[at].attrs, "bias": True}
            out[at] = dataclasses.replace(out[at], result=node.result, attrs=attrs)
        else:
            out.append(node)
    return tuple(out)


def _residual(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """Make the residual the addend of the projection that is added to it."""
    out: list[Node] = []
    for node in nodes:
        if node.op == "add":
            at = next(i for i, n in enumerate(out) if n.result == node.inputs[1])
            out[at] = dataclasses.replace(
                out[at], op="linear_add", result=node.result,
                inputs=(*out[at].inputs, node.inputs[0]),
            )  # fmt: skip
        else:
            out.append(node)
    return tuple(out)


def verify_fused(graph: Graph) -> Graph:
    """Check that nothing but the cache, the logits and the chosen tokens would go to memory."""
    units = {
        "embed", "positions", "norm_quant", "linear", "linear_add", "head_quant", "append",
        "scores", "softmax", "values", "quantise", "act_quant", "topk",
    }  # fmt: skip
    for node in graph.nodes():
        if node.op not in units:
            raise VerifyError(
                f"{graph.name}: %{node.result}: {node.op} is left after fusion and no unit runs it"
            )
    return graph
