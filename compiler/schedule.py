"""Schedule: the fused graph of one core as steps and loops, in the order the units shall see them.

One routine serves prefill and decode; they differ in the matrix unit (MM over the tokens of a tile,
MV over one) and in how attention loops. Lengths appear only in registers, layers and heads only as
loops, so the program's size depends on neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from flightllm.compiler.allocate import Layout, Region, piece_bytes
from flightllm.compiler.builder import LOGITS, NTOK, POS, STEPS, halves, padded, reg
from flightllm.compiler.graph import Graph, Node
from flightllm.compiler.ir import Access, Block
from flightllm.compiler.parameters import Parameters
from flightllm.compiler.shape import ModelShape
from flightllm.compiler.sparse_attention import SparseAttentionBuilder
from flightllm.compiler.tile import CoreTile, Span
from flightllm.spec.config import HwConfig
from flightllm.spec.encoding import Value
from flightllm.spec.formats import ALIGN, kgroups_for
from flightllm.spec.isa import Register

__all__ = ["Schedule", "schedule"]

HALVES = (
    "attn_norm 0, attn_norm 1, k 0, k heads 0, k 1, k heads 1, v 0, v heads 0, append 0, "
    "q 0, q heads 0, v 1, scores 0, quantise 0, v heads 1, append 1, q 1, q heads 1, o 0, "
    "scores 1, quantise 1, o 1"
)
"""How a layer begins in a tile of two halves: nodes, and the half that each is for."""


@dataclass(frozen=True)
class Schedule:
    """One core's programs: entry name -> block."""

    prefill: Block
    decode: Block


def schedule(graph: Graph, shape: ModelShape, parts: list[CoreTile], core: int, layout: Layout,
             params: Parameters, config: HwConfig) -> Schedule:  # fmt: skip
    """Both programs of a core."""
    blocks = [
        _Emitter(graph, shape, parts, core, layout, params, config, mode).program()
        for mode in ("prefill", "decode")
    ]
    return Schedule(*blocks)


class _Emitter(SparseAttentionBuilder):
    """Walks the fused graph and appends steps; `self.out` is the block being filled."""

    # -------------------------------------------------------------------------------- whole program

    def program(self) -> Block:
        words = self.config.prefill_tile
        self.scalar("add", "step", 0)
        self.ask_for_next("first")
        self.step("ld.vec", addr=self.units("tokens"), dst=self.at("topk", 1), n=words, count=1,
                  mstride=0, dstride=0, touch=self.writes("topk"))  # fmt: skip
        if self.decode:
            self.loop("steps", STEPS, self.one_pass)
        else:
            self.one_pass()
        self.step("sys.halt")
        return tuple(self.out)

    def one_pass(self) -> None:
        """A tile of tokens (or one token) through the model."""
        for node in self.graph.prologue:
            getattr(self, f"do_{node.op}")(node)
        self.load_rope()
        self.attention_lengths()
        for name, value in (
            ("param", self.params.layers),
            ("vec", self.units("vectors")),
            ("kbase", self.units("kv")),
            ("vbase", self.units("kv", self.part.kv.size * self.layout.memory.key_region)),
        ):
            self.scalar("add", name, value)
        self.load_vector("gain_attn", "attn_norm")
        self.load_biases(("q", "k", "v"))
        if self.decode:
            self.scalar("add", "later", 0)
        if self.decode or not halves(self.config):
            self.loop("layers", self.graph.layers, self.layer)
        else:
            self.both_or_one()
        if "head" in self.shape.biases:
            self.load_vector("bias_head", "bias_head")
        for node in self.graph.epilogue:
            if node.op == "norm_quant":
                self.do_norm_quant(node)
        self.head()
        if self.decode:
            self.scalar("add", Register.POS, POS, 1)
            self.scalar("add", "step", reg("step"), 1)
            self.ask_for_next("next")

    def both_or_one(self) -> None:
        """Layers on both halves of the tile, or, of a tile that is not fuller, on one."""
        self.scalar("add", "rest", NTOK, -(self.config.prefill_tile // 2))
        for name, body in (("both", self.layer_in_halves), ("one", self.layer)):
            self.scalar("max", "tmp", reg("rest"), 0)
            self.scalar("min", "tmp", reg("tmp"), 1)
            if name == "one":
                self.scalar("sub", "tmp", 1, reg("tmp"))
            self.loop(name, reg("tmp"), partial(self.loop, "layers", self.graph.layers, body))

    def layer_in_halves(self) -> None:
        """A layer, each step for the first half of the tile and for the second.

        The halves' attention lies apart, so that a matrix of one half hides what the special
        functions do for the other: while the engine has the second half's V, queries are turned;
        while it has the second half's queries, the first half's results are quantised; while it has
        the first half's output projection, the second half's queries are turned.
        """
        nodes = {self.key(node): node for node in self.graph.body}
        done = set()
        for item in HALVES.split(", "):
            name, half = item[:-2], int(item[-1])
            self.node(nodes[name], half)
            done.add(name)
        for name, node in nodes.items():
            if name not in done:
                for half in (0, 1):
                    self.node(node, half)
        self.next_layer()

    def key(self, node: Node) -> str:
        """A node's name inside a layer."""
        if node.op == "head_quant":
            return f"{node.attrs['of']} heads"
        return node.weight or node.op

    def node(self, node: Node, half: int | None) -> None:
        """One node's steps, for a half of the tile."""
        loads = node.weight == "o" and not half
        if loads and "o" not in self.asked:
            self.load_biases(("o",))
        handler = getattr(self, f"do_{node.op}", None)
        self.half = half
        if handler:
            handler(node)
        self.half = None
        if loads:
            # The matrix that the engine waits for is on its way; the next one is asked for while
            # the gains are written.
            ahead = self.layout.memory.vector_stride
            self.load_biases(("gate", "up", "down"))
            self.load_biases(("q", "k", "v"), ahead)
            self.load_gains(ahead)

    def layer(self) -> None:
        self.ask_first()
        for node in self.graph.body:
            self.node(node, None)
        self.next_layer()

    def next_layer(self) -> None:
        memory = self.layout.memory
        self.scalar("add", "param", reg("param"), self.params.stride)
        self.scalar("add", "vec", reg("vec"), memory.vector_stride // ALIGN)
        self.scalar("add", "kbase", reg("kbase"), memory.kv_stride // ALIGN)
        self.scalar("add", "vbase", reg("vbase"), memory.kv_stride // ALIGN)

    # -------------------------------------------------------------------------------- loads

    def load_gains(self, ahead: int) -> None:
        """The gains of this layer's second norm and of the first of the layer whose record lies
        `ahead` bytes on; the last layer finds the final norm there."""
        offsets, size = self.layout.memory.vectors, self.region("gain_mlp").size
        assert self.at("gain_attn") == self.at("gain_mlp", size)
        self.step("ld.vec", addr=reg("vec", offsets["mlp_norm"] // ALIGN), dst=self.at("gain_mlp"),
                  n=size, count=2, dstride=size,
                  mstride=(offsets["attn_norm"] + ahead - offsets["mlp_norm"]) // ALIGN,
                  touch=self.writes("gain_mlp", "gain_attn"))  # fmt: skip

    def do_embed(self, node: Node) -> None:
        part = self.part.dim.size
        self.step("ld.gather", "half", addr=self.units("embed"), dst=self.at("x"), n=part,
                  count=self.tokens, mstride=self.segment("embed").row // ALIGN, dstride=part,
                  index=self.at("topk", 1), istride=1,
                  touch=self.reads("topk") + self.writes("x"))  # fmt: skip

    def rows_at_position(self, segment: str) -> Value:
        row = self.segment(segment).row // ALIGN
        self.scalar("mul", "tmp", POS, row)
        return reg("tmp", self.units(segment))

    def do_positions(self, node: Node) -> None:
        part = self.part.dim.size
        address = self.rows_at_position("positions")
        self.step("ld.vec", "half", addr=address, dst=self.at("positions"), n=part,
                  count=self.tokens, mstride=self.segment("positions").row // ALIGN, dstride=part,
                  touch=self.writes("positions"))  # fmt: skip
        self.step("misc.add", a=self.at("x"), a1=part, b=self.at("positions"), b1=part,
                  dst=self.at("x"), dst1=part, n=part, n1=self.tokens,
                  touch=self.reads("positions") + self.writes("x"))  # fmt: skip

    def load_rope(self) -> None:
        if not self.shape.rope:
            return
        size = self.shape.head_dim
        address = self.rows_at_position("rope")
        self.step("ld.vec", addr=address, dst=self.at("rope"), n=size, count=self.tokens,
                  mstride=self.segment("rope").row // ALIGN, dstride=size,
                  touch=self.writes("rope"))  # fmt: skip

    # -------------------------------------------------------------------------------- INT8 vectors

    def gather(self, space: str, region: str, own: Span, stride: int) -> None:
        """Exchange slices of `region` between the cores."""
        if self.several:
            flags = ("act",) if space == "A" else ()
            self.step("sys.gather", *flags, addr=self.at(region, own.start), n=own.size,
                      n1=self.tokens, stride=stride, touch=self.writes(region))  # fmt: skip

    def vector(self, source: str, dest: str, scale: str, spans: list[Span], gain: str = "",
               known_amax: bool = False) -> None:  # fmt: skip
        """Quantise a vector whose slices the cores hold: `gain` makes it norm + quantise."""
        own, cores = spans[self.core], self.config.cores
        total, flags = spans[-1].stop, ("norm",) if gain else ()
        blocks = -(-total // 16)
        first = own.start // 16
        gains = self.at(gain) if gain else 0
        common: dict[str, Value | int] = {
                  "src": self.at(source), "src1": own.size, "n": own.size, "n1": self.tokens,
                  "gain": gains, "amax1": cores, "sums1": blocks}  # fmt: skip
        read = self.reads(source, gain) if gain else self.reads(source)
        if not known_amax:
            made = self.writes("amax", "sums") if gain else self.writes("amax")
            self.step("misc.stat", *flags, **common, sums=self.at("sums", first),
                      amax=self.at("amax", self.core), touch=read + made)  # fmt: skip
        self.gather("F", "amax", Span(self.core, self.core + 1), cores)
        if gain:
            self.gather("F", "sums", Span(first, first + -(-own.size // 16)), blocks)
        stride = padded(total, 128)
        last = all(span.size == 0 for span in spans[self.core + 1 :]) and own.size > 0
        pad = stride - own.start if last else own.size
        used = self.reads("amax", "sums") if gain else self.reads("amax")
        self.step("misc.quant", *flags, **common, sums=self.at("sums"), blocks=blocks,
                  amax=self.at("amax"), parts=cores, dst=self.at(dest, own.start), dst1=stride,
                  pad=pad, scale=self.at(scale),
                  alpha=1 / 127, inv_n=1 / total, eps=self.shape.norm_eps,
                  touch=read + used + self.writes(dest, scale))  # fmt: skip
        self.gather("A", dest, Span(own.start, own.start + pad), stride)

    def do_norm_quant(self, node: Node) -> None:
        gain = "gain_mlp" if node.weight == "mlp_norm" else "gain_attn"
        self.vector("x", "xq", "scale_x", [p.dim for p in self.parts], gain)

    def do_quantise(self, node: Node) -> None:
        width = self.shape.group_heads * self.shape.head_dim
        self.vector("att", "aq", "scale_a", [p.kv.scaled(width) for p in self.parts])

    def do_act_quant(self, node: Node) -> None:
        part, kind = self.part.ffn.size, str(node.attrs["kind"])
        first = "gate" if kind == "silu" else "up"
        self.step("misc.act", kind, a=self.at(first), a1=part, b=self.at("up"), b1=part,
                  dst=self.at(first), dst1=part, n=part, n1=self.tokens,
                  amax=self.at("amax", self.core), amax1=self.config.cores,
                  touch=self.reads("up") + self.writes(first, "amax"))  # fmt: skip
        self.vector(first, "mq", "scale_m", [p.ffn for p in self.parts], known_amax=True)

    # -------------------------------------------------------------------------------- projections

    def do_linear(self, node: Node) -> None:
        if node.weight == "head":
            return  # the head runs once for each token whose logits are wanted
        self.projection(node.weight, residual=False)

    def do_linear_add(self, node: Node) -> None:
        if node.attrs.get("bias"):
            part = self.part.dim.size
            bias = f"bias_{node.weight}"
            self.step("misc.add", a=self.at("x"), a1=part, b=self.at(bias), b1=0,
                      dst=self.at("x"), dst1=part, n=part, n1=self.tokens,
                      touch=self.reads(bias) + self.writes("x"))  # fmt: skip
        self.projection(node.weight, residual=True)

    def projection(self, name: str, residual: bool) -> None:
        shape, rows = self.shape, self.part.rows(self.shape, name).size
        if not rows:
            return
        source, scale = {"o": ("aq", "scale_a"), "down": ("mq", "scale_m")}.get(
            name, ("xq", "scale_x")
        )
        dest = "x" if residual else name
        bias = f"bias_{name}"
        add, add1, extra = None, 0, self.reads()
        if residual:
            add, add1 = self.at("x"), rows
        elif name in shape.biases:
            add, extra = self.at(bias), self.reads(bias)
        self.linear(
            self.reads(source, scale) + extra + self.writes(dest), self.tokens, 1,
            {"src1": padded(shape.columns(name), 128), "src2": 0, "scale1": 1, "scale2": 0,
             "dst1": rows, "dst2": 0, "add1": add1},
            add, src=self.at(source), scale=self.at(scale), dst=self.at(dest), emit=0,
            **self.matrix(name),
        )  # fmt: skip

    # -------------------------------------------------------------------------------- head

    def head(self) -> None:
        """Logits, and the largest of them, of the last LOGITS tokens."""
        width = padded(self.shape.dim, 128)
        self.scalar("sub", "n1", self.tokens, LOGITS)
        self.scalar("mul", "qsrc", reg("n1"), width)
        self.scalar("add", "row", self.units("logits"))
        self.scalar("mul", "tmp", reg("step"), self.segment("topk").row // ALIGN)
        self.loop("logits", LOGITS, lambda: self.head_token(width))

    def head_token(self, width: int) -> None:
        shape, part, k = self.shape, self.part, self.config.top_k
        add, extra = None, self.reads()
        if "head" in shape.biases:
            add, extra = self.at("bias_head"), self.reads("bias_head")
        address, fmt, table = self.load_record(Value(self.params.head))
        pieces = part.pieces(shape, "head")
        for number, rows in enumerate(pieces):
            first = rows.start - part.vocab.start
            logits = Region("F", self.at("logits", first), rows.size)
            self.linear(
                self.reads("xq", "scale_x") + extra + (Access.of(logits, True),), 1, 1,
                {"src1": 0, "src2": 0, "scale1": 0, "scale2": 0, "dst1": 0, "dst2": 0, "add1": 0},
                None if add is None else add + first, src=reg("qsrc", self.at("xq")),
                scale=reg("n1", self.at("scale_x")), dst=logits.start, addr=address,
                rows=rows.size, kgroups=kgroups_for(shape.dim, shape.head.fmt.group), fmt=fmt,
                first=0, start=0, emit=0, table=table,
            )  # fmt: skip
            self.top(rows, logits, self.core * len(pieces) + number)
            address += piece_bytes(shape, "head", shape.head.fmt, rows, part.channels) // ALIGN
        self.step("st.vec", addr=reg("row"), src=self.at("logits"), n=part.vocab.size, count=1,
                  mstride=0, sstride=0, touch=self.reads("logits"))  # fmt: skip
        self.join_tops(len(pieces))
        self.step("st.vec", addr=reg("tmp", self.units("topk")), src=self.at("topk"), n=2 * k,
                  count=1, mstride=0, sstride=0, touch=self.reads("topk"))  # fmt: skip
        self.advance(n1=1, qsrc=width, row=self.segment("logits").row // ALIGN)

    def top(self, rows: Span, logits: Region, place: int) -> None:
        """The largest logits of some rows as list number `place`, or as the result."""
        lists = self.region("lists")
        where = Region(lists.space, lists.start + 2 * self.config.top_k * place,
                       2 * self.config.top_k) if lists.size else self.region("topk")  # fmt: skip
        self.step("misc.topk", src=logits.start, n=rows.size, k=self.config.top_k,
                  base=rows.start, dst=where.start,
                  touch=(Access.of(logits, False), Access.of(where, True)))  # fmt: skip

    def join_tops(self, mine: int) -> None:
        """The largest of all lists; each core has made `mine` of them."""
        if not self.region("lists").size:
            return
        pairs, k = 2 * self.config.top_k, self.config.top_k
        if self.several:
            self.step("sys.gather", addr=self.at("lists", self.core * mine * pairs),
                      n=mine * pairs, n1=1, stride=0, touch=self.writes("lists"))  # fmt: skip
        self.step("misc.merge", src=self.at("lists"), stride=pairs,
                  parts=self.config.cores * mine, k=k, dst=self.at("topk"),
                  touch=self.reads("lists") + self.writes("topk"))  # fmt: skip
