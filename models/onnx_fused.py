"""Biases that onnxruntime's optimiser has drawn into other operators, taken out again.

FastGelu adds the bias of the product in front of it, SkipLayerNormalization that of one of the two
values it adds. As operators of their own they stand where a product's bias is looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flightllm.models.op_graph import Node

__all__ = ["take_apart"]

_PRODUCTS = ("MatMul", "Gemm", "com.microsoft:MatMulNBits")
_SKIPS = {
    "com.microsoft:SkipLayerNormalization": 4,
    "com.microsoft:SkipSimplifiedLayerNormalization": 3,
}
"""Where the bias is among the inputs."""


def take_apart(nodes: Sequence[Node]) -> list[Node]:
    """The same graph, with biases added by operators of their own."""
    products = {name for node in nodes if node.op in _PRODUCTS for name in node.outputs}
    out: list[Node] = []
    for node in nodes:
        place = 1 if node.op in ("com.microsoft:FastGelu", "com.microsoft:BiasGelu") else 0
        place = _SKIPS.get(node.op, place)
        bias = node.inputs[place] if 0 < place < len(node.inputs) else ""
        if not bias or not node.outputs:
            out.append(node)
            continue
        skips = node.op in _SKIPS and node.inputs[0] not in products and node.inputs[1] in products
        at = 1 if skips else 0
        total = f"{node.outputs[0]}#biased"
        out.append(Node(node.name, "Add", (node.inputs[at], bias), (total,), {}, node.op))
        kept = list(node.inputs[:place])
        kept[at] = total
        op = "com.microsoft:Gelu" if node.op == "com.microsoft:BiasGelu" else node.op
        out.append(replace(node, op=op, inputs=tuple(kept), origin=node.op))
    return out
