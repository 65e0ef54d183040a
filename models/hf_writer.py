"""Writes a LLaMA-family model as a Hugging Face folder: config, generation config, safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from flightllm.models.config import ModelConfig, tensor_shapes
from flightllm.spec.errors import InputError

__all__ = ["hf_name", "save_llama", "write_configs"]

_PARTS = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_WHOLE = {
    "embed": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}


def hf_name(name: str) -> str:
    """Hugging Face's LLaMA name of a canonical tensor name, e.g. "layers.3.q.weight"."""
    if name in _WHOLE:
        return _WHOLE[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{_PARTS[part]}.{kind}"


def save_llama(
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write config.json, generation_config.json and model.safetensors.

    Parameters
    ----------
    folder : Path
        Existing folder; files of the same names are replaced.
    config : ModelConfig
        Family "llama" without biases, with unscaled RoPE.
    tensors : mapping of str to torch.Tensor
        By canonical name, as `tensor_shapes(config)` lists them.
    dtype : torch.dtype
        What the tensors are stored as.

    Raises
    ------
    InputError
        Something that LLaMA's config.json cannot express.
    """
    write_configs(folder, config, dtype)
    stored = {hf_name(name): tensors[name].detach().to(dtype) for name in tensor_shapes(config)}
    contiguous = {name: tensor.contiguous() for name, tensor in stored.items()}
    save_file(contiguous, str(folder / "model.safetensors"), metadata={"format": "pt"})


def write_configs(folder: Path, config: ModelConfig, dtype: torch.dtype) -> None:
    """Write config.json and generation_config.json alone; see `save_llama`."""
    rope = config.rope
    plain = not (config.qkv_bias or config.o_bias or config.mlp_bias or config.window)
    if config.family != "llama" or rope is None or rope.kind != "default" or not plain:
        raise InputError(f"{config.name}: only plain LLaMA models can be written, not {config}")
    generation: dict[str, Any] = {"bos_token_id": config.bos, "eos_token_id": list(config.eos)}
    described = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab,
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": config.activation,
        "rope_theta": rope.theta,
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **generation,
    }
    _write_json(folder / "config.json", described)
    _write_json(folder / "generation_config.json", generation)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
