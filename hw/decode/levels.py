"""From a slice's bits to its codes, from codes to INT8 levels in lanes."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Value
from amaranth.lib import memory

from flightllm.hw.decode.layout import CODES_PER_TABLE

__all__ = ["extract", "levels", "live_blocks", "place", "table_memory"]


def _bit_of(select: int, row: int, code: int) -> tuple[int, int]:
    """(first bit, width) of a row's code; see `Plan.select`."""
    if select == 1:  # two codes of a row to a byte
        return 4 * (4 * (code // 2) + 2 * row + code % 2), 4
    width = select or 8
    return width * (2 * code + row), width


def extract(m: Module, bits: Value, select: Value, out: Any) -> None:
    """The codes of each row in the order of the reduction, zero-extended to 8 bits."""
    with m.Switch(select):
        for option in range(8):
            places = [_bit_of(option, row, code) for row in range(2) for code in range(len(out[0]))]
            with m.Case(option):
                m.d.comb += out.eq(Cat(
                    Cat(bits[at : at + width], Const(0, 8 - width)) for at, width in places
                ))


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


def live_blocks(span: Value, dense: Value, blocks: int) -> Value:
    """Which windows of 8 lanes have elements."""
    count = Mux(dense, span >> 3, span >> 4)
    return Cat(w < count for w in range(blocks))


def levels(m: Module, store: memory.Memory, codes: list[list[Value]], tag: Any, live: Value,
           out: Any) -> None:  # fmt: skip
    """The INT8 level of each lane of each row; 0 where there is none.

    Two's complement is made as zero points are: (code ^ sign bit) - sign bit.
    """
    for row, row_codes in enumerate(codes):
        zero = Mux(tag.zero, tag.second[row][:8], tag.sign)
        for lane, code in enumerate(row_codes):
            w, j = divmod(lane, 8)
            port = store.read_port(domain="comb")
            m.d.comb += port.addr.eq(Cat(code[:4], tag.bank))
            level = Mux(tag.table, port.data, ((code ^ tag.sign) - zero)[:8])
            alive = live[w] & tag.rows[row]
            if j >= 4:
                alive = alive & (tag.dense | (tag.kept == 3))
            elif j >= 2:
                alive = alive & (tag.kept != 1)
            m.d.comb += out[row][lane].eq(Mux(alive, Mux(tag.sums, 1, level), 0))


def table_memory() -> memory.Memory:
    """Two banks of 16 levels; every lane reads on its own."""
    return memory.Memory(shape=8, depth=2 * CODES_PER_TABLE, init=[])
