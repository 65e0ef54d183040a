"""Where two executors differ: the first instruction and field, or nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any

from flightllm.executors import Watch, open_device
from flightllm.runtime.generate import Generation, Generator
from flightllm.runtime.session import Session
from flightllm.spec.errors import FlightError, InputError
from flightllm.spec.image import Program
from flightllm.spec.trace import TraceRecord

__all__ = ["Comparison", "Difference", "compare", "first_difference"]

_FIELDS = ("address", "name", "operands", "writes")
Records = dict[tuple[int, str], list[tuple[int, TraceRecord]]]
"""By core and unit: each record, and how many instructions of any unit were done before it."""


@dataclass(frozen=True)
class Difference:
    """The first thing in which two executors differ.

    Members
    -------
    core, unit, index, address, name : the instruction; `index` counts those of its unit.
    field : what differs: "address", "name", "operands", "writes", "instructions" (one unit ran
        more), "token_ids" or "memory_sha256" (then there is no instruction).
    first, second : the two values.
    """

    field: str
    first: Any
    second: Any
    core: int | None = None
    unit: str | None = None
    index: int | None = None
    address: int | None = None
    name: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Two runs of one program side by side.

    Members
    -------
    instructions : compared in all. difference : the first, or None.
    """

    between: tuple[str, str]
    instructions: int
    token_ids: tuple[int, ...]
    memory_sha256: str
    difference: Difference | None

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return self.difference is None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = asdict(self)
        return {"equal": self.equal, **values, "token_ids": [*self.token_ids]}


def compare(
    program: Program, between: tuple[str, str], ids: Sequence[int], tokens: int = 8
) -> Comparison:
    """Run a prompt on two executors and hold every instruction of every unit against its twin.

    Units are compared each by itself, as executors may interleave them as they like.

    Parameters
    ----------
    between : names of executors, see `flightllm.executors`.
    ids : the prompt. tokens : to generate, greedily.

    Raises
    ------
    InputError
        For an unknown executor, an impossible prompt, or an executor that traces nothing.
    """
    first = _run(between[0], program, ids, tokens)
    if first.error is not None:
        raise first.error
    second = _run(between[1], program, ids, tokens)
    difference = first_difference(first.records, second.records)
    if second.error is not None and (difference is None or difference.field == "instructions"):
        raise second.error  # nothing that was done explains it
    if difference is None:
        difference = _first_result(first.generation, second.generation)
    ids_, digest = first.generation.token_ids, first.generation.memory_sha256
    return Comparison(between, len(first.records), ids_, digest, difference)


@dataclass
class _Run:
    """What an executor made of a prompt, until it was through or an error ended it."""

    records: list[TraceRecord] = field(default_factory=list)
    error: FlightError | None = None
    result: Generation | None = None

    @property
    def generation(self) -> Generation:
        assert self.result is not None
        return self.result


def _run(on: str, program: Program, ids: Sequence[int], tokens: int) -> _Run:
    """Run; InputError where nothing can be compared."""
    out = _Run()
    device = open_device(on, program.config, Watch(out.records.append))
    try:
        run = Generator(Session(device, program), ids, tokens)
        for _ in run:
            pass
        out.result = run.result()
    except FlightError as error:
        if not out.records:
            raise
        out.error = error
    finally:
        device.close()
    if not out.records:
        raise InputError(f"executor {on!r} traces nothing, so it cannot be compared")
    return out


def first_difference(
    first: Iterable[TraceRecord], second: Iterable[TraceRecord]
) -> Difference | None:
    """The first instruction in which two traces differ, or None.

    Units are compared each by itself. Among their first differences, that of the instruction which
    the first executor had done first comes first.
    """
    return _first_record(_by_unit(first), _by_unit(second))


def _by_unit(records: Iterable[TraceRecord]) -> Records:
    out: Records = defaultdict(list)
    for done, record in enumerate(records):
        out[record.core, record.unit].append((done, record))
    return out


def _first_record(first: Records, second: Records) -> Difference | None:
    """The difference that comes first in the order in which the first executor got things done.

    What an instruction spoils is read by later ones only, so that is where the cause is.
    """
    found = [
        difference
        for place in sorted(first.keys() | second.keys())
        if (difference := _in_unit(place, first.get(place, []), second.get(place, [])))
    ]
    return min(found, key=lambda pair: pair[0])[1] if found else None


def _in_unit(
    place: tuple[int, str],
    first: list[tuple[int, TraceRecord]],
    second: list[tuple[int, TraceRecord]],
) -> tuple[float, Difference] | None:
    """One unit's first difference, and when the first executor had done that instruction."""
    core, unit = place
    for index, ((when, one), (_, other)) in enumerate(zip(first, second)):
        for name in _FIELDS:
            a, b = getattr(one, name), getattr(other, name)
            if a != b:
                return when, Difference(name, a, b, core, unit, index, one.address, one.name)
    if len(first) != len(second):
        index = min(len(first), len(second))
        return inf, Difference("instructions", len(first), len(second), core, unit, index)
    return None


def _first_result(first: Generation, second: Generation) -> Difference | None:
    for name in ("token_ids", "memory_sha256"):
        a, b = getattr(first, name), getattr(second, name)
        if a != b:
            return Difference(name, a, b)
    return None
