"""Trace records: one schema for every executor, so that traces can be compared and drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["TraceRecord"]


@dataclass(frozen=True)
class TraceRecord:
    """One instruction that a unit executed.

    Members
    -------
    core, unit : where (unit name in lower case). address : word address in the program.
    name : instruction. operands : resolved values.
    start, end : core cycles, None where the executor knows no time.
    writes : SHA-256 (first 16 hex digits) of each thing written, by name ("F", "A", "memory").
    """

    core: int
    unit: str
    address: int
    name: str
    operands: Mapping[str, int]
    start: int | None = None
    end: int | None = None
    writes: Mapping[str, str] = field(default_factory=dict)
