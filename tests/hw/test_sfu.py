"""MISC in RTL against the functional simulator, on random operands and shapes, bit for bit."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from amaranth.back import rtlil

from flightllm.hw.sfu.unit import SpecialFunctionUnit
from flightllm.sim.functional import misc
from flightllm.sim.functional.core import Buffer
from flightllm.sim.rtl.verilate import verilate
from flightllm.spec.encoding import Op, encode
from flightllm.spec.parameters import words_of

sys.path.insert(0, str(Path(__file__).parent))
from floating_cases import CACHE  # noqa: E402

LANES, TOP_K, WORDS, BYTES = 4, 5, 8192, 8192


def built(lanes: int) -> Path:
    unit = SpecialFunctionUnit(lanes, TOP_K, 2)
    text = rtlil.convert(unit, name="sfu", emit_src=False)
    harness = Path(__file__).with_name("sfu_harness.cpp")
    return verilate(text, "sfu", harness, CACHE, [f"LANES={words_of(lanes)}"])


@pytest.fixture(scope="module")
def program() -> Path:
    return built(LANES)


def run_rtl(program: Path, ops: list[Op], f: np.ndarray, a: np.ndarray) -> tuple:
    words: list[int] = []
    for op in ops:
        head, *_ = encode([op])
        words.append(head)
        for operand in op.kind.operands:
            value = op.operands[operand.name]
            words.append((value if isinstance(value, int) else value.imm) & 0xFFFFFFFF)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("queue", "f", "a")]
        np.array(words, "<u4").tofile(paths[0])
        f.tofile(paths[1])
        a.tofile(paths[2])
        command = [str(program), *map(str, paths), str(len(ops))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return np.fromfile(paths[1], np.uint32), np.fromfile(paths[2], np.int8), int(done.stdout)


class Core:
    """Just what misc needs of a functional core."""

    def __init__(self, f: np.ndarray, a: np.ndarray) -> None:
        self.f = Buffer("F", f.view(np.float32).copy())
        self.words = Buffer("F", self.f.data.view(np.int32))
        self.a = Buffer("A", a.copy())

    def note(self, name: str, values: np.ndarray) -> None:
        """Nobody traces."""


def run_functional(ops: list[Op], f: np.ndarray, a: np.ndarray) -> Core:
    core = Core(f, a)
    for op in ops:
        handler = getattr(misc, op.kind.name.replace("misc.", "misc_"))
        values = []
        for operand in op.kind.operands:
            value = op.operands[operand.name]
            raw = isinstance(value, int)
            values.append(np.uint32(value).view(np.float32) if raw else value.imm)
        handler(core, op.flags, *values)
    return core


def image(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    f = rng.standard_normal(WORDS).astype(np.float32) * 10.0 ** rng.integers(-3, 2, WORDS)
    return f.astype(np.float32).view(np.uint32), np.zeros(BYTES, np.int8)


def add(rng, n1, n) -> Op:
    return Op.make("misc.add", a=int(rng.integers(900)), a1=n, b=1000 + int(rng.integers(9)), b1=0,
                   dst=5000, dst1=n + 3, n=n, n1=n1)  # fmt: skip


def stat(rng, n1, n, norm=True) -> Op:
    return Op.make("misc.stat", *(["norm"] if norm else []), src=int(rng.integers(50)), src1=n + 1,
                   n=n, n1=n1, gain=2000, sums=6000, sums1=40, amax=6900, amax1=2)  # fmt: skip


def quant(rng, n1, n, norm=True) -> list[Op]:
    """Statistics first: a quantiser's maxima are never negative."""
    first = stat(rng, n1, n, norm)
    src = first.operands["src"]
    return [first, Op.make(
        "misc.quant", *(["norm"] if norm else []), src=src, src1=n + 1, n=n, n1=n1, gain=2000,
        sums=6000, sums1=40, blocks=-(-n // 16), amax=6900, amax1=2, parts=1, dst=100,
        dst1=n + 40, pad=n + int(rng.integers(20)), scale=7000, alpha=1 / 127, inv_n=1 / n,
        eps=1e-5)]  # fmt: skip


def headq(rng, n1, n, *flags) -> Op:
    size = 2 * max(1, n // 8)
    return Op.make("misc.headq", *flags, src=int(rng.integers(50)), src1=3 * size, heads=3,
                   size=size, n1=n1, dst=200, dst1=3 * size + 48, pad=-(-size // 16) * 16,
                   rope=3000, rope1=size, scale=7100, scale1=4, alpha=1 / 127)  # fmt: skip


def softmax(rng, n1, n) -> Op:
    base = 32 * int(rng.integers(3))
    pos = base + int(rng.integers(0, n))
    length = pos + n1 - base
    window = int(rng.choice([1, pos - base + 1, 1 << 25]))
    return Op.make("misc.softmax", src=10, src1=2 * (length + 1), src2=length, vscale=7400,
                   dst=300, dst1=2 * 512, dst2=512, scale=7200, scale1=2, scale2=1, n1=n1, n2=2,
                   length=length, base=base, pos=pos, window=window)  # fmt: skip


def act(rng, n1, n, kind) -> Op:
    return Op.make("misc.act", kind, a=0, a1=n, b=2000, b1=n, dst=5000, dst1=n, n=n, n1=n1,
                   amax=7000, amax1=1)  # fmt: skip


def topk(rng, n1, n) -> list[Op]:
    one, two = 6000, 6000 + 2 * TOP_K
    return [
        Op.make("misc.topk", src=7, n=n, k=TOP_K, base=0, dst=one),
        Op.make("misc.topk", src=7 + n, n=n, k=TOP_K, base=n, dst=two),
        Op.make("misc.merge", src=one, stride=two - one, parts=2, k=TOP_K, dst=6500),
    ]


CASES = {
    "add": add,
    "stat": stat,
    "stat-plain": lambda r, n1, n: stat(r, n1, n, False),
    "quant-norm": quant,
    "quant": lambda r, n1, n: quant(r, n1, n, False),
    "headq-rope": lambda r, n1, n: headq(r, n1, n, "rope"),
    "headq-half": lambda r, n1, n: headq(r, n1, n, "rope", "half"),
    "headq-nibble": lambda r, n1, n: headq(r, n1, n, "nibble", "half"),
    "softmax": softmax,
    "silu": lambda r, n1, n: act(r, n1, n, "silu"),
    "relu": lambda r, n1, n: act(r, n1, n, "relu"),
    "gelu": lambda r, n1, n: act(r, n1, n, "gelu"),
    "topk": topk,
}


LONG = {"quant-norm": 620, "softmax": 250}
"""Elements that give more block sums than there are ways."""


def instructions(name: str, seed: int) -> list[Op]:
    rng = np.random.default_rng(seed)
    out: list[Op] = []
    for _ in range(3):
        longest = LONG.get(name, 120) if seed % 4 == 3 else 120
        made = CASES[name](rng, int(rng.integers(1, 4)), int(rng.integers(1, longest)))
        out += made if isinstance(made, list) else [made]
    return out


def prepared(seed: int) -> tuple[np.ndarray, np.ndarray]:
    f, a = image(seed)
    floats = f.view(np.float32)
    floats[7400:] = np.abs(floats[7400:]).astype(np.float16)  # V scales
    return f, a


def differences(program: Path, name: str, seed: int) -> list[str]:
    ops, (f, a) = instructions(name, seed), prepared(seed)
    got_f, got_a, _ = run_rtl(program, ops, f, a)
    want = run_functional(ops, f, a)
    out = [f"F[{i}] = {got_f.view(np.float32)[i]}, not {want.f.data[i]}"
           for i in np.flatnonzero(got_f != want.f.data.view(np.uint32))[:5]]  # fmt: skip
    return out + [f"A[{i}] = {got_a[i]}, not {want.a.data[i]}"
                  for i in np.flatnonzero(got_a != want.a.data)[:5]]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_equals_the_functional_simulator(name: str, program: Path) -> None:
    for seed in range(8):
        assert differences(program, name, seed) == [], (seed, instructions(name, seed))


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, 8, 16])
def test_so_does_a_unit_of_other_lanes(lanes: int) -> None:
    unit = built(lanes)
    for name in CASES:
        for seed in range(8):
            assert differences(unit, name, seed) == [], (name, seed, instructions(name, seed))
