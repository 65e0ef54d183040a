"""Ways to spoil any file: bytes, JSON, numbers at their limits, pickles that would run code."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hostile import Spoiler

__all__ = [
    "MARKER", "endless_json", "extreme", "of_bytes", "of_config",
    "of_deep_config", "of_header", "of_header_field", "of_json",
    "payload", "pick", "pickled_weights", "spoil_json", "up_to",
]  # fmt: skip

Random = np.random.Generator
MARKER = Path("/tmp/flightllm-hostile-ran")
"""What a payload would write if it ran."""
EXTREMES = (
    0, 1, -1, 127, 255, 256, 65535, 10**9, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, 2**62, 2**63 - 1,
    -(2**63),
)  # fmt: skip
WORDS = (None, True, [], {}, "", "llama", 0, -1, 1, 3, 1e9, 1e308, -0.5, 10**9, 2**63, [-1], [[[]]])


def pick(random: Random, values: Any) -> Any:
    """One of some values."""
    return values[int(random.integers(len(values)))]


def up_to(random: Random, bits: int) -> int:
    """A count below 2^bits, small ones as likely as large ones."""
    return 1 + int(random.integers(1 << int(random.integers(bits))))


def extreme(random: Random) -> int:
    """A number that sizes and places should not be, within 64 bits with a sign."""
    return int(pick(random, EXTREMES))


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
            size = int(random.choice([1, 2, 4, 8]))
            raw = (extreme(random) & ((1 << (8 * size)) - 1)).to_bytes(size, "little")
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


def spoil_json(value: Any, random: Random, depth: int = 0) -> Any:
    """One place of a JSON value replaced by something odd."""
    if isinstance(value, dict) and value and (depth == 0 or random.random() < 0.8):
        key = pick(random, list(value))
        if random.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: spoil_json(value[key], random, depth + 1)}
    if isinstance(value, list) and value and random.random() < 0.7:
        index = int(random.integers(len(value)))
        return [*value[:index], spoil_json(value[index], random, depth + 1), *value[index + 1 :]]
    return pick(random, WORDS)


def endless_json(random: Random) -> bytes:
    """JSON that nests or repeats up to millions of times."""
    count = up_to(random, 22)
    return bytes(
        pick(random, [b"[" * count, b'{"a":' * count, b"[" + b"[]," * count + b"0]", b"9" * count])
    )


def of_deep_config(folder: Path, random: Random) -> None:
    """config.json without end."""
    (folder / "config.json").write_bytes(endless_json(random))


def of_bytes(name: str, head: int = 4096) -> Spoiler:
    """Spoils bytes of a file, most of them in its first `head`."""

    def spoil(folder: Path, random: Random) -> None:
        path = folder / name
        path.write_bytes(spoil_bytes(path.read_bytes(), random, head))

    return spoil


def of_json(name: str, inside: str = "") -> Spoiler:
    """Spoils places of a JSON file, or of the object under one of its keys."""

    def spoil(folder: Path, random: Random) -> None:
        path = folder / name
        data = json.loads(path.read_text())
        for _ in range(int(random.integers(1, 4))):
            if inside and isinstance(data.get(inside), dict):
                data[inside] = spoil_json(data[inside], random)
            else:
                data = spoil_json(data, random)
        path.write_text(json.dumps(data))

    return spoil


of_config = of_json("config.json")


# ------------------------------------------------------------------------------------ safetensors


def _edit_header(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """A safetensors file with another header."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    (size,) = struct.unpack_from("<Q", raw)
    text = json.dumps(change(json.loads(raw[8 : 8 + size]))).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


def of_header(folder: Path, random: Random) -> None:
    """The safetensors header spoilt as JSON."""

    def change(header: dict[str, Any]) -> Any:
        for _ in range(int(random.integers(1, 4))):
            header = spoil_json(header, random)
        return header

    _edit_header(folder, change)


def of_header_field(field: str) -> Spoiler:
    """One number of "shape" or "data_offsets" of a safetensors header made extreme."""

    def spoil(folder: Path, random: Random) -> None:
        def change(header: dict[str, Any]) -> Any:
            tensor = header[pick(random, [name for name in header if name != "__metadata__"])]
            place = int(random.integers(len(tensor[field])))
            kind = int(random.integers(3))
            if kind == 0:
                tensor[field][place] += pick(random, (-64, -1, 1, 64, 4096))
            elif kind == 1:
                tensor[field][place] = extreme(random)
            else:
                tensor[field] = [extreme(random) for _ in range(int(random.integers(1, 9)))]
            return header

        _edit_header(folder, change)

    return spoil


# ------------------------------------------------------------------------------------ pickles


class _Payload:
    """Pickled, this would run a command when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(MARKER)!r}, 'w').close()",)


def payload(random: Random) -> Any:
    """Something that no weight file should hold; most would execute a command."""
    return pick(
        random,
        [_Payload(), torch.nn.Linear, [_Payload()], {"x": _Payload()}, {_Payload(): 1}, 3, "text"],
    )


def pickled_weights(name: str, keep: bool = False) -> Spoiler:
    """A pickle under a weight file's name; `keep` : with the file's other tensors around."""

    def spoil(folder: Path, random: Random) -> None:
        path = folder / name
        data: Any = payload(random)
        if keep:
            tensors: dict[str, Any] = torch.load(path, weights_only=True)
            tensors[pick(random, list(tensors))] = data
            data = tensors
        torch.save(data, path, _use_new_zipfile_serialization=bool(random.integers(2)))
        if random.random() < 0.2:  # the same, compressed
            with zipfile.ZipFile(path.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as file:
                file.write(path, f"archive/{pick(random, ['data.pkl', 'x'])}")
            path.with_suffix(".zip").replace(path)

    return spoil
