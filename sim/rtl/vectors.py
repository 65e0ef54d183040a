"""Millions of operands through one stream unit in Verilator, without Python in the loop.

`build` turns units (anything with one input stream `i` and one output stream `o`) into programs
that read operands from a file, drive `i`, collect `o` and write the results. Programs are kept in
a folder under the digest of their RTLIL, so that a unit that did not change is never built twice.

Payloads travel as rows of little-endian 32-bit words, low word first: see `pack` and `unpack`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from amaranth.back import rtlil, verilog
from amaranth.hdl import Value
from numpy.typing import NDArray

from flightllm.sim.rtl import toolchain
from flightllm.sim.rtl.toolchain import SimulationError

__all__ = ["SimulationError", "VectorProgram", "build", "pack", "unpack"]

Words = NDArray[np.uint32]

_COMPILE = ("-std=c++17", "-O1", "-w", "-pthread")
# A module of Yosys's Verilog; a submodule's name starts with its parent's and a full stop.
_MODULE = re.compile(r"^module \\?([\w.$]+).*?^endmodule$", re.MULTILINE | re.DOTALL)
_HARNESS = Path(__file__).with_name("vectors.cpp")


def pack(*fields: tuple[NDArray[Any], int]) -> Words:
    """Rows of payload words from the fields of a layout, the lowest first.

    Parameters
    ----------
    fields : (values [n], width in bits); of floats the bits count. Widths of at most 32.

    Returns
    -------
    uint32 [n, ceil(total width / 32)].
    """
    total = sum(width for _, width in fields)
    rows = np.zeros((len(fields[0][0]), (total + 31) // 32), np.uint32)
    offset = 0
    for values, width in fields:
        if values.dtype.kind == "f":
            values = values.view(f"u{values.itemsize}")
        bits = values.astype(np.uint64) & np.uint64((1 << width) - 1)
        word, shift = divmod(offset, 32)
        low = bits << np.uint64(shift)  # width + shift is at most 64
        rows[:, word] |= low.astype(np.uint32)
        if shift + width > 32:
            rows[:, word + 1] |= (low >> np.uint64(32)).astype(np.uint32)
        offset += width
    return rows


def unpack(rows: Words, *widths: int) -> list[NDArray[np.uint64]]:
    """The inverse of `pack`: the bits of each field, uint64 [n]; widths of at most 32."""
    fields = []
    offset = 0
    wide = np.concatenate([rows, np.zeros((len(rows), 1), np.uint32)], axis=1).astype(np.uint64)
    for width in widths:
        word, shift = divmod(offset, 32)
        bits = wide[:, word] | wide[:, word + 1] << np.uint64(32)
        fields.append(bits >> np.uint64(shift) & np.uint64((1 << width) - 1))
        offset += width
    return fields


@dataclass(frozen=True)
class VectorProgram:
    """A built unit.

    Attributes
    ----------
    path : the program.
    in_bits, out_bits : widths of the two payloads.
    """

    path: Path
    in_bits: int
    out_bits: int

    def run(
        self,
        rows: Words,
        outputs: int | None = None,
        idle: int = 0,
        stall: int = 0,
        seed: int = 1,
    ) -> tuple[Words, int]:
        """Drive the unit until it has given all its outputs.

        Parameters
        ----------
        rows : uint32 [n, words of the input payload].
        outputs : how many outputs to wait for; None is one for each input.
        idle, stall : per cent of cycles without `i.valid`, and without `o.ready`.

        Returns
        -------
        outputs : uint32 [outputs, words of the output payload].
        cycles : clock cycles from the first with an operand offered to the last output.

        Raises
        ------
        SimulationError
            If nothing moves for 10,000 cycles, or the unit breaks the stream rules (takes back
            `valid`, or changes a payload that waits).
        """
        words = (self.in_bits + 31) // 32
        if rows.ndim != 2 or rows.shape[1] != words:
            raise ValueError(f"operands: {rows.shape} are not rows of {words} words")
        count = len(rows) if outputs is None else outputs
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "operands"), Path(folder, "results")
            np.ascontiguousarray(rows, "<u4").tofile(source)
            command = [self.path, source, target, len(rows), count, idle, stall, seed]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
            if done.returncode:
                raise SimulationError(done.stderr.strip() or f"{self.path.name} crashed")
            results = np.fromfile(target, "<u4").astype(np.uint32, copy=False)
        return results.reshape(count, (self.out_bits + 31) // 32), int(done.stdout)


def build(units: Mapping[str, Any], cache: Path) -> dict[str, VectorProgram]:
    """Build every unit that `cache` does not hold yet.

    Parameters
    ----------
    units : by name (a Verilog identifier), components with streams `i` and `o`.
    cache : folder, made if needed; processes may share it.

    Raises
    ------
    SimulationError
        With the tool's own message, if Yosys, Verilator or g++ refuses.
    """
    programs, missing = {}, {}
    for name, unit in units.items():
        text = rtlil.convert(unit, name=name, emit_src=False)
        path = cache / f"{name}-{_digest(text)}" / "program"
        in_bits, out_bits = (len(Value.cast(stream.payload)) for stream in (unit.i, unit.o))
        programs[name] = VectorProgram(path, in_bits, out_bits)
        if not path.exists():
            missing[name] = text
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _build_missing(missing, programs, cache, Path(folder))
    return programs


def _digest(text: str) -> str:
    how = (toolchain.version(), *toolchain.VERILATE, str(toolchain.FUNCTION), *_COMPILE)
    parts = (text, _HARNESS.read_text(), *how)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _build_missing(
    missing: Mapping[str, str], programs: Mapping[str, VectorProgram], cache: Path, work: Path
) -> None:
    # Starting Yosys costs more than converting a unit: one call for all. The public `convert`
    # takes one design; this is the step it ends with.
    text = verilog._convert_rtlil_text("\n".join(missing.values()))
    modules = {match[1]: match[0] for match in _MODULE.finditer(text)}
    library = toolchain.library(cache, work)
    headers = toolchain.headers(cache, work, _COMPILE)
    for name in missing:
        folder = work / name
        folder.mkdir()
        own = [text for key, text in modules.items() if key.split(".")[0] == name]
        (folder / f"{name}.v").write_text("\n".join(own))
        _build_one(name, folder, library, headers)
        final = programs[name].path.parent
        if not final.exists():
            try:
                shutil.move(str(folder), final)
            except OSError:
                if not final.exists():
                    raise


def _build_one(name: str, folder: Path, library: list[Path], headers: list[str]) -> None:
    toolchain.verilate(
        ["--top-module", name, "--prefix", "Vunit", "--Mdir", folder, folder / f"{name}.v"], folder
    )
    # One file, for which the compiler starts once.
    parts = [*sorted(folder.glob("*.cpp")), _HARNESS]
    (folder / "all.cc").write_text("".join(f'#include "{part}"\n' for part in parts))
    toolchain.call(
        [toolchain.compiler(), *_COMPILE, *headers, *toolchain.includes(), f"-I{folder}", "all.cc",
         *library, "-o", "program"],
        folder,
    )  # fmt: skip
    for path in folder.iterdir():
        if path.name != "program":
            path.unlink()
