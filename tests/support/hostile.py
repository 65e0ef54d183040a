"""Damaged model files, made from good ones by a seed, and a guard around opening them.

`FORMATS` names a maker for each format: a folder of a good model, and how one of its files is
spoilt. `open_all` opens what a spoiler made; anything but success or an `InputError`, more than ten
seconds or more than 2 GiB of new memory is a failure.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf_files import write_gguf
from hf_models import hf_model, save_hf
from onnx_export import export_onnx
from packed_checkpoint import quantise_folder
from random_checkpoint import random_checkpoint
from safetensors.torch import load_file

from flightllm.models.checkpoint import open_checkpoint
from flightllm.spec.errors import InputError, MissingToolError

__all__ = ["FORMATS", "Format", "guard", "run_seeds", "spoil_bytes"]

Random = np.random.Generator
SECONDS, BYTES = 10, 2 << 30
EXTREMES = (0, 1, -1, 127, 255, 256, 65535, 2**31 - 1, -(2**31), 2**32 - 1, 2**62, 2**63 - 1, 10**9)
WORDS = (None, True, [], {}, "", "llama", 0, -1, 1, 3, 1e9, 1e308, -0.5, 10**9, 2**63, [-1], [[[]]])


@dataclass(frozen=True)
class Format:
    """A good model in `folder`, the path to open, and what spoils a copy of it."""

    folder: Path
    opened: str
    spoil: Callable[[Path, Random], None]


def spoil_bytes(data: bytes, random: Random, head: int = 4096) -> bytes:
    """A few bytes changed, overwritten by extreme numbers, cut, doubled or dropped."""
    out = bytearray(data)
    for _ in range(int(random.integers(1, 6))):
        if not out:
            break
        limit = min(len(out), head) if random.random() < 0.8 else len(out)
        at, kind = int(random.integers(limit)), int(random.integers(7))
        if kind == 0:
            out[at] ^= 1 << int(random.integers(8))
        elif kind == 1:
            out[at] = int(random.integers(256))
        elif kind == 2:
            value = int(random.choice(np.array(EXTREMES, dtype=object)))
            size = int(random.choice([1, 2, 4, 8]))
            raw = (value & ((1 << (8 * size)) - 1)).to_bytes(size, "little")
            out[at : at + size] = raw[: max(0, len(out) - at)]
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            del out[at : at + int(random.integers(1, 64))]
        elif kind == 5:
            out[at:at] = out[at : at + int(random.integers(1, 64))]
        else:
            out[at:at] = random.integers(0, 256, int(random.integers(1, 32)), np.uint8).tobytes()
    return bytes(out)


def _spoil_json(value: Any, random: Random, depth: int = 0) -> Any:
    """One place of a JSON value replaced by something odd."""
    if isinstance(value, dict) and value and (depth == 0 or random.random() < 0.8):
        key = list(value)[int(random.integers(len(value)))]
        if random.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: _spoil_json(value[key], random, depth + 1)}
    if isinstance(value, list) and value and random.random() < 0.6:
        index = int(random.integers(len(value)))
        return [*value[:index], _spoil_json(value[index], random, depth + 1), *value[index + 1 :]]
    return WORDS[int(random.integers(len(WORDS)))]


def _file(name: str, head: int = 4096) -> Callable[[Path, Random], None]:
    def spoil(folder: Path, random: Random) -> None:
        path = folder / name
        path.write_bytes(spoil_bytes(path.read_bytes(), random, head))

    return spoil


def _config(folder: Path, random: Random) -> None:
    path = folder / "config.json"
    data = json.loads(path.read_text())
    for _ in range(int(random.integers(1, 4))):
        data = _spoil_json(data, random)
    path.write_text(json.dumps(data))


def _header(folder: Path, random: Random) -> None:
    """The safetensors header: shapes, types and offsets of any size."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    (size,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + size])
    for _ in range(int(random.integers(1, 4))):
        header = _spoil_json(header, random)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


def _any_of(*spoilers: Callable[[Path, Random], None]) -> Callable[[Path, Random], None]:
    def spoil(folder: Path, random: Random) -> None:
        spoilers[int(random.integers(len(spoilers)))](folder, random)

    return spoil


class _Payload:
    """Pickled, this would run a command when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("open('/tmp/flightllm-hostile-ran', 'w').close()",)


def _pickled(folder: Path, random: Random) -> None:
    """A PyTorch file with something that loading would execute."""
    path = folder / "pytorch_model.bin"
    data: dict[str, Any] = torch.load(path, weights_only=True)
    name = list(data)[int(random.integers(len(data)))]
    choices: list[Any] = [_Payload(), torch.nn.Linear, [_Payload()], {"x": _Payload()}, 3, "text"]
    data[name] = choices[int(random.integers(len(choices)))]
    torch.save(data, path, _use_new_zipfile_serialization=bool(random.integers(2)))


def _gguf(folder: Path) -> Format:
    write_gguf(folder / "m.gguf", random_checkpoint("llama"), "F16")
    return Format(folder, "m.gguf", _file("m.gguf"))


def _safetensors(folder: Path) -> Format:
    save_hf("llama", folder)
    return Format(
        folder, ".", _any_of(_file("model.safetensors", 8000), _header, _config)
    )  # fmt: skip


def _pytorch(folder: Path) -> Format:
    save_hf("llama", folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return Format(folder, ".", _any_of(_file("pytorch_model.bin", 1 << 20), _pickled))


def _packed(method: str) -> Callable[[Path], Format]:
    def make(folder: Path) -> Format:
        save_hf("llama", folder, num_hidden_layers=1)
        quantise_folder(folder, method)
        return Format(
            folder, ".", _any_of(_file("model.safetensors", 8000), _header, _config)
        )  # fmt: skip

    return make


def _llama2c(folder: Path) -> Format:
    sizes = (32, 48, 1, 4, 2, 40, 16)
    floats = 40 * 32 + 3 * 32 + 32 * 32 * 2 + 2 * 16 * 32 + 3 * 48 * 32 + 16 * 8
    data = np.random.default_rng(0).normal(0, 0.1, floats).astype("<f4")
    data[-128:] = 0
    (folder / "m.bin").write_bytes(struct.pack("<7i", *sizes) + data.tobytes())
    return Format(folder, "m.bin", _file("m.bin", 64))


def _onnx(folder: Path) -> Format:
    export_onnx(hf_model("llama", num_hidden_layers=1), folder / "m.onnx")
    return Format(folder, "m.onnx", _any_of(_file("m.onnx", 1 << 20), _graph, _graph))


def _graph(folder: Path, random: Random) -> None:
    """An ONNX graph with circles, other operators, wild shapes, types, attributes and places."""
    import onnx

    path = folder / "m.onnx"
    graph = (model := onnx.load(path)).graph
    for _ in range(int(random.integers(1, 5))):
        node = graph.node[int(random.integers(len(graph.node)))]
        other = graph.node[int(random.integers(len(graph.node)))]
        tensor = graph.initializer[int(random.integers(len(graph.initializer)))]
        extreme = int(random.choice(np.array(EXTREMES, dtype=object)))
        extreme = min(max(extreme, -(2**63)), 2**63 - 1)
        kind = int(random.integers(9))
        if kind == 0 and node.input:
            node.input[int(random.integers(len(node.input)))] = other.output[0]
        elif kind == 1:
            node.op_type = other.op_type
        elif kind == 2 and tensor.dims:
            tensor.dims[int(random.integers(len(tensor.dims)))] = extreme
        elif kind == 3:
            tensor.data_type = int(random.integers(0, 30))
        elif kind == 4 and node.attribute:
            node.attribute[0].i = extreme
        elif kind == 5:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", "m.onnx"), ("offset", str(extreme))):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value
        elif kind == 6:
            del node.input[:]
        elif kind == 7 and tensor.raw_data and len(tensor.raw_data) <= 64:
            tensor.raw_data = np.array([extreme] * (len(tensor.raw_data) // 8), np.int64).tobytes()
        else:
            node.output[0] = other.output[0]
    path.write_bytes(model.SerializeToString())


FORMATS: dict[str, Callable[[Path], Format]] = {
    "safetensors": _safetensors,
    "pytorch": _pytorch,
    "gptq": _packed("gptq"),
    "awq": _packed("awq"),
    "compressed-tensors": _packed("compressed-tensors"),
    "gguf": _gguf,
    "onnx": _onnx,
    "llama2c": _llama2c,
}


@contextmanager
def guard() -> Iterator[None]:
    """At most 2 GiB of new address space inside."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    used = pages * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _late(number: int, frame: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def _opened(path: Path) -> bool:
    """Open a model and read it whole; False when it is refused in one sentence."""
    try:
        checkpoint = open_checkpoint(path)
        for name in checkpoint.names:
            checkpoint.tensor(name)
            checkpoint.codes(name)
        if checkpoint.tokenizer is not None:
            checkpoint.tokenizer()
    except InputError as error:
        assert str(error).strip() and "Traceback" not in str(error)
        return False
    except MissingToolError:
        return False
    return True


def run_seeds(form: Format, work: Path, seeds: range) -> tuple[int, int, float]:
    """Spoil and open once for each seed: how many were refused, how many opened, slowest seconds.

    Raises
    ------
    AssertionError : naming the seed, when anything but an `InputError` came out.
    """
    import time

    refused = accepted = 0
    slowest = 0.0
    signal.signal(signal.SIGALRM, _late)
    with guard():
        for seed in seeds:
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(form.folder, work)
            form.spoil(work, np.random.default_rng(seed))
            begun = time.perf_counter()
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                good = _opened(work / form.opened)
            except BaseException as error:
                raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            slowest = max(slowest, time.perf_counter() - begun)
            accepted, refused = accepted + good, refused + (not good)
    return refused, accepted, slowest
