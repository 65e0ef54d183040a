"""What stands between the matrices of a decoder's graph, found by evaluation on random values.

Every matrix is replaced by random numbers, and what lies between is evaluated as the file has it.
The result must be what a norm, rotary attention or an MLP of some size makes of the same numbers;
sizes, gains and angles come out of the file's constants. What fits nothing is refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flightllm.models.graph_eval import Evaluation, needed
from flightllm.models.graph_structure import Decoder, DecoderLayer
from flightllm.models.graph_weights import Linear
from flightllm.models.onnx_ops import limited
from flightllm.models.op_graph import Graph, GraphInput, Node
from flightllm.spec.errors import InputError

__all__ = [
    "Attention", "Norm", "Probe", "attends", "attention_of", "epsilon_of", "mlp_of", "norm_of",
    "start", "windows",
]  # fmt: skip

Array = NDArray[Any]
TOKENS = 7
MAX_STATIC_TOKENS = 512
MAX_WINDOW = 1 << 24
_COMPARES = ("Sub", "Add", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
CLOSE = 2e-3
"""How far, relative to its largest value, an evaluation in float32 may be from the formula."""


@dataclass(frozen=True)
class Norm:
    """Names of the constants of a norm; gain None stands for ones. eps as found, not as stored."""

    kind: str
    gain: str | None
    bias: str | None
    eps: float


@dataclass(frozen=True)
class Attention:
    """How a layer attends.

    Members
    -------
    rows : where query, key and value lie: (matrix, first row, row behind the last).
    frequencies : radians a position turns each pair by, or None. interleaved : adjacent pairs turn.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rows: tuple[tuple[int, int, int], ...]
    frequencies: Array | None
    interleaved: bool
    window: int | None = None


@dataclass
class Probe:
    """One evaluation with random values in place of every matrix's product.

    Members
    -------
    inputs, outputs : of each matrix, by its output's name, float64 [tokens, columns or rows].
    residual : what the residual is by the sum of what was added, float64 [tokens, dim].
    """

    decoder: Decoder
    evaluation: Evaluation
    size: float
    generator: np.random.Generator
    tokens: int
    ids: Array
    inputs: dict[str, Array] = field(default_factory=dict)
    outputs: dict[str, Array] = field(default_factory=dict)
    residual: Array = field(default_factory=lambda: np.zeros(0))

    def run(self, linear: Linear) -> tuple[Array, Array]:
        """Evaluate a matrix' input and put random numbers in place of its product."""
        name = linear.output
        if name not in self.inputs:
            given = self.evaluation.value(linear.source)
            if given.shape[-1] != linear.columns or given.size != self.tokens * linear.columns:
                raise self.decoder.graph.fail(
                    linear.node,
                    f"its input {list(given.shape)} is not {self.tokens} tokens of"
                    f" {linear.columns}",
                )
            shape = limited((*given.shape[:-1], linear.rows))
            made = self.generator.normal(0, self.size, shape)
            values, product = self.evaluation.values, linear.node.outputs[0]
            if self._direct(linear):
                values[name] = made.astype(np.float32)
            else:  # the bias is added behind a change of shape: take it off beforehand
                bias = self.evaluation.value(linear.bias or "").reshape(-1)
                values[product] = (made - bias).astype(np.float32)
            self.inputs[name] = given.reshape(-1, linear.columns).astype(np.float64)
            found = self.evaluation.value(name)
            self.outputs[name] = found.reshape(-1, linear.rows).astype(np.float64)
        return self.inputs[name], self.outputs[name]

    def _direct(self, linear: Linear) -> bool:
        """Whether a matrix' output has the shape of its product."""
        producers = self.decoder.graph.producers
        last = producers[linear.output]
        return last is linear.node or linear.node in map(producers.get, last.inputs)

    def add(self, linear: Linear) -> None:
        """Add a matrix' product to the residual."""
        self.residual = self.residual + self.outputs[linear.output]

    def region(self, linear: Linear, before: set[str]) -> list[Node]:
        """The nodes between `before` (values known then) and a matrix' input."""
        return needed(self.decoder.graph, [linear.source], before)


def _fed(name: str, spec: GraphInput, tokens: int, vocab: int, graph: Graph) -> Array:
    """What an input of the graph gets: ids, positions, an open mask, an empty cache."""
    shape = spec.shape
    lower = name.lower()
    if "past" in lower or "cache" in lower and len(shape) >= 3:
        open_ = [axis for axis in range(len(shape)) if shape[axis] is None]
        if len(shape) != 4 or 2 not in open_ and 1 not in open_:
            raise InputError(
                f"{graph.path}: input {name!r} {list(shape)} is a cache of a fixed length: export"
                " with a dynamic past length, or without cache"
            )
        length = 2 if 2 in open_ else 1
        return np.zeros(
            [0 if a == length else (1 if e is None else e) for a, e in enumerate(shape)], spec.dtype
        )
    if lower == "use_cache_branch":
        return np.zeros([e or 1 for e in shape], spec.dtype)
    if "position" in lower:
        return np.arange(tokens, dtype=spec.dtype).reshape([1] * (len(shape) - 1) + [tokens])
    if "mask" in lower and len(shape) == 2:
        return np.ones((1, tokens), spec.dtype)
    if len(shape) == 2 and np.issubdtype(spec.dtype, np.integer):
        # Descending, so that they are not taken for positions, and far apart.
        ids = vocab - 1 - np.arange(tokens) * max(1, vocab // (tokens + 1)) % vocab
        return ids.astype(spec.dtype).reshape(1, tokens)
    raise InputError(
        f"{graph.path}: input {name!r} {list(shape)} of {spec.dtype} is not known: a decoder has"
        " input_ids, and may have attention_mask, position_ids and past_key_values"
    )


def _tokens(graph: Graph, wanted: int) -> int:
    """Tokens to probe with: what the graph fixes, or a few."""
    for name, spec in graph.inputs.items():
        if "input_ids" not in name or len(spec.shape) != 2:
            continue
        if spec.shape[0] not in (None, 1):
            raise InputError(
                f"{graph.path}: is fixed to {spec.shape[0]} sequences at a time: export with one,"
                " or with a dynamic batch"
            )
        if spec.shape[1] is not None:
            if spec.shape[1] > MAX_STATIC_TOKENS:
                raise InputError(
                    f"{graph.path}: is fixed to {spec.shape[1]} tokens: export with a dynamic"
                    " sequence length"
                )
            return spec.shape[1]
    return wanted


def start(decoder: Decoder, size: float, seed: int, tokens: int | None = None) -> Probe:
    """A probe with numbers of `size` in place of embeddings.

    Parameters
    ----------
    tokens : how many, where the graph leaves that open; a few by default.
    """
    graph = decoder.graph
    tokens = _tokens(graph, tokens or TOKENS)
    vocab = decoder.head.rows
    given = {n: _fed(n, spec, tokens, vocab, graph) for n, spec in graph.inputs.items()}
    names = [n for n in graph.inputs if "input_ids" in n] or list(graph.inputs)[:1]
    ids = given[names[0]].reshape(-1)
    probe = Probe(
        decoder, Evaluation(graph, given), size, np.random.default_rng(seed), tokens, ids
    )  # fmt: skip
    for lookup in decoder.lookups:
        shape = limited((*probe.evaluation.value(lookup.indices).shape, lookup.shape[1]))
        made = probe.generator.normal(0, size, shape).astype(np.float32)
        if made.size not in (lookup.shape[1], tokens * lookup.shape[1]):
            raise graph.fail(lookup.node, f"gives {list(shape)}, not one row a token")
        probe.evaluation.values[lookup.output] = made
        probe.outputs[lookup.output] = made.reshape(-1, lookup.shape[1]).astype(np.float64)
    probe.residual = sum((probe.outputs[lookup.output] for lookup in decoder.lookups), np.zeros(()))
    return probe


def _far(found: Array, wanted: Array) -> float:
    """Largest difference, relative to the largest value wanted."""
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return math.inf
    return float(np.abs(found - wanted).max() / max(float(np.abs(wanted).max()), 1e-20))


# ------------------------------------------------------------------------------------ norms


def _vectors(probe: Probe, nodes: list[Node], size: int) -> Iterator[tuple[str, Array]]:
    """Constant vectors of one length that a region reads."""
    fixed = probe.decoder.weights.fixed
    seen = set()
    for node in nodes:
        for name in node.inputs:
            if name in fixed and name not in seen and probe.decoder.weights.shape(name)[-1:] == (
                size,
            ):  # fmt: skip
                seen.add(name)
                value = probe.evaluation.value(name)
                if value.size == size:
                    yield name, value.reshape(-1).astype(np.float64)


def _named(vectors: list[tuple[str, Array]], wanted: Array) -> str | None:
    """The constant that a fitted vector is."""
    best = min(vectors, key=lambda item: _far(item[1], wanted), default=None)
    return best[0] if best is not None and _far(best[1], wanted) < 10 * CLOSE else None


def norm_of(probe: Probe, linear: Linear, nodes: list[Node]) -> Norm:
    """The norm whose result a matrix reads, from a probe with values near 1."""
    x, y = probe.residual, probe.inputs[linear.output]
    graph, size = probe.decoder.graph, x.shape[1]
    vectors = list(_vectors(probe, nodes, size))
    unit = x / np.sqrt(np.square(x).mean(1, keepdims=True))
    gain = (unit * y).sum(0) / np.square(unit).sum(0)
    if _far(unit * gain, y) < CLOSE:
        name = _named(vectors, gain)
        if name is None and np.abs(gain - 1).max() > CLOSE:
            raise graph.fail(linear.node, "the gain of the norm in front of it is no constant")
        return Norm("rms", name, None, 0.0)
    centred = x - x.mean(1, keepdims=True)
    unit = centred / np.sqrt(np.square(centred).mean(1, keepdims=True))
    off = unit - unit.mean(0)
    gain = (off * (y - y.mean(0))).sum(0) / np.square(off).sum(0)
    bias = (y - unit * gain).mean(0)
    if _far(unit * gain + bias, y) > CLOSE:
        raise graph.fail(
            linear.node,
            "what it reads is neither RMSNorm nor LayerNorm of the residual (scaled embeddings and"
            " norms behind attention are not supported)",
        )
    names = _named(vectors, gain), _named(vectors, bias)
    if names[0] is None or (names[1] is None and np.abs(bias).max() > CLOSE):
        raise graph.fail(linear.node, "gain or bias of the norm in front of it are no constants")
    return Norm("layer", names[0], names[1], 0.0)


def epsilon_of(probe: Probe, linear: Linear, norm: Norm) -> float:
    """What the norm adds to the variance, from a probe with values so small that it shows."""
    x, y = probe.residual, probe.inputs[linear.output]
    value = probe.evaluation.value
    gain = np.ones(x.shape[1]) if norm.gain is None else value(norm.gain).reshape(-1)
    if norm.bias is not None:
        y = y - value(norm.bias).reshape(-1)
    x = x - x.mean(1, keepdims=True) if norm.kind == "layer" else x
    large = np.abs(x * gain) > 0.3 * np.abs(x * gain).max(1, keepdims=True)
    ratio = np.where(large, x * gain, 1) / np.where(large, y, 1)
    spread = np.square(ratio) - np.square(x).mean(1, keepdims=True)
    return float(np.median(spread[large]))


# ------------------------------------------------------------------------------------ MLP


def _silu(x: Array) -> Array:
    return np.asarray(x / (1 + np.exp(-x)))


def _gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _gelu_erf(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))


_ACTIVATIONS = {
    "silu": _silu, "relu": lambda x: np.maximum(x, 0), "gelu": _gelu, "gelu_erf": _gelu_erf,
}  # fmt: skip


def mlp_of(probe: Probe, layer: DecoderLayer) -> tuple[str, list[tuple[int, int, int]]]:
    """The activation and where gate (if any) and up lie: (matrix, first row, row behind the last).

    Raises
    ------
    InputError : when what the last matrix reads is no supported function of the inner values.
    """
    found = probe.inputs[layer.down.output]
    outputs = [probe.outputs[linear.output] for linear in layer.inner]
    width = layer.down.columns
    whole = [(i, 0, width) for i, part in enumerate(outputs) if part.shape[1] == width]
    if len(outputs) == 1 and outputs[0].shape[1] == 2 * width:
        whole = [(0, 0, width), (0, width, 2 * width)]
    orders = itertools.permutations(whole) if len(whole) == 2 else [whole]
    tried: list[tuple[float, str, list[tuple[int, int, int]]]] = []
    for order in orders:
        parts = [outputs[i][:, a:b] for i, a, b in order]
        for name, function in _ACTIVATIONS.items():
            if parts:
                made = function(parts[0]) * (parts[1] if len(parts) == 2 else 1)
                tried.append((_far(found, made), name, list(order)))
    distance, name, places = min(tried, default=(math.inf, "", []))
    if distance > CLOSE:
        raise probe.decoder.graph.fail(
            layer.down.node,
            "what it reads is no SiLU, ReLU or GELU of the MLP's inner values, gated or not",
        )
    return name, places


# ------------------------------------------------------------------------------------ attention


def _head_counts(probe: Probe, nodes: list[Node], rows: int) -> list[int]:
    """Numbers of query heads that the region speaks of, likeliest first."""
    found: list[int] = []
    for node in nodes:
        flags = node.attributes
        found += [int(flags[k]) for k in ("num_heads", "q_num_heads") if flags.get(k)]
        if node.op in ("Softmax", "Attention") and node.inputs[0] in probe.evaluation.values:
            shape = probe.evaluation.values[node.inputs[0]].shape
            found += [shape[-3]] if len(shape) in (3, 4) else []
    return [n for n in dict.fromkeys(found) if n > 0 and rows % n == 0]


def _angles(probe: Probe, nodes: list[Node], half: int) -> list[Array | None]:
    """Frequencies that the region's constants may stand for; None for no rotation at all."""
    out: list[Array | None] = []
    fixed, weights = probe.decoder.weights.fixed, probe.decoder.weights
    for name in dict.fromkeys(n for node in nodes for n in node.inputs if n in fixed):
        shape = weights.shape(name)
        if math.prod(shape) == half:
            out.append(probe.evaluation.value(name).reshape(-1).astype(np.float64))
        elif len(shape) >= 2 and shape[-1] in (half, 2 * half) and math.prod(shape[:-1]) >= 8:
            table = probe.evaluation.value(name).reshape(-1, shape[-1])[:, :half]
            out.append(_from_cosines(table.astype(np.float64)))
    kept = [f for f in out if f is not None and np.isfinite(f).all() and (f > 0).all()]
    return [*kept, None]


def _from_cosines(table: Array) -> Array | None:
    """Frequencies of a table of cosines [positions, half], or None where it is none."""
    if np.abs(table[0] - 1).max() > 1e-3 or np.abs(table).max() > 1.001:
        return None
    frequency: Array = np.arccos(np.clip(table[1], -1, 1))
    step = 1
    while 2 * step < len(table):
        step *= 2
        turns = np.round(frequency * step / (2 * np.pi))
        rest = frequency * step - 2 * np.pi * turns
        exact = np.copysign(np.arccos(np.clip(table[step], -1, 1)), rest)
        better = (exact + 2 * np.pi * turns) / step
        good = (np.abs(table[step]) < 0.99) & (np.abs(better - frequency) < 0.1 / step)
        frequency = np.where(good, better, frequency)
    return frequency


def _places(layer: DecoderLayer) -> Iterator[tuple[tuple[int, int, int], ...]]:
    """Ways in which query, key and value may lie in attention's matrices."""
    rows = [linear.rows for linear in layer.attention]
    width = layer.output.columns
    if len(rows) == 1:
        shared = (rows[0] - width) // 2
        if shared > 0 and rows[0] == width + 2 * shared:
            yield (0, 0, width), (0, width, width + shared), (0, width + shared, rows[0])
        return
    for q, k, v in itertools.permutations(range(3)):
        if rows[q] == width and rows[k] == rows[v]:
            yield tuple((i, 0, rows[i]) for i in (q, k, v))


def _attended(q: Array, k: Array, v: Array, how: Attention) -> Array:
    """Causal attention in float64: [tokens, heads * size]."""
    tokens = len(q)
    q, k, v = (
        x.reshape(tokens, -1, how.head_dim).transpose(1, 0, 2) for x in (q, k, v)
    )  # fmt: skip
    if how.frequencies is not None:
        angle = np.arange(tokens)[:, None] * how.frequencies
        cos, sin = np.cos(angle), np.sin(angle)
        q, k = (_turned(x, cos, sin, how.interleaved) for x in (q, k))
    k, v = (np.repeat(x, how.heads // how.kv_heads, axis=0) for x in (k, v))
    scores = q @ k.swapaxes(1, 2) / math.sqrt(how.head_dim)
    seen = np.tri(tokens, dtype=bool)
    if how.window is not None:
        seen &= ~np.tri(tokens, k=-how.window, dtype=bool)
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = weights / weights.sum(-1, keepdims=True) @ v
    return np.asarray(out.transpose(1, 0, 2).reshape(tokens, -1))


def _turned(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    half = cos.shape[1]
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    parts = a * cos - b * sin, b * cos + a * sin
    if interleaved:
        return np.stack(parts, axis=-1).reshape(x.shape)
    return np.concatenate(parts, axis=-1)


def windows(probe: Probe, nodes: list[Node]) -> list[int]:
    """Numbers of tokens that the region's masks may be limited to: whole numbers it compares by."""
    fixed, found = probe.decoder.weights.fixed, list[int]()
    for node in nodes:
        local = node.attributes.get("local_window_size", -1)
        found += [int(local)] if local > 0 else []
        if node.op not in _COMPARES:
            continue
        for name in node.inputs:
            value = probe.evaluation.value(name) if name in fixed else np.zeros(0)
            if value.size == 1 and value.dtype.kind == "i":
                found.append(abs(int(value.reshape(()))))
    return [n for n in dict.fromkeys(found) if 1 < n < MAX_WINDOW]


def attends(probe: Probe, layer: DecoderLayer, how: Attention) -> bool:
    """Whether a layer attends in this way."""
    outputs = [probe.outputs[linear.output] for linear in layer.attention]
    q, k, v = (outputs[i][:, a:b] for i, a, b in how.rows)
    return _far(_attended(q, k, v, how), probe.inputs[layer.output.output]) < CLOSE


def attention_of(probe: Probe, layer: DecoderLayer, nodes: list[Node]) -> Attention:
    """How a layer attends.

    Raises
    ------
    InputError : when what the output matrix reads is no causal attention of any form tried.
    """
    found = probe.inputs[layer.output.output]
    width = layer.output.columns
    outputs = [probe.outputs[linear.output] for linear in layer.attention]
    best = math.inf
    for heads, rows in itertools.product(_head_counts(probe, nodes, width), _places(layer)):
        size, shared = width // heads, rows[1][2] - rows[1][1]
        if shared % size or heads % (shared // size):
            continue
        q, k, v = (outputs[i][:, a:b] for i, a, b in rows)
        for angles, turn in itertools.product(_angles(probe, nodes, size // 2), (False, True)):
            how = Attention(heads, shared // size, size, rows, angles, turn)
            if (angles is None and turn) or (angles is not None and len(angles) * 2 != size):
                continue
            distance = _far(_attended(q, k, v, how), found)
            if distance < CLOSE:
                return how
            best = min(best, distance)
    raise probe.decoder.graph.fail(
        layer.output.node,
        "what it reads is no causal attention of the layer's query, key and value, scaled by"
        f" 1/sqrt(head size), with RoPE over whole heads or none (nearest differs by {best:.1g});"
        " partial rotation, ALiBi, other scales, soft caps and norms of q and k are not supported",
    )
