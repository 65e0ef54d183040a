"""Fold what a device need not do: LayerNorm's mean and bias, and the row order of RoPE.

A LayerNorm in front of a matrix is an RMSNorm once its input has no mean; the input is the residual
stream, so everything that writes the residual (embedding, positions, the o and down projections) is
centred over its outputs. The norm's bias b joins the bias of the matrices that read it, as W b. The
halves of a head that RoPE turns against each other become adjacent pairs. All of it is exact.

One layer is in memory at a time, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flightllm.models.checkpoint import Checkpoint
from flightllm.spec.errors import InputError

__all__ = ["MATRICES", "FoldedEnds", "FoldedLayer", "fold_ends", "fold_layer", "pair_order"]

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
_READERS = {"attn_norm": ("q", "k", "v"), "mlp_norm": ("gate", "up")}
_WRITERS = ("o", "down")


@dataclass(frozen=True)
class FoldedLayer:
    """One decoder layer with RMSNorms.

    Members
    -------
    attn_norm, mlp_norm : float32 [dim]. weights : matrices [out, in] by name (`MATRICES`; "gate"
        only in gated models). biases : [out] by name, only of matrices that have one.
    """

    attn_norm: Tensor
    mlp_norm: Tensor
    weights: dict[str, Tensor]
    biases: dict[str, Tensor]

    def with_weights(
        self, weights: dict[str, Tensor], biases: dict[str, Tensor], **gains: Tensor
    ) -> FoldedLayer:
        """The same layer with other weights, biases and gains in place of those named."""
        return replace(
            self, weights={**self.weights, **weights}, biases={**self.biases, **biases}, **gains
        )


@dataclass(frozen=True)
class FoldedEnds:
    """What stands before and after the layers.

    Members
    -------
    embed : float32 [vocab, dim]. positions : float32 [max_length, dim] or None.
    final_norm : [dim]. head : [vocab, dim]. head_bias : [vocab] or None.
    """

    embed: Tensor
    positions: Tensor | None
    final_norm: Tensor
    head: Tensor
    head_bias: Tensor | None


def pair_order(heads: int, head_dim: int) -> Tensor:
    """Rows in the order that puts the halves of each head side by side, int64 [heads * head_dim].

    Row 2i of a head is its row i, row 2i + 1 its row i + head_dim / 2.
    """
    within = torch.arange(head_dim).view(2, -1).T.reshape(-1)
    return (torch.arange(heads)[:, None] * head_dim + within).reshape(-1)


def _read(checkpoint: Checkpoint, name: str) -> Tensor:
    tensor = checkpoint.tensor(name).to(torch.float32)
    ends = torch.stack(tensor.aminmax()) if tensor.numel() else tensor
    if not bool(torch.isfinite(ends).all()):  # a NaN is both the least and the largest
        raise InputError(f"{checkpoint.source}: tensor {name!r} holds NaN or infinity")
    return tensor


def _optional(checkpoint: Checkpoint, name: str) -> Tensor | None:
    return _read(checkpoint, name) if checkpoint.has(name) else None


def _centred(tensor: Tensor, axis: int) -> Tensor:
    return tensor - tensor.double().mean(axis, keepdim=True).float()


def _add_bias(biases: dict[str, Tensor], name: str, weight: Tensor, norm_bias: Tensor) -> None:
    moved = (weight.double() @ norm_bias.double()).float()
    biases[name] = biases[name] + moved if name in biases else moved


def fold_layer(checkpoint: Checkpoint, index: int) -> FoldedLayer:
    """Read and fold layer `index`.

    Raises
    ------
    InputError : when a tensor is missing or not finite.
    """
    config, path = checkpoint.config, f"layers.{index}"
    names = [name for name in MATRICES if config.gated or name != "gate"]
    weights = {name: _read(checkpoint, f"{path}.{name}.weight") for name in names}
    found = {name: _optional(checkpoint, f"{path}.{name}.bias") for name in names}
    biases = {name: bias for name, bias in found.items() if bias is not None}
    if config.norm == "layer":
        for norm, readers in _READERS.items():
            norm_bias = _read(checkpoint, f"{path}.{norm}.bias")
            for name in (name for name in readers if name in weights):
                _add_bias(biases, name, weights[name], norm_bias)
        for name in _WRITERS:
            weights[name] = _centred(weights[name], 0)
            if name in biases:
                biases[name] = _centred(biases[name], 0)
    if config.rope is not None:
        for name, heads in (("q", config.heads), ("k", config.kv_heads)):
            order = pair_order(heads, config.head_dim)
            weights[name] = weights[name][order]
            if name in biases:
                biases[name] = biases[name][order]
    attn_norm, mlp_norm = (_read(checkpoint, f"{path}.{norm}.weight") for norm in _READERS)
    return FoldedLayer(attn_norm, mlp_norm, weights, biases)


def fold_ends(checkpoint: Checkpoint) -> FoldedEnds:
    """Read and fold embedding, positions, final norm and head (a tied head is the embedding).

    Raises
    ------
    InputError : when a tensor is missing or not finite.
    """
    config = checkpoint.config
    embed, head = _read(checkpoint, "embed"), _read(checkpoint, "head.weight")
    positions = _read(checkpoint, "positions") if config.learned_positions else None
    biases: dict[str, Tensor] = {}
    if config.norm == "layer":
        embed = _centred(embed, 1)
        positions = None if positions is None else _centred(positions, 1)
        _add_bias(biases, "head", head, _read(checkpoint, "final_norm.bias"))
    gain = _read(checkpoint, "final_norm.weight")
    return FoldedEnds(embed, positions, gain, head, biases.get("head"))
