"""ONNX operators in numpy: arithmetic, comparison, shape and movement of data.

Each function takes its node and the node's inputs (None where one is left out) and gives its
outputs, as the operator's page of the ONNX standard says, opset 13 and later. `OPERATORS` lists
them; `onnx_ops_nn` adds what neural networks have of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flightllm.models.op_graph import Node
from flightllm.spec.errors import InputError

__all__ = ["LIMIT", "OPERATORS", "Operator", "limited", "worked"]

Array = NDArray[Any]
Inputs = Sequence[Any]
Operator = Callable[[Node, Inputs], "tuple[Any, ...]"]
LIMIT = 1 << 25
"""Elements that an array of an evaluation may have."""
WORK = {"f": 1 << 34}
"""Products that one operator may sum up, by the kind of number; of others WHOLE_WORK."""
WHOLE_WORK = 1 << 31


def limited(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape, unless it has more elements than an evaluation may make.

    Raises
    ------
    InputError : when it has, or an extent is negative.
    """
    made = tuple(int(extent) for extent in shape)
    if any(extent < 0 for extent in made) or math.prod(made) > LIMIT:
        raise InputError(f"an array of shape {list(made)} is not within {LIMIT} elements")
    return made


def worked(*extents: int, kind: str = "f") -> None:
    """Refuse a product of matrices that would take too long.

    Raises
    ------
    InputError : when the extents together are more than an evaluation may multiply.
    """
    if math.prod(extents) > WORK.get(kind, WHOLE_WORK):
        raise InputError(f"a product over {list(extents)} is too large")


def _shape_of(xs: Sequence[Array]) -> None:
    limited(np.broadcast_shapes(*(np.shape(x) for x in xs)))


def _same(function: Callable[..., Any]) -> Operator:
    """An element-wise function whose result has its first input's type."""

    def run(node: Node, xs: Inputs) -> tuple[Any, ...]:
        _shape_of(xs)
        with np.errstate(all="ignore"):
            return (np.asarray(function(*xs)).astype(xs[0].dtype, copy=False),)

    return run


def _logical(function: Callable[..., Any]) -> Operator:
    """An element-wise function with a boolean result."""

    def run(node: Node, xs: Inputs) -> tuple[Any, ...]:
        _shape_of(xs)
        return (np.asarray(function(*xs)).astype(bool, copy=False),)

    return run


def _folded(function: Callable[..., Any]) -> Operator:
    """Min, Max, Sum, Mean: any number of inputs, taken two at a time."""

    def run(node: Node, xs: Inputs) -> tuple[Any, ...]:
        out = xs[0]
        for x in xs[1:]:
            _shape_of((out, x))
            out = function(out, x)
        return (np.asarray(out).astype(xs[0].dtype, copy=False),)

    return run


def _divide(a: Array, b: Array) -> Array:
    if not np.issubdtype(a.dtype, np.integer):
        return a / b
    quotient: Array = np.abs(a) // np.where(b == 0, 1, np.abs(b))
    if np.issubdtype(a.dtype, np.unsignedinteger):
        return np.asarray(a // np.where(b == 0, 1, b))
    return np.where((a < 0) != (b < 0), -quotient, quotient)


def _erf(x: Array) -> Array:
    from torch import from_numpy, special

    wide = from_numpy(np.ascontiguousarray(x, np.float64))
    return np.asarray(special.erf(wide).numpy())


def _mod(node: Node, xs: Inputs) -> tuple[Any, ...]:
    _shape_of(xs)
    function = np.fmod if node.attributes.get("fmod", 0) else np.mod
    with np.errstate(all="ignore"):
        return (function(*xs).astype(xs[0].dtype, copy=False),)


def _clip(node: Node, xs: Inputs) -> tuple[Any, ...]:
    low, high = ([*xs, None, None])[1:3]
    out = xs[0]
    if low is not None:
        out = np.maximum(out, low)
    if high is not None:
        out = np.minimum(out, high)
    return (np.asarray(out).astype(xs[0].dtype, copy=False),)


def _where(node: Node, xs: Inputs) -> tuple[Any, ...]:
    _shape_of(xs)
    return (np.where(*xs),)


def _matmul(node: Node, xs: Inputs) -> tuple[Any, ...]:
    a, b = xs
    if a.ndim and b.ndim:
        rows = a.shape[:-1] if a.ndim > 1 else ()
        columns = b.shape[-1:] if b.ndim > 1 else ()
        batch = np.broadcast_shapes(rows[:-1], b.shape[:-2])
        limited((*batch, *rows[-1:], *columns))
        worked(*batch, *rows[-1:], *columns, a.shape[-1], kind=a.dtype.kind)
    return (np.matmul(a, b),)


def _gemm(node: Node, xs: Inputs) -> tuple[Any, ...]:
    flags = node.attributes
    a = xs[0].T if flags.get("transA", 0) else xs[0]
    b = xs[1].T if flags.get("transB", 0) else xs[1]
    limited((a.shape[0], b.shape[1]))
    worked(*a.shape, b.shape[1], kind=a.dtype.kind)
    out = flags.get("alpha", 1.0) * (a @ b)
    if len(xs) > 2 and xs[2] is not None:
        out = out + flags.get("beta", 1.0) * xs[2]
    return (np.asarray(out).astype(xs[0].dtype, copy=False),)


# ------------------------------------------------------------------------------------ reductions


def _axes(node: Node, xs: Inputs, place: int = 1) -> tuple[int, ...] | None:
    given = xs[place] if len(xs) > place else None
    found = node.attributes.get("axes") if given is None else np.atleast_1d(given).tolist()
    return tuple(int(axis) for axis in found) if found is not None and len(found) else None


def _reduce(function: Callable[..., Any]) -> Operator:
    def run(node: Node, xs: Inputs) -> tuple[Any, ...]:
        x, axes = xs[0], _axes(node, xs)
        if axes is None and node.attributes.get("noop_with_empty_axes", 0):
            axes = ()
        with np.errstate(all="ignore"):
            out = function(x, axis=axes, keepdims=bool(node.attributes.get("keepdims", 1)))
        return (np.asarray(out).astype(x.dtype, copy=False),)

    return run


def _extreme(function: Callable[..., Any], lowest: bool) -> Operator:
    """ReduceMax and ReduceMin: of nothing, the type's own bound."""

    def start(dtype: np.dtype[Any]) -> Any:
        if dtype.kind == "b":
            return lowest
        if np.issubdtype(dtype, np.integer):
            return np.iinfo(dtype).max if lowest else np.iinfo(dtype).min
        return np.inf if lowest else -np.inf

    def reduced(x: Array, **how: Any) -> Any:
        if x.dtype == bool:
            return function(x.astype(np.uint8), initial=int(start(x.dtype)), **how).astype(bool)
        return function(x, initial=start(x.dtype), **how)

    return _reduce(reduced)


def _argmax(node: Node, xs: Inputs) -> tuple[Any, ...]:
    axis, keep = node.attributes.get("axis", 0), bool(node.attributes.get("keepdims", 1))
    x = xs[0]
    if not node.attributes.get("select_last_index", 0):
        return (np.argmax(x, axis=axis, keepdims=keep).astype(np.int64),)
    found = np.argmax(np.flip(x, axis), axis=axis, keepdims=keep)
    return ((x.shape[axis] - 1 - found).astype(np.int64),)


def _cumsum(node: Node, xs: Inputs) -> tuple[Any, ...]:
    x, axis = xs[0], int(xs[1])
    reverse = node.attributes.get("reverse", 0)
    x = np.flip(x, axis) if reverse else x
    out = np.cumsum(x, axis=axis, dtype=x.dtype)
    out = out - x if node.attributes.get("exclusive", 0) else out
    return (np.flip(out, axis) if reverse else out,)


# ------------------------------------------------------------------------------------ shapes


def _shape(node: Node, xs: Inputs) -> tuple[Any, ...]:
    start, end = node.attributes.get("start", 0), node.attributes.get("end")
    return (np.array(xs[0].shape[start:end], np.int64),)


def _reshape(node: Node, xs: Inputs) -> tuple[Any, ...]:
    x, wanted = xs[0], [int(extent) for extent in xs[1]]
    if not node.attributes.get("allowzero", 0):
        wanted = [x.shape[i] if extent == 0 else extent for i, extent in enumerate(wanted)]
    return (x.reshape(wanted),)


def _flatten(node: Node, xs: Inputs) -> tuple[Any, ...]:
    axis = node.attributes.get("axis", 1)
    axis = axis + xs[0].ndim if axis < 0 else axis
    return (xs[0].reshape(math.prod(xs[0].shape[:axis]), math.prod(xs[0].shape[axis:])),)


def _transpose(node: Node, xs: Inputs) -> tuple[Any, ...]:
    return (np.transpose(xs[0], node.attributes.get("perm")),)


def _squeeze(node: Node, xs: Inputs) -> tuple[Any, ...]:
    return (np.squeeze(xs[0], axis=_axes(node, xs)),)


def _unsqueeze(node: Node, xs: Inputs) -> tuple[Any, ...]:
    return (np.expand_dims(xs[0], _axes(node, xs) or ()),)


def _expand(node: Node, xs: Inputs) -> tuple[Any, ...]:
    shape = np.broadcast_shapes(xs[0].shape, limited(xs[1].tolist()))
    return (np.broadcast_to(xs[0], limited(shape)),)


def _tile(node: Node, xs: Inputs) -> tuple[Any, ...]:
    repeats = [int(count) for count in xs[1]]
    limited([extent * count for extent, count in zip(xs[0].shape, repeats)])
    return (np.tile(xs[0], repeats),)


def _concat(node: Node, xs: Inputs) -> tuple[Any, ...]:
    return (np.concatenate(xs, axis=node.attributes["axis"]),)


def _split(node: Node, xs: Inputs) -> tuple[Any, ...]:
    axis, x = node.attributes.get("axis", 0), xs[0]
    if len(xs) > 1 and xs[1] is not None:
        sizes = [int(size) for size in xs[1]]
    else:
        count = node.attributes.get("num_outputs", len(node.outputs))
        step = -(-x.shape[axis] // count)
        sizes = [max(0, min(step, x.shape[axis] - i * step)) for i in range(count)]
    if sum(sizes) != x.shape[axis] or min(sizes) < 0:
        raise InputError(f"parts {sizes} do not make up an extent of {x.shape[axis]}")
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis=axis))


def _slice(node: Node, xs: Inputs) -> tuple[Any, ...]:
    x, starts, ends = xs[0], xs[1].tolist(), xs[2].tolist()
    axes = xs[3].tolist() if len(xs) > 3 and xs[3] is not None else range(len(starts))
    steps = xs[4].tolist() if len(xs) > 4 and xs[4] is not None else [1] * len(starts)
    index: list[slice] = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps):
        extent = x.shape[axis]
        if step > 0:
            index[axis] = slice(start, end, step)
        else:  # an end before the beginning, which Python counts from the other side
            first = min(start + extent if start < 0 else start, extent - 1)
            last = end + extent if end < 0 else end
            index[axis] = slice(max(first, -1), None if last < 0 else last, step)
            if first < 0:
                index[axis] = slice(0, 0)
    return (x[tuple(index)],)


def _gather(node: Node, xs: Inputs) -> tuple[Any, ...]:
    x, index = xs
    axis = node.attributes.get("axis", 0)
    axis = axis + x.ndim if axis < 0 else axis
    limited((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))
    return (np.take(x, index.astype(np.int64), axis=axis),)


def _gather_elements(node: Node, xs: Inputs) -> tuple[Any, ...]:
    index = xs[1].astype(np.int64)
    return (np.take_along_axis(xs[0], index, axis=node.attributes.get("axis", 0)),)


def _gather_nd(node: Node, xs: Inputs) -> tuple[Any, ...]:
    x, index, batch = xs[0], xs[1].astype(np.int64), node.attributes.get("batch_dims", 0)
    lead = x.shape[:batch]
    limited((*index.shape[:-1], *x.shape[batch + index.shape[-1] :]))
    if not batch:
        return (x[tuple(np.moveaxis(index, -1, 0))],)
    flat = x.reshape(-1, *x.shape[batch:])
    places = index.reshape(-1, *index.shape[batch:])
    made = [part[tuple(np.moveaxis(place, -1, 0))] for part, place in zip(flat, places)]
    return (np.stack(made).reshape(*lead, *made[0].shape),)


_SCATTERS: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum,
}  # fmt: skip


def _put(out: Array, place: tuple[Any, ...], values: Array, how: str) -> Array:
    if how == "none":
        out[place] = values
    else:
        _SCATTERS[how].at(out, place, values)  # type: ignore[attr-defined]
    return out


def _scatter_nd(node: Node, xs: Inputs) -> tuple[Any, ...]:
    how = node.attributes.get("reduction", b"none").decode()
    place = tuple(np.moveaxis(xs[1].astype(np.int64), -1, 0))
    return (_put(xs[0].copy(), place, xs[2], how),)


def _scatter_elements(node: Node, xs: Inputs) -> tuple[Any, ...]:
    how, index = node.attributes.get("reduction", b"none").decode(), xs[1].astype(np.int64)
    place: list[Any] = list(np.indices(index.shape))
    place[node.attributes.get("axis", 0)] = index
    return (_put(xs[0].copy(), tuple(place), xs[2], how),)


def _trilu(node: Node, xs: Inputs) -> tuple[Any, ...]:
    k = int(xs[1]) if len(xs) > 1 and xs[1] is not None else 0
    if not xs[0].size:
        return (xs[0],)
    return ((np.triu if node.attributes.get("upper", 1) else np.tril)(xs[0], k),)


def _range(node: Node, xs: Inputs) -> tuple[Any, ...]:
    start, limit, step = (x.item() for x in xs)
    count = max(0, math.ceil((limit - start) / step))
    limited((count,))
    return (np.arange(start, limit, step, dtype=xs[0].dtype)[:count],)


def _constant_of_shape(node: Node, xs: Inputs) -> tuple[Any, ...]:
    from onnx import numpy_helper

    value = node.attributes.get("value")
    filled = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    return (np.full(limited(xs[0].tolist()), filled.reshape(-1)[0], filled.dtype),)


def _constant(node: Node, xs: Inputs) -> tuple[Any, ...]:
    from onnx import numpy_helper

    if (tensor := node.attributes.get("value")) is not None:
        return (numpy_helper.to_array(tensor),)
    for name, kind in (("float", np.float32), ("int", np.int64)):
        for ending in ("", "s"):
            value = node.attributes.get(f"value_{name}{ending}")
            if value is not None:
                return (np.array(value, kind),)
    raise InputError("a constant of this form is not supported")


def _identity(node: Node, xs: Inputs) -> tuple[Any, ...]:
    return (xs[0],)


def _einsum(node: Node, xs: Inputs) -> tuple[Any, ...]:
    equation = node.attributes["equation"].decode()
    extents: dict[str, int] = {}
    left, _, right = equation.replace(" ", "").partition("->")
    for place, (term, x) in enumerate(zip(left.split(","), xs)):
        front, dots, back = term.partition("...")
        rest = x.shape[len(front) : len(x.shape) - len(back)]
        extents |= {**dict(zip(front, x.shape)), **dict(zip(back[::-1], x.shape[::-1]))}
        if dots:
            extents[f"...{place}"] = math.prod(rest)
    free = [extent for name, extent in extents.items() if name in right or "." in name]
    limited(free)
    worked(*extents.values(), kind="i")  # numpy adds these up one by one
    return (np.asarray(np.einsum(equation, *xs)).astype(xs[0].dtype, copy=False),)


OPERATORS: dict[str, Operator] = {
    "Abs": _same(np.abs),
    "Add": _same(np.add),
    "And": _logical(np.logical_and),
    "ArgMax": _argmax,
    "Ceil": _same(np.ceil),
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Cos": _same(np.cos),
    "CumSum": _cumsum,
    "Div": _same(_divide),
    "Einsum": _einsum,
    "Equal": _logical(np.equal),
    "Erf": _same(_erf),
    "Exp": _same(np.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _same(np.floor),
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "Greater": _logical(np.greater),
    "GreaterOrEqual": _logical(np.greater_equal),
    "Identity": _identity,
    "IsNaN": _logical(np.isnan),
    "Less": _logical(np.less),
    "LessOrEqual": _logical(np.less_equal),
    "Log": _same(np.log),
    "MatMul": _matmul,
    "Max": _folded(np.maximum),
    "Min": _folded(np.minimum),
    "Mod": _mod,
    "Mul": _same(np.multiply),
    "Neg": _same(np.negative),
    "Not": _logical(np.logical_not),
    "Or": _logical(np.logical_or),
    "Pow": _same(np.power),
    "Range": _range,
    "Reciprocal": _same(np.reciprocal),
    "ReduceMax": _extreme(np.max, lowest=False),
    "ReduceMean": _reduce(np.mean),
    "ReduceMin": _extreme(np.min, lowest=True),
    "ReduceSum": _reduce(np.sum),
    "Relu": _same(lambda x: np.maximum(x, 0)),
    "Reshape": _reshape,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Sigmoid": _same(lambda x: 1 / (1 + np.exp(-x))),
    "Sin": _same(np.sin),
    "Size": lambda node, xs: (np.array(xs[0].size, np.int64),),
    "Slice": _slice,
    "Softplus": _same(lambda x: np.logaddexp(x, 0)),
    "Split": _split,
    "Sqrt": _same(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _same(np.subtract),
    "Sum": _folded(np.add),
    "Tanh": _same(np.tanh),
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
    "Xor": _logical(np.logical_xor),
}
"""Operators of ONNX's own domain by name."""
