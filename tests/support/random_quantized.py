"""Random quantised tensors and models of every form the formats allow, for tests of any stage.

`from random_quantized import VARIANTS, random_model, random_tensor` works in every test
(tests/conftest.py puts this folder on the path); `random_model` is a fixture as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flightllm.models.patterns import Pattern
from flightllm.models.quantized import QuantLayer, QuantLinear, QuantModel
from flightllm.spec.quant import QuantTensor

__all__ = ["VARIANTS", "random_mask", "random_model", "random_tensor", "with_patterns"]

Generator = np.random.Generator

VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-mha-w8": {"kv_heads": 4, "bits": 8},
    "llama-mqa-w3-kv4": {"kv_heads": 1, "bits": 3, "kv_bits": 4},
    "k8-v4": {"value_bits": 4},
    "k4-v8": {"kv_bits": 4, "value_bits": 8, "head_dim": 24, "window": 9},
    "mistral-window": {"window": 7, "bits": 5},
    "qwen-biases": {"biases": ("q", "k", "v"), "bits": 6},
    "mixed-widths": {"layers": 7, "bits": (2, 3, 4, 5, 6, 7, 8), "dim": 32, "ffn_dim": 48},
    "opt": {"activation": "relu", "rope": False, "biases": True, "kv_heads": 4},
    "gpt2": {"activation": "gelu", "rope": False, "biases": True, "kv_heads": 4, "kv_bits": 4},
    "gelu-window-rope": {"activation": "gelu", "window": 5, "head_bits": 4},
    "wide-heads": {"dim": 96, "heads": 2, "kv_heads": 1, "head_dim": 128, "group": 64},
    "narrow-heads": {"dim": 40, "heads": 6, "kv_heads": 3, "head_dim": 8, "ffn_dim": 100},
    "group64-partial": {"dim": 80, "ffn_dim": 172, "group": 64},
    "group128-partial": {"dim": 80, "ffn_dim": 172, "group": 128, "bits": 2},
    "sparse-2": {"kept": 2, "ffn_dim": 176},
    "sparse-4-private": {"kept": 4, "private": True, "ffn_dim": 176},
    "sparse-8": {"kept": 8, "bits": 8, "ffn_dim": 176},
    "sparse-8-minima": {"kept": 8, "minima": True, "ffn_dim": 160, "group": 64},
    "minima": {"minima": True},
    "minima-opt": {"minima": True, "activation": "relu", "rope": False, "biases": True},
    "zeros": {"zeros": True, "bits": 5},
    "zeros-7bit": {"zeros": True, "bits": 7, "group": 64},
    "table4": {"table": True, "bits": 4},
    "table3-sparse": {"table": True, "bits": 3, "kept": 4, "ffn_dim": 176},
    "table2-minima": {"table": True, "bits": 2, "minima": True},
}
"""Keyword arguments of `random_model` by name: every feature at least once."""


def random_mask(
    rng: Generator, rows: int, columns: int, kept: int, private: bool
) -> NDArray[np.bool_]:
    """A mask with exactly `kept` True in every aligned 16 columns.

    A last block of fewer than 16 columns keeps min(kept, its width). Rows 2i and 2i+1 are alike
    unless `private`.
    """
    blocks = -(-columns // 16)
    keys = rng.random((rows, blocks, 16))
    keys[:, -1, columns - 16 * (blocks - 1) :] = 2.0  # no such column: sorts last
    if not private:
        keys[1::2] = keys[0::2][: rows // 2]
    order = np.argsort(np.argsort(keys, axis=-1), axis=-1)
    mask: NDArray[np.bool_] = (order < kept).reshape(rows, -1)[:, :columns]
    return mask


def random_tensor(
    rng: Generator,
    rows: int,
    columns: int,
    bits: int = 4,
    group: int = 32,
    *,
    kept: int = 16,
    private: bool = False,
    minima: bool = False,
    zeros: bool = False,
    table: bool = False,
    size: float | None = None,
) -> QuantTensor:
    """A random QuantTensor whose weights have a standard deviation near `size`.

    Every code of the width occurs with equal chance. `size` is columns^-0.5 unless given (times
    the root of 16 / kept): products of unit vectors then have unit size. Zero points go with
    neither a table nor minima.
    """
    if zeros and (bits == 8 or table or minima):
        raise ValueError("zeros: a zero point needs a plain code of up to 7 bits, without minima")
    shape = (rows, -(-columns // group))
    spread = rng.uniform(0.5, 1.5, shape)
    offsets: NDArray[np.int8] | None = None
    levels_of: tuple[int, ...] | None = None
    if table:
        signed = np.arange(-127, 128)
        chosen = np.sort(rng.choice(signed[signed != 0], 2**bits - 1, replace=False))
        levels_of = tuple(int(v) for v in np.sort(np.append(chosen, 0)))
        levels = np.array(levels_of)[rng.integers(0, len(levels_of), (rows, columns))]
    elif zeros:
        offsets = rng.integers(0, 2**bits, shape).astype(np.int8)
        codes = rng.integers(0, 2**bits, (rows, columns))
        levels = codes - np.repeat(offsets, group, axis=1)[:, :columns].astype(np.int64)
    else:
        low = -127 if bits == 8 else -(2 ** (bits - 1))
        levels = rng.integers(low, 2 ** (bits - 1), (rows, columns))
    mask = random_mask(rng, rows, columns, kept, private) if kept < 16 else None
    levels = levels if mask is None else np.where(mask, levels, 0)
    wanted = (columns * kept / 16) ** -0.5 if size is None else size
    deviation = max(1.0, float(np.sqrt(np.mean(np.square(levels.astype(float))) * 16 / kept)))
    return QuantTensor(
        levels=levels.astype(np.int8),
        scales=(spread * (wanted / deviation)).astype(np.float16),
        bits=bits,
        group=group,
        minima=(rng.normal(0, wanted / 2, shape)).astype(np.float16) if minima else None,
        zeros=offsets,
        table=levels_of,
        kept=kept,
        mask=mask,
        private=private and mask is not None,
    )


def _rope_tables(length: int, head_dim: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rates = 10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)
    angles = np.arange(length)[:, None] * rates
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def random_model(
    seed: int = 0,
    *,
    dim: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    ffn_dim: int = 172,
    vocab: int = 96,
    max_length: int = 64,
    activation: str = "silu",
    rope: bool = True,
    biases: bool | tuple[str, ...] = False,
    window: int | None = None,
    kv_bits: int = 8,
    value_bits: int | None = None,
    bits: int | tuple[int, ...] = 4,
    group: int = 32,
    kept: int = 16,
    private: bool = False,
    minima: bool = False,
    zeros: bool = False,
    table: bool = False,
    head_bits: int = 8,
    norm_eps: float = 1e-5,
) -> QuantModel:
    """A random QuantModel; the same seed and options give the same model.

    Parameters
    ----------
    activation : "silu" (gated), "relu" or "gelu" (ungated). rope : else learned positions.
    biases : True for all seven projections and the head, or the names of those that have one.
    bits : one width, or one a layer. kept, private, minima, zeros, table : the form of the layers'
        matrices, see `random_tensor`. head_bits : the head's width; it is dense and plain.
    """
    rng = np.random.default_rng(seed)
    named = ("q", "k", "v", "o", "gate", "up", "down", "head") if biases is True else biases or ()
    gated = activation == "silu"

    def projection(name: str, rows: int, columns: int, width: int, **form: Any) -> QuantLinear:
        weight = random_tensor(rng, rows, columns, width, group, **form)
        bias = rng.normal(0, 0.2, rows).astype(np.float32) if name in named else None
        return QuantLinear(weight, bias)

    def gain() -> NDArray[np.float32]:
        return rng.normal(1, 0.2, dim).astype(np.float32)

    form = {"kept": kept, "private": private, "minima": minima, "zeros": zeros, "table": table}
    widths = (bits,) * layers if isinstance(bits, int) else bits
    sizes = {
        "q": (heads * head_dim, dim),
        "k": (kv_heads * head_dim, dim),
        "v": (kv_heads * head_dim, dim),
        "o": (dim, heads * head_dim),
        "gate": (ffn_dim, dim),
        "up": (ffn_dim, dim),
        "down": (dim, ffn_dim),
    }
    made = []
    for width in widths:
        parts: dict[str, Any] = {
            name: projection(name, *size, width, **form)
            for name, size in sizes.items()
            if gated or name != "gate"
        }
        made.append(
            QuantLayer(attn_norm=gain(), mlp_norm=gain(), gate=parts.pop("gate", None), **parts)
        )
    cos, sin = _rope_tables(max_length, head_dim) if rope else (None, None)
    positions = None if rope else rng.normal(0, 0.5, (max_length, dim)).astype(np.float16)
    return QuantModel(
        dim=dim,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_dim=ffn_dim,
        vocab=vocab,
        max_length=max_length,
        norm_eps=norm_eps,
        activation=activation,
        key_bits=kv_bits,
        value_bits=kv_bits if value_bits is None else value_bits,
        window=window,
        embed=rng.normal(0, 1, (vocab, dim)).astype(np.float16),
        positions=positions,
        cos=cos,
        sin=sin,
        layers=tuple(made),
        final_norm=gain(),
        head=projection("head", vocab, dim, head_bits),
    )


def with_patterns(model: QuantModel, patterns: Sequence[Pattern]) -> QuantModel:
    """The model with block-sparse prefill: its KV heads, layer by layer, take patterns in turn."""
    heads = model.kv_heads
    layers = tuple(
        dataclasses.replace(
            layer, patterns=tuple(patterns[(i * heads + h) % len(patterns)] for h in range(heads))
        )
        for i, layer in enumerate(model.layers)
    )
    return dataclasses.replace(model, layers=layers)
