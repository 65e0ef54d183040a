"""The scheduled program before encoding: steps with what they touch, and loops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flightllm.compiler.allocate import Region
from flightllm.spec.encoding import Op, Value
from flightllm.spec.isa import Unit

__all__ = ["Access", "Block", "Loop", "Step", "listing"]


@dataclass(frozen=True)
class Access:
    """A step reads or writes [start, stop) of a space ("F", "A", or a kind of memory).

    `apart` names the loops whose iterations touch disjoint parts of the range.
    """

    space: str
    start: int
    stop: int
    write: bool
    apart: frozenset[str] = frozenset()

    @classmethod
    def of(cls, region: Region, write: bool, *apart: str) -> Access:
        """The whole of a region."""
        return cls(region.space, region.start, region.stop, write, frozenset(apart))

    def conflicts(self, other: Access) -> bool:
        """The order of the two matters."""
        return (
            (self.write or other.write)
            and self.space == other.space
            and self.start < other.stop
            and other.start < self.stop
        )


@dataclass(frozen=True)
class Step:
    """One instruction and what it touches. Scalar instructions touch nothing.

    Members
    -------
    signals : in a loop, the unit that each iteration gives a token to, for the loop behind it that
        runs as often. awaits : the unit that each iteration of such a loop takes one from.
    awaited : the accesses that the token makes safe in the iteration of the same number.
    """

    op: Op
    accesses: tuple[Access, ...] = ()
    signals: Unit | None = None
    awaits: Unit | None = None
    awaited: tuple[Access, ...] = ()

    @property
    def unit(self) -> Unit:
        """The unit that runs it."""
        return self.op.kind.unit


@dataclass(frozen=True)
class Loop:
    """A body that runs `count` times."""

    name: str
    count: Value
    body: Block


Block = tuple["Step | Loop", ...]


def _lines(block: Sequence[Step | Loop], indent: str) -> Iterator[str]:
    for node in block:
        if isinstance(node, Loop):
            yield f"{indent}loop {node.name} x {node.count}"
            yield from _lines(node.body, indent + "  ")
        else:
            touched = " ".join(
                f"{'w' if a.write else 'r'}:{a.space}[{a.start}:{a.stop}]" for a in node.accesses
            )
            yield f"{indent}{node.op}" + (f"   ; {touched}" if touched else "")


def listing(block: Sequence[Step | Loop]) -> str:
    """The program as text, with what each step touches."""
    return "\n".join(_lines(block, "")) + "\n"
