"""Hugging Face's config.json, read strictly into a `ModelConfig`.

Every field is either honoured or, where it changes the mathematics in a way this package does not
carry out, refused with a sentence. Fields about training (dropout, initialisation) are not read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flightllm.models.config import ModelConfig, RopeConfig
from flightllm.spec.errors import InputError

__all__ = ["ARCHITECTURES", "Fields", "config_from_dict", "read_config", "read_json"]

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "opt": "OPTForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
"""The supported `model_type`s and the one class of each that is a language model."""

_ROPE_FIELDS = {
    "default": set[str](),
    "linear": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
    },
}
_ROPE_REFUSED = {
    "dynamic": "its angles depend on the length of the sequence",
    "longrope": "its angles depend on the length of the sequence",
    "su": "its angles depend on the length of the sequence",
    "proportional": "it turns only a part of each head",
}


MAX_JSON = 16 << 20
"""Bytes that such a file may have; an index of 100,000 tensors has 10 million."""


def read_json(path: Path) -> dict[str, Any]:
    """The object a JSON file holds; InputError when it is absent, not JSON or not an object."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON:
            raise InputError(f"{path}: has {size} bytes, more than {MAX_JSON}")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path}: cannot be read ({reason.lower()})") from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, a number of many digits
        raise InputError(f"{path}: is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: holds a {type(data).__name__}, not an object")
    return data


class Fields:
    """Typed access to the fields of one JSON object; `null` counts as absent.

    Parameters
    ----------
    data : the object. where : the file (and path inside it), for messages.
    """

    def __init__(self, data: dict[str, Any], where: str) -> None:
        self.data, self.where = data, where

    def fail(self, message: str) -> InputError:
        """An error about this object, to be raised."""
        return InputError(f"{self.where}: {message}")

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.data.get(name) is not None

    def _take(self, name: str, default: Any, accept: Callable[[Any], bool], kind: str) -> Any:
        value = self.data.get(name)
        if value is None:
            if default is ...:
                raise self.fail(f"field {name!r} is missing")
            return default
        if not accept(value):
            raise self.fail(f"{name} must be {kind}, not {value!r}")
        return value

    def integer(self, name: str, default: Any = ..., minimum: int = 1) -> int:
        """An integer of at least `minimum`."""

        def accept(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and value >= minimum

        kind = "a positive integer" if minimum == 1 else f"an integer of at least {minimum}"
        value: int = self._take(name, default, accept, kind)
        return value

    def number(self, name: str, default: Any = ...) -> float:
        """A finite positive number."""

        def accept(value: Any) -> bool:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            return number and math.isfinite(value) and value > 0

        return float(self._take(name, default, accept, "a positive number"))

    def flag(self, name: str, default: Any = ...) -> bool:
        """A boolean."""
        kind = "true or false"
        value: bool = self._take(name, default, lambda value: isinstance(value, bool), kind)
        return value

    def text(self, name: str, default: Any = ...) -> str:
        """A string."""
        kind = "a string"
        value: str = self._take(name, default, lambda value: isinstance(value, str), kind)
        return value

    def choice(self, name: str, allowed: dict[str, str], default: Any = ...) -> str:
        """A string out of the keys of `allowed`; gives the value that belongs to it."""
        value = self.text(name, default)
        if value not in allowed:
            raise self.fail(f"{name} {value!r} is not supported (only {', '.join(allowed)})")
        return allowed[value]

    def must_be(self, name: str, expected: object, why: str) -> None:
        """Refuse any value but `expected`, which also is what an absent field means."""
        if self.has(name) and self.data[name] != expected:
            raise self.fail(f"{name} = {self.data[name]!r} is not supported: {why}")

    def token_ids(self, name: str, vocab: int) -> tuple[int, ...]:
        """One or several token ids; those the model cannot produce are left out."""
        value = self.data.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        for token in ids:
            if not isinstance(token, int) or isinstance(token, bool):
                raise self.fail(f"{name} must be a token id or a list of them, not {value!r}")
        return tuple(dict.fromkeys(token for token in ids if 0 <= token < vocab))


def _rope_object(fields: Fields) -> Fields:
    """`rope_parameters` (transformers 5) or `rope_scaling` (before), with theta in it."""
    rope: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        value = fields.data.get(name)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise fields.fail(f"{name} must be an object, not {value!r}")
        if any(isinstance(part, dict) for part in value.values()):
            raise fields.fail(f"{name} differs between layers, which is not supported")
        if rope and rope != value:
            raise fields.fail("rope_parameters and rope_scaling contradict each other")
        rope = dict(value)
    theta = fields.number("rope_theta", None) if fields.has("rope_theta") else None
    if theta is not None and rope.setdefault("rope_theta", theta) != theta:
        raise fields.fail(
            f"rope_theta {theta} contradicts rope_parameters, which says {rope['rope_theta']}"
        )
    kinds = {rope.pop(name) for name in ("rope_type", "type") if isinstance(rope.get(name), str)}
    if len(kinds) > 1:
        raise fields.fail(f"rope_type and type contradict each other ({' and '.join(kinds)})")
    rope["rope_type"] = kinds.pop() if kinds else "default"
    return Fields(rope, f"{fields.where}: rope")


def _yarn_attention(rope: Fields, factor: float) -> float:
    """What YaRN multiplies cos and sin with, where it is not given outright."""

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.has("attention_factor"):
        return rope.number("attention_factor")
    if rope.data.get("mscale") and rope.data.get("mscale_all_dim"):
        return magnitude(rope.number("mscale")) / magnitude(rope.number("mscale_all_dim"))
    return magnitude(1.0)


def _rope(fields: Fields, max_length: int) -> RopeConfig:
    rope = _rope_object(fields)
    kind = rope.text("rope_type")
    if kind in _ROPE_REFUSED:
        raise rope.fail(f"{kind!r} scaling is not supported: {_ROPE_REFUSED[kind]}")
    if kind not in _ROPE_FIELDS:
        raise rope.fail(f"{kind!r} scaling is unknown")
    fields.must_be("partial_rotary_factor", 1.0, "RoPE here turns whole heads")
    rope.must_be("partial_rotary_factor", 1.0, "RoPE here turns whole heads")
    known = _ROPE_FIELDS[kind] | {"rope_type", "rope_theta", "partial_rotary_factor"}
    for name in rope.data:
        if name not in known and rope.has(name):
            raise rope.fail(f"field {name!r} has no meaning in {kind!r} scaling")
    theta = rope.number("rope_theta", 10000.0)
    if kind == "default":
        return RopeConfig(theta)
    factor = rope.number("factor")
    if kind == "linear":
        return RopeConfig(theta, kind, factor)
    # Beside the RoPE fields (as Phi-3 writes it) it wins in transformers, so it must agree.
    outer = fields.integer("original_max_position_embeddings", max_length)
    length = rope.integer("original_max_position_embeddings", outer)
    if fields.has("original_max_position_embeddings") and outer != length:
        raise rope.fail(f"original_max_position_embeddings is {length} here but {outer} outside")
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        return RopeConfig(theta, kind, factor, length, low_freq_factor=low, high_freq_factor=high)
    return RopeConfig(
        theta,
        kind,
        factor,
        length,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        attention_factor=_yarn_attention(rope, factor),
        truncate=rope.flag("truncate", True),
    )


def _window(fields: Fields, kind: str, layers: int) -> int | None:
    """The sliding window that every layer shares, or None; a mix of layers is refused."""
    mixed = "is not supported: some layers slide and others do not"
    types = fields.data.get("layer_types")
    distinct = set(types) if isinstance(types, list) else set()
    if len(distinct) > 1:
        raise fields.fail(f"layer_types {mixed}")
    if kind == "llama":
        sliding = False
    elif kind == "mistral":
        if "sliding_window" not in fields.data:
            raise fields.fail("field 'sliding_window' is missing (null means full attention)")
        sliding = fields.has("sliding_window")
    else:
        sliding = fields.flag("use_sliding_window", False)
        if sliding and not distinct:
            first = fields.integer("max_window_layers", minimum=0)
            if 0 < first < layers:
                raise fields.fail(f"max_window_layers {first} of {layers} layers {mixed}")
            sliding = first == 0
    if distinct and distinct != {"sliding_attention" if sliding else "full_attention"}:
        if kind != "qwen2" or distinct != {"full_attention"}:
            raise fields.fail(
                f"layer_types {sorted(distinct)} contradicts sliding_window"
                f" {fields.data.get('sliding_window')}"
            )
        sliding = False
    return fields.integer("sliding_window") if sliding else None


def _head_dim(fields: Fields, dim: int, heads: int) -> int:
    if not fields.has("head_dim") and dim % heads:
        raise fields.fail(f"hidden_size {dim} is not a multiple of {heads} attention heads")
    return fields.integer("head_dim", dim // heads)


def _llama(fields: Fields, kind: str, name: str) -> ModelConfig:
    """LLaMA 2/3, TinyLlama, Mistral, Qwen2."""
    vocab, dim = fields.integer("vocab_size"), fields.integer("hidden_size")
    heads, layers = fields.integer("num_attention_heads"), fields.integer("num_hidden_layers")
    # transformers would assume 8 (Mistral) or 32 (Qwen2) heads: nobody means that by omission.
    kv_heads = fields.integer("num_key_value_heads", heads if kind == "llama" else ...)
    max_length = fields.integer("max_position_embeddings")
    fields.choice("hidden_act", {"silu": "silu", "swish": "silu"}, "silu")
    biased = kind == "llama" and fields.flag("attention_bias", False)
    fields.must_be("use_mrope", False, "positions are those of text")
    window = _window(fields, kind, layers)
    bos = fields.token_ids("bos_token_id", vocab)
    return ModelConfig(
        family="llama",
        vocab=vocab,
        dim=dim,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_head_dim(fields, dim, heads),
        ffn_dim=fields.integer("intermediate_size"),
        max_length=max_length,
        norm_eps=fields.number("rms_norm_eps"),
        rope=_rope(fields, max_length),
        tied=fields.flag("tie_word_embeddings", False),
        # A window no shorter than the longest context never hides a token.
        window=None if window is None or window >= max_length else window,
        bos=bos[0] if bos else None,
        eos=fields.token_ids("eos_token_id", vocab),
        qkv_bias=biased or kind == "qwen2",
        o_bias=biased,
        mlp_bias=kind == "llama" and fields.flag("mlp_bias", False),
        name=name,
    )


def _opt(fields: Fields, kind: str, name: str) -> ModelConfig:
    vocab, dim = fields.integer("vocab_size"), fields.integer("hidden_size")
    fields.must_be("do_layer_norm_before", True, "norms behind attention (OPT-350m) are not")
    fields.must_be("word_embed_proj_dim", dim, "embeddings of another width (OPT-350m) are not")
    fields.must_be("_remove_final_layer_norm", False, "a final norm is always there")
    fields.must_be("layer_norm_elementwise_affine", True, "norms carry weights")
    heads, biased = fields.integer("num_attention_heads"), fields.flag("enable_bias", True)
    if dim % heads:
        raise fields.fail(f"hidden_size {dim} is not a multiple of {heads} attention heads")
    bos = fields.token_ids("bos_token_id", vocab)
    return ModelConfig(
        family="opt",
        vocab=vocab,
        dim=dim,
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=dim // heads,
        ffn_dim=fields.integer("ffn_dim"),
        max_length=fields.integer("max_position_embeddings"),
        norm="layer",
        activation=fields.choice("activation_function", _ACTIVATIONS, "relu"),
        gated=False,
        learned_positions=True,
        tied=fields.flag("tie_word_embeddings", True),
        bos=bos[0] if bos else None,
        eos=fields.token_ids("eos_token_id", vocab),
        qkv_bias=biased,
        o_bias=biased,
        mlp_bias=biased,
        name=name,
    )


def _gpt2(fields: Fields, kind: str, name: str) -> ModelConfig:
    vocab, dim, heads = (fields.integer(name) for name in ("vocab_size", "n_embd", "n_head"))
    fields.must_be("scale_attn_weights", True, "scores are divided by sqrt(head_dim)")
    fields.must_be("scale_attn_by_inverse_layer_idx", False, "all layers scale alike")
    fields.must_be("add_cross_attention", False, "there is no encoder")
    if dim % heads:
        raise fields.fail(f"n_embd {dim} is not a multiple of {heads} attention heads")
    length = fields.integer("n_positions")
    fields.must_be("n_ctx", length, f"n_positions says {length}")
    bos = fields.token_ids("bos_token_id", vocab)
    return ModelConfig(
        family="gpt2",
        vocab=vocab,
        dim=dim,
        layers=fields.integer("n_layer"),
        heads=heads,
        kv_heads=heads,
        head_dim=dim // heads,
        ffn_dim=fields.integer("n_inner", 4 * dim),
        max_length=length,
        norm="layer",
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        activation=fields.choice("activation_function", _ACTIVATIONS, "gelu_new"),
        gated=False,
        learned_positions=True,
        tied=fields.flag("tie_word_embeddings", True),
        bos=bos[0] if bos else None,
        eos=fields.token_ids("eos_token_id", vocab),
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        name=name,
    )


_ACTIVATIONS = {
    "relu": "relu",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu": "gelu_erf",
}

_READERS: dict[str, Callable[[Fields, str, str], ModelConfig]] = {
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "opt": _opt,
    "gpt2": _gpt2,
}


def config_from_dict(data: dict[str, Any], where: str, name: str = "model") -> ModelConfig:
    """The configuration that a config.json's object describes.

    Parameters
    ----------
    data : the object. where : the file it came from, for messages. name : the model's name.

    Raises
    ------
    InputError : unknown architecture; a field that is missing, of a wrong type, contradicted by
        another, or that asks for what is not supported.
    """
    fields = Fields(data, where)
    kind = fields.text("model_type")
    if kind not in ARCHITECTURES:
        raise fields.fail(
            f"model_type {kind!r} is not supported (only {', '.join(ARCHITECTURES)}): a decoder of"
            " the same structure can be given as an ONNX file or torch.export program"
        )
    classes = data.get("architectures")
    if classes is not None and classes != [ARCHITECTURES[kind]]:
        raise fields.fail(
            f"architectures {classes!r} is not supported: model_type {kind!r} needs"
            f" ['{ARCHITECTURES[kind]}']"
        )
    try:
        return _READERS[kind](fields, kind, name)
    except InputError as error:
        if str(error).startswith(where):
            raise
        raise fields.fail(str(error)) from error


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a Hugging Face folder, named after the folder; InputError as above."""
    path = folder / "config.json"
    return config_from_dict(read_json(path), str(path), folder.resolve().name)
