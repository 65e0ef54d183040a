"""Writes xclbin containers, so that PYNQ's own parser reads a simulated card's metadata.

The layout is xclbin.h's, as PYNQ's ctypes binding of it states: kernel metadata (XML), IP layout,
memory topology and connectivity. The bitstream section holds the hardware configuration as JSON,
from which a simulated card configures itself.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from typing import Any

from pynq._3rdparty import xclbin

from flightllm.spec.config import HwConfig
from flightllm.spec.handoff import INSTANCE, KERNEL
from flightllm.spec.kernel import kernel_element

__all__ = ["bank_names", "configuration", "make_xclbin"]

KIND = xclbin.AXLF_SECTION_KIND


def bank_names(config: HwConfig) -> tuple[str, ...]:
    """Memory banks of a simulated card, one a channel."""
    return tuple(f"bank{channel}" for channel in range(sum(config.channels)))


def _many(kind: Any, values: list[Any], count: Any) -> bytes:
    """A section that begins with a count and goes on with structures, aligned as in C."""
    offset = getattr(kind, kind._fields_[1][0]).offset
    return bytes(count(len(values))).ljust(offset, b"\0") + b"".join(bytes(v) for v in values)


def _metadata(config: HwConfig, base: int) -> bytes:
    return (
        '<?xml version="1.0"?><project name="flightllm"><platform><device><core>'
        f"{kernel_element(config, base)}"
        "</core></device></platform></project>"
    ).encode()


def _memories(config: HwConfig, bank_bases: list[int]) -> list[Any]:
    out = []
    for name, base in zip(bank_names(config), bank_bases):
        entry = xclbin.mem_data(m_type=xclbin.MEM_TYPE.MEM_HBM, m_used=1, m_tag=name.encode())
        entry.mem_u1.m_size = config.channel_bytes >> 10
        entry.mem_u2.m_base_address = base
        out.append(entry)
    return out


def _layout(base: int) -> list[Any]:
    entry = xclbin.ip_data(m_type=xclbin.IP_TYPE.IP_KERNEL, m_base_address=base)
    for place, letter in enumerate(f"{KERNEL}:{INSTANCE}".encode()):
        entry.m_name[place] = letter
    return [entry]


def make_xclbin(config: HwConfig, base: int, bank_bases: list[int]) -> bytes:
    """An xclbin with one instance of the accelerator.

    Parameters
    ----------
    base : address of its registers. bank_bases : address of each channel's memory bank.
    """
    links = [
        xclbin.connection(arg_index=number, m_ip_layout_index=0, mem_data_index=number)
        for number in range(len(bank_bases))
    ]
    sections = {
        KIND.BITSTREAM: json.dumps(config.to_dict(), sort_keys=True).encode(),
        KIND.EMBEDDED_METADATA: _metadata(config, base),
        KIND.IP_LAYOUT: _many(xclbin.ip_layout, _layout(base), ctypes.c_int32),
        KIND.MEM_TOPOLOGY: _many(
            xclbin.mem_topology, _memories(config, bank_bases), ctypes.c_int32
        ),
        KIND.CONNECTIVITY: _many(xclbin.connectivity, links, ctypes.c_int32),
    }
    return _container(sections)


def _container(sections: dict[int, bytes]) -> bytes:
    header = xclbin.axlf(m_magic=b"xclbin2\0")
    header.m_header.m_numSections = len(sections)
    uuid = hashlib.sha256(b"".join(sections.values())).digest()[:16]
    for place, value in enumerate(uuid):
        header.m_header.u2.uuid[place] = value
    table, data = b"", b""
    start = xclbin.axlf.m_sections.offset + len(sections) * ctypes.sizeof(
        xclbin.axlf_section_header
    )
    for kind, content in sections.items():
        padded = content + bytes(-len(content) % 8)
        entry = xclbin.axlf_section_header(
            m_sectionKind=kind, m_sectionOffset=start + len(data), m_sectionSize=len(content)
        )
        table, data = table + bytes(entry), data + padded
    header.m_header.m_length = start + len(data)
    return bytes(header)[: xclbin.axlf.m_sections.offset] + table + data


def configuration(data: bytes) -> HwConfig:
    """What a simulated card becomes when it is programmed with these bytes."""
    from pynq.pl_server.xclbin_parser import parse_xclbin_header

    sections, _ = parse_xclbin_header(data)
    return HwConfig.from_dict(json.loads(bytes(sections[KIND.BITSTREAM])), source="xclbin")
