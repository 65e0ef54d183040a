"""A configuration's hardware as Verilog: one file for each unit, or one text."""

import re
from collections.abc import Mapping

from amaranth.back import rtlil, verilog

from flightllm.hw.memory.ram import MODULE, VERILOG
from flightllm.hw.sharing import Library
from flightllm.hw.top import NAME, Top
from flightllm.spec.config import HwConfig

__all__ = ["verilog_files", "verilog_text"]

_MODULE = re.compile(r"^module (\w+).*?^endmodule$", re.MULTILINE | re.DOTALL)
_RTLIL_NAME = re.compile(r"^module \\(\S+)$", re.MULTILINE)
_RTLIL_USE = re.compile(r"^(module|  cell) \\(\S+)", re.MULTILINE)


def design_rtlil(config: HwConfig, *, trace: bool = False, modelled: bool = False) -> str:
    """The design as RTLIL; names of modules are plain identifiers.

    Parameters
    ----------
    trace, modelled : see `Top`.
    """
    library, top = Library(), Top(config, trace=trace, modelled=modelled)
    text = rtlil.convert(top, name=NAME, ports=top.ports(), platform=library, emit_src=False)
    text = "\n".join([*library.texts.values(), text])
    plain = {name: name.replace(".", "__") for name in _RTLIL_NAME.findall(text)}
    return _RTLIL_USE.sub(lambda use: f"{use[1]} \\{plain.get(use[2], use[2])}", text)


def verilog_text(config: HwConfig, *, trace: bool = False, modelled: bool = False) -> str:
    """The whole design; its top module is `hw.top.NAME`.

    Parameters
    ----------
    trace, modelled : see `Top`.
    """
    text: str = verilog._convert_rtlil_text(
        design_rtlil(config, trace=trace, modelled=modelled), strip_internal_attrs=True
    )
    return text + VERILOG


def verilog_files(config: HwConfig) -> Mapping[str, str]:
    """The design by file name; a file holds one unit and the modules only it has."""
    files: dict[str, list[str]] = {}
    for match in _MODULE.finditer(verilog_text(config)):
        owner = match[1].split("__")[0]
        files.setdefault(owner, []).append(match[0])
    files[MODULE] = [VERILOG.rstrip()]
    return {f"{name}.v": "\n\n".join(modules) + "\n" for name, modules in files.items()}
