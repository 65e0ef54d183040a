"""Pipelined float32 arithmetic, equal to `spec.numerics` bit for bit.

Every unit is a `Datapath`: an enable `en`, a payload `i`, a payload `o`, `latency` cycles apart, a
new operand every enabled cycle. `Streamed` puts a unit between two streams. Several units that
step together (SFU lanes, chained units) share one enable instead.

Numbers
-------
float32 as docs/number-formats.md has it: round to nearest even, one rounding an operation, a
result below 2^-126 (after IEEE's own rounding) becomes a zero of its sign. An operand below 2^-126
is never a result; it counts as a zero of its sign, except that addition and maximum take it for
what it is and that `FloatMul(subnormal_operands=True)` multiplies it exactly.

Overflow gives an infinity. Infinities and NaNs pass as IEEE 754 has them, every NaN that an
addition, multiplication or conversion gives being 0x7fc00000; each unit's docstring says where it
differs. Nothing waits on a value: no bit pattern changes a latency or stops a pipe.
"""

from flightllm.hw.floating.add import AddOperands, FloatAdd
from flightllm.hw.floating.compare import FloatMax, Maximum
from flightllm.hw.floating.exponential import FloatExp
from flightllm.hw.floating.half import FloatToHalf, HalfToFloat
from flightllm.hw.floating.integer import FloatToInt8, IntToFloat, Levelled
from flightllm.hw.floating.layout import Float16, Float32, Operands
from flightllm.hw.floating.mul import FloatMul
from flightllm.hw.floating.pipeline import Datapath, Streamed
from flightllm.hw.floating.scale import FloatScale, Scaled
from flightllm.hw.floating.table import FloatRecip, FloatRsqrt, Quadratic

__all__ = [
    "AddOperands", "Datapath", "Float16", "Float32", "FloatAdd", "FloatExp", "FloatMax",
    "FloatMul", "FloatRecip", "FloatRsqrt", "FloatScale", "FloatToHalf", "FloatToInt8",
    "HalfToFloat", "IntToFloat", "Levelled", "Maximum", "Operands", "Quadratic", "Scaled",
    "Streamed",
]  # fmt: skip
