"""Bit layouts of floating-point numbers, and the few facts about them that every unit needs."""

from amaranth.hdl import Cat, Value
from amaranth.lib import data

__all__ = ["BIAS", "Float16", "Float32", "Operands", "magnitude", "significand"]

BIAS = 127
"""Exponent of 1.0 in float32."""

Float32 = data.StructLayout({"fraction": 23, "exponent": 8, "sign": 1})
Float16 = data.StructLayout({"fraction": 10, "exponent": 5, "sign": 1})
Operands = data.StructLayout({"a": Float32, "b": Float32})


def magnitude(x: data.View) -> Value:
    """Everything but the sign: as an unsigned integer it orders as |x| does."""
    return Cat(x.fraction, x.exponent)


def significand(x: data.View) -> Value:
    """The fraction under its hidden bit, 24 bits; the hidden bit is 0 below 2^-126."""
    return Cat(x.fraction, x.exponent.any())
