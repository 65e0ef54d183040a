"""Builds a design and the harness around it into a shared library, once for each version of both.

A library is looked up twice: by the sources that the design is generated from, which costs little,
and by the generated design itself, so that a changed comment does not build it anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flightllm.sim.rtl import toolchain

__all__ = ["Design", "build_library", "cache_folder"]

_HERE = Path(__file__).parent
_SOURCES = ("harness.cpp", "memory.h", "trace.h")
_COMPILE = ("-std=c++17", "-w", "-fPIC", "-fno-gnu-unique", "-fvisibility-inlines-hidden")
_SPLIT = 20000
"""Statements of a C++ file that Verilator writes: few headers to read, and work for all cores."""


@dataclass(frozen=True)
class Design:
    """What a library is made of.

    Parameters
    ----------
    name : of the top module, a Verilog identifier.
    channels : memory channels in all. beat_bytes : of each.
    verilog : makes the design's Verilog text.
    key : whatever `verilog` depends on, beyond the sources of `flightllm.hw` and `flightllm.spec`.
    trace_cores : cores whose trace ports the design has, 0 for none.
    """

    name: str
    channels: int
    beat_bytes: int
    verilog: Callable[[], str]
    key: str
    trace_cores: int = 0

    def header(self) -> str:
        """design.h, which tells the harness the design's ports."""
        prefixes = [f"X({c}, m_axi_{c:02d})" for c in range(self.channels)]
        cores = [f"X({core}, trace_{core})" for core in range(self.trace_cores)]
        lines = [
            f"#define DESIGN_CHANNELS {self.channels}",
            f"#define DESIGN_BEAT {self.beat_bytes}",
            f"#define CHANNEL_PORTS(X) {' '.join(prefixes)}",
            f"#define TRACE_CORES {self.trace_cores}",
            f"#define TRACE_PORTS(X) {' '.join(cores)}",
        ]
        return "\n".join(lines) + "\n"


def cache_folder() -> Path:
    """Where built designs stay: FLIGHTLLM_RTL_CACHE, or a folder of the user's cache."""
    named = os.environ.get("FLIGHTLLM_RTL_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flightllm" / "rtl"


def build_library(design: Design, wave: bool = False, cache: Path | None = None,
                  progress: Callable[[str], None] | None = None,
                  optimise: str = "-O2") -> Path:  # fmt: skip
    """The shared library of a design; builds it where the cache has none.

    Parameters
    ----------
    wave : with waveforms, which is slower. cache : `cache_folder` when left out.
    progress : told what is being done, only when something is built.
    optimise : the compiler's level; "-O1" is built in half the time and runs slower.

    Raises
    ------
    SimulationError
        With the tool's own message, if Yosys, Verilator or the compiler refuses.
    MissingToolError
        Where Verilator or a C++ compiler is not installed.
    """
    cache = cache or cache_folder()
    fixed = (
        design.header(), str(wave), optimise, toolchain.version(), toolchain.compiler(), *_COMPILE,
        *toolchain.VERILATE, str(_SPLIT), str(toolchain.FUNCTION),
        *_texts(_HERE / name for name in _SOURCES),
    )  # fmt: skip
    by_source = cache / f"{design.name}-{_digest((design.key, _source_digest(), *fixed))}.key"
    if (built := _built(by_source)) is not None:
        return built
    cache.mkdir(parents=True, exist_ok=True)
    tell = progress or (lambda stage: None)
    with _alone(by_source.with_suffix(".lock"), tell):
        if (built := _built(by_source)) is not None:
            return built
        tell("generating Verilog")
        text = design.verilog()
        folder = cache / f"{design.name}-{_digest((text, *fixed))}"
        if not (folder / "design.so").is_file():
            _build(design, text, wave, optimise, folder, tell)
        _put(by_source, folder.name)
        return folder / "design.so"


def _built(by_source: Path) -> Path | None:
    if not by_source.is_file():
        return None
    found = by_source.parent / by_source.read_text() / "design.so"
    return found if found.is_file() else None


@contextmanager
def _alone(path: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """One process at a time builds a design; the system unlocks it when that process ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("waiting for another process that builds it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(design: Design, text: str, wave: bool, optimise: str, final: Path,
           tell: Callable[[str], None]) -> None:  # fmt: skip
    cache = final.parent
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        work = Path(scratch)
        (work / "design.v").write_text(text)
        (work / "design.h").write_text(design.header())
        tell("translating it to C++")
        sources = ("verilated.cpp", "verilated_threads.cpp", *(["verilated_vcd_c.cpp"] * wave))
        options = ("-O2", "-fPIC", "-fno-gnu-unique")
        with ThreadPoolExecutor(1) as beside:  # Verilator takes one processor
            runtime = beside.submit(toolchain.library, cache, work, sources, options)
            toolchain.verilate(
                ["--top-module", design.name, "--prefix", "Vunit", "--Mdir", work / "cpp",
                 "--output-split", _SPLIT, *(["--trace-vcd"] if wave else []), work / "design.v"],
                work,
            )  # fmt: skip
        tell("compiling it")
        objects = [*_compile(work, wave, optimise), *runtime.result()]
        keep = work / "keep"
        keep.mkdir()
        toolchain.call(
            [toolchain.compiler(), "-shared", "-Wl,-Bsymbolic", *objects, "-pthread",
             "-o", keep / "design.so"],
            work,
        )  # fmt: skip
        shutil.copyfile(work / "design.v", keep / "design.v")
        try:
            os.replace(keep, final)
        except OSError:
            if not (final / "design.so").is_file():
                raise


def _compile(work: Path, wave: bool, optimise: str) -> list[Path]:
    """Every C++ file of the design and the harness, as many at a time as there are processors."""
    largest_first = sorted((work / "cpp").glob("*.cpp"), key=lambda path: -path.stat().st_size)
    sources = [_HERE / "harness.cpp", *largest_first]

    options = [
        *_COMPILE, *toolchain.includes(), f"-I{work}", f"-I{work / 'cpp'}", f"-I{_HERE}",
        *(["-DWAVE"] if wave else []),
    ]  # fmt: skip
    header = work / "cpp" / "Vunit__pch.h"  # all that the design's files include
    compiled = header.with_name(f"{header.name}.gch")
    compiled.mkdir()

    def level(source: Path) -> str:
        return "-O0" if source.stem.endswith("__Slow") else optimise  # Slow runs once

    def precompile(optimised: str) -> None:
        toolchain.precompile(header, compiled / optimised, [*options, optimised])

    def one(source: Path) -> Path:
        out = work / f"{source.stem}.o"
        toolchain.call(
            [toolchain.compiler(), *options, level(source), "-c", source, "-o", out], work
        )
        return out

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(precompile, {level(source) for source in sources}))
        return list(pool.map(one, sources))


def _put(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


def _texts(paths: Iterable[Path]) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in paths]


def _source_digest() -> str:
    """Of all that hardware is generated from."""
    from flightllm import hw, spec

    paths = [path for package in (hw, spec) for path in Path(package.__path__[0]).rglob("*.py")]
    return _digest(_texts(sorted(paths)))


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
