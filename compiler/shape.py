"""What the back end needs to know of a model: sizes, which parts exist, and each matrix' format."""

from __future__ import annotations

from dataclasses import dataclass

from flightllm.models.patterns import DENSE, Pattern, any_sparse
from flightllm.models.quantized import QuantLayer, QuantLinear, QuantModel
from flightllm.spec.errors import InputError
from flightllm.spec.formats import MatrixFormat, format_for

__all__ = ["MATRICES", "MatrixPlan", "ModelShape", "shape_of"]

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
"""Matrices of a layer, in the order in which they are stored and streamed."""


@dataclass(frozen=True)
class MatrixPlan:
    """How one matrix of one layer is stored: its format and its code table."""

    fmt: MatrixFormat
    table: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ModelShape:
    """A model without its numbers.

    Parameters
    ----------
    name : for messages. gated : the MLP has a gate matrix. rope, positions : which position code.
    window : sliding window in tokens, or None. biases : matrices (and "head") that have a bias.
    layers : for each layer, the plan of each of `matrices`. head : the plan of the last projection.
    patterns : of prefill's attention, for each layer and KV head; empty where all of it is dense.
    """

    name: str
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab: int
    max_length: int
    norm_eps: float
    activation: str
    key_bits: int
    value_bits: int
    window: int | None
    rope: bool
    positions: bool
    biases: frozenset[str]
    layers: tuple[dict[str, MatrixPlan], ...]
    head: MatrixPlan
    patterns: tuple[tuple[Pattern, ...], ...] = ()

    @property
    def sparse(self) -> bool:
        """Prefill's attention is block-sparse."""
        return bool(self.patterns)

    @property
    def gated(self) -> bool:
        """The MLP multiplies by a gate."""
        return self.activation == "silu"

    @property
    def matrices(self) -> tuple[str, ...]:
        """Matrices of a layer, in stream order."""
        return tuple(name for name in MATRICES if name != "gate" or self.gated)

    @property
    def group_heads(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads

    def rows(self, name: str) -> int:
        """Output rows of a matrix."""
        sizes = {
            "q": self.heads * self.head_dim, "k": self.kv_heads * self.head_dim,
            "v": self.kv_heads * self.head_dim, "o": self.dim, "gate": self.ffn_dim,
            "up": self.ffn_dim, "down": self.dim, "head": self.vocab,
        }  # fmt: skip
        return sizes[name]

    def columns(self, name: str) -> int:
        """Reduction length of a matrix."""
        return {"o": self.heads * self.head_dim, "down": self.ffn_dim}.get(name, self.dim)


def _plan(linear: QuantLinear) -> MatrixPlan:
    return MatrixPlan(format_for(linear.weight), linear.weight.table)


def linear_of(layer: QuantLayer, name: str) -> QuantLinear:
    """The matrix `name` of a layer."""
    linear: QuantLinear = getattr(layer, name)
    return linear


def shape_of(model: QuantModel, name: str) -> ModelShape:
    """The shape of a quantised model."""
    gated = model.activation == "silu"
    names = [n for n in MATRICES if n != "gate" or gated]
    layers = tuple({n: _plan(linear_of(layer, n)) for n in names} for layer in model.layers)
    biases = {
        n for n in names if any(linear_of(layer, n).bias is not None for layer in model.layers)
    }
    if model.head.bias is not None:
        biases.add("head")
    return ModelShape(
        name, model.dim, model.heads, model.kv_heads, model.head_dim, model.ffn_dim, model.vocab,
        model.max_length, model.norm_eps, model.activation, model.key_bits,
        model.value_bits, model.window,
        model.cos is not None, model.positions is not None, frozenset(biases), layers,
        _plan(model.head), _patterns(model),
    )  # fmt: skip


def _patterns(model: QuantModel) -> tuple[tuple[Pattern, ...], ...]:
    found = [layer.patterns for layer in model.layers]
    if not any(map(any_sparse, found)):
        return ()
    if model.window is not None:
        raise InputError(f"window: block-sparse attention goes without one, not {model.window}")
    return tuple(patterns or (DENSE,) * model.kv_heads for patterns in found)
