"""What goes into and comes out of a decode unit, and what its parts tell each other."""

from amaranth.hdl import signed, unsigned
from amaranth.lib import data

from flightllm.spec.formats import ALIGN, MatrixFormat

__all__ = [
    "INDEX_BYTES", "KGROUPS_BITS", "PAIRS_BITS", "SCALE_BYTES", "Command", "FormatWord", "Plan",
    "Slice", "Tag", "log2",
]  # fmt: skip

PAIRS_BITS = 18
KGROUPS_BITS = 16
CODES_PER_TABLE = 16
INDEX_BYTES = 512
"""The largest index section of a chunk that a decode unit keeps."""
SCALE_BYTES = ALIGN
"""Bytes of a chunk's scales, and of its second section."""
SECTION_BEATS = 24
"""Bits of a count of beats in a section."""

FormatWord = data.StructLayout({name: unsigned(bits) for name, bits in MatrixFormat.fields()})
"""The format word, from the table in `spec.formats`."""


def log2(value: int) -> int:
    """The exponent of a power of two; ValueError for another number."""
    if value <= 0 or value & (value - 1):
        raise ValueError(f"Size must be a power of two, not {value!r}")
    return value.bit_length() - 1


Command = data.StructLayout({
    "word": FormatWord,
    "sums": 1,
    "twin": 1,
    "singles": 4,
    "pairs": PAIRS_BITS,
    "kgroups": KGROUPS_BITS,
    "table": data.ArrayLayout(signed(8), CODES_PER_TABLE),
})  # fmt: skip
"""One matrix, as this channel holds it.

Members
-------
word : the format word.
sums : each slice is followed by one of ones, from which the cells make sums of activations.
twin : slices may have two parts, see `Slice`.
singles : of a blocked matrix, row pairs at its end that do not share slices, at most 8; the pairs
    before them are whole blocks.
pairs : row pairs of this channel (cyclic: half the rows of its chunks, rounded up).
kgroups : groups of the reduction (cyclic: 1; whole: 32-token blocks).
table : the code table, for formats that have one.
"""


class Slice(data.StructLayout):
    """Levels of two rows for the lanes of a cell.

    Lane 8w + j takes its activation from window w, 16 elements of the reduction. A dense slice
    has 8 elements a window, in its first 8 places.

    A twin slice has a second part, for a second cell: the next elements of the group (`join`) or
    the same elements of the next pair of rows (`couple`); else its levels are 0.

    Parameters
    ----------
    k_lanes : lanes of a part. twin : there is a second part.

    Members
    -------
    codes : int8 levels by part, row and lane; 0 in lanes without a code.
    picks : each lane's place in its window, by part.
    span : elements of the reduction that the slice covers, with `join` in both parts.
    join, couple : what the second part is.
    dense : windows hold 8 elements, not 16.
    rows : rows that have levels here: both, or one of them (the other's are 0).
    sums : the levels are ones.
    again : covers the same elements as the slice before.
    first, last : of a group of a pair. final : last of the matrix.
    scale, second : by part and row, 16 bits as stored; valid with every slice of the group.
    """

    def __init__(self, k_lanes: int, twin: bool = False) -> None:
        parts = 1 + twin
        sections = data.ArrayLayout(data.ArrayLayout(unsigned(16), 2), parts)
        super().__init__({
            "codes": data.ArrayLayout(
                data.ArrayLayout(data.ArrayLayout(signed(8), k_lanes), 2), parts
            ),
            "picks": data.ArrayLayout(data.ArrayLayout(unsigned(4), k_lanes), parts),
            "span": unsigned((2 * k_lanes).bit_length()),
            "dense": unsigned(1),
            "rows": unsigned(2),
            "sums": unsigned(1),
            "again": unsigned(1),
            "first": unsigned(1),
            "last": unsigned(1),
            "final": unsigned(1),
            "join": unsigned(1),
            "couple": unsigned(1),
            "scale": sections,
            "second": sections,
        })  # fmt: skip


class Plan(data.StructLayout):
    """What a command comes down to; made once a matrix.

    Members
    -------
    sections : beats of scales, second section, index, codes and padding behind the codes in one
        unit (a chunk, or a 32-token block of a whole matrix).
    header : one of the first three exists.
    units : units, less one. pairs, final_pairs : pair-groups of a unit and of the last one, less
        one.
    slices : slices of a pair-group, less one.
    bytes, last_bytes : of codes in a slice and in a pair-group's last one. last_span : elements of
        that one.
    select : which form the codes have: their width modulo 8; 1 for 4 bits interleaved bytewise.
    sign : the sign bit of a code, or 0. zero : the second section holds zero points.
    table, bank : codes go through the table; where it lies.
    dense, kept : dense, or the exponent of N in N:16. indices : 4-bit indices. private : a mask for
        each row. lanes_shift : exponent of a mask's length in units of 16 bits.
    split : rows go out one at a time. sums : slices of ones follow.
    join : a slice holds up to 2 * k_lanes elements of its group. couple : pair-groups go out by
        twos where they may. source : codes of a pair-group's row, as k_lanes shifted right.
    coupled : units all of whose pair-groups go by twos, plus 1; of the unit behind them the
        pair-groups below `coupled_pairs` do.
    """

    def __init__(self, k_lanes: int) -> None:
        bytes_bits = (2 * k_lanes).bit_length()
        super().__init__({
            "sections": data.ArrayLayout(unsigned(SECTION_BEATS), 5),
            "header": unsigned(1),
            "units": unsigned(PAIRS_BITS + KGROUPS_BITS),
            "pairs": unsigned(PAIRS_BITS),
            "final_pairs": unsigned(PAIRS_BITS),
            "slices": unsigned(4),
            "bytes": unsigned(bytes_bits),
            "last_bytes": unsigned(bytes_bits),
            "last_span": unsigned((2 * k_lanes).bit_length()),
            "select": unsigned(3),
            "sign": unsigned(8),
            "zero": unsigned(1),
            "table": unsigned(1),
            "bank": unsigned(1),
            "dense": unsigned(1),
            "kept": unsigned(2),
            "indices": unsigned(1),
            "private": unsigned(1),
            "lanes_shift": unsigned(3),
            "split": unsigned(1),
            "sums": unsigned(1),
            "join": unsigned(1),
            "couple": unsigned(1),
            "source": unsigned(3),
            "coupled": unsigned(PAIRS_BITS + KGROUPS_BITS + 1),
            "coupled_pairs": unsigned(4),
        })  # fmt: skip


class Tag(data.StructLayout):
    """What travels beside a slice's bits through the pipeline; see `Plan` and `Slice`."""

    def __init__(self, k_lanes: int, twin: bool) -> None:
        plan, out = Plan(k_lanes).members, Slice(k_lanes, twin).members
        passed = {name: plan[name] for name in (
            "select", "sign", "zero", "table", "bank", "kept", "indices", "source",
        )}  # fmt: skip
        super().__init__(passed | {
            name: out[name] for name in (
                "span", "dense", "rows", "sums", "again", "first", "last", "final", "join",
                "couple", "scale", "second",
            )
        })  # fmt: skip
