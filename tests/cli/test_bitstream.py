"""`flightllm bitstream`: complete projects without a tool, and a tool run where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flightllm.resources import excess
from flightllm.spec.config import load_config
from flightllm.spec.errors import InputError
from flightllm.spec.handoff import load_handoff

VIVADO = """#!/bin/sh
if [ "$1" = -version ]; then echo 'vivado v2024.1 (64-bit)'; exit 0; fi
echo "vivado $*"
case "$*" in
*package.tcl*) mkdir -p build/ip; echo x > build/ip/component.xml;;
*) [ -z "$VIVADO_FAILS" ] || { echo 'ERROR: [Route 35-2] Design is not legally routed.'; exit 1; }
   printf 'bits' > build/kv260.bit
   printf '| Site Type | Used | Available |\\n' > build/utilisation.rpt
   printf '| CLB LUTs | 1000 | 117120 |\\n' >> build/utilisation.rpt
   printf ' WNS(ns) TNS(ns) TNS Failing Endpoints TNS Total Endpoints WHS(ns)\\n' > build/timing.rpt
   printf ' -- --\\n %s 0.0 0 9 0.02\\n' "${SLACK:-0.101}" >> build/timing.rpt;;
esac
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The design itself is not generated: it takes long, and has tests of its own."""
    monkeypatch.setattr(
        "flightllm.hw.boards.project.verilog_files", lambda config: {"flightllm.v": "module\n"}
    )


@pytest.fixture
def vivado(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name on the PATH."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "vivado").write_text(VIVADO)
    (tools / "vivado").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("board", "tool", "files"),
    [
        ("u280", "v++ is not on the PATH", ("kernel.xml", "link.cfg", "package.tcl", "slr.tcl")),
        ("kv260", "vivado is not on the PATH", ("build.tcl", "design.tcl", "package.tcl")),
        ("vck190", "vivado is not on the PATH", ("build.tcl", "design.tcl", "package.tcl")),
    ],
)
def test_without_the_tool_the_project_is_complete(
    cli, tmp_path: Path, board: str, tool: str, files: tuple
) -> None:
    out = tmp_path / "project"
    done = cli("bitstream", "--board", board, "-o", out)
    assert done.code == 3 and done.out == ""
    assert tool in done.err and f"run: make -C {out}" in done.err
    found = excess(load_config(board))
    assert bool(found) == ("warning" in done.err) == (board == "u280")
    assert (found or "") in done.err
    for name in (*files, "Makefile", "hardware.json.in", "rtl/flightllm_kernel.v"):
        assert (out / name).is_file(), name


def test_with_the_tool_it_runs_and_its_reports_are_read(cli, tmp_path: Path, vivado) -> None:
    out = tmp_path / "project"
    done = cli("bitstream", "--board", "kv260", "-o", out, "--json")
    assert done.code == 0, done.err
    assert "vivado -mode batch" in done.err
    assert done.json["resources"]["lut"] == {"used": 1000, "available": 117120}
    assert done.json["timing"] == {
        "setup_ns": 0.101, "hold_ns": 0.02, "fmax_mhz": None, "met": True,
    }  # fmt: skip
    handoff = load_handoff(Path(done.json["bitstream"]))
    assert handoff.config == load_config("kv260")
    assert handoff.tool == "vivado v2024.1 (64-bit)"
    again = cli("bitstream", "--board", "kv260", "-o", out)
    assert again.code == 0 and "timing met" in again.out and "lut" in again.out


def test_missed_timing_is_exit_code_1(cli, tmp_path: Path, vivado, monkeypatch) -> None:
    monkeypatch.setenv("SLACK", "-0.5")
    done = cli("bitstream", "--board", "kv260", "-o", tmp_path / "p", "--json")
    assert done.code == 1 and done.json["timing"]["met"] is False


def test_the_tool_s_own_error_is_shown(cli, tmp_path: Path, vivado, monkeypatch) -> None:
    monkeypatch.setenv("VIVADO_FAILS", "1")
    done = cli("bitstream", "--board", "kv260", "-o", tmp_path / "p")
    assert done.code == 1
    last = done.err.strip().splitlines()[-1]
    assert "failed: ERROR: [Route 35-2] Design is not legally routed." in last
    assert not list((tmp_path / "p").rglob("*.hardware.json"))


def test_what_cannot_be_built_is_refused(refused, tmp_path: Path) -> None:
    assert "part: 'simulation' has no project" in refused(
        "bitstream", "--board", "tiny", "-o", tmp_path / "p"
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("x")
    assert "exists and is no project folder" in refused(
        "bitstream", "--board", "kv260", "-o", tmp_path / "mine"
    )


def test_a_folder_is_brought_up_to_date(tmp_path: Path) -> None:
    from flightllm.bitstream import write_project
    from flightllm.hw.boards.project import make_project

    project = make_project(load_config("kv260"), {"a.v": "1", "b.v": "2"})
    write_project(project, tmp_path / "p")
    (tmp_path / "p" / "build").mkdir()
    write_project(make_project(load_config("kv260"), {"a.v": "3"}), tmp_path / "p")
    assert (tmp_path / "p" / "rtl" / "a.v").read_text() == "3"
    assert not (tmp_path / "p" / "rtl" / "b.v").exists()
    assert (tmp_path / "p" / "build").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p"]
    with pytest.raises(InputError):
        write_project(project, tmp_path)
