"""Archives that torch.export.save writes (.pt2): the program's JSON and the tensors beside it.

An archive is a zip file of stored (never compressed) members: `models/NAME.json` is the program,
`data/weights` and `data/constants` hold raw tensors and an index of types, shapes and strides.
Tensors are memory-mapped where they lie. Members that are pickled are never read.
"""

from __future__ import annotations

import gc
import json
import math
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flightllm.spec.errors import InputError

__all__ = ["BFLOAT16", "Archive", "Stored", "extents", "numpy_type", "open_archive"]

Array = NDArray[Any]
MAX_JSON = 32 << 20
MAX_MEMBERS = 1 << 18
BFLOAT16 = 13
_TYPES: dict[int, Any] = {
    1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 6: np.float16, 7: np.float32,
    8: np.float64, 12: np.bool_, BFLOAT16: np.uint16,
}  # fmt: skip
"""Types by torch's number in the program's JSON; bfloat16 as its bits."""
_OLD = "torch.export.load it with the release that wrote it, and save it with torch 2.13"


def numpy_type(number: Any, where: str) -> np.dtype[Any]:
    """The type that a number of the program's JSON stands for; bfloat16 gives its bits.

    Raises
    ------
    InputError : for complex numbers, float8 and what is no type at all.
    """
    if not isinstance(number, int) or number not in _TYPES:
        raise InputError(f"{where}: has the type {number!r}, which is not supported")
    return np.dtype(_TYPES[number])


def extents(sizes: Any, where: str) -> tuple[int | None, ...]:
    """Sizes of the program's JSON, None where they are symbols.

    Raises
    ------
    InputError : when they are no sizes.
    """
    if not isinstance(sizes, list):
        raise InputError(f"{where}: sizes are missing")
    out: list[int | None] = []
    for size in sizes:
        value = size.get("as_int") if isinstance(size, dict) else size
        if value is None and isinstance(size, dict) and "as_expr" in size:
            out.append(None)
        elif isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            out.append(value)
        else:
            raise InputError(f"{where}: {size!r} is no size")
    return tuple(out)


@dataclass(frozen=True)
class Stored:
    """A tensor of an archive: a view of bytes of the file, checked to lie inside its member."""

    path: Path
    start: int
    size: int
    dtype: np.dtype[Any]
    bfloat16: bool
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    first: int

    def load(self) -> Array:
        """The values; bfloat16 as float32."""
        return self._widened(self._stored())

    def part(self, rows: slice) -> Array:
        """Some rows of the values; bfloat16 as float32."""
        return self._widened(self._stored()[rows])

    def _widened(self, stored: Array) -> Array:
        if not self.bfloat16:
            return stored
        return np.asarray((stored.astype(np.uint32) << np.uint32(16)).view(np.float32))

    def _stored(self) -> Array:
        """A view of the file; bfloat16 as its bits."""
        if not math.prod(self.shape):
            return np.zeros(self.shape, self.dtype)
        step = self.dtype.itemsize
        raw = np.memmap(self.path, np.uint8, "c", self.start, (self.size // step * step,))
        whole = raw.view(self.dtype)[self.first :]
        return np.lib.stride_tricks.as_strided(
            whole, self.shape, [stride * step for stride in self.strides]
        )


def _parsed(text: bytes) -> Any:
    """JSON without the garbage collector, which takes seconds for millions of objects."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return json.loads(text)
    finally:
        if collects:
            gc.enable()


class Archive:
    """An open archive.

    Members
    -------
    program : the JSON object of the program. tensors : its weights, buffers and constants by name.
    """

    def __init__(self, path: Path, members: Mapping[str, zipfile.ZipInfo]) -> None:
        self.path, self._members = path, members
        names = [name for name in members if name.startswith("models/") and name.endswith(".json")]
        if not names:
            raise InputError(f"{path}: {self._no_program()}")
        if len(names) > 1:
            raise InputError(
                f"{path}: holds {len(names)} programs ({', '.join(sorted(names)[:4])}): save one"
            )
        order = self._bytes("byteorder", 16) if "byteorder" in members else b"little"
        if order != b"little":
            raise InputError(f"{path}: was written on a machine of byte order {order!r}")
        name = names[0].removeprefix("models/").removesuffix(".json")
        self.program: dict[str, Any] = self._json(names[0])
        self.tensors: dict[str, Stored] = {}
        for folder, kind in (("weights", "weights"), ("constants", "constants")):
            index = f"data/{folder}/{name}_{kind}_config.json"
            if index in members:
                self._read_index(f"data/{folder}", self._json(index))
            elif any(member.startswith(f"data/{folder}/") for member in members):
                raise InputError(f"{path}: keeps its {folder} pickled, which is not read: {_OLD}")

    def _no_program(self) -> str:
        if "serialized_exported_program.json" in self._members:
            return f"is of torch 2.7 or older and keeps its weights pickled: {_OLD}"
        if any("aotinductor" in name for name in self._members):
            return "is a compiled AOTInductor package: give the program of torch.export.save"
        return "is no archive of torch.export.save: it has no models/NAME.json"

    def _place(self, name: str) -> tuple[int, int]:
        """Where a member's bytes begin in the file, and how many there are."""
        info = self._members[name]
        where = f"{self.path}: member {name!r}"
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise InputError(f"{where} is compressed, which torch.export.save never does")
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            file.seek(min(max(info.header_offset, 0), size))
            head = file.read(30)
        if len(head) < 30 or head[:4] != b"PK\x03\x04":
            raise InputError(f"{where} has no header where the archive says")
        start = info.header_offset + 30 + sum(struct.unpack_from("<HH", head, 26))
        if start + info.file_size > size:
            raise InputError(f"{where} ends beyond the file")
        return start, info.file_size

    def _bytes(self, name: str, limit: int) -> bytes:
        start, size = self._place(name)
        if size > limit:
            raise InputError(f"{self.path}: member {name!r} has {size} bytes, more than {limit}")
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    def _json(self, name: str) -> dict[str, Any]:
        try:
            made = _parsed(self._bytes(name, MAX_JSON))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.path}: member {name!r} is no JSON ({error})") from error
        if not isinstance(made, dict):
            raise InputError(f"{self.path}: member {name!r} is no JSON object")
        return made

    def _read_index(self, folder: str, index: dict[str, Any]) -> None:
        config = index.get("config")
        if not isinstance(config, dict):
            raise InputError(f"{self.path}: {folder}: the index of tensors has no 'config'")
        places: dict[str, tuple[int, int]] = {}
        for name, entry in config.items():
            where = f"{self.path}: tensor {name!r}"
            if not isinstance(entry, dict) or not isinstance(entry.get("path_name"), str):
                raise InputError(f"{where}: the index does not say where it lies")
            if entry.get("use_pickle") or not isinstance(entry.get("tensor_meta"), dict):
                raise InputError(
                    f"{where}: is pickled, which is never read: export a program whose weights are"
                    " plain tensors, without custom objects"
                )
            member = f"{folder}/{entry['path_name']}"
            if member not in self._members:
                raise InputError(f"{where}: the member {member!r} is missing")
            if member not in places:
                places[member] = self._place(member)
            self.tensors[name] = self._tensor(places[member], entry["tensor_meta"], where)

    def _tensor(self, place: tuple[int, int], meta: dict[str, Any], where: str) -> Stored:
        dtype = numpy_type(meta.get("dtype"), where)
        shape = extents(meta.get("sizes"), where)
        strides = extents(meta.get("strides"), where)
        (first,) = extents([meta.get("storage_offset")], where)
        if meta.get("layout") not in (None, 7):
            raise InputError(f"{where}: is sparse, which is not supported")
        fixed = [extent for extent in shape if extent is not None]
        steps = [stride for stride in strides if stride is not None]
        if first is None or not len(fixed) == len(shape) == len(strides) == len(steps):
            raise InputError(f"{where}: its shape {list(shape)} is not fixed")
        count = math.prod(fixed)
        end = first + 1 + sum((extent - 1) * step for extent, step in zip(fixed, steps))
        needed = max(end, count) * dtype.itemsize if count else 0
        if needed > place[1]:
            raise InputError(f"{where}: {fixed} needs {needed} bytes, but {place[1]} are there")
        return Stored(
            self.path, *place, dtype, meta["dtype"] == BFLOAT16, tuple(fixed), tuple(steps), first
        )


def open_archive(path: Path) -> Archive:
    """Read an archive's program and the index of its tensors.

    Raises
    ------
    InputError : when it is no archive of torch.export.save, is damaged, or keeps tensors pickled.
    """
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, struct.error) as error:
        raise InputError(f"{path}: is no zip archive, or damaged ({error})") from error
    if len(entries) > MAX_MEMBERS:
        raise InputError(f"{path}: {len(entries)} members are more than {MAX_MEMBERS}")
    roots = {entry.filename[: entry.filename.find("/") + 1] for entry in entries}
    root = roots.pop() if len(roots) == 1 else ""
    return Archive(path, {entry.filename.removeprefix(root): entry for entry in entries})
