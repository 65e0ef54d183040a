"""Layouts of the host registers that a core fills, from the table in `spec.registers`."""

from amaranth.lib import data

from flightllm.spec.registers import CORE_REGISTERS, DEVICE_REGISTERS

__all__ = ["register_layout"]


def register_layout(name: str) -> data.FlexibleLayout:
    """The fields of a register, in 32 bits.

    Raises
    ------
    KeyError
        When there is no such register.
    """
    for register in (*DEVICE_REGISTERS, *CORE_REGISTERS):
        if register.name == name:
            fields = {field.name: data.Field(field.width, field.low) for field in register.fields}
            return data.FlexibleLayout(32, fields)
    raise KeyError(f"there is no register {name}")
