"""Models known by name: `demo` with its weights, the others as shapes from public configurations.

A shape compiles to instructions and estimates without any download; the weights come from a
Hugging Face folder of the same model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flightllm.models.config import ModelConfig, RopeConfig
from flightllm.spec.errors import InputError

__all__ = ["names", "shape", "weights_folder"]

_DEMO = Path(__file__).parent / "demo"


def _llama(
    dim: int, layers: int, heads: int, kv_heads: int, ffn_dim: int, length: int = 4096
) -> ModelConfig:
    """LLaMA 2's conventions."""
    return ModelConfig(
        family="llama",
        vocab=32000,
        dim=dim,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim // heads,
        ffn_dim=ffn_dim,
        max_length=length,
        rope=RopeConfig(),
        bos=1,
        eos=(2,),
    )


def _llama3(config: ModelConfig, factor: float | None = None, tied: bool = False) -> ModelConfig:
    """LLaMA 3's vocabulary and RoPE; with a factor that of LLaMA 3.1 and later, 131,072 tokens."""
    rope, length = RopeConfig(500000.0), 8192
    if factor is not None:
        rope, length = RopeConfig(500000.0, "llama3", factor, original_length=8192), 131072
    return replace(
        config, vocab=128256, rope=rope, max_length=length, tied=tied, bos=128000, eos=(128001,)
    )


def _qwen(config: ModelConfig, vocab: int = 151936, tied: bool = True) -> ModelConfig:
    return replace(
        config,
        vocab=vocab,
        norm_eps=1e-6,
        rope=RopeConfig(1000000.0),
        qkv_bias=True,
        tied=tied,
        bos=151643,
        eos=(151643,),
    )


def _learned(family: str, dim: int, layers: int, heads: int) -> ModelConfig:
    """OPT and GPT-2: LayerNorm, learned positions, biases, an MLP four times as wide."""
    opt = family == "opt"
    end = 2 if opt else 50256
    return ModelConfig(
        family=family,
        vocab=50272 if opt else 50257,
        dim=dim,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=dim // heads,
        ffn_dim=4 * dim,
        max_length=2048 if opt else 1024,
        norm="layer",
        activation="relu" if opt else "gelu",
        gated=False,
        learned_positions=True,
        tied=True,
        bos=end,
        eos=(end,),
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
    )


_MISTRAL = _llama(4096, 32, 32, 8, 14336, 32768)

_SHAPES = {
    "llama2-7b": _llama(4096, 32, 32, 32, 11008),
    "llama2-13b": _llama(5120, 40, 40, 40, 13824),
    "llama2-70b": _llama(8192, 80, 64, 8, 28672),
    "llama3-8b": _llama3(_llama(4096, 32, 32, 8, 14336)),
    "llama3.1-8b": _llama3(_llama(4096, 32, 32, 8, 14336), 8.0),
    "llama3.2-1b": _llama3(_llama(2048, 16, 32, 8, 8192), 32.0, tied=True),
    "llama3.2-3b": _llama3(_llama(3072, 28, 24, 8, 8192), 32.0, tied=True),
    "mistral-7b": replace(_MISTRAL, window=4096),
    "mistral-7b-v0.3": replace(_MISTRAL, vocab=32768, rope=RopeConfig(1000000.0)),
    "qwen2.5-0.5b": _qwen(_llama(896, 24, 14, 2, 4864, 32768)),
    "qwen2.5-1.5b": _qwen(_llama(1536, 28, 12, 2, 8960, 131072)),
    "qwen2.5-3b": _qwen(_llama(2048, 36, 16, 2, 11008, 32768)),
    "qwen2.5-7b": _qwen(_llama(3584, 28, 28, 4, 18944, 131072), vocab=152064, tied=False),
    "tinyllama-1.1b": _llama(2048, 22, 32, 4, 5632, 2048),
    "opt-125m": _learned("opt", 768, 12, 12),
    "opt-1.3b": _learned("opt", 2048, 24, 32),
    "opt-2.7b": _learned("opt", 2560, 32, 32),
    "opt-6.7b": _learned("opt", 4096, 32, 32),
    "opt-13b": _learned("opt", 5120, 40, 40),
    "gpt2": _learned("gpt2", 768, 12, 12),
    "gpt2-medium": _learned("gpt2", 1024, 24, 16),
    "gpt2-large": _learned("gpt2", 1280, 36, 20),
    "gpt2-xl": _learned("gpt2", 1600, 48, 25),
}


def names() -> tuple[str, ...]:
    """All names, `demo` first."""
    return ("demo", *_SHAPES)


def shape(name: str) -> ModelConfig:
    """The configuration of a named model; InputError for an unknown name."""
    folder = weights_folder(name)
    if folder is not None:
        from flightllm.models.hf_config import read_config

        return replace(read_config(folder), name=name)
    if name not in _SHAPES:
        raise InputError(f"{name}: no model of that name (known: {', '.join(names())})")
    return replace(_SHAPES[name], name=name)


def weights_folder(name: str) -> Path | None:
    """The folder with a named model's weights, or None where only its shape is known.

    Raises
    ------
    InputError : when the demo model's files are not installed.
    """
    if name != "demo":
        return None
    if not (_DEMO / "config.json").is_file():
        raise InputError(f"demo: the model's files are missing from {_DEMO}")
    return _DEMO
