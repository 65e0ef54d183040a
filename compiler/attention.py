"""Attention as steps: heads quantised, cache appended, scores, softmax and values."""

from __future__ import annotations

import math

from flightllm.compiler.builder import POS, Builder, padded, reg
from flightllm.compiler.graph import Node
from flightllm.spec.encoding import Value
from flightllm.spec.formats import ALIGN, BLOCK, MatrixFormat
from flightllm.spec.isa import Unit
from flightllm.spec.kvcache import key_format, value_format

__all__ = ["AttentionBuilder"]

NO_WINDOW = (1 << 26) - 1


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
        self.step("misc.headq", *flags, src=self.at(which), src1=heads * size, heads=heads,
                  size=size, n1=self.tokens, dst=self.at(f"{which}q"), dst1=heads * pad, pad=pad,
                  rope=self.at("rope") if rope else 0, rope1=size, scale=self.at(f"{which}scale"),
                  scale1=heads, alpha=alpha,
                  touch=self.reads(which) + rope
                  + self.writes(f"{which}q", f"{which}scale"))  # fmt: skip

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
        starts = {"key": reg("kbase"), "value": reg("vbase"), "start": Value(0)}
        for name, value in starts.items():
            self.scalar("add", name, value)
        if self.decode:
            self.decode_attention()
        else:
            self.prefill_attention()

    def advance(self, **amounts: int) -> None:
        for name, amount in amounts.items():
            self.scalar("add", name, reg(name), amount)

    def decode_attention(self) -> None:
        """Scores and softmax of each head in one loop, values in a second: the SFU runs behind,
        and the values of a head wait for its softmax alone."""
        group, stride = self.shape.group_heads, self.layout.score_stride
        width, memory = padded(self.shape.head_dim, 16), self.layout.memory
        for name, region in (
            ("qsrc", "qq"), ("qscale", "qscale"), ("scores", "scores"), ("vs", "vs"),
            ("prob", "prob"), ("factor", "factor"), ("out", "att"),
        ):  # fmt: skip
            self.scalar("add", name, self.at(region))

        def scores() -> None:
            self.score_steps("heads")
            self.advance(key=memory.key_region // ALIGN, start=1, qsrc=group * width,
                         qscale=group, scores=group * stride, vs=stride, prob=group * stride,
                         factor=group)  # fmt: skip

        def values() -> None:
            self.value_steps("values")
            self.advance(value=memory.value_region // ALIGN, prob=group * stride, factor=group,
                         out=group * self.shape.head_dim)  # fmt: skip

        self.loop("heads", self.part.kv.size, scores)
        self.scalar("add", "prob", self.at("prob"))
        self.scalar("add", "factor", self.at("factor"))
        self.loop("values", self.part.kv.size, values)

    def prefill_attention(self) -> None:
        """Head by head, tile by tile of queries; one set of score buffers."""
        group, heads, size = self.shape.group_heads, self.part.kv.size, self.shape.head_dim
        width, inner, memory = padded(size, 16), self.layout.attention_tile, self.layout.memory
        for name, region in (
            ("scores", "scores"), ("vs", "vs"), ("prob", "prob"), ("factor", "factor"),
        ):  # fmt: skip
            self.scalar("add", name, self.at(region))
        self.scalar("add", "tmp", 0)  # the head's number

        def tile() -> None:
            self.scalar("sub", "n1", self.position, reg("p0"))
            self.scalar("add", "n1", reg("n1"), self.tokens)
            self.scalar("min", "n1", reg("n1"), inner)
            self.window_registers()
            self.score_steps("")
            self.value_steps("")
            queries = heads * group
            self.advance(p0=inner, qsrc=inner * queries * width, qscale=inner * queries,
                         out=inner * queries * size)  # fmt: skip

        def head() -> None:
            self.scalar("add", "p0", self.position)
            for name, region, step in (
                ("qsrc", "qq", group * width), ("qscale", "qscale", group),
                ("out", "att", group * size),
            ):  # fmt: skip
                self.scalar("mul", name, reg("tmp"), step)
                self.scalar("add", name, reg(name), self.at(region))
            self.scalar("add", "row", self.tokens, inner - 1)
            self.scalar("shr", "row", reg("row"), inner.bit_length() - 1)
            self.loop("tiles" if self.half is None else f"tiles{self.half}", reg("row"), tile)
            self.advance(tmp=1, key=memory.key_region // ALIGN, start=1,
                         value=memory.value_region // ALIGN)  # fmt: skip

        self.loop("heads", heads, head)

    def score_steps(self, apart: str) -> None:
        shape, group, stride = self.shape, self.shape.group_heads, self.layout.score_stride
        queries = self.part.kv.size * group
        width = padded(shape.head_dim, 16)
        strides = {"src1": queries * width, "src2": width, "scale1": queries, "scale2": 1,
                   "dst1": group * stride, "dst2": stride, "add1": 0}  # fmt: skip
        self.linear(
            self.reads("qq", "qscale") + self.writes("scores", "vs", apart=apart)
            + (self.memory("keys", False, "layers"),),
            reg("n1"), group, strides, src=reg("qsrc"), scale=reg("qscale"), dst=reg("scores"),
            addr=reg("key"), rows=reg("rows"), kgroups=1, fmt=self.key_fmt.word,
            first=reg("first"), start=reg("start"), emit=reg("vs"), table=0,
        )  # fmt: skip
        self.step(
            "misc.softmax", src=reg("scores"), src1=group * stride, src2=stride, vscale=reg("vs"),
            dst=reg("prob"), dst1=group * stride, dst2=stride, scale=reg("factor"), scale1=group,
            scale2=1, n1=reg("n1"), n2=group, length=reg("rows"), base=reg("base"), pos=reg("p0"),
            window=shape.window or NO_WINDOW,
            touch=self.reads("scores", "vs", apart=apart)
            + self.writes("prob", "factor", apart=apart),
        )  # fmt: skip
        if apart:
            self.link(signals=Unit.MV)

    def value_steps(self, apart: str) -> None:
        shape, group, stride = self.shape, self.shape.group_heads, self.layout.score_stride
        size = shape.head_dim
        queries = self.part.kv.size * group
        strides = {"src1": group * stride, "src2": stride, "scale1": group, "scale2": 1,
                   "dst1": queries * size, "dst2": size, "add1": 0}  # fmt: skip
        made = self.reads("prob", "factor")
        self.linear(
            made + self.writes("att", apart=apart) + (self.memory("values", False, "layers"),),
            reg("n1"), group, strides, src=reg("prob"), scale=reg("factor"), dst=reg("out"),
            addr=reg("value"), rows=size, kgroups=reg("blocks"), fmt=self.value_fmt.word,
            first=reg("first"), start=0, emit=0, table=0,
        )  # fmt: skip
        if apart:
            self.link(awaits=Unit.MISC, awaited=made)
