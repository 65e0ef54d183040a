"""Holds the cycle model against RTL: `spec/calibration.json` and the page docs/calibration.md.

Run as ``python tools/calibrate.py [--only TEXT]`` (``make calibrate``). It builds the hardware of
each preset once, which takes minutes, and runs every case on both executors. The table is written
after every case. What the hardware did is kept as long as the generated design and the program are
the same: an interrupted run goes on where it stopped, a changed model is measured in seconds, and
sources that changed without changing a case's hardware cost its generation alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from flightllm import calibration
from flightllm.compiler.build import build_program
from flightllm.sim.cycle import CycleDevice, PlainMemory
from flightllm.spec.config import HwConfig, load_config
from flightllm.spec.device import Device
from flightllm.spec.dram import dram_timing
from flightllm.spec.image import Program
from flightllm.spec.isa import Register
from flightllm.spec.trace import TraceRecord

__all__ = ["CASES", "Case", "differences", "main", "measure", "outside_bars", "page", "slice_of"]

Note = Callable[[TraceRecord], None]

ROOT = Path(__file__).resolve().parent.parent
TABLE, PAGE = ROOT / "spec" / "calibration.json", ROOT / "docs" / "calibration.md"
UNITS = ("ld", "st", "mm", "mv", "misc", "sys")
TOTAL, UNIT = 2.0, 5.0
"""Bars, percent: of a program's cycles, and of each unit's busy cycles."""

SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "dim": 128, "heads": 4, "kv_heads": 2, "head_dim": 32, "ffn_dim": 352, "layers": 2,
        "vocab": 512,
    },
    "wide": {
        "dim": 256, "heads": 8, "kv_heads": 8, "head_dim": 32, "ffn_dim": 512, "layers": 2,
        "vocab": 512,
    },
    "quarter of a llama2-7b layer": {
        "dim": 4096, "heads": 8, "kv_heads": 8, "ffn_dim": 2752, "layers": 1, "vocab": 512,
        "head_dim": 128,
    },
}  # fmt: skip
"""Arguments of `random_model`: random weights, on which times do not depend. The last one is what a
core of 8 channels has of a layer over 32 channels."""


SLICES = {"u280": 8, "kv260": 4}
"""Channels of the one core of a slice."""


def slice_of(board: str) -> HwConfig:
    """One core of a board with its parameters, fit for a simulator: inferred multipliers of
    the same bits, 64 MiB a channel."""
    config = load_config(board)
    return dataclasses.replace(
        config, name=f"{board} slice", channels=(SLICES[board],), dsp_kind="inferred", slrs=(),
        memory=dataclasses.replace(config.memory, channel_mib=64),
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One program, run in one way.

    Members
    -------
    board, shape : of `CASES` and `SHAPES`. bits, group, kept : of the weights. kv : of the cache.
    entry : "prefill" or "decode". tokens : of the tile, or steps. position : tokens before them.
    latency, stalls : of a plain memory; latency 0 is the board's own banks.
    """

    board: str
    shape: str
    bits: int
    entry: str
    tokens: int
    position: int = 0
    group: int = 32
    kept: int = 16
    kv: int = 8
    latency: int = 100
    stalls: float = 0.0

    @property
    def name(self) -> str:
        """For tables and `--only`."""
        memory = f"latency {self.latency}" if self.latency else "banks"
        sparse = "" if self.kept == 16 else f" {self.kept}:16"
        stalls = f", stalls {self.stalls:g}" if self.stalls else ""
        return (
            f"{self.board}, {self.shape}, w{self.bits}g{self.group}{sparse} kv{self.kv}, "
            f"{self.entry} {self.tokens} at {self.position}, {memory}{stalls}"
        )

    def config(self) -> HwConfig:
        """The hardware."""
        name, _, sliced = self.board.partition(" ")
        return slice_of(name) if sliced else load_config(name)


LAYER = "quarter of a llama2-7b layer"


def _cases() -> list[Case]:
    out = []
    for board in ("tiny", "tiny-2core"):
        for bits, kept in ((8, 16), (4, 16), (2, 16), (4, 8)):
            for shape, latency in (("small", 100), ("wide", 50)):
                out.append(Case(board, shape, bits, "decode", 2, 17, kept=kept, latency=latency))
        out += [
            Case(board, "small", 4, "prefill", 16), Case(board, "wide", 8, "prefill", 16),
            Case(board, "small", 4, "prefill", 9, 16, kept=8, latency=200),
            Case(board, "wide", 4, "decode", 2, 40, latency=200),
            Case(board, "wide", 4, "decode", 2, 40, stalls=0.1),
            Case(board, "small", 4, "decode", 2, 40, kv=4),
        ]  # fmt: skip
    out += [
        Case("ulx3s-85f", "small", 4, "decode", 2, 17, latency=50),
        Case("ulx3s-85f", "small", 8, "prefill", 8, latency=0),
        Case("kv260 slice", "wide", 4, "decode", 2, 40, group=128, latency=0),
        Case("kv260 slice", "wide", 8, "prefill", 8, 8, latency=0),
        Case("u280 slice", "wide", 4, "decode", 1, 40, group=128),
        Case("u280 slice", "wide", 4, "decode", 1, 40, group=128, latency=0),
        Case("u280 slice", "wide", 4, "prefill", 48, group=128, latency=0),
        Case("u280 slice", LAYER, 4, "decode", 1, 255, group=128, latency=0),
        Case("u280 slice", LAYER, 4, "prefill", 48, 240, group=128, latency=0),
    ]
    return out


CASES = _cases()


def program_of(case: Case) -> Program:
    """The compiled program of a case."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    random_model = importlib.import_module("random_quantized").random_model
    arguments = {**SHAPES[case.shape], "bits": case.bits, "group": case.group, "kept": case.kept,
                 "kv_bits": case.kv, "max_length": 512}  # fmt: skip
    return build_program(random_model(3, **arguments), case.config(), case.shape)


def rtl_device(case: Case, note: Note) -> Device:
    """The generated hardware with the case's memory, and the trace ports that `compare` uses.

    The larger hardware is compiled with -O1, which takes half the time.
    """
    from flightllm.sim.rtl.device import RtlDevice
    from flightllm.sim.rtl.simulation import MemoryModel

    config = case.config()
    memory = MemoryModel(
        latency=case.latency or 100, stalls={"r": case.stalls}, clock_mhz=config.clock_mhz,
        dram=None if case.latency else dram_timing(config),
    )  # fmt: skip
    return RtlDevice(
        config, memory=memory, trace=note, optimise="-O1" if "slice" in case.board else "-O2",
        progress=lambda text: print(f"  {text}", flush=True),
    )  # fmt: skip


def cycle_device(case: Case, note: Note | None = None, began: int = 0) -> Device:
    """The cycle model with the case's memory, which has run for `began` cycles."""
    if not case.latency:
        return CycleDevice(
            case.config(), dram=dram_timing(case.config()), trace=note, began=began
        )
    memory = PlainMemory(case.latency, pace=1 / (1 - case.stalls))
    return CycleDevice(case.config(), memory=memory, trace=note)


def _run(device: Device, program: Program, case: Case) -> tuple[int, Mapping[str, int]]:
    """Cycles and counters of the case's run, on a cache of zeros."""
    device.load(program)
    steps = case.tokens if case.entry == "decode" else 0
    count = 1 if case.entry == "decode" else case.tokens
    result = device.run(case.entry, {
        Register.POS: case.position, Register.NTOK: count, Register.STEPS: steps,
        Register.LOGITS: 1,
    })  # fmt: skip
    device.close()
    assert result.cycles is not None
    return result.cycles, result.counters


def digest(program: Program) -> str:
    """SHA-256 over a program's words and parameters, first 16 hex digits."""
    total = hashlib.sha256()
    for core in program.cores:
        total.update(core.words.tobytes() + core.params.tobytes())
    return total.hexdigest()[:16]


@cache
def design_digest(config: HwConfig) -> str:
    """SHA-256 over the hardware's Verilog, as it is simulated, first 16 hex digits."""
    from flightllm.sim.rtl.device import design_of

    return hashlib.sha256(design_of(config, trace=True).verilog().encode()).hexdigest()[:16]


def measure(case: Case, program: Program | None = None,
            known: Mapping[str, Any] | None = None) -> dict[str, Any]:  # fmt: skip
    """Both executors on one case: cycles, busy cycles of each unit, and errors in percent.

    Parameters
    ----------
    program : of the case, if it is made. known : its row, whose RTL figures are used if the program
        is the same.

    A row's `began` is the cycle of the simulation in which the run begins: refreshes fall alike.
    """
    made = program or program_of(case)
    config, cores, name = case.config(), case.config().cores, digest(made)
    bare = dataclasses.replace(made, image={})
    if known is not None and known["program"] == name:
        rtl, began = known["rtl"], known["began"]
        busy = {unit: part[0] for unit, part in known["units"].items()}
    else:
        starts: list[int] = []
        rtl, counters = _run(rtl_device(case, lambda r: starts.append(r.start or 0)), made, case)
        busy = {unit: round(counters.get(f"{unit}.busy", 0) / cores) for unit in UNITS}
        firsts: list[int] = []
        _run(cycle_device(case, lambda r: firsts.append(r.start or 0)), bare, case)
        began = min(starts) - min(firsts)
    model, mine = _run(cycle_device(case, began=began), bare, case)
    units = {}
    for unit, there in busy.items():
        if there:
            here = round(mine[f"{unit}.busy"] / cores)
            units[unit] = [there, here, round(100 * (here / there - 1), 2)]
    return {
        "case": case.name, "program": name, "design": design_digest(config), "began": began,
        "rtl": rtl, "model": model,
        "error_percent": round(100 * (model / rtl - 1), 3), "units": units,
        "config": {
            **{name: getattr(config, name) for name in calibration.FIELDS},
            "channels": list(config.channels), "dsp_kind": config.dsp_kind,
            "memory": config.memory.kind,
        },
    }  # fmt: skip


def differences(case: Case, count: int = 20) -> list[str]:
    """The first instructions that take other times in the model than in the hardware: core, unit,
    word, name, cycles there and here."""
    made = program_of(case)
    found: dict[tuple[int, int, str], list[TraceRecord]] = defaultdict(list)
    for where, open_device in enumerate((rtl_device, cycle_device)):
        def note(record: TraceRecord, where: int = where) -> None:
            found[where, record.core, record.unit].append(record)

        _run(open_device(case, note), made, case)
    pairs = [
        (a, b) for (where, core, unit), records in list(found.items()) if not where
        for a, b in zip(records, found[1, core, unit])
    ]  # fmt: skip
    pairs.sort(key=lambda pair: pair[0].start or 0)
    lines = []
    for a, b in pairs:
        there, here = ((r.end or 0) - (r.start or 0) for r in (a, b))
        if there != here:
            lines.append(f"core {a.core} {a.unit} {a.address} {a.name}: {there}, model {here}")
    return lines[:count]


def table_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows as a table."""
    lines = [
        "| program | RTL, cycles | model, cycles | error | largest error of a unit |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        worst = max(row["units"].items(), key=lambda item: abs(item[1][2]), default=("-", [0] * 3))
        cells = [row["case"], f"{row['rtl']:,}", f"{row['model']:,}",
                 f"{row['error_percent']:+.2f} %", f"{worst[0]} {worst[1][2]:+.1f} %"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def page(table: Mapping[str, Any]) -> str:
    """The page's text from the table."""
    lines = [
        "# Calibration of the cycle model", "",
        "Total cycles of each program in RTL simulation and in the cycle model, and each unit's",
        "busy cycles where they differ most. Written by `make calibrate`; the figures hold for",
        f"gateware `{table['rtl'][:16]}` and model `{table['model'][:16]}` only, and",
        "`flightllm estimate` prints no error when either has changed since.", "",
        "Models are random weights of two small shapes and of a quarter of a LLaMA2-7B layer, what",
        "a core of 8 channels has of one over 32. `banks` is the board's memory with rows and",
        "refresh, otherwise memory answers after a fixed latency. A slice is one core of the board",
        "with its parameters, 8 channels of `u280`, 4 of `kv260`.",
        "", *table_of(table["programs"]),
    ]  # fmt: skip
    errors = [abs(row["error_percent"]) for row in table["programs"]]
    if errors:
        units = [abs(part[2]) for row in table["programs"] for part in row["units"].values()]
        lines += ["", f"{len(errors)} programs; the largest error in total cycles is "
                  f"{max(errors):.2f} %, the mean {np.mean(errors):.2f} %; the largest in a unit's "
                  f"busy cycles is {max(units):.1f} %."]  # fmt: skip
    known = {row["case"] for row in table["programs"]}
    missing = [case.name for case in CASES if case.name not in known]
    if missing:
        lines += ["", "Not measured yet:", "", *(f"- {name}" for name in missing)]
    return "\n".join(lines) + "\n"


def _kept() -> dict[str, dict[str, Any]]:
    """Rows whose RTL figures were measured on the hardware that is generated now, by case;
    `pending` are those that an interrupted run left with another model's."""
    if not TABLE.is_file():
        return {}
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    rows = {row["case"]: row for row in (*table["programs"], *table["pending"])}
    if table["rtl"] == calibration.digests()["rtl"]:
        return rows
    return {
        case.name: rows[case.name] for case in CASES
        if case.name in rows and rows[case.name].get("design") == design_digest(case.config())
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write table and page after every case.

    Returns
    -------
    1 when an error is above its bar (`TOTAL`, `UNIT`), else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--differences", action="store_true",
                        help="print the first instructions whose times differ, write nothing")
    options = parser.parse_args(arguments)
    if options.differences:
        for case in CASES:
            if options.only in case.name:
                print("\n".join([case.name, *differences(case)]))
        return 0
    known, rows = _kept(), {}
    wanted = [case for case in CASES if options.only in case.name or case.name in known]
    for case in wanted:
        rows[case.name] = measure(case, known=known.get(case.name))
        print(table_of([rows[case.name]])[-1], flush=True)
        table = {
            **calibration.digests(),
            "programs": [rows[case.name] for case in CASES if case.name in rows],
            "pending": [row for name, row in known.items() if name not in rows],
        }
        TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(table), encoding="utf-8")
    return int(any(outside_bars(row) for row in rows.values()))


def outside_bars(row: Mapping[str, Any]) -> bool:
    """Whether one of a row's errors is above its bar."""
    units = [abs(part[2]) for part in row["units"].values()]
    return bool(abs(row["error_percent"]) > TOTAL or max(units) > UNIT)


if __name__ == "__main__":
    sys.exit(main())
