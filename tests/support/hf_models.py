"""Small random models of transformers, one of each supported family, for tests of readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

__all__ = ["HF_FAMILIES", "hf_model", "save_hf"]

_SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_OPT: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "ffn_dim": 160, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_GPT2: dict[str, Any] = {
    "vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HF_FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, _SIZES),
    "mistral": (MistralConfig, MistralForCausalLM, {**_SIZES, "sliding_window": 9}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {**_SIZES, "tie_word_embeddings": True}),
    "opt": (OPTConfig, OPTForCausalLM, _OPT),
    "gpt2": (GPT2Config, GPT2LMHeadModel, _GPT2),
}
"""Configuration class, model class and sizes by family."""


def hf_model(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model in evaluation mode; norms and biases vary, so that none is trivial."""
    config, model, sizes = HF_FAMILIES[family]
    torch.manual_seed(seed)
    made: PreTrainedModel = model(config(**{**sizes, **changes})).eval()
    with torch.no_grad():
        for name, value in made.named_parameters():
            if "norm" in name or "ln_" in name or name.endswith("bias"):
                value.add_(0.2 * torch.randn_like(value))
            elif value.dim() == 2:
                value.copy_(torch.randn_like(value) * (0.3 + torch.rand(1, value.shape[1])) * 0.2)
    return made


def save_hf(family: str, folder: Path, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Write a random model's folder; gives the model."""
    made = hf_model(family, seed, **changes)
    made.save_pretrained(folder)
    return made
