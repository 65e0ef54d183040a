"""Attention as steps: heads quantised, cache appended, scores, softmax and values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from flightllm.compiler.allocate import Region
from flightllm.compiler.builder import POS, Builder, halves, padded, reg
from flightllm.compiler.graph import Node
from flightllm.compiler.ir import Access
from flightllm.spec.encoding import Value
from flightllm.spec.formats import ALIGN, BLOCK, MatrixFormat
from flightllm.spec.isa import QUEUE_DEPTH, Unit
from flightllm.spec.kvcache import key_format, value_format

__all__ = ["AttentionBuilder"]

NO_WINDOW = (1 << 26) - 1
AHEAD = QUEUE_DEPTH - 4
"""Heads whose V is asked for ahead: LD's queue holds it, the output projection and its bias."""


MOST_FIRST = 4
"""KV heads outside the loops of attention, at most; each costs about 56 words of program."""
SCORED = ("scores", "vs", "prob", "factor")
"""Regions of scores and of what softmax makes of them."""


@dataclass(frozen=True)
class Scores:
    """Where scores, V scales, probabilities and output factors are: regions, and operands."""

    regions: dict[str, Region]
    places: dict[str, Value]

    def __getitem__(self, name: str) -> Value:
        return self.places[name]

    def touched(self, write: bool, apart: str, *names: str) -> tuple[Access, ...]:
        """Accesses to some of the regions."""
        loops = (apart,) if apart else ()
        return tuple(Access.of(self.regions[name], write, *loops) for name in names)


class AttentionBuilder(Builder):
    """The attention part of a program."""

    @property
    def key_fmt(self) -> MatrixFormat:
        return key_format(self.shape.head_dim, self.shape.key_bits)

    @property
    def value_fmt(self) -> MatrixFormat:
        return value_format(self.shape.value_bits)

    def do_head_quant(self, node: Node) -> None:
        shape, which = self.shape, str(node.attrs["of"])
        heads = self.part.kv.size * (shape.group_heads if which == "q" else 1)
        size, width = shape.head_dim, padded(shape.head_dim, 16)
        alpha = 1 / (127 * math.sqrt(size))
        flags = ["rope"] if node.attrs["rope"] else []
        if which != "q":
            wide = (shape.key_bits if which == "k" else shape.value_bits) == 8
            alpha = 1 / 127 if wide else 1 / 7
            flags += ["half"] if wide else ["half", "nibble"]
        if not heads:
            return
        pad = size if which == "v" else width
        rope = self.reads("rope") if node.attrs["rope"] else ()
        last = shape.group_heads * self.scored_first if which == "q" else 0
        # Queries whose scores come first come first.
        for begin, end in ((heads - last, heads), (0, heads - last)):
            read, *made = (
                self.rows_of(name, begin, end) if last else self.region(name)
                for name in (which, f"{which}q", f"{which}scale")
            )
            if begin == end:
                continue
            self.step("misc.headq", *flags, src=read.start, src1=heads * size, heads=end - begin,
                      size=size, n1=self.tokens, dst=made[0].start, dst1=heads * pad, pad=pad,
                      rope=self.at("rope") if rope else 0, rope1=size, scale=made[1].start,
                      scale1=heads, alpha=alpha,
                      touch=(Access.of(read, False), *rope,
                             *(Access.of(region, True) for region in made)))  # fmt: skip

    def do_append(self, node: Node) -> None:
        heads, size, memory = self.part.kv.size, self.shape.head_dim, self.layout.memory
        if not heads:
            return
        width = padded(size, 16)
        self.step("st.keys", addr=reg("kbase"), hstride=memory.key_region // ALIGN, heads=heads,
                  fmt=self.key_fmt.word, pos=self.position, count=self.tokens, codes=self.at("kq"),
                  codes1=heads * width, kscale=self.at("kscale"), vscale=self.at("vscale"),
                  scale1=heads, start=0,
                  touch=self.reads("kq", "kscale", "vscale")
                  + (self.memory("keys", True, "layers"),))  # fmt: skip
        self.step("st.values", addr=reg("vbase"), hstride=memory.value_region // ALIGN,
                  heads=heads, rows=size, fmt=self.value_fmt.word, pos=self.position,
                  count=self.tokens, codes=self.at("vq"), codes1=heads * size, codes2=size,
                  touch=self.reads("vq") + (self.memory("values", True, "layers"),))  # fmt: skip

    def attention_lengths(self) -> None:
        """Registers of the window that queries from position p0 on see (decode: once a step)."""
        if self.decode:
            self.scalar("add", "p0", POS)
            self.scalar("add", "n1", 1)
            self.window_registers()

    def window_registers(self) -> None:
        """first, base, rows, blocks from p0 and n1."""
        if self.shape.window is None:
            self.scalar("add", "first", 0)
        else:
            self.scalar("sub", "first", reg("p0"), self.shape.window - 1)
            self.scalar("max", "first", reg("first"), 0)
            self.scalar("shr", "first", reg("first"), 5)
        self.scalar("mul", "base", reg("first"), BLOCK)
        self.scalar("add", "rows", reg("p0"), reg("n1"))
        self.scalar("sub", "rows", reg("rows"), reg("base"))
        self.scalar("shr", "blocks", reg("rows", BLOCK - 1), 5)

    def do_scores(self, node: Node) -> None:
        """All of attention: scores, softmax and values of every KV head."""
        if not self.part.kv.size:
            return
        if self.decode:
            self.decode_attention()
        else:
            self.prefill_attention()

    def advance(self, **amounts: int) -> None:
        for name, amount in amounts.items():
            self.scalar("add", name, reg(name), amount)

    @property
    def scored_first(self) -> int:
        """In decoding: how many KV heads, the last ones, have their scores before the others. While
        the engine makes them, the others' queries are quantised."""
        heads = self.part.kv.size
        return min(heads // 3, MOST_FIRST) if self.decode and heads >= 6 else 0

    def rows_of(self, name: str, begin: int, end: int) -> Region:
        """In decoding: the part of a region that queries `begin` to `end` have."""
        size, stride = self.shape.head_dim, self.layout.score_stride
        row = {"q": size, "qq": padded(size, 16), "scores": stride, "prob": stride}.get(name, 1)
        whole = self.region(name)
        return Region(whole.space, whole.start + begin * row, (end - begin) * row)

    def scores_of_heads(self, begin: int, end: int) -> Scores:
        """In decoding: where the scores of KV heads `begin` to `end` are."""
        group, stride = self.shape.group_heads, self.layout.score_stride
        regions = {n: self.rows_of(n, begin * group, end * group) for n in SCORED}
        scales = self.region("vs")  # a row for each KV head
        regions["vs"] = Region(scales.space, scales.start + begin * stride, (end - begin) * stride)
        return Scores(regions, {n: Value(region.start) for n, region in regions.items()})

    def decode_attention(self) -> None:
        """Scores and softmax of each head in one loop, values behind it: the SFU runs behind, and
        the values of a head wait for its softmax alone. V of the next `AHEAD` heads, and the matrix
        behind them, are asked for before the values: else LD would wait until MV's queue takes
        instructions. No more, for LD's queue must hold them, or nobody would get to the values.

        The last `scored_first` heads stand outside the loops: their scores before, their values
        behind them.
        """
        group, stride = self.shape.group_heads, self.layout.score_stride
        width, memory = padded(self.shape.head_dim, 16), self.layout.memory
        for name, value in (("key", reg("kbase")), ("value", reg("vbase")), ("start", 0)):
            self.scalar("add", name, value)
        for name, region in (
            ("qsrc", "qq"), ("qscale", "qscale"), ("scores", "scores"), ("vs", "vs"),
            ("prob", "prob"), ("factor", "factor"), ("out", "att"),
        ):  # fmt: skip
            self.scalar("add", name, self.at(region))

        heads = self.part.kv.size
        looped = heads - self.scored_first
        at = Scores(self.scores_of_heads(0, looped).regions, {n: reg(n) for n in SCORED})

        def scores() -> None:
            self.score_steps(at, "heads", self.queries(0, looped))
            self.advance(key=memory.key_region // ALIGN, start=1, qsrc=group * width,
                         qscale=group, scores=group * stride, vs=stride, prob=group * stride,
                         factor=group)  # fmt: skip

        def streams() -> None:
            self.stream((self.memory("values", False, "layers"),), **self.value_matrix())
            self.advance(value=memory.value_region // ALIGN)

        def values(loop: str) -> None:
            self.value_steps(at, loop)
            self.advance(prob=group * stride, factor=group, out=group * self.shape.head_dim)

        def both() -> None:
            streams()
            values("both")

        ahead = min(heads, AHEAD)
        for head in range(looped, heads):
            self.score_steps(self.scores_of_heads(head, head + 1), "",
                             self.queries(head, head + 1), head)  # fmt: skip
        self.loop("heads", looped, scores)
        self.loop("streams", ahead, streams)
        self.scalar("add", "prob", self.at("prob"))
        self.scalar("add", "factor", self.at("factor"))
        if heads > ahead:
            self.loop("both", heads - ahead, both)
        # Its bias comes first: behind the matrix it would wait for the engine, which waits for it.
        self.load_biases(("o",))
        self.ask_early("o")
        self.loop("values", ahead - (heads - looped), lambda: values("values"))
        for head in range(looped, heads):
            self.value_steps(self.scores_of_heads(head, head + 1), head=head)

    def queries(self, begin: int, end: int) -> tuple[Access, ...]:
        """In decoding: accesses to what the queries of KV heads `begin` to `end` were made."""
        group = self.shape.group_heads
        return tuple(
            Access.of(self.rows_of(name, begin * group, end * group), False)
            for name in ("qq", "qscale")
        )

    def prefill_attention(self) -> None:
        """Tile by tile of queries, and in each head by head."""
        for name, region in (("qsrc", "qq"), ("qscale", "qscale"), ("out", "att")):
            self.scalar("add", name, self.at(region))
        self.scalar("add", "p0", self.position)

        def tile() -> None:
            self.tile_lengths()
            for name, value in (("key", reg("kbase")), ("value", reg("vbase")), ("start", 0)):
                self.scalar("add", name, value)
            self.heads_of_tile()
            self.next_tile()

        self.count_tiles()
        self.loop("tiles" if self.half is None else f"tiles{self.half}", reg("row"), tile)

    def count_tiles(self) -> None:
        """row: the tiles of queries."""
        inner = self.layout.attention_tile
        self.scalar("add", "row", self.tokens, inner - 1)
        self.scalar("shr", "row", reg("row"), inner.bit_length() - 1)

    def tile_lengths(self) -> None:
        """n1, and what its queries see, of the tile that begins at p0."""
        self.scalar("sub", "n1", self.position, reg("p0"))
        self.scalar("add", "n1", reg("n1"), self.tokens)
        self.scalar("min", "n1", reg("n1"), self.layout.attention_tile)
        self.window_registers()

    def next_tile(self) -> None:
        """From behind the last head of a tile's first token to the next tile."""
        size, inner = self.shape.head_dim, self.layout.attention_tile
        others = (inner - 1) * self.part.kv.size * self.shape.group_heads
        self.advance(p0=inner, qsrc=others * padded(size, 16), qscale=others, out=others * size)

    def heads_of_tile(self) -> None:
        """Scores and values of all heads; with two sets of buffers the scores of the next head come
        before the values of the last one.

        Where tiles have halves, block-sparse steps stand there once: more do not fit the program.
        """
        heads = self.part.kv.size
        once = halves(self.config) and (self.half is None or self.shape.sparse)
        if self.layout.score_sets == 1 or once:
            self.loop("heads", heads, lambda: self.in_order("s0 v0"))
            return
        self.in_order("s0 s1 v0")
        if heads > 3:
            self.loop("heads", heads // 2 - 1, lambda: self.in_order("s0 v1 s1 v0"))
        self.in_order("s0 v1 v0" if heads % 2 else "v1")

    def in_order(self, order: str) -> None:
        """Scores ("s") and values ("v") of the next head of each, in a set of buffers."""
        group, memory = self.shape.group_heads, self.layout.memory
        width = padded(self.shape.head_dim, 16)
        for what, number in map(tuple, order.split()):
            at = self.scores_of(int(number))
            if what == "s":
                self.score_steps(at, "", self.reads("qq", "qscale"))
                self.advance(key=memory.key_region // ALIGN, start=1, qsrc=group * width,
                             qscale=group)  # fmt: skip
            else:
                self.value_steps(at)
                self.advance(value=memory.value_region // ALIGN,
                             out=group * self.shape.head_dim)  # fmt: skip

    def scores_of(self, which: int) -> Scores:
        """One of the sets of buffers that a tile's scores have in prefill."""
        rows = self.layout.attention_tile * self.shape.group_heads
        stride = self.layout.score_stride
        sizes = {"scores": rows * stride, "vs": stride, "prob": rows * stride, "factor": rows}
        regions = {}
        for name, size in sizes.items():
            whole = self.region(name)
            regions[name] = Region(whole.space, whole.start + which * size, size)
        return Scores(regions, {name: Value(region.start) for name, region in regions.items()})

    def score_steps(self, at: Scores, apart: str, read: tuple[Access, ...],
                    head: int | None = None) -> None:  # fmt: skip
        """Scores and softmax of the KV head that registers name, or of `head`.

        Parameters
        ----------
        apart : the loop that this stands in and that a loop over the values is linked with. read :
            accesses to queries and their scales.
        """
        self.key_linear(at, apart, read, head, dst=at["scores"], emit=at["vs"],
                        first=reg("first"), rows=reg("rows"))  # fmt: skip
        self.softmax(at, apart, reg("rows"))
        if apart:
            self.link(signals=Unit.MV)

    def key_linear(self, at: Scores, apart: str, read: tuple[Access, ...], head: int | None = None,
                   **run: Value | int) -> None:  # fmt: skip
        """Queries of one KV head times its keys; `run`: which keys, and where their scores go."""
        group, stride = self.shape.group_heads, self.layout.score_stride
        queries = self.part.kv.size * group
        width = padded(self.shape.head_dim, 16)
        strides = {"src1": queries * width, "src2": width, "scale1": queries, "scale2": 1,
                   "dst1": group * stride, "dst2": stride, "add1": 0}  # fmt: skip
        where: dict[str, Any] = {
            "src": reg("qsrc"), "scale": reg("qscale"), "addr": reg("key"), "start": reg("start"),
        } if head is None else {
            "src": Value(self.at("qq", head * group * width)),
            "scale": Value(self.at("qscale", head * group)),
            "addr": reg("kbase", head * self.layout.memory.key_region // ALIGN),
            "start": Value(head),
        }  # fmt: skip
        self.linear(
            read + at.touched(True, apart, "scores", "vs")
            + (self.memory("keys", False, "layers"),),
            reg("n1"), group, strides, kgroups=1, fmt=self.key_fmt.word, table=0, **where, **run,
        )  # fmt: skip

    def softmax(self, at: Scores, apart: str, columns: Value) -> None:
        """Probabilities and output factors of one KV head's queries."""
        group, stride = self.shape.group_heads, self.layout.score_stride
        self.step(
            "misc.softmax", src=at["scores"], src1=group * stride, src2=stride, vscale=at["vs"],
            dst=at["prob"], dst1=group * stride, dst2=stride, scale=at["factor"], scale1=group,
            scale2=1, n1=reg("n1"), n2=group, length=columns, base=reg("base"), pos=reg("p0"),
            window=self.shape.window or NO_WINDOW,
            touch=at.touched(False, apart, "scores", "vs")
            + at.touched(True, apart, "prob", "factor"),
        )  # fmt: skip

    def value_matrix(self) -> dict[str, Any]:
        """Operands of V of one head."""
        return {
            "addr": reg("value"), "rows": self.shape.head_dim, "kgroups": reg("blocks"),
            "fmt": self.value_fmt.word, "first": reg("first"), "start": 0,
        }  # fmt: skip

    def value_steps(self, at: Scores, apart: str = "", head: int | None = None) -> None:
        """Values of the KV head that registers name, or of `head`, whose V is asked for already; of
        those of the loop `apart` as well."""
        group, matrix = self.shape.group_heads, self.value_matrix()
        out = reg("out")
        if head is not None:
            out = Value(self.at("att", head * group * self.shape.head_dim))
        if apart or head is not None:
            del matrix["addr"]
        self.value_linear(at, matrix, group, at["prob"], at["factor"], out, apart)
        if apart:
            self.link(awaits=Unit.MISC, awaited=at.touched(False, "", "prob", "factor"))

    def value_linear(self, at: Scores, matrix: dict[str, Any], heads: int, src: Value,
                     scale: Value, out: Value, apart: str = "",
                     add: Value | None = None) -> None:  # fmt: skip
        """Probabilities of some of a KV head's queries times its values."""
        size = self.shape.head_dim
        group, stride = self.shape.group_heads, self.layout.score_stride
        token = self.part.kv.size * group * size
        strides = {"src1": group * stride, "src2": stride, "scale1": group, "scale2": 1,
                   "dst1": token, "dst2": size, "add1": 0 if add is None else token}  # fmt: skip
        self.linear(
            at.touched(False, "", "prob", "factor") + self.writes("att", apart=apart)
            + (self.memory("values", False, "layers"),),
            reg("n1"), heads, strides, add, src=src, scale=scale, dst=out, emit=0, table=0,
            **matrix,
        )  # fmt: skip
