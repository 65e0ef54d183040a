"""Schedule: the fused graph of one core as steps and loops, in the order the units shall see them.

One routine serves prefill and decode; they differ in the matrix unit (MM over the tokens of a tile,
MV over one) and in how attention loops. Lengths appear only in registers, layers and heads only as
loops, so the program's size depends on neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from flightllm.compiler.allocate import Layout, Region
from flightllm.compiler.graph import Graph, Node
from flightllm.compiler.ir import Access, Block, Loop, Step
from flightllm.compiler.shape import MatrixPlan, ModelShape
from flightllm.compiler.tile import CoreTile, Span
from flightllm.spec.config import HwConfig
from flightllm.spec.encoding import Op, Value
from flightllm.spec.formats import ALIGN, BLOCK, kgroups_for
from flightllm.spec.image import Segment
from flightllm.spec.isa import Register
from flightllm.spec.kvcache import key_format, value_format

__all__ = ["Parameters", "Schedule", "parameters", "schedule"]

NO_WINDOW = (1 << 26) - 1
POS, NTOK, STEPS, LOGITS = (
    Value(0, r) for r in (Register.POS, Register.NTOK, Register.STEPS, Register.LOGITS)
)
_NAMES = (
    "addr", "fmt", "table", "param", "vec", "kbase", "vbase", "key", "value", "start", "qsrc",
    "qscale", "out", "scores", "vs", "prob", "factor", "rows", "base", "first", "blocks", "n1",
    "p0", "tmp", "step", "row",
)  # fmt: skip
R = {name: Register.LOGITS + 1 + i for i, name in enumerate(_NAMES)}


def reg(name: str, more: int = 0) -> Value:
    """The program's register `name`, plus an immediate."""
    return Value(more, R[name])


@dataclass(frozen=True)
class Parameters:
    """The parameter memory: code tables, the head's record, then a record for each layer.

    A record holds, for each matrix, address (64-byte units), format word and, where the model has
    code tables, the address of its table.
    """

    words: list[int]
    head: int
    layers: int
    stride: int
    width: int


def parameters(shape: ModelShape, layout: Layout) -> Parameters:
    """The parameter words of one core."""
    plans = [*(p for layer in shape.layers for p in layer.values()), shape.head]
    tables = sorted({p.table for p in plans if p.table is not None})
    words: list[int] = []
    places: dict[tuple[int, ...] | None, int] = {None: 0}
    for table in tables:
        places[table] = len(words)
        padded = [*table, *([0] * (16 - len(table)))]
        raw = bytes(level & 255 for level in padded)
        words += [int.from_bytes(raw[i : i + 4], "little") for i in range(0, 16, 4)]
    width = 3 if tables else 2

    def record(layer: int, name: str, plan: MatrixPlan) -> list[int]:
        address = layout.memory.segments["weights"].base + layout.memory.matrices[layer, name]
        return [address // ALIGN, plan.fmt.word, places[plan.table]][:width]

    head = len(words)
    words += record(len(shape.layers), "head", shape.head)
    first = len(words)
    for number, layer in enumerate(shape.layers):
        for name in shape.matrices:
            words += record(number, name, layer[name])
    return Parameters(words, head, first, width * len(shape.matrices), width)


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


def _padded(count: int, unit: int) -> int:
    return -(-count // unit) * unit


class _Emitter:
    """Walks the fused graph and appends steps; `self.out` is the block being filled."""

    def __init__(self, graph: Graph, shape: ModelShape, parts: list[CoreTile], core: int,
                 layout: Layout, params: Parameters, config: HwConfig, mode: str) -> None:  # fmt: skip
        self.graph, self.shape, self.parts, self.part = graph, shape, parts, parts[core]
        self.core, self.layout, self.params, self.config = core, layout, params, config
        self.decode = mode == "decode"
        self.out: list[Step | Loop] = []
        self.matrix_index = 0
        self.key_fmt = key_format(shape.head_dim, shape.kv_bits)
        self.value_fmt = value_format(shape.kv_bits)

    # -------------------------------------------------------------------------------- building

    def step(self, name: str, *flags: str, touch: tuple[Access, ...] = (),
             **operands: Value | int | float) -> None:  # fmt: skip
        self.out.append(Step(Op.make(name, *flags, rd=0, **operands), touch))

    def scalar(self, op: str, rd: str | Register, a: Value | int, b: Value | int = 0) -> None:
        number = R[rd] if isinstance(rd, str) else rd
        self.out.append(Step(Op.make(f"sys.{op}", rd=number, a=a, b=b)))

    def loop(self, name: str, count: Value | int, fill: Callable[[], None]) -> None:
        """A loop whose body `fill` appends."""
        outer, self.out = self.out, []
        fill()
        body, self.out = tuple(self.out), outer
        self.out.append(Loop(name, count if isinstance(count, Value) else Value(count), body))

    def region(self, name: str) -> Region:
        return self.layout.regions[name]

    def at(self, name: str, more: int = 0) -> int:
        return self.region(name).start + more

    def reads(self, *names: str, apart: str = "") -> tuple[Access, ...]:
        loops = (apart,) if apart else ()
        return tuple(Access.of(self.region(n), False, *loops) for n in names)

    def writes(self, *names: str, apart: str = "") -> tuple[Access, ...]:
        loops = (apart,) if apart else ()
        return tuple(Access.of(self.region(n), True, *loops) for n in names)

    def segment(self, name: str) -> Segment:
        return self.layout.memory.segments[name]

    def units(self, name: str, more: int = 0) -> int:
        """Address of a segment in 64-byte units."""
        return (self.segment(name).base + more) // ALIGN

    def memory(self, name: str, write: bool, *apart: str) -> Access:
        return Access(f"memory.{name}", 0, 1, write, frozenset(apart))

    @property
    def several(self) -> bool:
        return self.config.cores > 1

    @property
    def tokens(self) -> Value:
        return Value(1) if self.decode else NTOK

    # -------------------------------------------------------------------------------- whole program

    def program(self) -> Block:
        words = self.config.prefill_tile
        self.step("ld.vec", addr=self.units("tokens"), dst=self.at("topk", 1), n=words, count=1,
                  mstride=0, dstride=0, touch=self.writes("topk"))  # fmt: skip
        self.scalar("add", "step", 0)
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
        self.loop("layers", self.graph.layers, self.layer)
        self.load_vector("gain_final", "attn_norm")
        if "head" in self.shape.biases:
            self.load_vector("bias_head", "bias_head")
        for node in self.graph.epilogue:
            if node.op == "norm_quant":
                self.do_norm_quant(node)
        self.head()
        if self.decode:
            self.scalar("add", Register.POS, POS, 1)
            self.scalar("add", "step", reg("step"), 1)

    def layer(self) -> None:
        self.matrix_index = 0
        self.load_vector("gain_attn", "attn_norm")
        self.load_vector("gain_mlp", "mlp_norm")
        for name in self.shape.matrices:
            if name in self.shape.biases:
                self.load_vector(f"bias_{name}", f"bias_{name}")
        for node in self.graph.body:
            handler = getattr(self, f"do_{node.op}", None)
            if handler:
                handler(node)
        memory = self.layout.memory
        self.scalar("add", "param", reg("param"), self.params.stride)
        self.scalar("add", "vec", reg("vec"), memory.vector_stride // ALIGN)
        self.scalar("add", "kbase", reg("kbase"), memory.kv_stride // ALIGN)
        self.scalar("add", "vbase", reg("vbase"), memory.kv_stride // ALIGN)

    # -------------------------------------------------------------------------------- loads

    def load_vector(self, region: str, vector: str) -> None:
        offset = self.layout.memory.vectors[vector] // ALIGN
        self.step("ld.vec", addr=reg("vec", offset), dst=self.at(region),
                  n=self.region(region).size, count=1, mstride=0, dstride=0,
                  touch=self.writes(region))  # fmt: skip

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
        common: dict[str, Value | int] = {"src": self.at(source), "src1": own.size, "n": own.size, "n1": self.tokens,
                  "gain": gains, "amax1": cores, "sums1": blocks}  # fmt: skip
        read = self.reads(source, gain) if gain else self.reads(source)
        if not known_amax:
            made = self.writes("amax", "sums") if gain else self.writes("amax")
            self.step("misc.stat", *flags, **common, sums=self.at("sums", first),
                      amax=self.at("amax", self.core), touch=read + made)  # fmt: skip
        self.gather("F", "amax", Span(self.core, self.core + 1), cores)
        if gain:
            self.gather("F", "sums", Span(first, first + -(-own.size // 16)), blocks)
        stride = _padded(total, 128)
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
        gain = {"attn_norm": "gain_attn", "mlp_norm": "gain_mlp"}.get(node.weight, "gain_final")
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

    def load_record(self, index: Value) -> tuple[Value, Value, Value | int]:
        """Address, format and table of a matrix from its parameter record."""
        names = ("addr", "fmt", "table")[: self.params.width]
        for i, name in enumerate(names):
            self.out.append(Step(Op.make("sys.param", rd=R[name], index=index + i)))
        return reg("addr"), reg("fmt"), reg("table") if self.params.width == 3 else 0

    def linear(self, touch: tuple[Access, ...], n1: Value | int, n2: int,
               strides: dict[str, int], add: int | None = None, **operands: Value | int) -> None:  # fmt: skip
        """MM or MV with LD.stream before it; in MV mode the token dimension does not exist."""
        matrix = {k: operands[k] for k in ("rows", "kgroups", "fmt", "first", "start")}
        stream = tuple(a for a in touch if a.space.startswith("memory"))
        self.step("ld.stream", addr=operands.pop("addr"), touch=stream, **matrix)
        touch = tuple(a for a in touch if a not in stream)
        flags = () if add is None else ("add",)
        values: dict[str, Value | int] = {**operands, **strides, "add": add or 0, "n2": n2}
        if self.decode:
            values = {k: v for k, v in values.items() if not k.endswith("1")}
            self.step("mv.linear", *flags, touch=touch, **values)
        else:
            self.step("mm.linear", *flags, touch=touch, n1=n1, **values)

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
        index = reg("param", self.matrix_index * self.params.width)
        self.matrix_index += 1
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
        columns = shape.columns(name)
        address, fmt, table = self.load_record(index)
        group = shape.layers[0][name].fmt.group
        self.linear(
            self.reads(source, scale) + extra + self.writes(dest), self.tokens, 1,
            {"src1": _padded(columns, 128), "src2": 0, "scale1": 1, "scale2": 0, "dst1": rows,
             "dst2": 0, "add1": add1},
            add, src=self.at(source), scale=self.at(scale), dst=self.at(dest), addr=address,
            rows=rows, kgroups=kgroups_for(columns, group), fmt=fmt, first=0, start=0, emit=0,
            table=table,
        )  # fmt: skip

    # -------------------------------------------------------------------------------- attention

    def do_head_quant(self, node: Node) -> None:
        shape, which = self.shape, str(node.attrs["of"])
        heads = self.part.kv.size * (shape.group_heads if which == "q" else 1)
        size, padded = shape.head_dim, _padded(shape.head_dim, 16)
        alpha = 1 / (127 * math.sqrt(size))
        flags = ["rope"] if node.attrs["rope"] else []
        if which != "q":
            alpha = 1 / 127 if shape.kv_bits == 8 else 1 / 7
            flags += ["half"] if shape.kv_bits == 8 else ["half", "nibble"]
        if not heads:
            return
        pad = size if which == "v" else padded
        rope = self.reads("rope") if node.attrs["rope"] else ()
        self.step("misc.headq", *flags, src=self.at(which), src1=heads * size, heads=heads,
                  size=size, n1=self.tokens, dst=self.at(f"{which}q"), dst1=heads * pad, pad=pad,
                  rope=self.at("rope") if rope else 0, rope1=size, scale=self.at(f"{which}scale"),
                  scale1=heads, alpha=alpha,
                  touch=self.reads(which) + rope + self.writes(f"{which}q", f"{which}scale"))  # fmt: skip

    def do_append(self, node: Node) -> None:
        heads, size, memory = self.part.kv.size, self.shape.head_dim, self.layout.memory
        if not heads:
            return
        padded = _padded(size, 16)
        self.step("st.keys", addr=reg("kbase"), hstride=memory.key_region // ALIGN, heads=heads,
                  fmt=self.key_fmt.word, pos=POS, count=self.tokens, codes=self.at("kq"),
                  codes1=heads * padded, kscale=self.at("kscale"), vscale=self.at("vscale"),
                  scale1=heads, start=0,
                  touch=self.reads("kq", "kscale", "vscale")
                  + (self.memory("keys", True, "layers"),))  # fmt: skip
        self.step("st.values", addr=reg("vbase"), hstride=memory.value_region // ALIGN,
                  heads=heads, rows=size, fmt=self.value_fmt.word, pos=POS, count=self.tokens,
                  codes=self.at("vq"), codes1=heads * size, codes2=size,
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
        """Scores and softmax of each head in one loop, values in a second: the SFU runs behind."""
        group, stride = self.shape.group_heads, self.layout.score_stride
        padded, memory = _padded(self.shape.head_dim, 16), self.layout.memory
        for name, region in (
            ("qsrc", "qq"), ("qscale", "qscale"), ("scores", "scores"), ("vs", "vs"),
            ("prob", "prob"), ("factor", "factor"), ("out", "att"),
        ):  # fmt: skip
            self.scalar("add", name, self.at(region))

        def scores() -> None:
            self.score_steps("heads")
            self.advance(key=memory.key_region // ALIGN, start=1, qsrc=group * padded,
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
        padded, inner, memory = _padded(size, 16), self.layout.attention_tile, self.layout.memory
        for name, region in (
            ("scores", "scores"), ("vs", "vs"), ("prob", "prob"), ("factor", "factor"),
        ):  # fmt: skip
            self.scalar("add", name, self.at(region))
        self.scalar("add", "tmp", 0)  # the head's number

        def tile() -> None:
            self.scalar("sub", "n1", POS, reg("p0"))
            self.scalar("add", "n1", reg("n1"), NTOK)
            self.scalar("min", "n1", reg("n1"), inner)
            self.window_registers()
            self.score_steps("")
            self.value_steps("")
            queries = heads * group
            self.advance(p0=inner, qsrc=inner * queries * padded, qscale=inner * queries,
                         out=inner * queries * size)  # fmt: skip

        def head() -> None:
            self.scalar("add", "p0", POS)
            for name, region, step in (
                ("qsrc", "qq", group * padded), ("qscale", "qscale", group),
                ("out", "att", group * size),
            ):  # fmt: skip
                self.scalar("mul", name, reg("tmp"), step)
                self.scalar("add", name, reg(name), self.at(region))
            self.scalar("shr", "row", Value(inner - 1, Register.NTOK), inner.bit_length() - 1)
            self.loop("tiles", reg("row"), tile)
            self.advance(tmp=1, key=memory.key_region // ALIGN, start=1,
                         value=memory.value_region // ALIGN)  # fmt: skip

        self.loop("heads", heads, head)

    def score_steps(self, apart: str) -> None:
        shape, group, stride = self.shape, self.shape.group_heads, self.layout.score_stride
        queries = self.part.kv.size * group
        padded = _padded(shape.head_dim, 16)
        strides = {"src1": queries * padded, "src2": padded, "scale1": queries, "scale2": 1,
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

    def value_steps(self, apart: str) -> None:
        shape, group, stride = self.shape, self.shape.group_heads, self.layout.score_stride
        size = shape.head_dim
        queries = self.part.kv.size * group
        strides = {"src1": group * stride, "src2": stride, "scale1": group, "scale2": 1,
                   "dst1": queries * size, "dst2": size, "add1": 0}  # fmt: skip
        self.linear(
            self.reads("prob", "factor") + self.writes("att", apart=apart)
            + (self.memory("values", False, "layers"),),
            reg("n1"), group, strides, src=reg("prob"), scale=reg("factor"), dst=reg("out"),
            addr=reg("value"), rows=size, kgroups=reg("blocks"), fmt=self.value_fmt.word,
            first=reg("first"), start=0, emit=0, table=0,
        )  # fmt: skip

    # -------------------------------------------------------------------------------- head

    def head(self) -> None:
        """Logits, and the largest of them, of the last LOGITS tokens."""
        width = _padded(self.shape.dim, 128)
        self.scalar("sub", "n1", self.tokens, LOGITS)
        self.scalar("mul", "qsrc", reg("n1"), width)
        self.scalar("add", "row", self.units("logits"))
        self.scalar("mul", "tmp", reg("step"), self.segment("topk").row // ALIGN)
        self.loop("logits", LOGITS, lambda: self.head_token(width))

    def head_token(self, width: int) -> None:
        shape, rows, k = self.shape, self.part.vocab.size, self.config.top_k
        add, extra = None, self.reads()
        if "head" in shape.biases:
            add, extra = self.at("bias_head"), self.reads("bias_head")
        address, fmt, table = self.load_record(Value(self.params.head))
        self.linear(
            self.reads("xq", "scale_x") + extra + self.writes("logits"), 1, 1,
            {"src1": 0, "src2": 0, "scale1": 0, "scale2": 0, "dst1": 0, "dst2": 0, "add1": 0},
            add, src=reg("qsrc", self.at("xq")), scale=reg("n1", self.at("scale_x")),
            dst=self.at("logits"), addr=address, rows=rows,
            kgroups=kgroups_for(shape.dim, shape.head.fmt.group), fmt=fmt, first=0, start=0,
            emit=0, table=table,
        )  # fmt: skip
        self.step("st.vec", addr=reg("row"), src=self.at("logits"), n=rows, count=1, mstride=0,
                  sstride=0, touch=self.reads("logits"))  # fmt: skip
        self.top(rows, k)
        self.step("st.vec", addr=reg("tmp", self.units("topk")), src=self.at("topk"), n=2 * k,
                  count=1, mstride=0, sstride=0, touch=self.reads("topk"))  # fmt: skip
        self.advance(n1=1, qsrc=width, row=self.segment("logits").row // ALIGN)

    def top(self, rows: int, k: int) -> None:
        base, pairs = self.part.vocab.start, 2 * k
        if not self.several:
            self.step("misc.topk", src=self.at("logits"), n=rows, k=k, base=base,
                      dst=self.at("topk"), touch=self.reads("logits") + self.writes("topk"))  # fmt: skip
            return
        mine = self.core * pairs
        self.step("misc.topk", src=self.at("logits"), n=rows, k=k, base=base,
                  dst=self.at("lists", mine), touch=self.reads("logits") + self.writes("lists"))  # fmt: skip
        self.step("sys.gather", addr=self.at("lists", mine), n=pairs, n1=1, stride=0,
                  touch=self.writes("lists"))  # fmt: skip
        self.step("misc.merge", src=self.at("lists"), stride=pairs, parts=self.config.cores, k=k,
                  dst=self.at("topk"), touch=self.reads("lists") + self.writes("topk"))  # fmt: skip
