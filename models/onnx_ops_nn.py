"""ONNX operators in numpy: types, quantisation, normalisation, activations, attention.

Beside ONNX's own, those of com.microsoft that exported decoders use (onnxruntime's documentation of
contributed operators). `ALL` is every operator that can be evaluated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flightllm.models.onnx_ops import OPERATORS, Inputs, Operator, limited, worked
from flightllm.models.op_graph import Node
from flightllm.spec.errors import InputError

__all__ = ["ALL", "MICROSOFT"]

Array = NDArray[Any]
_EIGHT_BITS = ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ")


def cast(x: Array, kind: int, saturate: bool = True, mode: str = "up") -> Array:
    """`x` in the type of a TensorProto's number."""
    import onnx

    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    name = onnx.TensorProto.DataType.Name(kind)
    if name == "STRING":
        raise InputError("a cast to text is not supported")
    with np.errstate(all="ignore"):
        if name in _EIGHT_BITS and saturate:
            return np.asarray(onnx.numpy_helper.saturate_cast(x, dtype))
        if name == "FLOAT8E8M0":
            return np.asarray(onnx.numpy_helper.to_float8e8m0(x, saturate, mode).astype(dtype))
        return x.astype(dtype)


def _cast(node: Node, xs: Inputs) -> tuple[Any, ...]:
    flags = node.attributes
    mode = flags.get("round_mode", b"up").decode()
    return (cast(xs[0], flags["to"], bool(flags.get("saturate", 1)), mode),)


def _cast_like(node: Node, xs: Inputs) -> tuple[Any, ...]:
    import onnx

    kind = onnx.helper.np_dtype_to_tensor_dtype(xs[1].dtype)
    return (cast(xs[0], kind, bool(node.attributes.get("saturate", 1))),)


# ------------------------------------------------------------------------------------ quantisation


def _spread(node: Node, values: Array, shape: tuple[int, ...]) -> Array:
    """A scale or zero point of a tensor, an axis or blocks along an axis, for each element."""
    block = node.attributes.get("block_size", 0)
    axis = node.attributes.get("axis", 1)
    if values.ndim == 0 or values.size == 1:
        return values.reshape(())
    axis = axis + len(shape) if axis < 0 else axis
    if not block:
        return values.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    if (values.shape[axis] - 1) * block >= shape[axis]:
        raise InputError(f"blocks of {block} do not fit {list(values.shape)} and {list(shape)}")
    wide = np.repeat(values, block, axis=axis)
    return np.take(wide, range(shape[axis]), axis=axis)


def _dequantise(node: Node, xs: Inputs) -> tuple[Any, ...]:
    x, scale = xs[0], xs[1]
    wide = x.astype(np.float32)
    if len(xs) > 2 and xs[2] is not None:
        wide = wide - _spread(node, xs[2].astype(np.float32), x.shape)
    return ((wide * _spread(node, scale.astype(np.float32), x.shape)).astype(scale.dtype),)


def _quantise(node: Node, xs: Inputs) -> tuple[Any, ...]:
    import onnx

    x, scale = xs[0], xs[1]
    zero = xs[2] if len(xs) > 2 else None
    kind = node.attributes.get("output_dtype", 0)
    if zero is not None:
        kind = onnx.helper.np_dtype_to_tensor_dtype(zero.dtype)
    kind = kind or onnx.TensorProto.UINT8
    ratio = x / _spread(node, scale, x.shape)
    name = onnx.TensorProto.DataType.Name(kind)
    if "FLOAT" in name:
        return (cast(ratio.astype(np.float32), kind),)
    whole = np.rint(ratio.astype(np.float32))
    if zero is not None:
        whole = whole + _spread(node, zero.astype(np.float32), x.shape)
    bits = int(name.removeprefix("U").removeprefix("INT"))
    low = 0 if name.startswith("U") else -(1 << (bits - 1))
    clipped = np.clip(whole, low, low + (1 << bits) - 1).astype(np.int32)
    return (clipped.astype(onnx.helper.tensor_dtype_to_np_dtype(kind)),)


# ------------------------------------------------------------------------------------ activations


def _softmax(node: Node, xs: Inputs) -> tuple[Any, ...]:
    return (softmax(xs[0], node.attributes.get("axis", -1)),)


def softmax(x: Array, axis: int = -1) -> Array:
    """exp(x) over its sum along an axis; all masked gives no NaN."""
    if not x.size:
        return x
    top = np.max(x, axis=axis, keepdims=True)
    powers = np.exp(x - np.where(np.isfinite(top), top, 0))
    total = powers.sum(axis=axis, keepdims=True)
    made: Array = (powers / np.where(total == 0, 1, total)).astype(x.dtype, copy=False)
    return made


def _gelu(x: Array, tanh: bool) -> Array:
    if tanh:
        inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
        return np.asarray(0.5 * x * (1 + np.tanh(inner)))
    (erf,) = OPERATORS["Erf"](Node("", "Erf", (), ()), [np.asarray(x / np.sqrt(2))])
    return np.asarray(0.5 * x * (1 + erf))


def _typed(function: Callable[[Node, Inputs], Any]) -> Operator:
    """A result in the type of the first input."""
    return lambda node, xs: (np.asarray(function(node, xs)).astype(xs[0].dtype, copy=False),)


def _swish(node: Node, xs: Inputs) -> Array:
    return np.asarray(xs[0] / (1 + np.exp(-node.attributes.get("alpha", 1.0) * xs[0])))


def _leaky(x: Array, slope: float) -> Array:
    return np.where(x < 0, slope * x, x)


# ------------------------------------------------------------------------------------ norms


def _normed_axes(node: Node, x: Array, default: int = -1) -> tuple[int, ...]:
    first = node.attributes.get("axis", default)
    return tuple(range(first + x.ndim if first < 0 else first, x.ndim))


def _layer_norm(node: Node, xs: Inputs) -> tuple[Any, ...]:
    x, axes = xs[0], _normed_axes(node, xs[0])
    wide = x.astype(np.float32)
    mean = wide.mean(axis=axes, keepdims=True)
    variance = np.square(wide - mean).mean(axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(variance + np.float32(node.attributes.get("epsilon", 1e-5)))
    out = (wide - mean) * inverse * xs[1]
    if len(xs) > 2 and xs[2] is not None:
        out = out + xs[2]
    return out.astype(x.dtype), mean.astype(np.float32), inverse.astype(np.float32)


def _rms_norm(node: Node, xs: Inputs) -> tuple[Any, ...]:
    x, axes = xs[0], _normed_axes(node, xs[0])
    wide = x.astype(np.float32)
    square = np.square(wide).mean(axis=axes, keepdims=True)
    out = wide / np.sqrt(square + np.float32(node.attributes.get("epsilon", 1e-5)))
    return ((out * xs[1]).astype(x.dtype),)


def _skip_norm(rms: bool) -> Operator:
    """The sum of input, skip and bias, normalised; the sum itself is the last output."""

    def run(node: Node, xs: Inputs) -> tuple[Any, ...]:
        bias = xs[3:4] if rms else xs[4:5]
        total = xs[0] + xs[1]
        for part in bias:
            total = total if part is None else total + part
        parts = [total, *xs[2 : 3 if rms else 4]]
        made = (_rms_norm if rms else _layer_norm)(node, parts)
        return made[0], None, None, total

    return run


# ------------------------------------------------------------------------------------ attention


def rotate(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """RoPE of [batch, heads, tokens, size]; cos and sin [batch or 1, tokens, half]."""
    half = cos.shape[-1]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None], sin[:, None]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        both = np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turned.shape)
    else:
        a, b = turned[..., :half], turned[..., half:]
        both = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return np.asarray(np.concatenate([both, rest], axis=-1).astype(x.dtype, copy=False))


def _heads(x: Array, heads: int) -> Array:
    """[batch, tokens, heads * size] as [batch, heads, tokens, size]."""
    if x.ndim == 4:
        return x
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(0, 2, 1, 3)


def _joined(x: Array) -> Array:
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def _rotary(node: Node, xs: Inputs) -> tuple[Any, ...]:
    x, cos, sin = xs[:3]
    flat = x.ndim == 3
    heads = node.attributes.get("num_heads", 0)
    made = _heads(x, heads) if flat else x
    if len(xs) > 3 and xs[3] is not None:
        cos, sin = cos[xs[3]], sin[xs[3]]
    out = rotate(made, cos, sin, bool(node.attributes.get("interleaved", 0)))
    return (_joined(out) if flat else out,)


def _ms_rotary(node: Node, xs: Inputs) -> tuple[Any, ...]:
    """com.microsoft: positions come second, one offset or one for each token."""
    x, positions, cos, sin = xs[:4]
    size = 2 * cos.shape[-1]
    heads = node.attributes.get("num_heads", 0) or (x.shape[-1] // size if x.ndim == 3 else 0)
    tokens = x.shape[1] if x.ndim == 3 else x.shape[2]
    places = positions if positions.ndim == 2 else positions[0] + np.arange(tokens)[None]
    made = _heads(x, heads) if x.ndim == 3 else x
    out = rotate(made, cos[places], sin[places], bool(node.attributes.get("interleaved", 0)))
    return (_joined(out) if x.ndim == 3 else out,)


def _bias(mask: Array | None, dtype: np.dtype[Any], keys: int) -> Array:
    """An attention mask as what is added to scores; missing keys are masked."""
    if mask is None:
        return np.zeros((1, 1), dtype)
    off: Any = False if mask.dtype == bool else -np.inf
    short = keys - mask.shape[-1]
    if short > 0:
        mask = np.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, short)], constant_values=off)
    return np.where(mask, 0, -np.inf).astype(dtype) if mask.dtype == bool else mask


def _attention(node: Node, xs: Inputs) -> tuple[Any, ...]:
    flags, parts = node.attributes, [*xs, *[None] * (7 - len(xs))]
    q, k, v, mask, past_k, past_v, lengths = parts
    flat = q.ndim == 3
    q = _heads(q, flags.get("q_num_heads", 0))
    k, v = (_heads(x, flags.get("kv_num_heads", 0)) for x in (k, v))
    past = 0 if past_k is None else past_k.shape[2]
    k = k if past_k is None else np.concatenate([past_k, k], axis=2)
    v = v if past_v is None else np.concatenate([past_v, v], axis=2)
    bias = _bias(mask, q.dtype, k.shape[2])
    rows, keys = np.arange(q.shape[2])[:, None], np.arange(k.shape[2])
    if flags.get("is_causal", 0):
        bias = bias + np.where(keys <= rows + past, 0, -np.inf).astype(q.dtype)
    if lengths is not None:
        bias = bias + np.where(keys < lengths[:, None, None, None], 0, -np.inf).astype(q.dtype)
    out, shown = attend(
        q, k, v, bias, flags.get("scale"), flags.get("softcap", 0.0),
        flags.get("qk_matmul_output_mode", 0),
    )  # fmt: skip
    return (_joined(out) if flat else out), k, v, shown


def attend(
    q: Array, k: Array, v: Array, bias: Array, scale: float | None = None, cap: float = 0.0,
    show: int = 0,
) -> tuple[Array, Array]:  # fmt: skip
    """Attention of [batch, heads, tokens, size]; also the scores at stage `show`.

    Stages: 0 scaled products, 1 capped, 2 with the bias, 3 probabilities.
    """
    shared = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x, shared, axis=1) for x in (k, v))
    worked(*limited((*q.shape[:3], k.shape[2])), q.shape[-1], kind=q.dtype.kind)
    root = np.sqrt(1 / np.sqrt(q.shape[-1]) if scale is None else scale).astype(q.dtype)
    scores = (q * root) @ (k * root).swapaxes(-1, -2)
    stages = [scores]
    capped = scores if cap <= 0 else cap * np.tanh(scores / cap)
    with np.errstate(invalid="ignore"):
        biased = (capped + bias).astype(q.dtype)
    weights = softmax(biased)
    stages += [capped, biased, weights]
    return (weights @ v).astype(q.dtype), stages[show].astype(q.dtype)


def _group_query(node: Node, xs: Inputs) -> tuple[Any, ...]:
    """com.microsoft: causal attention with shared heads, its own cache, and RoPE where asked."""
    flags, parts = node.attributes, [*xs, *[None] * (10 - len(xs))]
    q, k, v, past_k, past_v, lengths, _, cos, sin, places = parts[:10]
    heads, shared = flags["num_heads"], flags["kv_num_heads"]
    if k is None:
        size = q.shape[-1] // (heads + 2 * shared)
        q, k, v = np.split(q, [heads * size, (heads + shared) * size], axis=-1)
    q, k, v = _heads(q, heads), _heads(k, shared), _heads(v, shared)
    total = int(np.max(lengths)) + 1
    past = total - q.shape[2]
    if flags.get("do_rotary", 0):
        where = past + np.arange(q.shape[2])[None] if places is None else places
        turn = bool(flags.get("rotary_interleaved", 0))
        q, k = (rotate(x, cos[where], sin[where], turn) for x in (q, k))
    if past_k is not None:
        k = np.concatenate([past_k[:, :, :past], k], axis=2)
        v = np.concatenate([past_v[:, :, :past], v], axis=2)
    rows, keys = past + np.arange(q.shape[2])[:, None], np.arange(k.shape[2])
    seen = keys <= rows
    window = flags.get("local_window_size", -1)
    if window > 0:
        seen &= keys > rows - window
    bias = np.where(seen, 0, -np.inf).astype(q.dtype)
    out, _ = attend(q, k, v, bias, flags.get("scale") or None, flags.get("softcap", 0.0))
    return _joined(out), k, v


MICROSOFT: dict[str, Operator] = {
    "com.microsoft:FastGelu": _typed(
        lambda node, xs: _gelu(xs[0] + (xs[1] if len(xs) > 1 else 0), tanh=True)
    ),
    "com.microsoft:Gelu": _typed(lambda node, xs: _gelu(xs[0], tanh=False)),
    "com.microsoft:GroupQueryAttention": _group_query,
    "com.microsoft:QuickGelu": _typed(
        lambda node, xs: xs[0] / (1 + np.exp(-node.attributes.get("alpha", 1.702) * xs[0]))
    ),
    "com.microsoft:RotaryEmbedding": _ms_rotary,
    "com.microsoft:SkipLayerNormalization": _skip_norm(rms=False),
    "com.microsoft:SkipSimplifiedLayerNormalization": _skip_norm(rms=True),
}
"""Contributed operators of onnxruntime."""

ALL: dict[str, Operator] = {
    **OPERATORS,
    "Attention": _attention,
    "Cast": _cast,
    "CastLike": _cast_like,
    "DequantizeLinear": _dequantise,
    "Gelu": _typed(lambda node, xs: _gelu(xs[0], node.attributes.get("approximate") == b"tanh")),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _typed(lambda node, xs: _leaky(xs[0], node.attributes.get("alpha", 0.01))),
    "QuantizeLinear": _quantise,
    "RMSNormalization": _rms_norm,
    "RotaryEmbedding": _rotary,
    "SimplifiedLayerNormalization": _rms_norm,
    "Softmax": _softmax,
    "Swish": _typed(_swish),
    **MICROSOFT,
}
"""Every operator that can be evaluated, by name."""
