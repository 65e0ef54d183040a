"""Trace records as a timeline: JSON that Perfetto and chrome://tracing read, one lane a unit."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flightllm.executors import Watch, open_device
from flightllm.spec.errors import InputError
from flightllm.spec.image import load_program
from flightllm.spec.isa import UNITS, Register
from flightllm.spec.trace import TraceRecord

__all__ = ["timeline", "write_timeline"]

LANES = [unit.name.lower() for unit in UNITS]


def timeline(records: Iterable[TraceRecord], clock_mhz: float) -> dict[str, Any]:
    """The "JSON Object Format" of trace events: a process for each core, a thread for each unit.

    Records of an executor that knows no time stand one after the other, a cycle each.
    """
    events: list[dict[str, Any]] = []
    cores: set[int] = set()
    for clock, record in enumerate(records):
        start, end = record.start, record.end
        if start is None or end is None:
            start, end = clock, clock + 1
        cores.add(record.core)
        events.append({
            "name": record.name, "cat": record.unit, "ph": "X", "pid": record.core,
            "tid": LANES.index(record.unit), "ts": start / clock_mhz,
            "dur": max(end - start, 0) / clock_mhz,
            "args": {"address": record.address, "cycle": start, **record.operands},
        })  # fmt: skip
    names = [
        {"name": "process_name", "ph": "M", "pid": core, "args": {"name": f"core {core}"}}
        for core in sorted(cores)
    ] + [
        {"name": "thread_name", "ph": "M", "pid": core, "tid": lane, "args": {"name": name}}
        for core in sorted(cores) for lane, name in enumerate(LANES)
    ]  # fmt: skip
    return {"traceEvents": names + events, "displayTimeUnit": "ns"}


def write_timeline(program: Path, out: Path, on: str = "cycle", prompt: int = 16,
                   tokens: int = 2) -> dict[str, Any]:  # fmt: skip
    """Run a program on an executor and write its timeline.

    Parameters
    ----------
    prompt : tokens of a prompt of zeros; time depends on how many there are, hardly on which.
    tokens : decode steps behind it.

    Raises
    ------
    InputError
        For lengths that the program has no room for.
    """
    found = load_program(program)
    longest, tile = found.model.max_length, found.config.prefill_tile
    if prompt < 1 or tokens < 0 or prompt + tokens > longest:
        raise InputError(f"{prompt} + {tokens} tokens are not 1 to the program's {longest}")
    records: list[TraceRecord] = []
    device = open_device(on, found.config, Watch(trace=records.append))
    device.load(found)
    cycles: int | None = 0
    runs = [
        ("prefill", start, min(tile, prompt - start), 0, int(start + tile >= prompt))
        for start in range(0, prompt, tile)
    ] + [("decode", prompt + step, 1, 1, 1) for step in range(tokens)]
    for entry, position, count, steps, logits in runs:
        result = device.run(entry, {
            Register.POS: position, Register.NTOK: count, Register.STEPS: steps,
            Register.LOGITS: logits,
        })  # fmt: skip
        cycles = None if cycles is None or result.cycles is None else cycles + result.cycles
    device.close()
    out.write_text(json.dumps(timeline(records, found.config.clock_mhz)), encoding="utf-8")
    return {"file": str(out), "executor": on, "instructions": len(records), "cycles": cycles}
