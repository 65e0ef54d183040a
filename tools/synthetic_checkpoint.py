"""Checkpoints of the zoo's shapes with random weights, to try out what only size tells.

Run as ``python tools/synthetic_checkpoint.py llama2-7b FOLDER`` for a Hugging Face folder in
bfloat16, one safetensors file a layer, or with ``--gguf`` for a folder with ``model.gguf``: Q4_K,
and Q6_K for the head, as llama.cpp writes LLaMA models. ``--layers N`` takes fewer layers. What is
written at a time is one layer. Files that are whole are kept, so that a run that was cut short goes
on.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from flightllm.models import zoo
from flightllm.models.config import ModelConfig, tensor_shapes
from flightllm.models.hf_writer import hf_name, write_configs

__all__ = ["main", "write_folder", "write_gguf"]

INDEX = "model.safetensors.index.json"
_GGUF_NAMES = {
    "embed": "token_embd", "final_norm": "output_norm", "head": "output", "attn_norm": "attn_norm",
    "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "mlp_norm": "ffn_norm",
    "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip
_SPREAD = {"Q4_K": 300.0, "Q6_K": 1500.0}
"""Weights' size over a block's fp16 factor, for random codes and random 6 or 8-bit scales."""
_HALVES = {"Q4_K": (0, 1), "Q6_K": (104,)}
"""Where a block holds its fp16 factors, in units of 2 bytes."""

Progress = Callable[[int, int], None]


def _size(shape: tuple[int, ...]) -> float:
    """Standard deviation that keeps a layer's output as large as its input."""
    return 1 / math.sqrt(shape[-1])


def _shards(config: ModelConfig) -> list[list[str]]:
    """Names of the tensors of each file: embedding, the layers, then what follows them."""
    parts: dict[str, list[str]] = {}
    for name in tensor_shapes(config):
        place = name.split(".")[1] if name.startswith("layers.") else name.split(".")[0]
        parts.setdefault(place, []).append(name)
    return list(parts.values())


def write_folder(
    folder: Path, config: ModelConfig, seed: int = 0, progress: Progress | None = None
) -> None:
    """A LLaMA model in bfloat16: norms of ones, normal weights. `folder` may exist."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes, shards = tensor_shapes(config), _shards(config)
    places: dict[str, str] = {}
    for number, names in enumerate(shards):
        path = folder / f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        places |= {hf_name(name): path.name for name in names}
        if not path.is_file():
            generator = torch.Generator().manual_seed(seed + number)
            tensors = {
                hf_name(name): (
                    torch.ones(shapes[name])
                    if len(shapes[name]) == 1
                    else torch.randn(shapes[name], generator=generator).mul_(_size(shapes[name]))
                ).bfloat16()
                for name in names
            }
            part = path.with_suffix(".part")
            save_file(tensors, str(part), metadata={"format": "pt"})
            part.rename(path)
        if progress:
            progress(number + 1, len(shards))
    write_configs(folder, config, torch.bfloat16)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}, indent=1))


# ------------------------------------------------------------------------------------ GGUF


def _gguf_name(name: str) -> str:
    parts = name.removesuffix(".weight").split(".")
    prefix = f"blk.{parts[1]}." if parts[0] == "layers" else ""
    return f"{prefix}{_GGUF_NAMES[parts[-1]]}.weight"


def _kind(name: str, shape: tuple[int, ...]) -> str:
    return "F32" if len(shape) == 1 else "Q6_K" if name == "head.weight" else "Q4_K"


def _blocks(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A matrix of random blocks, uint8 [rows, bytes]."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    count, length = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    raw = rng.integers(0, 256, (shape[0], shape[1] // count, length), dtype=np.uint8)
    halves = raw.view(np.float16)
    for place in _HALVES[kind]:
        halves[..., place] = rng.uniform(0.5, 1.5, halves.shape[:2]) * _size(shape) / _SPREAD[kind]
    return raw.reshape(shape[0], -1)


def _tensors(config: ModelConfig, seed: int) -> Iterator[tuple[str, str, NDArray[np.generic]]]:
    """Name, type and contents of each tensor."""
    for number, (name, shape) in enumerate(tensor_shapes(config).items()):
        rng = np.random.default_rng((seed, number))
        kind = _kind(name, shape)
        values = np.ones(shape, np.float32) if kind == "F32" else _blocks(rng, kind, shape)
        yield _gguf_name(name), kind, values


def write_gguf(
    path: Path, config: ModelConfig, seed: int = 0, progress: Progress | None = None
) -> None:
    """A LLaMA model in Q4_K and Q6_K, by the `gguf` package's writer; appears whole."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    writer = GGUFWriter(part, "llama")
    writer.add_name(config.name)
    writer.add_context_length(config.max_length)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    assert config.rope is not None
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    shapes = tensor_shapes(config)
    for name, shape in shapes.items():
        number = GGMLQuantizationType[_kind(name, shape)]
        elements, size = GGML_QUANT_SIZES[number]
        stored = (*shape[:-1], shape[-1] // elements * size)
        kind = np.dtype(np.float32 if elements == 1 else np.uint8)
        total = math.prod(shape) // elements * size
        writer.add_tensor_info(
            _gguf_name(name), shape if elements == 1 else stored, kind, total,
            None if elements == 1 else number,
        )  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, (_, _, values) in enumerate(_tensors(config, seed), 1):
        writer.write_tensor_data(values)
        if progress:
            progress(done, len(shapes))
    writer.close()
    part.rename(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("shape", help="a LLaMA shape of the zoo")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--gguf", action="store_true", help="a GGUF file, Q4_K")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    config = zoo.shape(chosen.shape)
    if chosen.layers is not None:
        config = replace(config, layers=chosen.layers)

    def tell(done: int, total: int) -> None:
        print(f"{done} of {total}", end="\r" if done < total else "\n", file=sys.stderr)

    if chosen.gguf:
        write_gguf(chosen.folder / "model.gguf", config, chosen.seed, tell)
    else:
        write_folder(chosen.folder, config, chosen.seed, tell)
    return 0


if __name__ == "__main__":
    sys.exit(main())
