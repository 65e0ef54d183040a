"""Writes a checkpoint as a GGUF file with the gguf package, as llama.cpp's converter would."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from flightllm.models.checkpoint import Checkpoint
from flightllm.models.config import tensor_shapes

__all__ = ["QUANTISED", "quantised_bytes", "write_gguf"]

QUANTISED = (
    "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
)  # fmt: skip
_WRITABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
"""Types for which the package itself quantises; of the others random blocks are written."""
_PARTS = {
    "attn_norm": "attn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
    "mlp_norm": "ffn_norm", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip
_OUTER = {"embed": "token_embd.weight", "positions": "position_embd.weight",
          "final_norm.weight": "output_norm.weight", "final_norm.bias": "output_norm.bias",
          "head.weight": "output.weight"}  # fmt: skip
_HALVES = {"Q4_K": (0, 1), "Q5_K": (0, 1), "Q6_K": (104,), "IQ4_NL": (0,), "IQ4_XS": (0,)}
"""Where a block holds fp16 numbers, in units of 2 bytes."""


def quantised_bytes(
    rng: np.random.Generator, kind: str, shape: tuple[int, int], size: float = 0.05
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Random blocks with fp16 numbers near those of weights of `size`: values and bytes."""
    number = gguf.GGMLQuantizationType[kind]
    count, length = gguf.GGML_QUANT_SIZES[number]
    raw = rng.integers(0, 256, (shape[0], shape[1] // count, length), dtype=np.uint8)
    spread = {"Q4_K": 300, "Q5_K": 600, "Q6_K": 1500, "IQ4_NL": 60, "IQ4_XS": 1200}.get(kind, 10)
    halves = raw.reshape(shape[0], shape[1] // count, -1).view(np.float16)
    for place in _HALVES.get(kind, (0,)):
        halves[..., place] = rng.uniform(0.5, 1.5, halves.shape[:2]) * size / spread
    data = raw.reshape(shape[0], -1)
    return gguf.quants.dequantize(data, number).reshape(shape), data


def _turned(name: str, values: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """Rows of wq and wk as llama.cpp wants them: the pairs of a head side by side."""
    if not name.rsplit(".", 1)[0].endswith((".q", ".k")):
        return values
    halves = values.reshape(-1, 2, head_dim // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def _unturned(name: str, values: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    if not name.rsplit(".", 1)[0].endswith((".q", ".k")):
        return values
    pairs = values.reshape(-1, head_dim // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def _facts(writer: gguf.GGUFWriter, source: Checkpoint, kind: str, window: int | None) -> None:
    config = source.config
    writer.add_context_length(config.max_length)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    if kind == "gpt2":
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        assert config.rope is not None
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rope.theta)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if window is not None:
        writer.add_sliding_window(window)
    if config.bos is not None:
        writer.add_bos_token_id(config.bos)
    for token in config.eos[:1]:
        writer.add_eos_token_id(token)


def _vocabulary(writer: gguf.GGUFWriter, folder: Path) -> None:
    """SentencePiece's fields of a tokenizer.json: a merge's score falls with its rank."""
    data = json.loads((folder / "tokenizer.json").read_text())
    ids: Mapping[str, int] = data["model"]["vocab"]
    tokens = sorted(ids, key=ids.__getitem__)
    ranks = {
        a + b: -float(rank) for rank, (a, b) in reversed([*enumerate(data["model"]["merges"])])
    }
    special = {part["id"] for part in data["added_tokens"]}
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([ranks.get(token, -1e6) for token in tokens])
    kinds = (3 if i in special else 6 if t.startswith("<0x") else 1 for i, t in enumerate(tokens))
    writer.add_token_types(list(kinds))
    writer.add_unk_token_id(0)


def write_gguf(
    path: Path, source: Checkpoint, kind: str, kinds: Mapping[str, str] | None = None, *,
    window: int | None = None, rope_factors: NDArray[np.float32] | None = None,
    tokenizer: Path | None = None, architecture: str | None = None,
    fields: Mapping[str, int] | None = None, drop: str | None = None, seed: int = 0,
) -> dict[str, NDArray[np.float32]]:  # fmt: skip
    """Write a file; gives the values that each canonical tensor has in it, float32.

    Parameters
    ----------
    kind : block type of the matrices; vectors are F32. kinds : other types, by a part of a name.
    architecture, fields, drop : of a wrong file: another name, other fields, a tensor left out.
    """
    config = source.config
    usual = "gpt2" if config.family == "gpt2" else "qwen2" if config.qkv_bias else "llama"
    writer = gguf.GGUFWriter(path, architecture or usual)
    _facts(writer, source, usual, window)
    for key, value in (fields or {}).items():
        writer.add_uint32(key, value)
    if tokenizer is not None:
        _vocabulary(writer, tokenizer)
    rng, out, fused = np.random.default_rng(seed), {}, {}  # type: ignore[var-annotated]
    for name in tensor_shapes(config):
        values = source.tensor(name).float().numpy()
        stored = _OUTER.get(name) or _stored(name)
        values = _turned(name, values, config.head_dim) if usual == "llama" else values
        made, data, number = _encoded(rng, values, _kind(stored, kind, kinds))
        out[name] = _unturned(name, made, config.head_dim) if usual == "llama" else made
        if (
            usual == "gpt2"
            and ".attn_" in stored
            and stored.split(".")[2] in ("attn_q", "attn_k", "attn_v")
        ):
            ending = stored.rsplit(".", 1)[1]
            parts = fused.setdefault((stored.split(".")[1], ending), [])
            parts.append(data)
            if len(parts) < 3:
                continue
            stored = f"blk.{stored.split('.')[1]}.attn_qkv.{ending}"
            data = np.concatenate(parts)
        if stored != drop:
            writer.add_tensor(stored, data, raw_dtype=number)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _stored(name: str) -> str:
    _, index, part, ending = name.split(".")
    return f"blk.{index}.{_PARTS[part]}.{ending}"


def _kind(stored: str, kind: str, kinds: Mapping[str, str] | None) -> str:
    for part, other in (kinds or {}).items():
        if part in stored:
            return other
    return kind


def _encoded(
    rng: np.random.Generator, values: NDArray[np.float32], kind: str
) -> tuple[NDArray[np.float32], NDArray[Any], gguf.GGMLQuantizationType]:
    number = gguf.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
    if values.shape[-1] % gguf.GGML_QUANT_SIZES[number][0]:  # what does not divide stays float
        number = gguf.GGMLQuantizationType.F16
        return values.astype(np.float16).astype(np.float32), values.astype(np.float16), number
    if values.ndim < 2:
        return values, values, number
    if kind in _WRITABLE:
        data = gguf.quants.quantize(values, number)
        return gguf.quants.dequantize(data, number).astype(np.float32), data, number
    made, data = quantised_bytes(rng, kind, values.shape, float(values.std()))  # type: ignore[arg-type]
    return made, data, number
