"""Hugging Face folders: config.json with safetensors or PyTorch weights, single or sharded.

Quantised checkpoints (GPTQ, AWQ, compressed-tensors) are told by their quantization_config. Every
tensor's presence, type and shape is checked when the folder is opened, from the files' headers
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flightllm.models.codes import CodeKind, Codes
from flightllm.models.config import ModelConfig, tensor_shapes
from flightllm.models.hf_config import config_from_dict, read_json
from flightllm.models.hf_quantized import PackedMatrix, QuantScheme, packed_matrix, read_scheme
from flightllm.models.tensors import from_numpy
from flightllm.models.weight_files import Entry, all_entries
from flightllm.spec.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["HfFolder", "Stored", "read_folder", "stored_tensors"]

_FLOATS = ("float32", "float16", "bfloat16")
_OPT_ROWS = 2
"""Rows that OPT's position table carries in front of position 0."""

_PARTS = {
    "llama": {
        "attn_norm": "input_layernorm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.o_proj",
        "mlp_norm": "post_attention_layernorm",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
    "opt": {
        "attn_norm": "self_attn_layer_norm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.out_proj",
        "mlp_norm": "final_layer_norm",
        "up": "fc1",
        "down": "fc2",
    },
    "gpt2": {
        "attn_norm": "ln_1",
        "q": "attn.c_attn",
        "k": "attn.c_attn",
        "v": "attn.c_attn",
        "o": "attn.c_proj",
        "mlp_norm": "ln_2",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
    },
}
_OUTER = {
    "llama": {"embed": "embed_tokens.weight", "final_norm": "norm"},
    "opt": {
        "embed": "embed_tokens.weight",
        "positions": "embed_positions.weight",
        "final_norm": "final_layer_norm",
    },
    "gpt2": {"embed": "wte.weight", "positions": "wpe.weight", "final_norm": "ln_f"},
}
_LAYERS = {"llama": "layers", "opt": "layers", "gpt2": "h"}
_PREFIXES = {
    "llama": ("model.", ""),
    "opt": ("model.decoder.", "decoder."),
    "gpt2": ("transformer.", ""),
}
_BUFFERS = (
    ".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq",
    ".input_scale", ".input_zero_point", ".output_scale", ".k_scale", ".v_scale",
)  # fmt: skip
"""Endings of what is no weight: constants that older versions of transformers stored, and scales of
activations and of the KV cache, which the device makes for each token."""


@dataclass(frozen=True)
class Stored:
    """Where a canonical tensor lies in a Hugging Face checkpoint.

    Members
    -------
    name, shape : of the tensor in the file.
    transposed : whether the file keeps it as [in, out] (GPT-2's Conv1D).
    start, stop : the rows to take, after transposing, or all.
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool = False
    start: int = 0
    stop: int | None = None

    def extract(self, tensor: torch.Tensor) -> torch.Tensor:
        """The canonical tensor, a view of the stored one."""
        whole = tensor.T if self.transposed else tensor
        return whole[self.start : self.stop]


def _stored(config: ModelConfig, name: str, shape: tuple[int, ...], prefix: str) -> Stored:
    if name == "head.weight":
        return Stored("lm_head.weight", shape)
    outer = _OUTER[config.family]
    if name in outer:
        offset = _OPT_ROWS if (config.family, name) == ("opt", "positions") else 0
        return Stored(prefix + outer[name], (shape[0] + offset, *shape[1:]), start=offset)
    path, kind = name.rsplit(".", 1)
    if path in outer:
        return Stored(f"{prefix}{outer[path]}.{kind}", shape)
    _, index, part = path.split(".")
    inner = _PARTS[config.family][part]
    stored = Stored(f"{prefix}{_LAYERS[config.family]}.{index}.{inner}.{kind}", shape)
    if config.family != "gpt2":
        return stored
    if part in ("q", "k", "v"):
        first = "qkv".index(part) * shape[0]
        stored = replace(
            stored, shape=(3 * shape[0], *shape[1:]), start=first, stop=first + shape[0]
        )
    if len(shape) == 2:
        stored = replace(stored, shape=stored.shape[::-1], transposed=True)
    return stored


def stored_tensors(config: ModelConfig, prefix: str | None = None) -> dict[str, Stored]:
    """Where each canonical tensor of a model lies in a Hugging Face checkpoint of it.

    Parameters
    ----------
    prefix : what the file's names begin with; by default what `save_pretrained` writes.
    """
    prefix = _PREFIXES[config.family][0] if prefix is None else prefix
    shapes = tensor_shapes(config)
    return {name: _stored(config, name, shape, prefix) for name, shape in shapes.items()}


def _prefix(config: ModelConfig, entries: Mapping[str, Entry]) -> str:
    candidates = _PREFIXES[config.family]
    embed = _OUTER[config.family]["embed"]
    return next((text for text in candidates if text + embed in entries), candidates[0])


def _check_entry(stored: Stored, entries: Mapping[str, Entry], source: Path) -> Entry:
    expected = list(stored.shape)
    entry = entries.get(stored.name)
    if entry is None:
        raise InputError(f"{source}: tensor {stored.name!r} is missing, expected {expected}")
    if entry.shape != stored.shape:
        raise InputError(
            f"{entry.file}: tensor {stored.name!r} has shape {list(entry.shape)}, but config.json"
            f" makes it {expected}"
        )
    if entry.dtype not in _FLOATS:
        raise InputError(
            f"{entry.file}: tensor {stored.name!r} has type {entry.dtype}, expected one of"
            f" {', '.join(_FLOATS)}"
        )
    return entry


@dataclass(frozen=True)
class HfFolder:
    """An open folder: its configuration and a function per canonical tensor that reads it.

    Members
    -------
    readers : of every tensor, as float. codes : of the matrices that are stored quantised.
    kinds : what is known of those without reading their codes.
    """

    config: ModelConfig
    readers: dict[str, Callable[[], torch.Tensor]]
    codes: dict[str, Callable[[], Codes]]
    kinds: dict[str, Callable[[], CodeKind]]


def _config_json(folder: Path) -> tuple[dict[str, Any], str]:
    """The object of config.json, with the scheme that quantisers keep in a file of their own."""
    path = folder / "config.json"
    data = read_json(path)
    for name in ("quantize_config.json", "quant_config.json"):
        beside = folder / name
        if data.get("quantization_config") is None and beside.is_file():
            scheme = read_json(beside)
            method = "gptq" if name == "quantize_config.json" else "awq"
            data["quantization_config"] = {"quant_method": method, **scheme}
    return data, str(path)


def read_folder(folder: Path) -> HfFolder:
    """Open a Hugging Face folder.

    Raises
    ------
    InputError : a file is absent, truncated or unsafe; a tensor is missing, unexpected, of a wrong
        type or of a shape that config.json contradicts; the quantisation is one that is not read.
    """
    data, where = _config_json(folder)
    config = config_from_dict(data, where, folder.resolve().name)
    scheme = read_scheme(data, where)
    source, entries = all_entries(folder)
    wanted = stored_tensors(config, _prefix(config, entries))
    made = HfFolder(config, {}, {}, {})
    # A tied head that is stored all the same is the embedding once more, as in transformers.
    used = {"lm_head.weight"} if config.tied else set()
    for name, stored in wanted.items():
        packed = None if scheme is None else _packed(name, stored, entries, scheme, source)
        if packed is None:
            made.readers[name] = _reader(stored, _check_entry(stored, entries, source))
            used.add(stored.name)
        else:
            made.codes[name] = read = _codes_reader(stored, packed)
            made.readers[name] = _float_reader(read)
            if packed.kind is not None:
                made.kinds[name] = partial(packed.kind, slice(stored.start, stored.stop))
            used |= {*packed.names, *_empty_bias(stored, wanted, entries)}
    for name in entries:
        if name not in used and not name.endswith(_BUFFERS):
            raise InputError(
                f"{source}: tensor {name!r} {list(entries[name].shape)} has no place in the model"
                f" that config.json describes"
            )
    return made


def _packed(
    name: str, stored: Stored, entries: Mapping[str, Entry], scheme: QuantScheme, source: Path
) -> PackedMatrix | None:
    if len(stored.shape) != 2 or name in ("embed", "positions"):
        return None
    rows, columns = stored.shape[::-1] if stored.transposed else stored.shape
    module = stored.name.removesuffix(".weight")
    return packed_matrix(entries, module, (rows, columns), scheme, source)


def _empty_bias(
    stored: Stored, wanted: Mapping[str, Stored], entries: Mapping[str, Entry]
) -> set[str]:
    """The bias that old GPTQ files give to modules without one: all zeros."""
    bias = stored.name.removesuffix("weight") + "bias"
    known = any(other.name == bias for other in wanted.values())
    if known or bias not in entries or bool(entries[bias].read().any()):
        return set()
    return {bias}


def _codes_reader(stored: Stored, packed: PackedMatrix) -> Callable[[], Codes]:
    return lambda: packed.codes().rows(slice(stored.start, stored.stop))


def _float_reader(read: Callable[[], Codes]) -> Callable[[], torch.Tensor]:
    return lambda: from_numpy(read().weights())


def _reader(stored: Stored, entry: Entry) -> Callable[[], torch.Tensor]:
    return lambda: stored.extract(entry.read())
