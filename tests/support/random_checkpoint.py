"""Small random checkpoints of each family, with structure enough for calibration to matter."""

from __future__ import annotations

from typing import Any

import torch

from flightllm.models.checkpoint import Checkpoint
from flightllm.models.config import ModelConfig, RopeConfig, tensor_shapes

__all__ = ["FAMILIES", "random_checkpoint", "random_config"]

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama", "rope": RopeConfig(), "kv_heads": 2},
    "qwen": {"family": "llama", "rope": RopeConfig(), "kv_heads": 1, "qkv_bias": True,
             "tied": True},
    "mistral": {"family": "llama", "rope": RopeConfig(), "kv_heads": 2, "window": 9},
    "opt": {"family": "opt", "norm": "layer", "activation": "relu", "gated": False,
            "learned_positions": True, "qkv_bias": True, "o_bias": True, "mlp_bias": True,
            "tied": True},
    "gpt2": {"family": "gpt2", "norm": "layer", "activation": "gelu", "gated": False,
             "learned_positions": True, "qkv_bias": True, "o_bias": True, "mlp_bias": True,
             "tied": True},
}  # fmt: skip


def random_config(name: str, **changes: Any) -> ModelConfig:
    """The configuration of a family of `FAMILIES`."""
    sizes = {
        "vocab": 96, "dim": 48, "layers": 2, "heads": 4, "kv_heads": 4, "head_dim": 12,
        "ffn_dim": 88, "max_length": 64, "bos": 1, "eos": (2,), "name": name,
    }  # fmt: skip
    return ModelConfig(**{**sizes, **FAMILIES[name], **changes})


def random_checkpoint(name: str, seed: int = 0, **changes: Any) -> Checkpoint:
    """A random model; norms, biases and channel sizes vary, so that no fold is trivial."""
    config = random_config(name, **changes)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = {}
    for key, shape in tensor_shapes(config).items():
        if key.endswith("norm.weight"):
            tensors[key] = 1 + 0.3 * normal(*shape)
        elif key.endswith("bias"):
            tensors[key] = 0.2 * normal(*shape)
        elif key in ("embed", "positions"):
            tensors[key] = normal(*shape) * (0.5 + torch.rand(shape[1], generator=generator))
        else:
            rows = 0.3 + 2 * torch.rand(shape[0], 1, generator=generator)
            tensors[key] = normal(*shape) * rows * shape[1] ** -0.5
    return Checkpoint.from_tensors(config, tensors)
