"""GGUF metadata and tensor names as a `ModelConfig` and one reader per canonical tensor.

llama.cpp turns adjacent pairs of a head's dimensions in architecture `llama` and the halves of a
head in `qwen2`; the rows of the former's wq and wk are put back into halves here. Every field that
would change the mathematics is honoured or refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flightllm.models import gguf_codes
from flightllm.models.codes import CodeKind, Codes
from flightllm.models.config import ModelConfig, RopeConfig, tensor_shapes
from flightllm.models.gguf_file import GgufFile, GgufTensor, open_gguf
from flightllm.models.gguf_tokenizer import special_ids, tokenizer_files
from flightllm.models.hf_config import Fields
from flightllm.models.rope import inverse_frequencies
from flightllm.models.tensors import from_numpy
from flightllm.spec.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["ARCHITECTURES", "GgufModel", "read_gguf"]

ARCHITECTURES = ("llama", "qwen2", "gpt2")
"""Values of general.architecture that are read (LLaMA, Mistral and TinyLlama are "llama")."""

_PARTS = {
    "attn_norm": "attn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
    "mlp_norm": "ffn_norm", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip
_OUTER = {
    "embed": "token_embd.weight", "positions": "position_embd.weight",
    "final_norm.weight": "output_norm.weight", "final_norm.bias": "output_norm.bias",
    "head.weight": "output.weight",
}  # fmt: skip
_FREQUENCIES = "rope_freqs.weight"


@dataclass(frozen=True)
class GgufModel:
    """An open model: configuration, readers as in `Checkpoint`, and the tokeniser's files."""

    config: ModelConfig
    readers: dict[str, Callable[[], torch.Tensor]]
    codes: dict[str, Callable[[], Codes]]
    kinds: dict[str, Callable[[], CodeKind]]
    tokenizer: Callable[[], dict[str, str]] | None


@dataclass(frozen=True)
class _Place:
    """Where a canonical tensor lies: a tensor's rows, and the head size whose halves are mixed."""

    tensor: GgufTensor
    rows: slice
    turned: int = 0

    def order(self, rows: int) -> NDArray[np.int64] | slice:
        """Rows to take, in canonical order."""
        if not self.turned:
            return self.rows
        index = np.arange(rows).reshape(-1, self.turned // 2, 2)
        return np.ascontiguousarray(index.transpose(0, 2, 1).reshape(-1)).astype(np.int64)


def _fields(file: GgufFile, kind: str) -> Fields:
    """The architecture's own fields, without their prefix, and nothing else."""
    prefix = f"{kind}."
    own = {
        key.removeprefix(prefix): value
        for key, value in file.fields.items()
        if key.startswith(prefix)
    }
    return Fields(own, f"{file.path}: {kind}")


def _same(fields: Fields, name: str, default: object = ...) -> int:
    """An integer that may be given layer by layer; all layers must agree."""
    value = fields.data.get(name)
    if not isinstance(value, np.ndarray):
        return fields.integer(name, default)
    distinct = set(value.tolist())
    if len(distinct) != 1:
        raise fields.fail(f"{name} differs between layers, which is not supported")
    return Fields({name: distinct.pop()}, fields.where).integer(name)


def _vocab(file: GgufFile) -> int:
    embed = file.tensors.get(_OUTER["embed"])
    if embed is None or len(embed.shape) != 2:
        raise InputError(f"{file.path}: tensor {_OUTER['embed']!r} is missing or no matrix")
    return embed.shape[0]


def _rope(file: GgufFile, fields: Fields, head_dim: int, length: int) -> RopeConfig:
    turned = fields.integer("rope.dimension_count", head_dim)
    if turned != head_dim:
        raise fields.fail(f"rope.dimension_count {turned} is not the head's {head_dim}")
    theta = fields.number("rope.freq_base", 10000.0)
    kind = fields.text("rope.scaling.type", "none")
    plain = RopeConfig(theta)
    if kind == "none" and fields.has("rope.scale_linear"):
        return RopeConfig(theta, "linear", fields.number("rope.scale_linear"))
    if kind == "linear":
        plain = RopeConfig(theta, kind, fields.number("rope.scaling.factor"))
    elif kind == "yarn":
        original = fields.integer("rope.scaling.original_context_length", length)
        plain = RopeConfig(
            theta, kind, factor := fields.number("rope.scaling.factor"), original,
            attention_factor=(0.1 * float(np.log(factor)) + 1.0)
            * fields.number("rope.scaling.attn_factor", 1.0),
            beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
        )  # fmt: skip
    elif kind != "none":
        raise fields.fail(f"rope.scaling.type {kind!r} is not supported (none, linear, yarn)")
    factors = file.tensors.get(_FREQUENCIES)
    if factors is None:
        return plain
    if factors.shape != (head_dim // 2,) or factors.kind != "F32" or plain.kind != "default":
        raise InputError(
            f"{file.path}: tensor {_FREQUENCIES!r} must be F32 [{head_dim // 2}], without another"
            f" scaling, not {factors.kind} {list(factors.shape)}"
        )
    divided = inverse_frequencies(plain, head_dim) / gguf_codes.float_of(file, factors)
    return RopeConfig(theta, "explicit", frequencies=tuple(float(f) for f in divided))


def _window(fields: Fields, length: int) -> int | None:
    window = fields.data.get("attention.sliding_window")
    if isinstance(window, np.ndarray):
        raise fields.fail("attention.sliding_window differs between layers, which is not supported")
    if not window:
        return None
    size = fields.integer("attention.sliding_window")
    return size if size < length else None


def _config(file: GgufFile, kind: str) -> ModelConfig:
    fields = _fields(file, kind)
    if fields.has("expert_count") and fields.data["expert_count"]:
        raise fields.fail("expert_count: mixtures of experts are not supported")
    dim, heads = fields.integer("embedding_length"), _same(fields, "attention.head_count")
    if not fields.has("attention.key_length") and dim % heads:
        raise fields.fail(f"embedding_length {dim} is not a multiple of {heads} heads")
    head_dim = fields.integer("attention.key_length", max(1, dim // heads))
    if fields.integer("attention.value_length", head_dim) != head_dim:
        raise fields.fail("attention.value_length differs from key_length, which is not supported")
    length, vocab = fields.integer("context_length"), _vocab(file)
    bos, eos = special_ids(file, vocab)
    base = ModelConfig(
        family="llama",
        vocab=vocab,
        dim=dim,
        layers=fields.integer("block_count"),
        heads=heads,
        kv_heads=_same(fields, "attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn_dim=_same(fields, "feed_forward_length"),
        max_length=length,
        tied=_OUTER["head.weight"] not in file.tensors,
        bos=bos,
        eos=eos,
        name=str(file.fields.get("general.name") or file.path.stem),
        rope=None if kind == "gpt2" else _rope(file, fields, head_dim, length),
        learned_positions=kind == "gpt2",
    )
    has = file.tensors.__contains__
    if kind == "gpt2":
        return replace(
            base, family="gpt2", norm="layer", activation="gelu", gated=False, qkv_bias=True,
            o_bias=True, mlp_bias=True,
            norm_eps=fields.number("attention.layer_norm_epsilon", 1e-5),
        )  # fmt: skip
    return replace(
        base,
        norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        window=_window(fields, length),
        qkv_bias=has("blk.0.attn_q.bias"),
        o_bias=has("blk.0.attn_output.bias"),
        mlp_bias=has("blk.0.ffn_up.bias"),
    )


def _place(file: GgufFile, config: ModelConfig, kind: str, name: str,
           shape: tuple[int, ...]) -> tuple[str, _Place]:  # fmt: skip
    """The file's name of a canonical tensor, and where it lies in it."""
    stored, rows, turned, whole = _OUTER.get(name, ""), slice(None), 0, shape
    if not stored:
        _, index, part, ending = name.split(".")
        inner = _PARTS[part]
        if kind == "gpt2" and part in ("q", "k", "v"):
            inner, first = "attn_qkv", "qkv".index(part) * shape[0]
            rows, whole = slice(first, first + shape[0]), (3 * shape[0], *shape[1:])
        elif kind == "llama" and part in ("q", "k"):
            turned = config.head_dim
        stored = f"blk.{index}.{inner}.{ending}"
    tensor = file.tensors.get(stored)
    if tensor is None:
        raise InputError(f"{file.path}: tensor {stored!r} is missing, expected {list(whole)}")
    if tensor.shape != whole:
        raise InputError(
            f"{file.path}: tensor {stored!r} has shape {list(tensor.shape)}, but the metadata"
            f" makes it {list(whole)}"
        )
    if not gguf_codes.readable(tensor.kind):
        raise InputError(
            f"{file.path}: tensor {stored!r} has type {tensor.kind}, which cannot be read"
        )
    return stored, _Place(tensor, rows, turned)


def _readers(
    file: GgufFile, place: _Place
) -> tuple[Callable[[], torch.Tensor], Callable[[], Codes] | None]:
    rows = place.tensor.shape[0]
    order = place.order(rows)

    def read() -> torch.Tensor:
        return from_numpy(gguf_codes.float_of(file, place.tensor)[order])

    def codes() -> Codes:
        return gguf_codes.codes_of(file, place.tensor).rows(order)

    matrix = place.tensor.kind in gguf_codes.KEPT and len(place.tensor.shape) == 2
    return read, codes if matrix else None


def read_gguf(path: Path) -> GgufModel:
    """Open a GGUF file of a decoder.

    Raises
    ------
    InputError : when the file is damaged, of another architecture, or lacks a tensor or field.
    """
    file = open_gguf(path)
    kind = file.fields.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise InputError(
            f"{path}: general.architecture {kind!r} is not supported (only"
            f" {', '.join(ARCHITECTURES)})"
        )
    config = _config(file, kind)
    readers: dict[str, Callable[[], torch.Tensor]] = {}
    codes: dict[str, Callable[[], Codes]] = {}
    kinds: dict[str, Callable[[], CodeKind]] = {}
    used = {_FREQUENCIES}
    for name, shape in tensor_shapes(config).items():
        stored, place = _place(file, config, kind, name, shape)
        readers[name], kept = _readers(file, place)
        if kept is not None:
            codes[name] = kept
            kinds[name] = partial(gguf_codes.KINDS.__getitem__, place.tensor.kind)
        used.add(stored)
    for name, tensor in file.tensors.items():
        if name not in used and not name.endswith("rope_freqs.weight"):
            raise InputError(
                f"{path}: tensor {name!r} {list(tensor.shape)} has no place in a {kind} model"
            )
    return GgufModel(config, readers, codes, kinds, tokenizer_files(file))
