"""Float units in RTL against spec.numerics: all special pairs and a million random operands."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import floating_cases as fc

from flightllm.hw import floating
from flightllm.sim.rtl.vectors import SimulationError, VectorProgram, build, pack, unpack
from flightllm.spec import numerics

# A refused unit was never going to be elaborated.
pytestmark = pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
MILLION = 1_000_000
LATENCY = {
    "add": 5, "mul": 4, "mul_exact": 4, "max": 1, "int_to_float": 3, "wide_to_float": 3,
    "to_int8": 2, "to_half": 2, "from_half": 1, "scale": 1, "recip": 21, "rsqrt": 21, "exp": 38,
}  # fmt: skip


@pytest.fixture(scope="module")
def programs() -> dict[str, VectorProgram]:
    units = {name: floating.Streamed(case.unit()) for name, case in fc.CASES.items()}
    return build(units, fc.CACHE)


def _results(program: VectorProgram, rows: np.ndarray, **options: int) -> np.ndarray:
    words, _ = program.run(rows, **options)
    low, *high = unpack(words, *([32, 1] if words.shape[1] == 2 else [32]))
    return low | high[0] << np.uint64(32) if high else low


def _differences(name: str, rows: np.ndarray, got: np.ndarray, want: np.ndarray) -> list[str]:
    bad = np.flatnonzero(got != want)[:5]
    return [
        f"{name}({' '.join(f'{word:08x}' for word in rows[k])}) = {got[k]:x}, not {want[k]:x}"
        for k in bad
    ]


@pytest.mark.parametrize("name", fc.CASES)
def test_equals_the_specification(name: str, programs: dict[str, VectorProgram]) -> None:
    case = fc.CASES[name]
    fields, rows = fc.operands(case, MILLION)
    want = fc.wanted(case, fields)
    assert name == "from_half" or len(rows) >= MILLION
    assert _differences(name, rows, _results(programs[name], rows), want) == []


@pytest.mark.parametrize("name", fc.CASES)
def test_one_operand_a_cycle(name: str, programs: dict[str, VectorProgram]) -> None:
    rows = fc.operands(fc.CASES[name], 1000)[1][:1000]
    _, cycles = programs[name].run(rows)
    assert cycles == len(rows) + LATENCY[name]


@pytest.mark.parametrize("name", fc.CASES)
def test_idle_and_back_pressure(name: str, programs: dict[str, VectorProgram]) -> None:
    case = fc.CASES[name]
    fields, rows = fc.operands(case, 2000)
    pick = slice(-2000, None)
    want = fc.wanted(case, fields)[pick]
    for idle in (0, 30, 90):
        for stall in (0, 30, 90):
            got = _results(programs[name], rows[pick], idle=idle, stall=stall, seed=idle + stall)
            assert np.array_equal(got, want), f"{idle} % idle, {stall} % stalled"


def test_nan_ends_up_documented(programs: dict[str, VectorProgram]) -> None:
    nans = fc.SPECIAL[np.isnan(fc.SPECIAL)]
    negative = np.signbit(nans)

    def run(name: str, *fields: tuple[np.ndarray, int]) -> np.ndarray:
        return _results(programs[name], pack(*fields))

    ends = np.where(negative, np.float32(-104), np.float32(88))
    assert np.array_equal(run("exp", (nans, 32)), fc.bits(numerics.exp(ends)))
    assert np.array_equal(run("to_half", (nans, 32)), np.where(negative, 0xFBFF, 0x7BFF))
    zero = np.zeros(len(nans), np.uint8)
    levels = run("to_int8", (nans, 32), (zero, 1)).astype(np.uint8).view(np.int8)
    assert np.array_equal(levels, np.where(negative, -127, 127))


def test_multiplication_reaches_the_smallest_normal_number() -> None:
    """The vectors hold what they claim: products that only IEEE's rounding brings to 2^-126."""
    fields, _ = fc.operands(fc.CASES["mul"], 0)
    with np.errstate(all="ignore"):
        a, b = (values.astype(np.float64) for values, _ in fields)
        exact = np.abs(a * b)  # 48 bits: exact
    low = (exact < 2.0**-126) & (np.abs(a) >= 2.0**-126) & (np.abs(b) >= 2.0**-126)
    assert (low & (exact >= 2.0**-126 - 2.0**-150)).sum() > 100
    assert (low & (exact < 2.0**-126 - 2.0**-150) & (exact > 2.0**-126 - 2.0**-148)).sum() > 100


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recip", "rsqrt"])
def test_every_fraction(name: str, programs: dict[str, VectorProgram]) -> None:
    for exponent in (127, 128):
        x = (np.arange(1 << 23, dtype=np.uint32) | np.uint32(exponent << 23)).view(np.float32)
        got = _results(programs[name], pack((x, 32)))
        assert np.array_equal(got, fc.bits(fc.CASES[name].expected(x)))


def test_refused_parameters() -> None:
    with pytest.raises(ValueError, match="FloatAdd latency must be an integer from 1 to 6, not 9"):
        floating.FloatAdd(9)
    with pytest.raises(ValueError, match="IntToFloat width must be an integer from 2 to 64, not 1"):
        floating.IntToFloat(1)
    with pytest.raises(ValueError, match="IntToFloat exponent must be .* -60 to 60, not 99"):
        floating.IntToFloat(32, exponent=99)


def test_operands_of_another_width(programs: dict[str, VectorProgram]) -> None:
    with pytest.raises(ValueError, match="are not rows of 3 words"):
        programs["add"].run(np.zeros((4, 2), np.uint32))


def test_silence_is_reported(programs: dict[str, VectorProgram]) -> None:
    with pytest.raises(SimulationError, match="nothing moves"):
        programs["max"].run(np.zeros((4, 2), np.uint32), outputs=5)


def test_pack_and_unpack() -> None:
    rng = np.random.default_rng(3)
    widths = (1, 32, 9, 23, 31, 17)
    fields = [rng.integers(0, 1 << w, 100) for w in widths]
    back = unpack(pack(*zip(fields, widths)), *widths)
    assert all(np.array_equal(a, b) for a, b in zip(fields, back))
