"""Hugging Face folders: config.json with safetensors or PyTorch weights, single or sharded.

Weights stay on disk: safetensors files are memory-mapped and PyTorch files are read with
`weights_only=True, mmap=True`, so that nothing in them is ever executed. Every tensor's presence,
type and shape is checked when the folder is opened, from the files' headers alone.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from flightllm.models.config import ModelConfig, tensor_shapes
from flightllm.models.hf_config import read_config, read_json
from flightllm.spec.errors import InputError

__all__ = ["Stored", "read_folder", "stored_tensors"]

_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
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
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Endings of constants that older versions of transformers stored beside the weights."""


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


@dataclass(frozen=True)
class _Entry:
    """One tensor of a weight file: its type and shape by the header, and how to read it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def _safetensors_entries(path: Path) -> dict[str, _Entry]:
    try:
        handle: Any = safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: is not a whole safetensors file ({error})") from error
    entries = {}
    for name in handle.keys():  # noqa: SIM118 - a safe_open handle is not a mapping
        view = handle.get_slice(name)
        dtype = _TYPES.get(view.get_dtype(), view.get_dtype())

        def read(name: str = name) -> torch.Tensor:
            tensor: torch.Tensor = handle.get_tensor(name)
            return tensor

        entries[name] = _Entry(path, dtype, tuple(view.get_shape()), read)
    return entries


def _torch_entries(path: Path) -> dict[str, _Entry]:
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: refused, it holds something other than tensors, which loading would execute"
        ) from error
    except Exception as error:  # a corrupt pickle makes the unpickler fail in any way
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: is not a whole PyTorch weight file ({line})") from error
    if not isinstance(data, Mapping):
        raise InputError(f"{path}: holds a {type(data).__name__}, not tensors by name")
    entries = {}
    for name, tensor in data.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise InputError(f"{path}: entry {name!r} is not a tensor")
        dtype = str(tensor.dtype).removeprefix("torch.")

        def read(tensor: torch.Tensor = tensor) -> torch.Tensor:
            return tensor.detach()

        entries[name] = _Entry(path, dtype, tuple(tensor.shape), read)
    return entries


_Opener = Callable[[Path], dict[str, _Entry]]


def _sharded_entries(index: Path, opener: _Opener) -> dict[str, _Entry]:
    """All tensors an index names; each must lie in the shard the index says."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index}: has no weight_map from tensor names to files")
    for name, file in places.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise InputError(f"{index}: tensor {name!r} lies in {file!r}, which is no file name")
    entries: dict[str, _Entry] = {}
    for file in dict.fromkeys(places.values()):
        path = index.parent / file
        if not path.is_file():
            raise InputError(f"{index}: names the file {file}, which is missing")
        entries |= {name: part for name, part in opener(path).items() if places.get(name) == file}
    for name, file in places.items():
        if name not in entries:
            raise InputError(f"{index}: tensor {name!r} is missing from {file}")
    return entries


def _all_entries(folder: Path) -> tuple[Path, dict[str, _Entry]]:
    """The weight file (or index) of a folder and every tensor in it; safetensors come first."""
    kinds: tuple[tuple[str, _Opener], ...] = (
        ("model.safetensors", _safetensors_entries),
        ("pytorch_model.bin", _torch_entries),
    )
    for file, opener in kinds:
        single, index = folder / file, folder / f"{file}.index.json"
        if single.is_file():
            return single, opener(single)
        if index.is_file():
            return index, _sharded_entries(index, opener)
    raise InputError(
        f"{folder}: holds no weights (model.safetensors or pytorch_model.bin, or their index.json)"
    )


def _prefix(config: ModelConfig, entries: Mapping[str, _Entry]) -> str:
    candidates = _PREFIXES[config.family]
    embed = _OUTER[config.family]["embed"]
    return next((text for text in candidates if text + embed in entries), candidates[0])


def _check_entry(stored: Stored, entries: Mapping[str, _Entry], source: Path) -> _Entry:
    expected = list(stored.shape)
    entry = entries.get(stored.name)
    if entry is None:
        raise InputError(f"{source}: tensor {stored.name!r} is missing, expected {expected}")
    if entry.shape != stored.shape:
        raise InputError(
            f"{entry.file}: tensor {stored.name!r} has shape {list(entry.shape)}, but config.json"
            f" makes it {expected}"
        )
    if entry.dtype not in _TYPES.values():
        raise InputError(
            f"{entry.file}: tensor {stored.name!r} has type {entry.dtype}, expected one of"
            f" {', '.join(_TYPES.values())}"
        )
    return entry


def read_folder(folder: Path) -> tuple[ModelConfig, dict[str, Callable[[], torch.Tensor]]]:
    """Open a Hugging Face folder.

    Returns
    -------
    The configuration, and a function per canonical tensor that reads it.

    Raises
    ------
    InputError : a file is absent, truncated or unsafe; a tensor is missing, unexpected, of a wrong
        type or of a shape that config.json contradicts.
    """
    config = read_config(folder)
    source, entries = _all_entries(folder)
    wanted = stored_tensors(config, _prefix(config, entries))
    readers: dict[str, Callable[[], torch.Tensor]] = {}
    for name, stored in wanted.items():
        entry = _check_entry(stored, entries, source)
        readers[name] = _reader(stored, entry)
    used = {stored.name for stored in wanted.values()}
    # A tied head that is stored all the same is the embedding once more, as in transformers.
    used |= {"lm_head.weight"} if config.tied else set()
    for name in entries:
        if name not in used and not name.endswith(_BUFFERS):
            raise InputError(
                f"{source}: tensor {name!r} {list(entries[name].shape)} has no place in the model"
                f" that config.json describes"
            )
    return config, readers


def _reader(stored: Stored, entry: _Entry) -> Callable[[], torch.Tensor]:
    return lambda: stored.extract(entry.read())
