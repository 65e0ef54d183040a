"""ATen operators of torch.export programs in ONNX's: arithmetic, comparison, shape and movement.

Each function adds to a `Builder` what its operator means, from the arguments by the names of
PyTorch's schema (native_functions.yaml) and the operator's outputs, and gives the names of the
values that these are. `OPERATORS` lists them; `aten_ops_nn` adds what neural networks have of their
own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flightllm.models.aten_builder import BOOL, FLOAT, LONG, Builder, Operand, Ref
from flightllm.spec.errors import InputError

__all__ = ["OPERATORS", "Arguments", "Emitter", "repeated"]

Arguments = Mapping[str, Any]
Outputs = Sequence[Ref]
Emitter = Callable[[Builder, Arguments, Outputs], "str | Sequence[str]"]


def _first(a: Arguments) -> Ref:
    """The operator's main input."""
    value = a["self"] if "self" in a else a["input"]
    if not isinstance(value, Ref):
        raise InputError("its input is no tensor")
    return value


# ------------------------------------------------------------------------------------ arithmetic


def _same(op: str) -> Emitter:
    """An element-wise operator of one input, computed in its result's type."""
    return lambda b, a, outs: b.emit(op, b.cast(_first(a), outs[0].kind))


def _binary(op: str, turned: bool = False) -> Emitter:
    """An element-wise operator of two inputs; `alpha` scales the second."""

    def emit(b: Builder, a: Arguments, outs: Outputs) -> str:
        kind = outs[0].kind
        other = b.operand(a["other"], kind)
        if a.get("alpha", 1) != 1:
            other = b.emit("Mul", other, b.operand(a["alpha"], kind))
        pair = b.operand(a["self"], kind), other
        return b.emit(op, *(pair[::-1] if turned else pair))

    return emit


def _compare(op: str, negated: bool = False) -> Emitter:
    """A comparison; both sides in one type, float32 as soon as one is not whole."""

    def emit(b: Builder, a: Arguments, outs: Outputs) -> str:
        pair = [a["self"], a["other"]]
        kind = LONG if all(_whole(x) for x in pair) else FLOAT
        made = b.emit(op, *(b.operand(x, kind) for x in pair))
        return b.emit("Not", made) if negated else made

    return emit


def _whole(x: Operand) -> bool:
    return x.kind in (1, 2, 3, 4, LONG, BOOL) if isinstance(x, Ref) else isinstance(x, int)


def _logical(op: str) -> Emitter:
    """And, Or, Xor of truth values; bits of numbers are not supported."""

    def emit(b: Builder, a: Arguments, outs: Outputs) -> str:
        if outs[0].kind != BOOL:
            raise InputError("bits of whole numbers are not supported")
        return b.emit(op, b.operand(a["self"], BOOL), b.operand(a["other"], BOOL))

    return emit


def _not(b: Builder, a: Arguments, outs: Outputs) -> str:
    if outs[0].kind != BOOL:
        raise InputError("bits of whole numbers are not supported")
    return b.emit("Not", b.cast(_first(a), BOOL))


def _power(b: Builder, a: Arguments, outs: Outputs) -> str:
    kind = outs[0].kind
    return b.emit("Pow", b.operand(a["self"], kind), b.operand(a["exponent"], kind))


def _rsqrt(b: Builder, a: Arguments, outs: Outputs) -> str:
    return b.emit("Reciprocal", b.emit("Sqrt", b.cast(_first(a), outs[0].kind)))


def _square(b: Builder, a: Arguments, outs: Outputs) -> str:
    return b.emit("Mul", *[b.cast(_first(a), outs[0].kind)] * 2)


def _clamp(b: Builder, a: Arguments, outs: Outputs) -> str:
    kind, made = outs[0].kind, b.cast(_first(a), outs[0].kind)
    for op, bound in (("Max", a.get("min")), ("Min", a.get("max"))):
        if bound is not None:
            made = b.emit(op, made, b.operand(bound, kind))
    return made


def _where(b: Builder, a: Arguments, outs: Outputs) -> str:
    kind = outs[0].kind
    sides = b.operand(a["self"], kind), b.operand(a["other"], kind)
    return b.emit("Where", b.cast(a["condition"], BOOL), *sides)


def _masked_fill(b: Builder, a: Arguments, outs: Outputs) -> str:
    kind = outs[0].kind
    made = b.operand(a["value"], kind)
    return b.emit("Where", b.cast(a["mask"], BOOL), made, b.cast(a["self"], kind))


def _reduce(op: str, names: str = "dim", kind: int | None = None) -> Emitter:
    def emit(b: Builder, a: Arguments, outs: Outputs) -> str:
        x = _first(a)
        dims = a.get(names)
        dims = [dims] if isinstance(dims, int) else dims or list(range(x.rank))
        axes = b.constant([x.axis(dim) for dim in dims])
        made = b.cast(x, outs[0].kind if kind is None else kind)
        return b.emit(op, made, axes, keepdims=int(bool(a.get("keepdim", False))))

    return emit


def _cumsum(b: Builder, a: Arguments, outs: Outputs) -> str:
    x = _first(a)
    return b.emit("CumSum", b.cast(x, outs[0].kind), b.constant(x.axis(a["dim"])))


def _diff(b: Builder, a: Arguments, outs: Outputs) -> str:
    x, kind = _first(a), outs[0].kind
    if a.get("n", 1) != 1 or kind == BOOL:
        raise InputError("only first differences of numbers are supported")
    axis = x.axis(a.get("dim", -1))
    parts = [a[name] for name in ("prepend", "self", "append") if a.get(name) is not None]
    made = b.cast(parts[0], kind)
    if len(parts) > 1:
        made = b.emit("Concat", *(b.cast(part, kind) for part in parts), axis=axis)
    far = 2**63 - 1
    later, sooner = (_sliced(b, made, axis, *ends) for ends in ((1, far, 1), (0, -1, 1)))
    return b.emit("Sub", later, sooner)


# ------------------------------------------------------------------------------------ making


def _filled(value: Operand | None = None) -> Emitter:
    """A tensor of one value, of a stated shape or of another's."""

    def emit(b: Builder, a: Arguments, outs: Outputs) -> str:
        one = a.get("fill_value", a.get("s", 0)) if value is None else value
        made = b.operand(one, outs[0].kind)
        if "size" in a:
            return b.emit("Expand", made, b.ints(a["size"]))
        if "self" in a:  # ..._like
            return b.emit("Expand", made, b.emit("Shape", a["self"].name))
        return made

    return emit


def _arange(b: Builder, a: Arguments, outs: Outputs) -> str:
    kind = outs[0].kind
    parts = a.get("start", 0), a["end"], a.get("step", 1)
    return b.emit("Range", *(b.operand(part, kind) for part in parts))


def _tri(upper: int) -> Emitter:
    def emit(b: Builder, a: Arguments, outs: Outputs) -> str:
        return b.emit("Trilu", _first(a).name, b.operand(a.get("diagonal", 0), LONG), upper=upper)

    return emit


# ------------------------------------------------------------------------------------ shapes


def _cast(b: Builder, a: Arguments, outs: Outputs) -> str:
    return b.cast(_first(a), outs[0].kind)


def _reshape(b: Builder, a: Arguments, outs: Outputs) -> str:
    x, wanted = _first(a), a["size"] if "size" in a else a["shape"]
    made = b.emit("Reshape", x.name, b.ints(wanted), allowzero=1)
    if x.name in b.batched and x.rank == outs[0].rank and x.shape[1:] == outs[0].shape[1:]:
        b.batched[made] = b.batched[x.name]
    return made


def _flatten(b: Builder, a: Arguments, outs: Outputs) -> str:
    x = _first(a)
    start, end = x.axis(a.get("start_dim", 0)), x.axis(a.get("end_dim", -1))
    return b.emit("Reshape", x.name, b.ints([*[0] * start, -1, *_rest(x, end + 1)]))


def _rest(x: Ref, start: int) -> list[int]:
    """Extents behind an axis, which must be known."""
    found = [extent for extent in x.shape[start:] if extent is not None]
    if len(found) < x.rank - start:
        raise InputError(f"extents {list(x.shape)} are not fixed")
    return found


def _unflatten(b: Builder, a: Arguments, outs: Outputs) -> str:
    x = _first(a)
    axis = x.axis(a["dim"])
    return b.emit("Reshape", x.name, b.ints([*[0] * axis, *a["sizes"], *_rest(x, axis + 1)]))


def _expand(b: Builder, a: Arguments, outs: Outputs) -> str:
    x = _first(a)
    sizes = [1 if size == -1 else size for size in a["size"]]  # one keeps what there is
    made = b.emit("Expand", x.name, b.ints(sizes))
    if x.rank == 2 and None not in x.shape and outs[0].shape[1:] == x.shape:
        b.batched[made] = x
    return made


def _expand_as(b: Builder, a: Arguments, outs: Outputs) -> str:
    return b.emit("Expand", _first(a).name, b.emit("Shape", a["other"].name))


def _permute(b: Builder, a: Arguments, outs: Outputs) -> str:
    x = _first(a)
    return b.emit("Transpose", x.name, perm=[x.axis(dim) for dim in a["dims"]])


def _transpose(b: Builder, a: Arguments, outs: Outputs) -> str:
    x = _first(a)
    order = list(range(x.rank))
    i, j = (x.axis(a[name]) for name in ("dim0", "dim1"))
    order[i], order[j] = order[j], order[i]
    return b.emit("Transpose", x.name, perm=order)


def _turn(b: Builder, a: Arguments, outs: Outputs) -> str:
    x = _first(a)
    return b.emit("Transpose", x.name, perm=list(range(x.rank))[::-1]) if x.rank > 1 else x.name


def _unsqueeze(b: Builder, a: Arguments, outs: Outputs) -> str:
    return b.emit("Unsqueeze", _first(a).name, b.constant([outs[0].axis(a["dim"])]))


def _squeeze(b: Builder, a: Arguments, outs: Outputs) -> str:
    x = _first(a)
    dims = a.get("dim", list(range(x.rank)))
    axes = [x.axis(dim) for dim in ([dims] if isinstance(dims, int) else dims)]
    axes = [axis for axis in axes if x.shape[axis] == 1]
    return b.emit("Squeeze", x.name, b.constant(axes)) if axes else x.name


def _sliced(b: Builder, name: str, axis: int, start: Any, end: Any, step: int) -> str:
    ends = b.ints([start]), b.ints([end])
    return b.emit("Slice", name, *ends, b.constant([axis]), b.constant([step]))


def _slice(b: Builder, a: Arguments, outs: Outputs) -> str:
    x = _first(a)
    start, end = a.get("start"), a.get("end")
    start, end = 0 if start is None else start, 2**63 - 1 if end is None else end
    return _sliced(b, x.name, x.axis(a.get("dim", 0)), start, end, a.get("step", 1))


def _narrow(b: Builder, a: Arguments, outs: Outputs) -> str:
    x, start, length = _first(a), a["start"], a["length"]
    if isinstance(start, Ref) or isinstance(length, Ref):
        raise InputError("a part of no fixed place is not supported")
    return _sliced(b, x.name, x.axis(a["dim"]), start, start + length, 1)


def _select(b: Builder, a: Arguments, outs: Outputs) -> str:
    x = _first(a)
    return b.emit("Gather", x.name, b.operand(a["index"], LONG), axis=x.axis(a["dim"]))


def _index_select(b: Builder, a: Arguments, outs: Outputs) -> str:
    x = _first(a)
    return b.emit("Gather", x.name, a["index"].name, axis=x.axis(a["dim"]))


def _index(b: Builder, a: Arguments, outs: Outputs) -> str:
    """x[i, j, ...] by tensors of whole numbers, on the first axes or on one axis."""
    x, places = _first(a), a["indices"]
    given = [i for i, place in enumerate(places) if place is not None]
    if not given or any(places[i].kind not in (4, LONG) for i in given):
        raise InputError("only indices of whole numbers are supported")
    if len(given) == 1:
        return b.emit("Gather", x.name, places[given[0]].name, axis=given[0])
    if given != list(range(len(given))):
        raise InputError("indices with a gap between them are not supported")
    wide = [b.cast(places[i], LONG) for i in given]
    zero = b.emit("Sum", *(b.emit("Mul", name, b.constant(0)) for name in wide))
    last = b.constant([-1])
    parts = [b.emit("Unsqueeze", b.emit("Add", name, zero), last) for name in wide]
    return b.emit("GatherND", x.name, b.emit("Concat", *parts, axis=-1))


def _gather(b: Builder, a: Arguments, outs: Outputs) -> str:
    x = _first(a)
    return b.emit("GatherElements", x.name, a["index"].name, axis=x.axis(a["dim"]))


def _cat(b: Builder, a: Arguments, outs: Outputs) -> str:
    # An empty vector among the parts is what older programs begin a cache with.
    parts = [x for x in a["tensors"] if x.shape != (0,) or outs[0].rank == 1]
    names = [b.cast(x, outs[0].kind) for x in parts]
    return b.emit("Concat", *names, axis=outs[0].axis(a.get("dim", 0)))


def _stack(b: Builder, a: Arguments, outs: Outputs) -> str:
    axis = outs[0].axis(a.get("dim", 0))
    where = b.constant([axis])
    names = [b.emit("Unsqueeze", b.cast(x, outs[0].kind), where) for x in a["tensors"]]
    return b.emit("Concat", *names, axis=axis)


def _split(b: Builder, a: Arguments, outs: Outputs) -> Sequence[str]:
    """Parts of one size (the last may be shorter), of stated sizes, or a number of them."""
    x = _first(a)
    axis = x.axis(a.get("dim", 0))
    size = a.get("split_size", a.get("split_sizes"))
    whole = x.shape[axis]
    if isinstance(size, list):
        sizes = b.ints(size)
    elif whole is None or len(outs) > whole:
        raise InputError("parts of an extent that is not fixed are not supported")
    else:
        step = -(-whole // a["chunks"]) if "chunks" in a else size
        sizes = b.constant([max(0, min(step, whole - i * step)) for i in range(len(outs))])
    b.emit("Split", x.name, sizes, outputs=len(outs), axis=axis)
    return b.all_outputs()


def _unbind(b: Builder, a: Arguments, outs: Outputs) -> Sequence[str]:
    x = _first(a)
    axis = x.axis(a.get("dim", 0))
    return [b.emit("Gather", x.name, b.constant(i), axis=axis) for i in range(len(outs))]


def _tile(b: Builder, a: Arguments, outs: Outputs) -> str:
    x, repeats = _first(a), a["repeats"]
    name = x.name
    if len(repeats) > x.rank:
        name = b.emit("Unsqueeze", name, b.constant(list(range(len(repeats) - x.rank))))
    return b.emit("Tile", name, b.ints(repeats))


def repeated(b: Builder, x: Ref, axis: int, count: int) -> str:
    """Each entry of an axis several times in a row; extents behind it must be known."""
    wide = b.emit("Unsqueeze", x.name, b.constant([axis + 1]))
    spread = [1] * (x.rank + 1)
    spread[axis + 1] = count
    wide = b.emit("Expand", wide, b.constant(spread))
    extent = x.shape[axis]
    here = -1 if extent is None else extent * count
    return b.emit("Reshape", wide, b.constant([*[0] * axis, here, *_rest(x, axis + 1)]))


def _repeat_interleave(b: Builder, a: Arguments, outs: Outputs) -> str:
    x, count = _first(a), a["repeats"]
    if a.get("dim") is None or not isinstance(count, int):
        raise InputError("repeats of no fixed number or axis are not supported")
    return repeated(b, x, x.axis(a["dim"]), count)


def _sym_size(b: Builder, a: Arguments, outs: Outputs) -> str:
    x = _first(a)
    return b.extent(x, x.axis(a["dim"]))


def _python(op: str) -> Emitter:
    """Arithmetic of sizes."""
    return lambda b, a, outs: b.emit(op, b.operand(a["a"], LONG), b.operand(a["b"], LONG))


OPERATORS: dict[str, Emitter] = {
    **{f"aten.{n}": _binary(op) for n, op in (
        ("add.Tensor", "Add"), ("add.Scalar", "Add"), ("sub.Tensor", "Sub"), ("sub.Scalar", "Sub"),
        ("mul.Tensor", "Mul"), ("mul.Scalar", "Mul"), ("div.Tensor", "Div"), ("div.Scalar", "Div"),
        ("maximum.default", "Max"), ("minimum.default", "Min"),
    )},
    **{f"aten.rsub.{n}": _binary("Sub", turned=True) for n in ("Tensor", "Scalar")},
    **{f"aten.{n}.{kind}": _compare(op, n == "ne") for kind in ("Tensor", "Scalar") for n, op in (
        ("eq", "Equal"), ("ne", "Equal"), ("lt", "Less"), ("le", "LessOrEqual"),
        ("gt", "Greater"), ("ge", "GreaterOrEqual"),
    )},
    **{f"aten.{n}": _logical(op) for n, op in (
        ("__and__.Tensor", "And"), ("bitwise_and.Tensor", "And"), ("logical_and.default", "And"),
        ("__or__.Tensor", "Or"), ("bitwise_or.Tensor", "Or"), ("logical_or.default", "Or"),
        ("logical_xor.default", "Xor"),
    )},
    **{f"aten.{n}.default": _same(op) for n, op in (
        ("neg", "Neg"), ("exp", "Exp"), ("sqrt", "Sqrt"), ("sin", "Sin"), ("cos", "Cos"),
        ("tanh", "Tanh"), ("abs", "Abs"), ("erf", "Erf"), ("log", "Log"), ("sigmoid", "Sigmoid"),
        ("relu", "Relu"), ("reciprocal", "Reciprocal"), ("ceil", "Ceil"), ("floor", "Floor"),
    )},
    "aten.logical_not.default": _not,
    "aten.bitwise_not.default": _not,
    **{f"aten.pow.{n}": _power for n in ("Tensor_Scalar", "Tensor_Tensor", "Scalar")},
    "aten.rsqrt.default": _rsqrt,
    "aten.square.default": _square,
    "aten.clamp.default": _clamp,
    "aten.clamp.Tensor": _clamp,
    **{f"aten.where.{n}": _where for n in ("self", "ScalarOther", "ScalarSelf", "Scalar")},
    "aten.masked_fill.Scalar": _masked_fill,
    "aten.masked_fill.Tensor": _masked_fill,
    "aten.mean.dim": _reduce("ReduceMean"),
    "aten.sum.dim_IntList": _reduce("ReduceSum"),
    "aten.amax.default": _reduce("ReduceMax"),
    "aten.amin.default": _reduce("ReduceMin"),
    "aten.any.dim": _reduce("ReduceMax", kind=BOOL),
    "aten.all.dim": _reduce("ReduceMin", kind=BOOL),
    "aten.cumsum.default": _cumsum,
    "aten.diff.default": _diff,
    **{f"aten.{n}.default": _filled(value) for n, value in (
        ("full", None), ("full_like", None), ("scalar_tensor", None), ("new_full", None),
        ("zeros", 0), ("zeros_like", 0), ("new_zeros", 0),
        ("ones", 1), ("ones_like", 1), ("new_ones", 1),
    )},
    **{f"aten.arange.{n}": _arange for n in ("default", "start", "start_step")},
    "aten.triu.default": _tri(1),
    "aten.tril.default": _tri(0),
    **{f"aten.{n}": _cast for n in (
        "to.dtype", "to.dtype_layout", "to.device", "to.other", "type_as.default",
        "_to_copy.default", "clone.default", "contiguous.default", "alias.default",
        "detach.default", "detach_.default", "lift_fresh_copy.default", "dropout.default",
    )},
    **{f"aten.{n}.default": _reshape for n in ("view", "reshape", "_unsafe_view", "view_copy")},
    "aten.flatten.using_ints": _flatten,
    "aten.unflatten.int": _unflatten,
    "aten.expand.default": _expand,
    "aten.expand_copy.default": _expand,
    "aten.expand_as.default": _expand_as,
    "aten.permute.default": _permute,
    "aten.permute_copy.default": _permute,
    "aten.transpose.int": _transpose,
    "aten.t.default": _turn,
    "aten.numpy_T.default": _turn,
    "aten.unsqueeze.default": _unsqueeze,
    **{f"aten.squeeze.{n}": _squeeze for n in ("default", "dim", "dims")},
    "aten.slice.Tensor": _slice,
    "aten.narrow.default": _narrow,
    "aten.select.int": _select,
    "aten.index_select.default": _index_select,
    "aten.index.Tensor": _index,
    "aten.gather.default": _gather,
    "aten.cat.default": _cat,
    "aten.concat.default": _cat,
    "aten.stack.default": _stack,
    **{f"aten.{n}": _split for n in (
        "split.Tensor", "split.sizes", "split_with_sizes.default", "chunk.default"
    )},
    "aten.unbind.int": _unbind,
    "aten.repeat.default": _tile,
    "aten.repeat_interleave.self_int": _repeat_interleave,
    "aten.sym_size.int": _sym_size,
    **{f"_operator.{n}": _python(op) for n, op in (
        ("add", "Add"), ("sub", "Sub"), ("mul", "Mul"), ("floordiv", "Div"), ("mod", "Mod"),
    )},
}  # fmt: skip
"""Operators of the programs by name, without "torch.ops."."""
