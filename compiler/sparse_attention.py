"""Block-sparse attention in prefill as steps: two runs of key blocks a KV head.

A query at position p keeps the blocks of 32 keys that its head's pattern names: some at the
beginning of the text and the last ones up to p's own. A tile of queries lies inside one block, so
all of it keeps the same. Where nothing lies between the two runs they are one run, as in dense
attention. See docs/adr/0010-block-sparse-attention.md.
"""

from __future__ import annotations

from flightllm.compiler.attention import AttentionBuilder, Scores
from flightllm.compiler.builder import R, padded, reg
from flightllm.compiler.ir import Access, Step
from flightllm.spec.encoding import Op, Value
from flightllm.spec.formats import BLOCK

__all__ = ["SparseAttentionBuilder"]


class SparseAttentionBuilder(AttentionBuilder):
    """The attention part of a program, dense or, in prefill, block-sparse."""

    @property
    def _sparse(self) -> bool:
        return self.shape.sparse and not self.decode

    # ------------------------------------------------------------------ tiles of queries

    def count_tiles(self) -> None:
        """row: pieces of the queries between multiples of the attention tile."""
        if not self._sparse:
            super().count_tiles()
            return
        shift = self.layout.attention_tile.bit_length() - 1
        self.scalar("add", "row", self.position, self.tokens)
        self.scalar("sub", "row", reg("row"), 1)
        self.scalar("shr", "row", reg("row"), shift)
        self.scalar("shr", "tmp", reg("p0"), shift)
        self.scalar("sub", "row", reg("row"), reg("tmp"))
        self.scalar("add", "row", reg("row"), 1)

    def tile_lengths(self) -> None:
        """end, n1 and block of the tile that begins at p0, and both pointers to masks."""
        if not self._sparse:
            super().tile_lengths()
            return
        inner = self.layout.attention_tile
        self.scalar("shr", "end", reg("p0"), inner.bit_length() - 1)
        self.scalar("mul", "end", reg("end", 1), inner)
        self.scalar("add", "tmp", self.position, self.tokens)
        self.scalar("min", "end", reg("end"), reg("tmp"))
        self.scalar("sub", "n1", reg("end"), reg("p0"))
        self.scalar("shr", "block", reg("p0"), BLOCK.bit_length() - 1)
        for name in ("kmask", "vmask"):
            self.scalar("add", name, reg("param", self.params.masks))

    def next_tile(self) -> None:
        """The next tile begins behind n1 tokens."""
        if not self._sparse:
            super().next_tile()
            return
        size = self.shape.head_dim
        queries = self.part.kv.size * self.shape.group_heads
        self.scalar("add", "p0", reg("end"))
        self.scalar("mul", "tmp", reg("n1", -1), queries)
        self.scalar("add", "qscale", reg("qscale"), reg("tmp"))
        for name, width in (("qsrc", padded(size, 16)), ("out", size)):
            self.scalar("mul", "tmp", reg("n1", -1), queries * width)
            self.scalar("add", name, reg(name), reg("tmp"))

    # ------------------------------------------------------------------ one KV head

    def _runs(self, mask: str) -> None:
        """What the head keeps, from the parameters at register `mask`.

        kept: blocks of the first run, 0 where there is one run. two: 1 where there are two. shift:
        keys of the first run. first: block that the last run begins with. base: keys left out.
        """
        for name, word in (("kept", 0), ("tmp", 1)):
            self.out.append(Step(Op.make("sys.param", rd=R[name], index=reg(mask, word))))
        self.scalar("sub", "base", reg("block", 1), reg("tmp"))
        self.scalar("max", "base", reg("base"), 0)
        self.scalar("min", "two", reg("base"), 1)
        self.scalar("mul", "kept", reg("kept"), reg("two"))
        self.scalar("min", "two", reg("kept"), 1)
        self.scalar("add", "first", reg("base"), reg("kept"))
        self.scalar("mul", "base", reg("base"), BLOCK)
        self.scalar("mul", "shift", reg("kept"), BLOCK)
        self.advance(**{mask: 2})

    def score_steps(self, at: Scores, apart: str, read: tuple[Access, ...],
                    head: int | None = None) -> None:  # fmt: skip
        """The last run's scores follow the first's. For the softmax the first run stands right
        before the last one: every column is a position that the queries see."""
        if not self._sparse:
            super().score_steps(at, apart, read, head)
            return
        self._runs("kmask")
        self.scalar("sub", "width", reg("end"), reg("base"))
        self.scalar("sub", "rows", reg("width"), reg("shift"))
        self.loop("first run", reg("two"), lambda: self.key_linear(
            at, "", read, dst=at["scores"], emit=at["vs"], first=0, rows=reg("shift")))  # fmt: skip
        self.key_linear(at, "", read, dst=_beyond(at["scores"]), emit=_beyond(at["vs"]),
                        first=reg("first"), rows=reg("rows"))  # fmt: skip
        self.softmax(at, "", reg("width"))

    def value_steps(self, at: Scores, apart: str = "", head: int | None = None) -> None:
        """The last run's values, then the first run's are added; the addend has no distance of
        heads, so heads that share a KV head take a turn each."""
        if not self._sparse:
            super().value_steps(at, apart, head)
            return
        group, size, stride = self.shape.group_heads, self.shape.head_dim, self.layout.score_stride
        self._runs("vmask")
        self.scalar("sub", "blocks", reg("block", 1), reg("first"))
        self.value_linear(at, self.value_matrix(), group, _beyond(at["prob"]), at["factor"],
                          reg("out"))  # fmt: skip
        matrix = self.value_matrix() | {"first": 0, "kgroups": reg("kept")}
        if group == 1:
            self.loop("first run", reg("two"), lambda: self.value_linear(
                at, matrix, 1, at["prob"], at["factor"], reg("out"), add=reg("out")))  # fmt: skip
            return

        def one() -> None:
            self.value_linear(at, matrix, 1, _beyond(at["prob"]), _beyond(at["factor"], "width"),
                              reg("out"), add=reg("out"))  # fmt: skip
            self.advance(shift=stride, width=1, out=size)

        for name in ("shift", "width"):
            self.scalar("add", name, 0)
        self.scalar("mul", "two", reg("two"), group)
        self.loop("first runs", reg("two"), one)
        self.scalar("mul", "tmp", reg("two"), size)
        self.scalar("sub", "out", reg("out"), reg("tmp"))


def _beyond(place: Value, register: str = "shift") -> Value:
    """A register's content behind a place that is known."""
    assert not place.reg
    return Value(place.imm, R[register])
