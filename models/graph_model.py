"""Decoders in exported graphs as a `ModelConfig` and one reader per canonical tensor.

`graph_structure` finds the matrices, `graph_probe` what lies between them. What a graph does not
say (the longest context, special tokens) comes from config.json beside it where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flightllm.models.codes import Codes
from flightllm.models.config import ModelConfig, RopeConfig, tensor_shapes
from flightllm.models.graph_eval import needed
from flightllm.models.graph_probe import (
    Attention,
    Norm,
    Probe,
    attends,
    attention_of,
    epsilon_of,
    mlp_of,
    norm_of,
    start,
    windows,
)
from flightllm.models.graph_structure import Decoder, DecoderLayer, find_decoder
from flightllm.models.graph_weights import Linear, Lookup
from flightllm.models.hf_config import Fields, read_json
from flightllm.models.op_graph import Graph
from flightllm.models.rope import inverse_frequencies
from flightllm.models.tensors import from_numpy
from flightllm.spec.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["GraphModel", "read_decoder"]

Array = NDArray[Any]
DEFAULT_LENGTH = 2048
"""Context of a graph that says nothing of it, with no config.json beside it."""
SMALL = 3e-3
"""Size of values at which a norm's epsilon shows."""
LONGEST_PROBE = 600
"""Tokens up to which a sliding window is tried out."""
BLOCK = 4096
"""Rows of large matrices that are compared at a time."""


@dataclass
class GraphModel:
    """An open model: configuration, readers as in `Checkpoint`, and what a user should know."""

    config: ModelConfig
    readers: dict[str, Callable[[], torch.Tensor]] = field(default_factory=dict)
    codes: dict[str, Callable[[], Codes]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Layer:
    """What was found of a layer."""

    parts: DecoderLayer
    norms: tuple[Norm, Norm]
    attention: Attention
    activation: str
    inner: list[tuple[int, int, int]]


def _norm(probe: Probe, small: Probe, linear: Linear, before: set[str]) -> Norm:
    nodes = probe.region(linear, before)
    norm = norm_of(probe, linear, nodes)
    return replace(norm, eps=_snapped(probe, nodes, epsilon_of(small, linear, norm), linear))


def _snapped(probe: Probe, nodes: list[Any], found: float, linear: Linear) -> float:
    """The epsilon that a region's attributes or constants name, nearest to what was measured."""
    weights, named = probe.decoder.weights, list[float]()
    for node in nodes:
        if "epsilon" in node.attributes:
            named.append(float(node.attributes["epsilon"]))
        elif "Norm" in node.op:
            named.append(1e-5)
        for name in node.inputs:
            if name in weights.fixed and weights.shape(name) in ((), (1,)):
                named.append(float(probe.evaluation.value(name).reshape(-1)[0]))
    near = [eps for eps in named if 0 < eps < 0.1 and abs(eps - found) < 0.2 * eps + 1e-7]
    if not near:
        raise probe.decoder.graph.fail(
            linear.node,
            f"the epsilon of the norm in front of it (near {found:.1g}) is not found (embeddings"
            " that are scaled or normalised look like this, and are not supported)",
        )
    # As transformers writes it: graphs hold float32, configurations decimal numbers.
    return float(f"{min(near, key=lambda eps: abs(eps - found)):.6g}")


def _explore(decoder: Decoder) -> tuple[list[_Layer], Norm, Probe]:
    """Go through the graph once with values near 1, and beside it with small ones."""
    probe, small = start(decoder, 1.0, 1), start(decoder, SMALL, 2)
    layers: list[_Layer] = []
    for parts in decoder.layers:
        before = set(probe.evaluation.values)
        for side in (probe, small):
            for linear in parts.attention:
                side.run(linear)
        first = _norm(probe, small, parts.attention[0], before)
        nodes = needed(decoder.graph, [parts.output.source], _outputs(parts))
        for side in (probe, small):
            side.run(parts.output)
            side.add(parts.output)
        attention = attention_of(probe, parts, nodes)
        before = set(probe.evaluation.values)
        for side in (probe, small):
            for linear in parts.inner:
                side.run(linear)
        second = _norm(probe, small, parts.inner[0], before)
        for side in (probe, small):
            side.run(parts.down)
            side.add(parts.down)
        layers.append(_Layer(parts, (first, second), attention, *mlp_of(probe, parts)))
    before = set(probe.evaluation.values)
    for side in (probe, small):
        side.run(decoder.head)
    final = _norm(probe, small, decoder.head, before)
    _check_logits(decoder, probe)
    return layers, final, probe


def _outputs(parts: DecoderLayer) -> set[str]:
    return {linear.output for linear in parts.attention}


def _check_logits(decoder: Decoder, probe: Probe) -> None:
    """The output must be the head's product, of all tokens or of the last."""
    made = probe.evaluation.value(decoder.logits).reshape(-1, decoder.head.rows)
    wanted = probe.outputs[decoder.head.output]
    if not np.array_equal(made, wanted[-len(made) :]):
        raise decoder.graph.fail(
            decoder.head.node, f"its product is changed before it becomes {decoder.logits!r}"
        )


# ------------------------------------------------------------------------------------ facts


def _embeddings(decoder: Decoder, probe: Probe) -> tuple[Lookup, Lookup | None, int]:
    """The embedding, the positions where they are learned, and the row of position 0."""
    found: dict[str, tuple[Lookup, int]] = {}
    for lookup in decoder.lookups:
        index = probe.evaluation.value(lookup.indices).reshape(-1)
        step = index - np.arange(len(index))
        if np.array_equal(index, probe.ids):
            found["embed"] = lookup, 0
        elif len(index) == probe.tokens and (step == step[0]).all() and step[0] >= 0:
            found["positions"] = lookup, int(step[0])
        else:
            raise decoder.graph.fail(lookup.node, "looks up neither token ids nor positions")
    if "embed" not in found:
        raise decoder.graph.fail(decoder.lookups[0].node, "no look-up reads the token ids")
    positions, offset = found.get("positions", (None, 0))
    return found["embed"][0], positions, offset


def _theta(frequencies: Array, size: int) -> RopeConfig:
    """RoPE by its base where that explains the frequencies, else by the frequencies themselves."""
    wanted = frequencies.astype(np.float32)
    if size > 2:
        base = float(frequencies[-1]) ** (-size / (size - 2))
        for digits in range(1, 8):
            guess = float(f"{base:.{digits}g}")
            if guess > 1:
                made = RopeConfig(guess)
                if np.allclose(inverse_frequencies(made, size), wanted, rtol=3e-6, atol=0):
                    return made
    return RopeConfig(kind="explicit", frequencies=tuple(float(f) for f in wanted))


def _context(decoder: Decoder, probe: Probe, data: Fields, head: int) -> int | None:
    """The longest context that a table of the graph or config.json gives."""
    given = data.integer("max_position_embeddings", data.data.get("n_positions"))
    if isinstance(given, int):
        return given
    nodes = needed(decoder.graph, [decoder.layers[0].output.source], set())
    shapes = (
        decoder.weights.shape(name)
        for node in nodes
        for name in node.inputs
        if name in decoder.graph.constants
    )
    rows = [s[-2] for s in shapes if len(s) >= 2 and s[-1] in (head // 2, head) and s[-2] >= 8]
    return max(rows, default=None)


def _window(decoder: Decoder, layer: _Layer, probe: Probe, data: Fields, length: int) -> int | None:
    """The sliding window: tried out where it is short, else as config.json says."""
    nodes = needed(decoder.graph, [layer.parts.output.source], set())
    untried: list[int] = []
    for size in windows(probe, nodes):
        longer = start(decoder, 1.0, 3, min(size, LONGEST_PROBE) + 3)
        if size >= length or longer.tokens != size + 3:
            untried += [size] if probe.tokens <= size < length else []
            continue
        for linear in (*layer.parts.attention, layer.parts.output):
            longer.run(linear)
        if attends(longer, layer.parts, replace(layer.attention, window=size)):
            return size
    said = data.integer("sliding_window", None)
    if said is not None and data.data.get("use_sliding_window", True):
        return said if said < length else None
    local = [
        n.attributes["local_window_size"] for n in nodes if "local_window_size" in n.attributes
    ]
    if any(size > 0 for size in local):
        return int(max(local))
    if untried and "sliding_window" not in data.data and data.data.get("model_type") is None:
        raise InputError(
            f"{decoder.graph.path}: a sliding window of {untried[0]} tokens cannot be ruled out:"
            " put the model's config.json beside the file"
        )
    return None


def _beside(path: Path) -> Fields:
    """config.json (and generation_config.json) beside a file, or nothing."""
    data: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        if (path.parent / name).is_file():
            data |= read_json(path.parent / name)
    return Fields(data, str(path.parent / "config.json"))


def _one(decoder: Decoder, values: list[Any], what: str) -> Any:
    """What all layers agree on."""
    if any(value != values[0] for value in values):
        raise InputError(
            f"{decoder.graph.path}: {what} differs between layers, which is not supported"
        )
    return values[0]


def read_decoder(graph: Graph) -> GraphModel:
    """The model of a decoder's graph, its tensors still unread.

    Raises
    ------
    InputError : when the graph is no decoder that is supported: which node, why, and what to do.
    """
    with _damage(graph.path):
        return _read(graph)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What a damaged graph makes of numpy, as a sentence."""
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is damaged: its values do not fit together ({error})") from error


def _read(graph: Graph) -> GraphModel:
    path = graph.path
    with np.errstate(all="ignore"):
        decoder = find_decoder(graph)
        layers, final, probe = _explore(decoder)
        embed, positions, offset = _embeddings(decoder, probe)
    first = layers[0].attention
    for layer in layers:
        if not _same_attention(layer.attention, first):
            _one(decoder, [0, 1], "attention")
    data = _beside(path)
    said = _context(decoder, probe, data, first.head_dim)
    length = said or DEFAULT_LENGTH
    if positions is not None:
        length = positions.shape[0] - offset
    config = _config(decoder, layers, final, probe, data, length, positions is not None)
    config = replace(config, tied=_tied(decoder, embed))
    notes: tuple[str, ...] = ()
    if said is None and positions is None:
        notes = (f"the file states no context: {DEFAULT_LENGTH} tokens are assumed",)
    made = GraphModel(config, notes=notes)
    _Readers(decoder, made, layers).read(embed, positions, offset, final)
    for name, shape in tensor_shapes(config).items():
        if name not in made.readers:
            raise InputError(f"{path}: tensor {name!r} {list(shape)} is not in the graph")
    return made


def _same_attention(a: Attention, b: Attention) -> bool:
    if a.frequencies is None or b.frequencies is None:
        same = a.frequencies is b.frequencies
    else:
        same = np.array_equal(a.frequencies, b.frequencies)
    return same and replace(a, frequencies=None, rows=()) == replace(b, frequencies=None, rows=())


def _config(
    decoder: Decoder, layers: list[_Layer], final: Norm, probe: Probe, data: Fields, length: int,
    learned: bool,
) -> ModelConfig:  # fmt: skip
    norms = [norm for layer in layers for norm in layer.norms] + [final]
    kind = _one(decoder, [norm.kind for norm in norms], "the kind of norm")
    activation = _one(decoder, [layer.activation for layer in layers], "the activation")
    gated = _one(decoder, [len(layer.inner) == 2 for layer in layers], "the MLP's gate")
    how, parts = layers[0].attention, layers[0].parts
    vocab, bos = decoder.head.rows, data.token_ids("bos_token_id", decoder.head.rows)
    rope = None if how.frequencies is None else _theta(how.frequencies, how.head_dim)
    biased = {
        "qkv_bias": [any(_biased(linear) for linear in layer.parts.attention) for layer in layers],
        "o_bias": [_biased(layer.parts.output) for layer in layers],
        "mlp_bias": [_biased(layer.parts.down) or _biased(layer.parts.inner[0])
                     for layer in layers],
    }  # fmt: skip
    if rope is None and not learned:
        raise InputError(f"{decoder.graph.path}: has neither RoPE nor learned positions")
    return ModelConfig(
        family="llama" if rope else "opt" if activation == "relu" else "gpt2",
        vocab=vocab,
        dim=decoder.head.columns,
        layers=len(layers),
        heads=how.heads,
        kv_heads=how.kv_heads,
        head_dim=how.head_dim,
        ffn_dim=parts.down.columns,
        max_length=length,
        norm=kind,
        norm_eps=_one(decoder, [norm.eps for norm in norms], "the epsilon of norms"),
        activation=activation,
        gated=gated,
        rope=rope,
        learned_positions=learned,
        window=None if rope is None else _window(decoder, layers[0], probe, data, length),
        bos=bos[0] if bos else None,
        eos=data.token_ids("eos_token_id", vocab),
        name=decoder.graph.path.stem,
        **{name: any(values) for name, values in biased.items()},
    )


def _tied(decoder: Decoder, embed: Lookup) -> bool:
    """Whether the head is the embedding: one constant, or two with equal values."""
    head, weights = decoder.head, decoder.weights
    if head.codes is not None or (head.rows, head.columns) != embed.shape:
        return False
    one, other = weights.stored(head.node.inputs[1]), weights.stored(embed.matrix)
    square = head.rows == head.columns  # then it may be turned
    if one is not None and one == other and not square:
        return True
    if one is None or other is None or one.shape != other.shape or square:
        return _equal(head.weight(), weights.read(embed.matrix))
    blocks = range(0, one.shape[0], BLOCK)
    return all(
        np.array_equal(one.part(slice(i, i + BLOCK)), other.part(slice(i, i + BLOCK)))
        for i in blocks
    )


def _equal(a: Array, b: Array) -> bool:
    """Equality, block by block, so that a difference is found early."""
    return all(np.array_equal(a[i : i + BLOCK], b[i : i + BLOCK]) for i in range(0, len(a), BLOCK))


def _biased(linear: Linear) -> bool:
    return linear.bias is not None


# ------------------------------------------------------------------------------------ readers


class _Readers:
    """Fills a model's readers; a bias or a gain that the graph leaves out is zeros or ones."""

    def __init__(self, decoder: Decoder, model: GraphModel, layers: list[_Layer]) -> None:
        self.decoder, self.model, self.layers = decoder, model, layers
        self.wanted = tensor_shapes(model.config)

    def read(self, embed: Lookup, positions: Lookup | None, offset: int, final: Norm) -> None:
        """All tensors."""
        self._put("embed", lambda: self._value(embed.matrix)[: self.model.config.vocab])
        if positions is not None:
            self._put("positions", lambda: self._value(positions.matrix)[offset:])
        for index, layer in enumerate(self.layers):
            path = f"layers.{index}"
            self._norm(f"{path}.attn_norm", layer.norms[0])
            self._norm(f"{path}.mlp_norm", layer.norms[1])
            for name, (i, a, b) in zip("qkv", layer.attention.rows):
                turned = layer.attention.head_dim if layer.attention.interleaved else 0
                turned = 0 if name == "v" else turned
                self._linear(f"{path}.{name}", layer.parts.attention[i], a, b, turned)
            self._linear(f"{path}.o", layer.parts.output)
            for name, (i, a, b) in zip(
                ("gate", "up") if len(layer.inner) == 2 else ("up",), layer.inner
            ):
                self._linear(f"{path}.{name}", layer.parts.inner[i], a, b)
            self._linear(f"{path}.down", layer.parts.down)
        self._norm("final_norm", final)
        self._linear("head", self.decoder.head)

    def _value(self, name: str) -> Array:
        return self.decoder.weights.read(name)

    def _put(self, name: str, read: Callable[[], Array]) -> None:
        def tensor() -> torch.Tensor:
            with _damage(self.decoder.graph.path):
                made = np.ascontiguousarray(read())
            if made.dtype.kind not in "fi":  # bfloat16
                made = made.astype(np.float32)
            return from_numpy(made if made.flags.writeable else made.copy())

        if name in self.wanted:
            self.model.readers[name] = tensor

    def _codes(self, linear: Linear, rows: Any) -> Codes:
        assert linear.codes is not None
        with _damage(self.decoder.graph.path):
            return linear.codes().rows(rows)

    def _norm(self, name: str, norm: Norm) -> None:
        size = self.model.config.dim
        for part, constant, usual in (("weight", norm.gain, 1.0), ("bias", norm.bias, 0.0)):
            self._put(f"{name}.{part}", self._vector(constant, usual, size))

    def _vector(self, constant: str | None, usual: float, size: int) -> Callable[[], Array]:
        if constant is None:
            return lambda: np.full(size, usual, np.float32)
        return lambda: self._value(constant).reshape(-1)

    def _linear(
        self, name: str, linear: Linear, start: int = 0, stop: int | None = None, turned: int = 0
    ) -> None:
        stop = linear.rows if stop is None else stop
        order = np.arange(start, stop)
        if turned:  # adjacent pairs of a head become its halves
            order = order.reshape(-1, turned // 2, 2).transpose(0, 2, 1).reshape(-1)
        whole = len(order) == linear.rows and not turned
        rows: Any = slice(None) if whole else order
        self._put(f"{name}.weight", lambda: linear.weight()[rows])
        if linear.codes is not None and f"{name}.weight" in self.wanted:
            self.model.codes[f"{name}.weight"] = lambda: self._codes(linear, rows)
        bias = linear.bias
        if bias is None:
            self._put(f"{name}.bias", lambda: np.zeros(len(order), np.float32))
        else:
            self._put(f"{name}.bias", lambda: self._value(bias).reshape(-1)[rows])
