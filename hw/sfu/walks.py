"""Where an SFU instruction is: running addresses of its rows and heads, without a multiplier.

A job is a head of a row. It is read, written and its one word (scale or maximum) written at
different times, so each of the three has a walk of its own over all jobs.
"""

from typing import Any

from amaranth.hdl import Module, Mux, Signal

from flightllm.hw.frontend import UnitFrontEnd
from flightllm.spec.isa import by_name

__all__ = ["Walk", "WALKS"]

# walk -> function -> place -> (base, stride of rows, stride of heads)
WALKS: dict[str, dict[str, dict[str, tuple[str, Any, Any]]]] = {
    "read": {
        "add": {"x": ("a", "a1", None), "y": ("b", "b1", None)},
        "stat": {"x": ("src", "src1", None), "y": ("gain", None, None)},
        "quant": {"x": ("src", "src1", None), "y": ("gain", None, None),
                  "sums": ("sums", "sums1", None), "amax": ("amax", "amax1", None)},
        "headq": {"x": ("src", "src1", "size"), "y": ("rope", "rope1", None)},
        "softmax": {"x": ("src", "src1", "src2"), "y": ("vscale", None, None)},
        "act": {"x": ("a", "a1", None), "y": ("b", "b1", None)},
    },
    "write": {
        "add": {"dst": ("dst", "dst1", None)},
        "stat": {"dst": ("sums", "sums1", None)},
        "quant": {"dst": ("dst", "dst1", None)},
        "headq": {"dst": ("dst", "dst1", "pad")},
        "softmax": {"dst": ("dst", "dst1", "dst2")},
        "act": {"dst": ("dst", "dst1", None)},
    },
    "word": {
        "add": {},
        "stat": {"word": ("amax", "amax1", None)},
        "quant": {"word": ("scale", 1, None)},
        "headq": {"word": ("scale", "scale1", 1)},
        "softmax": {"word": ("scale", "scale1", "scale2")},
        "act": {"word": ("amax", "amax1", None)},
    },
}  # fmt: skip
"""The operands that each walk follows."""
HEADS = {"headq": "heads", "softmax": "n2"}
"""The operand that counts heads."""


class Walk:
    """One walk; not a component, it puts its registers into the unit that owns it.

    Parameters
    ----------
    name : in `WALKS`. front : whose operands it follows.

    Members
    -------
    at : by place, the address of the job. row, head : of the job.
    first : the first job. over : no job is left. parity : of the job's number.
    """

    def __init__(self, name: str, front: UnitFrontEnd) -> None:
        self._name, self._front, self._places = name, front, WALKS[name]
        names = {place for places in self._places.values() for place in places}
        self.at: dict[str, Any] = {
            place: Signal(32, name=f"{name}_{place}") for place in sorted(names)
        }
        self._row_at = {
            place: Signal(32, name=f"{name}_{place}_row") for place in sorted(names)
        }  # fmt: skip
        self.row, self.head = Signal(32, name=f"{name}_row"), Signal(32, name=f"{name}_head")
        self.over, self.parity = Signal(name=f"{name}_over"), Signal(name=f"{name}_parity")

    def _operand(self, function: str, operand: Any) -> Any:
        if isinstance(operand, int):
            return operand
        return self._front.operand(f"misc.{function}", operand)

    def counts(self, function: str) -> tuple[Any, Any]:
        """Rows and heads of an instruction."""
        heads = HEADS.get(function)
        return self._operand(function, "n1"), self._operand(function, heads) if heads else 1

    def begin(self, m: Module) -> None:
        """Statements that go to the first job; there may be none."""
        m.d.sync += [self.row.eq(0), self.head.eq(0), self.parity.eq(0), self.over.eq(0)]
        with m.Switch(self._front.function):
            for function, places in self._places.items():
                with m.Case(by_name(f"misc.{function}").function):
                    rows, heads = self.counts(function)
                    m.d.sync += self.over.eq((rows == 0) | (heads == 0))
                    for place, (base, _, _) in places.items():
                        at = self._operand(function, base)
                        m.d.sync += [self.at[place].eq(at), self._row_at[place].eq(at)]

    def advance(self, m: Module) -> None:
        """Statements that go to the next job: the next head, or head 0 of the next row."""
        m.d.sync += self.parity.eq(~self.parity)
        with m.Switch(self._front.function):
            for function, places in self._places.items():
                with m.Case(by_name(f"misc.{function}").function):
                    rows, heads = self.counts(function)
                    last = self.head + 1 == heads
                    m.d.sync += self.head.eq(Mux(last, 0, self.head + 1))
                    with m.If(last):
                        m.d.sync += self.row.eq(self.row + 1)
                        m.d.sync += self.over.eq(self.row + 1 == rows)
                    for place, (_, by_row, by_head) in places.items():
                        self._step(m, function, place, by_row, by_head, last)

    def _step(self, m: Module, function: str, place: str, by_row: Any, by_head: Any,
              last: Any) -> None:  # fmt: skip
        at, row_at = self.at[place], self._row_at[place]
        with m.If(last):
            if by_row is not None:
                following = row_at + self._operand(function, by_row)
                m.d.sync += [at.eq(following), row_at.eq(following)]
        if by_head is not None:
            with m.Else():
                m.d.sync += at.eq(at + self._operand(function, by_head))
