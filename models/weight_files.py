"""Weight files of Hugging Face folders: every tensor's type and shape by the headers, read lazily.

Weights stay on disk: safetensors files are memory-mapped and PyTorch files are read with
`weights_only=True, mmap=True`, so that nothing in them is ever executed.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from flightllm.models.hf_config import read_json
from flightllm.spec.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["TYPES", "Entry", "all_entries"]

TYPES = {
    "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8",
}  # fmt: skip
"""Types of safetensors that this package reads, and torch's names of them."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a weight file: its type and shape by the header, and how to read it.

    Members
    -------
    dtype : torch's name of the type ("float16", "int32"); the file's own where torch has none.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def _safetensors_entries(path: Path) -> dict[str, Entry]:
    def read(name: str) -> torch.Tensor:
        # The file is mapped anew for each tensor: a map that stays keeps every page it has read.
        with safe_open(str(path), framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    entries = {}
    try:
        with safe_open(str(path), framework="numpy") as file:  # of the header all say the same
            handle: Any = file
            for name in handle.keys():  # noqa: SIM118 - a safe_open handle is not a mapping
                view = handle.get_slice(name)
                dtype = TYPES.get(view.get_dtype(), view.get_dtype())
                entries[name] = Entry(path, dtype, tuple(view.get_shape()), partial(read, name))
    except (SafetensorError, OSError, OverflowError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: is not a whole safetensors file ({error})") from error
    return entries


def _torch_entries(path: Path) -> dict[str, Entry]:
    import torch

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
        if tensor.layout != torch.strided or _bytes(tensor) > tensor.untyped_storage().nbytes():
            raise InputError(f"{path}: tensor {name!r} is larger than what the file stores of it")
        dtype = str(tensor.dtype).removeprefix("torch.")

        def read(tensor: torch.Tensor = tensor) -> torch.Tensor:
            return tensor.detach()

        entries[name] = Entry(path, dtype, tuple(tensor.shape), read)
    return entries


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


_Opener = Callable[[Path], dict[str, Entry]]


def _sharded_entries(index: Path, opener: _Opener) -> dict[str, Entry]:
    """All tensors an index names; each must lie in the shard the index says."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index}: has no weight_map from tensor names to files")
    for name, file in places.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise InputError(f"{index}: tensor {name!r} lies in {file!r}, which is no file name")
    entries: dict[str, Entry] = {}
    for file in dict.fromkeys(places.values()):
        path = index.parent / file
        if not path.is_file():
            raise InputError(f"{index}: names the file {file}, which is missing")
        entries |= {name: part for name, part in opener(path).items() if places.get(name) == file}
    for name, file in places.items():
        if name not in entries:
            raise InputError(f"{index}: tensor {name!r} is missing from {file}")
    return entries


def all_entries(folder: Path) -> tuple[Path, dict[str, Entry]]:
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
