"""The accelerator as a Vitis kernel: kernel.xml, with its ports and register map.

The format is that of the Vitis application acceleration flow (UG1393, "RTL Kernel XML File"); PYNQ
reads the same text out of an xclbin.
"""

from __future__ import annotations

from xml.sax.saxutils import quoteattr

from flightllm.spec.config import HwConfig
from flightllm.spec.handoff import (
    CONTROL_PORT,
    INSTANCE,
    KERNEL,
    VLNV,
    master_ports,
    port_bytes,
)
from flightllm.spec.registers import ADDRESS_BITS, CORE_REGISTERS, DEVICE_REGISTERS, address

__all__ = ["kernel_element", "kernel_xml"]

SCALAR, GLOBAL = 0, 1
"""addressQualifier of an argument: a register, or a pointer into a port's memory."""


def _tag(element: str, close: str = "/", /, **attributes: object) -> str:
    inner = "".join(f" {key}={quoteattr(str(value))}" for key, value in attributes.items())
    return f"<{element}{inner}{close}>"


def _ports(config: HwConfig) -> list[str]:
    control = _tag(
        "port", name=CONTROL_PORT, mode="slave", range=f"{1 << ADDRESS_BITS:#x}", dataWidth=32,
        portType="addressable", base="0x0",
    )  # fmt: skip
    masters = [
        _tag(
            "port", name=name, mode="master", range="0xFFFFFFFFFFFFFFFF",
            dataWidth=8 * port_bytes(config), portType="addressable", base="0x0",
        )
        for name in master_ports(config)
    ]  # fmt: skip
    return [control, *masters]


def _arguments(config: HwConfig) -> list[tuple[str, int, str, int, int, str]]:
    """(name, qualifier, port, bytes, offset, type) of every argument, channels' bases first."""
    out = []
    names = iter(master_ports(config))
    for core, channels in enumerate(config.channels):
        for channel in range(channels):
            port = next(names)
            offset = address("CHANNEL_BASE_LOW", channel, core)
            out.append((f"{port}_base", GLOBAL, port, 8, offset, "void*"))
    for core in (None, *range(config.cores)):
        for register in DEVICE_REGISTERS if core is None else CORE_REGISTERS:
            if register.name.startswith("CHANNEL_BASE"):
                continue
            for index in range(register.count):
                name = register.name if register.count == 1 else f"{register.name}_{index}"
                full = name if core is None else f"core{core}_{name}"
                offset = address(register.name, index, core or 0)
                out.append((full, SCALAR, CONTROL_PORT, 4, offset, "uint"))
    return out


def kernel_element(config: HwConfig, instance_base: int | None = None) -> str:
    """The <kernel> element.

    Parameters
    ----------
    instance_base : address of the instance's registers, as an xclbin names it; None in kernel.xml.
    """
    lines = [
        _tag(
            "kernel", "", name=KERNEL, language="ip_c", vlnv=VLNV, attributes="",
            preferredWorkGroupSizeMultiple="0", workGroupSize="1", interrupt="true",
            hwControlProtocol="user_managed",
        )
    ]  # fmt: skip
    lines += ["  <ports>", *(f"    {port}" for port in _ports(config)), "  </ports>"]
    if instance_base is not None:  # an xclbin lists ports and arguments without a frame
        lines = [lines[0], *(f"  {port}" for port in _ports(config))]
    arguments = [
        "  " + _tag(
            "arg", name=name, addressQualifier=qualifier, id=number, port=port, size=f"{size:#x}",
            offset=f"{offset:#x}", hostOffset="0x0", hostSize=f"{size:#x}", type=kind,
        )
        for number, (name, qualifier, port, size, offset, kind) in enumerate(_arguments(config))
    ]  # fmt: skip
    if instance_base is None:
        lines += ["  <args>", *(f"  {argument}" for argument in arguments), "  </args>"]
    else:
        lines += arguments
        remap = _tag("addrRemap", base=f"{instance_base:#x}", port=CONTROL_PORT)
        lines.append(f'  <instance name="{INSTANCE}">{remap}</instance>')
    return "\n".join([*lines, "</kernel>"])


def kernel_xml(config: HwConfig) -> str:
    """kernel.xml, for `package_xo -kernel_xml`."""
    body = "\n".join("  " + line for line in kernel_element(config).splitlines())
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<root versionMajor="1" versionMinor="6">\n{body}\n</root>\n'
    )
