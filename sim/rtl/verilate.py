"""Builds a design with a C++ harness of its own into a program, once for each version of both."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from amaranth.back import verilog

from flightllm.sim.rtl import toolchain

__all__ = ["verilate"]


def verilate(rtlil: str, top: str, harness: Path, cache: Path, defines: Sequence[str] = (),
             optimise: str = "-O1", more: str = "") -> Path:  # fmt: skip
    """The program made of `harness` and the design.

    Parameters
    ----------
    rtlil : the design as RTLIL text, its top module named `top`; the harness sees it as `Vunit`.
    cache : folder of built programs, made if needed; processes may share it.
    defines : C++ macro definitions, "NAME=value". optimise : g++'s level.
    more : Verilog of modules that the design only names.

    Raises
    ------
    SimulationError
        With the tool's own message, if Yosys, Verilator or g++ refuses.
    """
    how = (optimise, toolchain.version(), *toolchain.VERILATE, str(toolchain.FUNCTION))
    parts = (rtlil, more, harness.read_text(), *defines, *how)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    final = cache / f"{top}-{digest}"
    if (final / "program").exists():
        return final / "program"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        folder = Path(scratch) / "build"
        folder.mkdir()
        source = Path(scratch) / "design.v"
        source.write_text(verilog._convert_rtlil_text(rtlil) + more)
        toolchain.verilate(
            ["--top-module", top, "--prefix", "Vunit", "--Mdir", folder, source], folder
        )
        runtime = toolchain.library(cache, Path(scratch))
        options = ("-std=c++17", optimise, "-w", "-pthread")
        headers = toolchain.headers(cache, Path(scratch), options)
        sources = [*sorted(folder.glob("*.cpp")), harness]
        (folder / "all.cc").write_text("".join(f'#include "{path}"\n' for path in sources))
        flags = [f"-D{define}" for define in defines]
        toolchain.call(
            [toolchain.compiler(), *options, *headers, *flags, *toolchain.includes(),
             f"-I{folder}", "all.cc", *runtime, "-o", "program"],
            folder,
        )  # fmt: skip
        keep = Path(scratch) / "keep"
        keep.mkdir()
        shutil.copy2(folder / "program", keep / "program")
        try:
            os.replace(keep, final)
        except OSError:
            if not (final / "program").exists():
                raise
    return final / "program"
