"""Holds the cycle model against RTL: `spec/calibration.json` and the page docs/calibration.md.

Run as ``python tools/calibrate.py [--only TEXT]`` (``make calibrate``). It builds the hardware of
each preset once, which takes minutes, and runs every case on both executors. Results of cases that
were measured with the same digests are kept, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

__all__ = ["CASES", "Case", "main", "measure", "page"]

ROOT = Path(__file__).resolve().parent.parent
TABLE, PAGE = ROOT / "spec" / "calibration.json", ROOT / "docs" / "calibration.md"
UNITS = ("ld", "st", "mm", "mv", "misc", "sys")

SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "dim": 128, "heads": 4, "kv_heads": 2, "head_dim": 32, "ffn_dim": 352, "layers": 2,
        "vocab": 512,
    },
    "wide": {
        "dim": 256, "heads": 8, "kv_heads": 8, "head_dim": 32, "ffn_dim": 512, "layers": 2,
        "vocab": 512,
    },
    "llama2-7b layer": {
        "dim": 4096, "heads": 32, "kv_heads": 32, "ffn_dim": 11008, "layers": 1, "vocab": 512,
        "head_dim": 128,
    },
}  # fmt: skip
"""Arguments of `random_model`: random weights, on which times do not depend."""


def slice_of(board: str, channels: int) -> HwConfig:
    """One core of a board, with its parameters, fit for a simulator: inferred multipliers, buffers
    of what the cases need."""
    config = load_config(board)
    return dataclasses.replace(
        config, name=f"{board} slice", channels=(channels,), dsp_kind="inferred", slrs=(),
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
        if self.board == "u280 slice":
            return slice_of("u280", 8)
        return load_config(self.board)


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
        Case("u280 slice", "wide", 4, "decode", 1, 40, group=128),
        Case("u280 slice", "wide", 4, "decode", 1, 40, group=128, latency=0),
        Case("u280 slice", "llama2-7b layer", 4, "decode", 1, 255, group=128, latency=0),
        Case("u280 slice", "wide", 4, "prefill", 48, group=128, latency=0),
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


def rtl_device(case: Case) -> Device:
    """The generated hardware with the case's memory."""
    from flightllm.sim.rtl.device import RtlDevice
    from flightllm.sim.rtl.simulation import MemoryModel

    config = case.config()
    memory = MemoryModel(
        latency=case.latency or 100, stalls={"r": case.stalls}, clock_mhz=config.clock_mhz,
        dram=None if case.latency else dram_timing(config),
    )  # fmt: skip
    return RtlDevice(config, memory=memory, progress=lambda text: print(f"  {text}", flush=True))


def cycle_device(case: Case) -> Device:
    """The cycle model with the case's memory."""
    if not case.latency:
        return CycleDevice(case.config(), dram=dram_timing(case.config()))
    return CycleDevice(
        case.config(), memory=PlainMemory(case.latency, pace=1 / (1 - case.stalls))
    )  # fmt: skip


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


def measure(case: Case, program: Program | None = None) -> dict[str, Any]:
    """Both executors on one case: cycles, busy cycles of each unit, and errors in percent."""
    made = program or program_of(case)
    rtl, rtl_counters = _run(rtl_device(case), made, case)
    model, counters = _run(cycle_device(case), made, case)
    config, cores = case.config(), case.config().cores
    units = {}
    for unit in UNITS:
        there = rtl_counters.get(f"{unit}.busy", 0) / cores
        if there:
            mine = round(counters[f"{unit}.busy"] / cores)
            units[unit] = [round(there), mine, round(100 * (mine / there - 1), 2)]
    return {
        "case": case.name, "rtl": rtl, "model": model,
        "error_percent": round(100 * (model / rtl - 1), 3), "units": units,
        "config": {
            **{name: getattr(config, name) for name in calibration.FIELDS},
            "channels": list(config.channels), "dsp_kind": config.dsp_kind,
            "memory": config.memory.kind,
        },
    }  # fmt: skip


def page(table: Mapping[str, Any]) -> str:
    """The page's text from the table."""
    lines = [
        "# Calibration of the cycle model", "",
        "Total cycles of each program in RTL simulation and in the cycle model, and each unit's",
        "busy cycles where they differ most. Written by `make calibrate`; the figures hold for",
        f"gateware `{table['rtl'][:16]}` and model `{table['model'][:16]}` only, and",
        "`flightllm estimate` prints no error when either has changed since.", "",
        "Models are random weights of two small shapes and one LLaMA2-7B layer. `banks` is the",
        "board's memory with rows and refresh, otherwise memory answers after a fixed latency.", "",
        "| program | RTL, cycles | model, cycles | error | largest error of a unit |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in table["programs"]:
        worst = max(row["units"].items(), key=lambda item: abs(item[1][2]), default=("-", [0] * 3))
        cells = [row["case"], f"{row['rtl']:,}", f"{row['model']:,}",
                 f"{row['error_percent']:+.2f} %", f"{worst[0]} {worst[1][2]:+.1f} %"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    errors = [abs(row["error_percent"]) for row in table["programs"]]
    if errors:
        lines += ["", f"{len(errors)} programs; the largest error in total cycles is "
                  f"{max(errors):.2f} %, the mean {np.mean(errors):.2f} %."]  # fmt: skip
    return "\n".join(lines) + "\n"


def _kept() -> list[dict[str, Any]]:
    """Rows that were measured with what is here."""
    if not TABLE.is_file():
        return []
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    fresh = all(table[name] == digest for name, digest in calibration.digests().items())
    return list(table["programs"]) if fresh else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, and write table and page after every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    options = parser.parse_args(arguments)
    rows = {row["case"]: row for row in _kept()}
    for case in CASES:
        if options.only not in case.name or case.name in rows:
            continue
        rows[case.name] = measure(case)
        print(f"{case.name}: {rows[case.name]['error_percent']:+.2f} %", flush=True)
        table = {**calibration.digests(), "programs": list(rows.values())}
        TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(table), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
