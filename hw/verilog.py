"""A configuration's hardware as Verilog: one file for each unit, or one text."""

import re
from collections.abc import Mapping

from amaranth.back import rtlil, verilog

from flightllm.hw.memory.ram import MODULE, VERILOG
from flightllm.hw.sharing import Library
from flightllm.hw.top import NAME, Top, wants_half_ports
from flightllm.spec.config import HwConfig

__all__ = ["verilog_files", "verilog_text"]

_MODULE = re.compile(r"^module (\w+).*?^endmodule$", re.MULTILINE | re.DOTALL)
_RTLIL_NAME = re.compile(r"^module \\(\S+)$", re.MULTILINE)
_RTLIL_USE = re.compile(r"^(module|  cell) \\(\S+)", re.MULTILINE)


def design_rtlil(config: HwConfig, **options: bool) -> str:
    """The design as RTLIL; names of modules are plain identifiers.

    Parameters
    ----------
    options : see `Top`.
    """
    library, top = Library(), Top(config, **options)
    text = rtlil.convert(top, name=NAME, ports=top.ports(), platform=library, emit_src=False)
    text = "\n".join([*library.texts.values(), text])
    plain = {
        name: name.replace(".", "__").replace("$", "_") for name in _RTLIL_NAME.findall(text)
    }
    return _RTLIL_USE.sub(lambda use: f"{use[1]} \\{plain.get(use[2], use[2])}", text)


def verilog_text(config: HwConfig, **options: bool) -> str:
    """The whole design; its top module is `hw.top.NAME`.

    Parameters
    ----------
    options : see `Top`.
    """
    text: str = verilog._convert_rtlil_text(
        design_rtlil(config, **options), strip_internal_attrs=True
    )
    return text + VERILOG


def verilog_files(config: HwConfig) -> Mapping[str, str]:
    """The design by file name; a file holds one unit and the modules only it has.

    Memory ports are the board's own, half as wide as a channel where those are.
    """
    files: dict[str, list[str]] = {}
    for match in _MODULE.finditer(verilog_text(config, half_ports=wants_half_ports(config))):
        owner = match[1].split("__")[0]
        files.setdefault(owner, []).append(match[0])
    files[MODULE] = [VERILOG.rstrip()]
    return {f"{name}.v": "\n\n".join(modules) + "\n" for name, modules in files.items()}
