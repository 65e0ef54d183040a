"""The formats that hostile files are made of: a good model each, and named ways to spoil it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from gguf_files import write_gguf
from hf_models import hf_model, save_hf
from hostile import Format, Spoiler, open_model
from hostile_export import EXPORT
from hostile_onnx import ONNX
from hostile_spoilers import (
    extreme,
    of_bytes,
    of_config,
    of_deep_config,
    of_header,
    of_header_field,
    of_json,
    pick,
    pickled_weights,
)
from onnx_export import export_onnx
from packed_checkpoint import quantise_folder
from random_checkpoint import random_checkpoint
from safetensors.torch import load_file
from tokenizer_files import write_tokenizer
from torch_export import export_program, slimmed

from flightllm.models.checkpoint import open_checkpoint
from flightllm.models.tokenizer import load_tokenizer

__all__ = ["FORMATS"]

Random = np.random.Generator


# ------------------------------------------------------------------------------------ folders


def _many_tensors(folder: Path, random: Random) -> None:
    """A header that claims the room of a thousand million tensors, or layers, or shards."""
    kind = int(random.integers(3))
    path = folder / "model.safetensors"
    if kind == 0:
        path.write_bytes(struct.pack("<Q", extreme(random) & (2**64 - 1)) + path.read_bytes()[8:])
    elif kind == 1:
        config = json.loads((folder / "config.json").read_text())
        key = pick(
            random, ["num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size"]
        )
        config[key] = pick(random, (10**9, 2**31 - 1, 10**6, 10**5))
        (folder / "config.json").write_text(json.dumps(config))
    else:
        names = {f"t{i}": f"model-{i % 999}.safetensors" for i in range(int(random.integers(2000)))}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        path.unlink()


def _foreign_code(folder: Path, random: Random) -> None:
    """A folder that brings its own modelling code, which must never be imported."""
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Model"}
    config["model_type"] = pick(random, ["own", "llama", None])
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text("open('/tmp/flightllm-hostile-ran', 'w').close()")


_HEADERS: dict[str, Spoiler] = {
    "bytes": of_bytes("model.safetensors", 8000),
    "header": of_header,
    "offsets": of_header_field("data_offsets"),
    "shapes": of_header_field("shape"),
    "a billion tensors": _many_tensors,
    "config": of_config,
    "deep": of_deep_config,
    "pickle": pickled_weights("model.safetensors"),
    "foreign code": _foreign_code,
}


def _safetensors(folder: Path) -> Format:
    save_hf("llama", folder, num_hidden_layers=1)
    return Format(folder, ".", _HEADERS, open_model)


def _packed(method: str) -> Callable[[Path], Format]:
    def make(folder: Path) -> Format:
        save_hf("llama", folder, num_hidden_layers=1)
        quantise_folder(folder, method)
        described = {"quantisation": of_json("config.json", "quantization_config")}
        return Format(folder, ".", {**_HEADERS, **described}, open_model)

    return make


def _strange_tensors(folder: Path, random: Random) -> None:
    """Tensors far larger than what is stored of them, sparse ones, and none at all."""
    path = folder / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    one = torch.zeros(1)
    tensors[pick(random, list(tensors))] = pick(
        random,
        [one.expand(10**9, 64), one.expand(2**40), torch.zeros(0), torch.zeros(2, 2).to_sparse(),
         torch.zeros(64, 64, dtype=torch.complex64), one.as_strided((64, 64), (0, 0))],
    )  # fmt: skip
    torch.save(tensors, path)


def _pytorch(folder: Path) -> Format:
    save_hf("llama", folder, num_hidden_layers=1)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    spoilers: dict[str, Spoiler] = {
        "bytes": of_bytes("pytorch_model.bin", 1 << 20),
        "head": of_bytes("pytorch_model.bin", 4096),
        "shapes": _strange_tensors,
        "pickle": pickled_weights("pytorch_model.bin", keep=True),
        "whole pickle": pickled_weights("pytorch_model.bin"),
        "config": of_config,
    }
    return Format(folder, ".", spoilers, open_model)


# ------------------------------------------------------------------------------------ GGUF


def _gguf_numbers(which: str) -> Spoiler:
    """One number of a tensor's entry made extreme: of its "shapes", "offsets" or "types"."""

    def spoil(folder: Path, random: Random) -> None:
        import gguf

        path = folder / "m.gguf"
        field = pick(random, gguf.GGUFReader(path).tensors).field
        sizes = [part.nbytes for part in field.parts]
        starts = field.offset + np.concatenate([[0], np.cumsum(sizes)])
        # The parts: length and text of the name, number of axes, extents, type, offset.
        part = {"shapes": int(random.integers(2, 4)), "types": 4, "offsets": 5}[which]
        count = sizes[part] // (4 if part in (2, 4) else 8)
        step = sizes[part] // count
        at = int(starts[part]) + step * int(random.integers(count))
        data = bytearray(path.read_bytes())
        value = extreme(random) if random.random() < 0.7 else int(random.integers(64))
        data[at : at + step] = (value & ((1 << (8 * step)) - 1)).to_bytes(step, "little")
        path.write_bytes(data)

    return spoil


def _gguf_counts(folder: Path, random: Random) -> None:
    """The numbers of tensors and fields."""
    path = folder / "m.gguf"
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, pick(random, (8, 16)), extreme(random) & (2**64 - 1))
    path.write_bytes(data)


def _gguf(folder: Path) -> Format:
    with TemporaryDirectory() as words:
        vocab = load_tokenizer(write_tokenizer(Path(words))).vocab
        source = random_checkpoint("llama", layers=1, vocab=vocab)
        write_gguf(folder / "m.gguf", source, "F16", tokenizer=Path(words))
    spoilers: dict[str, Spoiler] = {
        "bytes": of_bytes("m.gguf"),
        "tokeniser": of_bytes("m.gguf", 1 << 15),
        "shapes": _gguf_numbers("shapes"),
        "offsets": _gguf_numbers("offsets"),
        "types": _gguf_numbers("types"),
        "a billion tensors": _gguf_counts,
    }
    return Format(folder, "m.gguf", spoilers, _open_with_tokenizer)


def _open_with_tokenizer(path: Path) -> None:
    open_model(path)
    checkpoint = open_checkpoint(path)  # the tokeniser's files go with it
    home = checkpoint.tokenizer_home()
    if home is not None:
        _read_tokenizer(home)


# ------------------------------------------------------------------------------------ the others


def _llama2c_header(folder: Path, random: Random) -> None:
    """One of the seven sizes made extreme."""
    path = folder / "m.bin"
    data = bytearray(path.read_bytes())
    value = extreme(random) & (2**32 - 1)
    struct.pack_into("<I", data, 4 * int(random.integers(7)), value)
    path.write_bytes(data)


def _llama2c_versioned(folder: Path, random: Random) -> None:
    """A header of version 1 or 2, whose sizes are what comes next."""
    path = folder / "m.bin"
    head = struct.pack("<II", 0x616B3432, int(random.integers(4)))
    path.write_bytes(spoil_tail(head + path.read_bytes(), random))


def spoil_tail(data: bytes, random: Random) -> bytes:
    """One number behind the first eight bytes made extreme."""
    out = bytearray(data)
    struct.pack_into("<I", out, 8 + 4 * int(random.integers(16)), extreme(random) & (2**32 - 1))
    return bytes(out)


def _llama2c(folder: Path) -> Format:
    sizes = (32, 48, 1, 4, 2, 40, 16)
    floats = 40 * 32 + 3 * 32 + 32 * 32 * 2 + 2 * 16 * 32 + 3 * 48 * 32 + 16 * 8
    data = np.random.default_rng(0).normal(0, 0.1, floats).astype("<f4")
    data[-128:] = 0
    (folder / "m.bin").write_bytes(struct.pack("<7i", *sizes) + data.tobytes())
    spoilers: dict[str, Spoiler] = {
        "bytes": of_bytes("m.bin", 64),
        "shapes": _llama2c_header,
        "versions": _llama2c_versioned,
    }
    return Format(folder, "m.bin", spoilers, open_model)


def _onnx(folder: Path) -> Format:
    export_onnx(hf_model("llama", num_hidden_layers=1), folder / "m.onnx")
    return Format(folder, "m.onnx", ONNX, open_model)


def _export(folder: Path) -> Format:
    model = hf_model("llama", num_hidden_layers=1)
    slimmed(export_program(model, folder / "m.pt2"))
    return Format(folder, "m.pt2", EXPORT, open_model)


# ------------------------------------------------------------------------------------ tokenisers


def _read_tokenizer(path: Path) -> None:
    """Open a tokeniser and use it both ways."""
    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode("Once upon a time, 3 caf\u00e9s \u65e5\u672c" + "a" * 500)
    tokenizer.decode(ids[:1000])


def _pattern(folder: Path, random: Random) -> None:
    """Patterns that take exponential time in a naive engine, and some that are none."""
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    slow = ["(a+)+$", "(a|aa)+b", "(.*)*x", "((((a{1,99}){1,99}){1,99}){1,99})b"]
    quick = ["[", "(?<=(a|b)*)c", "\\", "", "a*", "\\p{Nothing}", "(?P<a>", "x{99999}", "\\1"]
    pattern = pick(random, slow if random.random() < 0.1 else quick)
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
             "invert": bool(random.integers(2))}  # fmt: skip
    replace = {"type": "Replace", "pattern": {"Regex": pattern}, "content": "b"}
    data[pick(random, ["pre_tokenizer", "normalizer"])] = pick(random, [split, replace])
    path.write_text(json.dumps(data))


def _tokenizer(folder: Path) -> Format:
    write_tokenizer(folder, template=True, rules={"bos_token": "<s>", "eos_token": "</s>"})
    spoilers: dict[str, Spoiler] = {
        "bytes": of_bytes("tokenizer.json", 1 << 20),
        "model": of_json("tokenizer.json", "model"),
        "structure": of_json("tokenizer.json"),
        "rules": of_json("tokenizer_config.json"),
        "patterns": _pattern,
    }
    return Format(folder, ".", spoilers, _read_tokenizer)


def _llama2c_tokenizer(folder: Path) -> Format:
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % i for i in range(256))]
    pieces += [bytes([c]) for c in range(32, 127)] + [b"on", b"ce", b"once", b" up"]
    data = b"".join(struct.pack("<fi", float(i % 7), len(p)) + p for i, p in enumerate(pieces))
    (folder / "tok512.bin").write_bytes(struct.pack("<i", 8) + data)

    def lengths(place: Path, random: Random) -> None:
        raw = bytearray((place / "tok512.bin").read_bytes())
        struct.pack_into("<I", raw, 8, extreme(random) & (2**32 - 1))
        (place / "tok512.bin").write_bytes(raw)

    spoilers: dict[str, Spoiler] = {
        "bytes": of_bytes("tok512.bin", 1 << 20), "lengths": lengths,
    }  # fmt: skip
    return Format(folder, "tok512.bin", spoilers, _read_tokenizer)


FORMATS: dict[str, Callable[[Path], Format]] = {
    "safetensors": _safetensors,
    "pytorch": _pytorch,
    "gptq": _packed("gptq"),
    "awq": _packed("awq"),
    "compressed-tensors": _packed("compressed-tensors"),
    "gguf": _gguf,
    "onnx": _onnx,
    "torch-export": _export,
    "llama2c": _llama2c,
    "tokenizer": _tokenizer,
    "llama2c-tokenizer": _llama2c_tokenizer,
}
