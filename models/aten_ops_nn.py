"""ATen operators of torch.export programs in ONNX's: matrices, norms, activations, attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flightllm.models.aten_builder import BOOL, FLOAT, Builder, Ref
from flightllm.models.aten_ops import OPERATORS, Arguments, Emitter, Outputs
from flightllm.spec.errors import InputError

__all__ = ["ATEN", "DROPPED", "INLINED"]

DROPPED = (
    "aten._assert_async.msg", "aten._assert_scalar.default",
    "aten._assert_tensor_metadata.default", "aten.sym_constrain_range.default",
    "aten.sym_constrain_range_for_size.default",
)  # fmt: skip
"""Operators that compute nothing."""
INLINED = ("higher_order.wrap_with_set_grad_enabled", "higher_order.wrap_with_autocast")
"""Operators that hold a part of the program."""


def _product(b: Builder, x: Ref, matrix: str, bias: Ref | None, kind: int) -> str:
    made = b.emit("MatMul", b.cast(x, kind), matrix)
    return made if bias is None else b.emit("Add", made, b.cast(bias, kind))


def _linear(b: Builder, a: Arguments, outs: Outputs) -> str:
    kind, weight = outs[0].kind, a["weight"]
    matrix = b.emit("Transpose", b.cast(weight, kind), perm=[1, 0])
    return _product(b, a["input"], matrix, a.get("bias"), kind)


def _matmul(right: str = "other") -> Emitter:
    """A product, by one matrix where the second input is that matrix for a whole batch."""

    def emit(b: Builder, a: Arguments, outs: Outputs) -> str:
        x: Ref = a["self"]
        given: Ref = a[right]
        y = b.batched.get(given.name, given)
        return b.emit("MatMul", b.cast(x, outs[0].kind), b.cast(y, outs[0].kind))

    return emit


def _addmm(b: Builder, a: Arguments, outs: Outputs) -> str:
    kind, alpha, beta = outs[0].kind, a.get("alpha", 1), a.get("beta", 1)
    names = ("mat1", "mat2") if "mat1" in a else ("batch1", "batch2")
    if alpha == 1 == beta:
        return _product(b, a[names[0]], b.cast(a[names[1]], kind), a["self"], kind)
    made = _product(b, a[names[0]], b.cast(a[names[1]], kind), None, kind)
    made = b.emit("Mul", made, b.operand(alpha, kind))
    if beta == 0:
        return made
    return b.emit("Add", b.emit("Mul", b.cast(a["self"], kind), b.operand(beta, kind)), made)


def _einsum(b: Builder, a: Arguments, outs: Outputs) -> str:
    names = [b.cast(x, outs[0].kind) for x in a["tensors"]]
    return b.emit("Einsum", *names, equation=a["equation"].encode())


def _embedding(b: Builder, a: Arguments, outs: Outputs) -> str:
    return b.emit("Gather", b.cast(a["weight"], outs[0].kind), a["indices"].name, axis=0)


def _softmax(b: Builder, a: Arguments, outs: Outputs) -> str:
    x: Ref = a["self"]
    return b.emit("Softmax", b.cast(x, outs[0].kind), axis=x.axis(a["dim"]))


def _silu(b: Builder, a: Arguments, outs: Outputs) -> str:
    x = b.cast(a["self"], outs[0].kind)
    return b.emit("Mul", x, b.emit("Sigmoid", x))


def _gelu(b: Builder, a: Arguments, outs: Outputs) -> str:
    how = a.get("approximate", "none").encode()
    return b.emit("Gelu", b.cast(a["self"], outs[0].kind), approximate=how)


def _gain(b: Builder, a: Arguments, shape: Sequence[int]) -> str:
    weight = a.get("weight")
    return b.constant(np.ones(shape), FLOAT) if weight is None else b.cast(weight, FLOAT)


def _normed(a: Arguments) -> list[int]:
    """The last axes' extents, over which a norm goes."""
    shape = a["normalized_shape"]
    if not shape or not all(isinstance(n, int) and 0 < n < 1 << 24 for n in shape):
        raise InputError(f"the normalised shape {shape} is not supported")
    return list(shape)


def _layer_norm(b: Builder, a: Arguments, outs: Outputs) -> Sequence[str]:
    shape = _normed(a)
    names = [b.cast(a["input"], FLOAT), _gain(b, a, shape)]
    if a.get("bias") is not None:
        names.append(b.cast(a["bias"], FLOAT))
    eps = float(a.get("eps", 1e-5))
    b.emit("LayerNormalization", *names, outputs=3, axis=-len(shape), epsilon=eps)
    return b.all_outputs()[: len(outs)]


def _rms_norm(b: Builder, a: Arguments, outs: Outputs) -> Sequence[str]:
    shape, eps = _normed(a), a.get("eps")
    eps = float(np.finfo(np.float32).eps if eps is None else eps)
    names = b.cast(a["input"], FLOAT), _gain(b, a, shape)
    return [b.emit("RMSNormalization", *names, axis=-len(shape), epsilon=eps)]


def _attention(b: Builder, a: Arguments, outs: Outputs) -> Sequence[str]:
    q, k, v = a["query"], a["key"], a["value"]
    if a.get("dropout_p", 0.0):
        raise InputError("attention with dropout is of training: export in evaluation mode")
    if q.rank != 4 or k.rank != 4 or v.rank != 4:
        raise InputError(f"attention of {q.rank} axes is not supported (only 4)")
    mask, flags = a.get("attn_mask"), dict[str, Any](is_causal=int(bool(a.get("is_causal"))))
    if a.get("scale") is not None:
        flags["scale"] = float(a["scale"])
    kinds = (BOOL if mask.kind == BOOL else FLOAT) if mask is not None else FLOAT
    names = [b.cast(x, FLOAT) for x in (q, k, v)]
    names += [] if mask is None else [b.cast(mask, kinds)]
    return [b.emit("Attention", *names, **flags)]


ATEN: dict[str, Emitter] = {
    **OPERATORS,
    "aten.linear.default": _linear,
    "aten.matmul.default": _matmul(),
    "aten.mm.default": _matmul("mat2"),
    "aten.bmm.default": _matmul("mat2"),
    "aten.addmm.default": _addmm,
    "aten.baddbmm.default": _addmm,
    "aten.einsum.default": _einsum,
    "aten.embedding.default": _embedding,
    "aten.softmax.int": _softmax,
    "aten._softmax.default": _softmax,
    "aten._safe_softmax.default": _softmax,
    "aten.silu.default": _silu,
    "aten.gelu.default": _gelu,
    "aten.layer_norm.default": _layer_norm,
    "aten.native_layer_norm.default": _layer_norm,
    "aten.rms_norm.default": _rms_norm,
    "aten._fused_rms_norm.default": _rms_norm,
    "aten.scaled_dot_product_attention.default": _attention,
    "aten._scaled_dot_product_flash_attention_for_cpu.default": _attention,
}
"""Every operator that can be translated, by name without "torch.ops."."""
