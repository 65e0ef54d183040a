"""From a slice's bits to its codes, from codes to INT8 levels in lanes."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, memory

from flightllm.hw.decode.layout import CODES_PER_TABLE, log2

__all__ = ["Tables", "extract", "extract_next", "levels", "live_blocks", "place"]


def _bit_of(select: int, row: int, code: int) -> tuple[int, int]:
    """(first bit, width) of a row's code; see `Plan.select`."""
    if select == 1:  # two codes of a row to a byte
        return 4 * (4 * (code // 2) + 2 * row + code % 2), 4
    width = select or 8
    return width * (2 * code + row), width


def extract(m: Module, bits: Value, select: Value, out: Any) -> None:
    """The codes of each row in the order of the reduction, zero-extended to 8 bits."""
    for row in range(2):
        for code in range(len(out[0])):
            choices = []
            for option in range(8):
                at, width = _bit_of(option, row, code)
                choices.append(Cat(bits[at : at + width], Const(0, 8 - width)))
            m.d.comb += out[row][code].eq(Array(choices)[select])


def extract_next(m: Module, bits: Value, select: Value, source: Value, first: Any,
                 out: Any) -> None:  # fmt: skip
    """The codes of a second part, which follow those of the first.

    Behind `k_lanes` codes a row they are of at most 4 bits, for both parts come from as many bytes;
    behind fewer, a power of two of them, `extract` has found them too.
    """
    lanes = len(out[0])
    beyond = Signal(data.ArrayLayout(data.ArrayLayout(8, lanes), 2))
    with m.Switch(select):
        for option in range(1, 5):
            with m.Case(option):
                for row in range(2):
                    for code in range(lanes):
                        at, width = _bit_of(option, row, lanes + code)
                        m.d.comb += beyond[row][code].eq(bits[at : at + width])
    for row in range(2):
        for code in range(lanes):
            value: Any = beyond[row][code]
            for shift in range(1, log2(lanes) - 1):
                count = lanes >> shift
                if code < count:
                    value = Mux(source == shift, first[row][count + code], value)
            m.d.comb += out[row][code].eq(value)


def place(codes: list[Value], kept: Value) -> list[Value]:
    """Codes by lane: N of them to the first lanes of each window of 8 lanes; 8 when dense."""
    placed = []
    for lane, code in enumerate(codes):
        w, j = divmod(lane, 8)
        out: Any = code
        if j < 4:
            out = Mux(kept == 2, codes[4 * w + j], out)
        if j < 2:
            out = Mux(kept == 1, codes[2 * w + j], out)
        placed.append(out)
    return placed


def live_blocks(span: Value, dense: Value, couple: Value, blocks: int, part: int) -> Value:
    """Which windows of 8 lanes of a part have elements."""
    count = Mux(dense, span >> 3, span >> 4)
    own = Cat(w < count for w in range(blocks))
    return Mux(couple, own, Cat(w + blocks < count for w in range(blocks))) if part else own


def levels(m: Module, tables: Tables, codes: list[list[Value]], tag: Any, second: Any,
           live: Value, step: Value, out: Any) -> None:  # fmt: skip
    """The INT8 level of each lane of each row of a part, a register that `step` enables; 0 where
    there is none.

    Two's complement is made as zero points are: (code ^ sign bit) - sign bit. A look-up table a bit
    chooses between table, code and 1 in front of the one subtraction, value - zero written as
    ~zero - ~value; a lane without a level resets its register.
    """
    plain = ~(tag.table | tag.sums)
    for row, row_codes in enumerate(codes):
        less = Signal(8, name=f"less_{row}")
        m.d.comb += less.eq(~Mux(plain, Mux(tag.zero, second[row][:8], tag.sign), 0))
        for lane, code in enumerate(row_codes):
            w, j = divmod(lane, 8)
            value = Mux(tag.sums, 1, Mux(tag.table, tables.read(m, code[:4]), code ^ tag.sign))
            alive = live[w] & tag.rows[row]
            if j >= 4:
                alive = alive & (tag.dense | (tag.kept == 3))
            elif j >= 2:
                alive = alive & (tag.kept != 1)
            with m.If(step):
                m.d.sync += out[row][lane].eq((less - ~value[:8])[:8])
            with m.If(step & ~alive):
                m.d.sync += out[row][lane].eq(0)


class Tables:
    """Two banks of 16 levels, which every lane reads on its own: a memory for seven lanes, as many
    read ports as the distributed memories of AMD's devices have.

    Parameters
    ----------
    en, address, data : a write to all of them. bank : that is read.
    """

    READERS = 7

    def __init__(self, en: Value, address: Value, data: Value, bank: Value) -> None:
        self._write, self._bank = (en, address, data), bank
        self._count = 0
        self._store: Any = None

    def read(self, m: Module, code: Value) -> Value:
        """The level of a code."""
        if self._count % self.READERS == 0:
            self._store = memory.Memory(
                shape=8, depth=2 * CODES_PER_TABLE, init=[], attrs={"ram_style": "distributed"}
            )
            m.submodules[f"table_{self._count // self.READERS}"] = self._store
            port = self._store.write_port()
            m.d.comb += [
                wire.eq(value) for wire, value in zip((port.en, port.addr, port.data), self._write)
            ]
        self._count += 1
        read = self._store.read_port(domain="comb")
        m.d.comb += read.addr.eq(Cat(code, self._bank))
        return read.data
