"""A program folder: what the compiler writes and every device loads.

    manifest.json   version, hardware configuration, model facts, segments, digests
    program.bin     instruction and parameter words of every core
    image.bin       the read-only memory segments (absent for a shape-only model)

Every core sees the same addresses in each of its channels. A segment spans [base, base + size) of
every channel of its core; a *spread* vector of n elements lies in the channels as `row_shares`
says.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from flightllm.spec.config import HwConfig
from flightllm.spec.errors import InputError, VerifyError
from flightllm.spec.formats import ALIGN

__all__ = [
    "CoreCode", "ModelFacts", "Piece", "Program", "Segment", "load_program", "save_program",
]  # fmt: skip

VERSION = 1
MAGIC = "flightllm-program"
U8 = NDArray[np.uint8]
Piece = tuple[int, int, U8]
"""Channel, offset in its part of the segment, and bytes."""
READ_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Segment:
    """A piece of a core's memory.

    Parameters
    ----------
    name : unique within the core. core : its core.
    base, size : bytes, in every channel of the core; multiples of 64.
    writable : the device writes it (KV cache, logits, ...); others come from image.bin.
    row : bytes of one row of a table of spread vectors in each channel, 0 where there are none.
    sha256 : digest of the contents, all channels in order (read-only segments).
    """

    name: str
    core: int
    base: int
    size: int
    writable: bool
    row: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class CoreCode:
    """One core's instruction words, parameter words and entry points (word addresses)."""

    words: NDArray[np.uint32]
    params: NDArray[np.uint32]
    entries: Mapping[str, int]


@dataclass(frozen=True)
class ModelFacts:
    """What a host must know of the model to drive it.

    Parameters
    ----------
    vocab_shares : ids [start, stop) whose logits each core computes.
    top_k : pairs (logit, id) in the topk segment. kv_heads, head_dim, layers : for reports.
    """

    name: str
    vocab: int
    max_length: int
    bos: int | None
    eos: tuple[int, ...]
    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    top_k: int
    vocab_shares: tuple[tuple[int, int], ...]


@dataclass
class Program:
    """A compiled model for one hardware configuration.

    Members
    -------
    image : for each (core, segment name) a callable that returns its bytes uint8 [channels, size];
        empty for a shape-only program. pieces : the same for segments too large to be made at
        once; what no piece covers is zero. folder : where it was loaded from, if it was.
    report : what the compiler says of it (sizes, widths); free form.
    """

    config: HwConfig
    model: ModelFacts
    cores: list[CoreCode]
    segments: list[Segment]
    image: dict[tuple[int, str], Callable[[], U8]] = field(default_factory=dict)
    pieces: dict[tuple[int, str], Callable[[], Iterator[Piece]]] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    digest: str = ""

    @property
    def shape_only(self) -> bool:
        """True when the program carries no weights."""
        return not self.image

    def segment(self, core: int, name: str) -> Segment:
        """The segment called `name` of `core`; KeyError when there is none."""
        for segment in self.segments:
            if segment.core == core and segment.name == name:
                return segment
        raise KeyError(f"core {core} has no segment {name!r}")

    def data(self, segment: Segment) -> U8:
        """Contents of a read-only segment, uint8 [channels, size]."""
        return self.image[segment.core, segment.name]()

    @property
    def instruction_bytes(self) -> int:
        """Bytes that control logic reads: programs and parameters of all cores, and the register
        writes (entry, start, POS, NTOK, STEPS, LOGITS) a host makes per token and core."""
        return sum(4 * (len(c.words) + len(c.params)) for c in self.cores) + 4 * 6 * len(self.cores)


def _sha256(parts: Iterable[bytes | memoryview]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()


def _manifest(program: Program, segments: list[Segment], code_sha: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "format": MAGIC,
        "version": VERSION,
        "config": program.config.to_dict(),
        "config_digest": program.config.digest,
        "model": dataclasses.asdict(program.model),
        "cores": [
            {"words": len(c.words), "params": len(c.params), "entries": dict(c.entries)}
            for c in program.cores
        ],
        "segments": [dataclasses.asdict(segment) for segment in segments],
        "program_sha256": code_sha,
        "shape_only": program.shape_only,
        "report": program.report,
    }
    body = json.loads(json.dumps(body))  # as it will be read back
    body["digest"] = _sha256([json.dumps(body, sort_keys=True).encode()])
    return body


def save_program(program: Program, folder: Path, extra: Iterable[Path] = (),
                 progress: Callable[[int, int], None] | None = None) -> str:  # fmt: skip
    """Write a program folder; it appears whole or not at all.

    Parameters
    ----------
    extra : files (tokeniser) to copy beside it. progress : called with bytes done and bytes in all.

    Returns
    -------
    str
        The program's digest.

    Raises
    ------
    InputError
        When `folder` exists and is not a program folder.
    """
    folder = folder.absolute()
    ours = (folder / "manifest.json").is_file()
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is no program folder; choose another -o")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        words = [np.concatenate([c.words, c.params]).astype("<u4").tobytes() for c in program.cores]
        (work / "program.bin").write_bytes(b"".join(words))
        segments = _write_image(program, work / "image.bin", progress)
        manifest = _manifest(program, segments, _sha256(words))
        (work / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        for path in extra:
            shutil.copyfile(path, work / path.name)
        if folder.exists():
            shutil.rmtree(folder)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return str(manifest["digest"])


def _write_image(program: Program, path: Path,
                 progress: Callable[[int, int], None] | None) -> list[Segment]:  # fmt: skip
    if program.shape_only:
        return program.segments
    channels = program.config.channels
    total = sum(s.size * channels[s.core] for s in program.segments if not s.writable)
    start, out = 0, []
    with path.open("w+b") as file:
        file.truncate(total)
        for segment in program.segments:
            if segment.writable:
                out.append(segment)
                continue
            done = 0
            for channel, offset, data in _contents(program, segment):
                file.seek(start + channel * segment.size + offset)
                file.write(data.data)
                done += data.nbytes
                if progress:
                    progress(start + done, total)
            size = segment.size * channels[segment.core]
            digest = _sha256(_read(file, start, size))
            out.append(dataclasses.replace(segment, sha256=digest))
            start += size
            if progress:
                progress(start, total)
    return out


def _contents(program: Program, segment: Segment) -> Iterator[Piece]:
    """The pieces of a read-only segment, each held against the segment's size."""
    channels, key = program.config.channels[segment.core], (segment.core, segment.name)
    if key in program.pieces:
        for channel, offset, data in program.pieces[key]():
            if not 0 <= channel < channels or not 0 <= offset <= segment.size - data.nbytes:
                raise VerifyError(
                    f"segment {segment.name!r} of core {segment.core}: {data.nbytes} bytes at"
                    f" {offset} of channel {channel} do not fit {segment.size} bytes of {channels}"
                )
            yield channel, offset, np.ascontiguousarray(data)
        return
    data = np.ascontiguousarray(program.data(segment))
    if data.shape != (channels, segment.size) or data.dtype != np.uint8:
        raise VerifyError(
            f"segment {segment.name!r} of core {segment.core}: {data.dtype} {data.shape}, "
            f"expected uint8 {(channels, segment.size)}"
        )
    yield 0, 0, data


def _read(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    """A part of a file, some MiB at a time."""
    file.seek(start)
    while size:
        part = file.read(min(size, READ_AT_ONCE))
        size -= len(part)
        yield part


def load_program(folder: Path, verify: bool = True) -> Program:
    """Read a program folder; the image stays on disk, memory-mapped.

    Parameters
    ----------
    verify : check every digest (reads the whole image once).

    Raises
    ------
    InputError
        When the folder is no program, of another version, cut short or altered.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise InputError(f"{folder} is no program folder: it has no manifest.json")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        claimed = body.pop("digest")
        if body["format"] != MAGIC:
            raise InputError(f"{path} is not a manifest of this toolkit")
        if body["version"] != VERSION:
            raise InputError(f"{path}: version {body['version']}, this toolkit reads {VERSION}")
        if _sha256([json.dumps(body, sort_keys=True).encode()]) != claimed:
            raise InputError(f"{path}: the manifest was altered, its digest does not match")
        return _assemble(folder, body, claimed, verify)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a program manifest ({error})") from None


def _assemble(folder: Path, body: dict[str, Any], digest: str, verify: bool) -> Program:
    config = HwConfig.from_dict(body["config"], source=str(folder))
    model = dict(body["model"])
    model["eos"] = tuple(model["eos"])
    model["vocab_shares"] = tuple(tuple(share) for share in model["vocab_shares"])
    segments = [Segment(**item) for item in body["segments"]]
    program = Program(
        config, ModelFacts(**model), _read_code(folder, body), segments,
        report=body["report"], folder=folder, digest=digest,
    )  # fmt: skip
    if not body["shape_only"]:
        _map_image(program, folder / "image.bin", verify)
    return program


def _read_code(folder: Path, body: dict[str, Any]) -> list[CoreCode]:
    path = folder / "program.bin"
    raw = path.read_bytes() if path.is_file() else b""
    if _sha256([raw]) != body["program_sha256"]:
        raise InputError(f"{path}: missing or altered, its digest does not match the manifest")
    words = np.frombuffer(raw, "<u4").astype(np.uint32)
    out, at = [], 0
    for core in body["cores"]:
        middle, end = at + core["words"], at + core["words"] + core["params"]
        out.append(CoreCode(words[at:middle], words[middle:end], dict(core["entries"])))
        at = end
    return out


def _map_image(program: Program, path: Path, verify: bool) -> None:
    channels = program.config.channels
    fixed = [s for s in program.segments if not s.writable]
    need = sum(s.size * channels[s.core] for s in fixed)
    have = path.stat().st_size if path.is_file() else 0
    if have != need:
        raise InputError(f"{path}: {have} bytes, the manifest says {need}")
    at = 0
    for segment in fixed:
        shape = (channels[segment.core], segment.size)
        offset, at = at, at + shape[0] * shape[1]

        def read(offset: int = offset, shape: tuple[int, int] = shape) -> U8:
            if not shape[1]:
                return np.zeros(shape, np.uint8)
            return np.memmap(path, np.uint8, "r", offset, shape)

        if verify and _sha256([np.ascontiguousarray(read()).data]) != segment.sha256:
            raise InputError(
                f"{path}: segment {segment.name!r} of core {segment.core} was altered, its digest "
                "does not match the manifest"
            )
        program.image[segment.core, segment.name] = read


def round_up(size: int) -> int:
    """`size` rounded up to whole 64-byte units."""
    return -(-size // ALIGN) * ALIGN
