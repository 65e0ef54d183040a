"""Projects for vendors' tools: files, ports, addresses; their Tcl is executed against stubs."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest

from flightllm.hw.boards import reports, versal
from flightllm.hw.boards.families import Alveo, Versal, Zynq, family
from flightllm.hw.boards.project import Project, make_project
from flightllm.hw.boards.wrapper import WRAPPER, ports, wrapper_verilog
from flightllm.hw.top import NAME, Top
from flightllm.spec.config import HwConfig, load_config
from flightllm.spec.errors import InputError
from flightllm.spec.handoff import (
    INSTANCE,
    KERNEL,
    VLNV,
    master_ports,
    port_bytes,
    wants_half_ports,
)
from flightllm.spec.registers import ADDRESS_BITS

STUBS = Path(__file__).parent.parent / "support" / "vivado_stubs.tcl"
ALVEO, ZYNQ = ("u50", "u55c", "u280"), ("zcu104", "kv260", "pynq-z2")
VERSAL = ("v80", "vhk158", "vck190")
EMPTY = {f"{NAME}.v": f"module {NAME}; endmodule\n"}


def written(board: str, folder: Path) -> Project:
    project = make_project(load_config(board), EMPTY)
    for name, text in project.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return project


def clock_pins(config: HwConfig) -> list[str]:
    """Clocks and resets of the accelerator."""
    return [name for name, _, _ in ports(config) if name.startswith(("ap_clk", "ap_rst"))]


def execute(board: str, folder: Path, script: str, **environment: str) -> dict[str, list]:
    """Run a script against the stubs; what they recorded, by kind."""
    config = load_config(board)
    interfaces = ";".join(["s_axi_control", *master_ports(config)])
    record = folder / "record"
    done = subprocess.run(
        ["tclsh", STUBS, folder, record, script, interfaces, ";".join(clock_pins(config))],
        capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", **environment},
    )  # fmt: skip
    if done.returncode:
        raise AssertionError(done.stderr)
    found = defaultdict(list)
    for line in record.read_text().splitlines():
        kind, *values = line.split("\t")
        found[kind].append(tuple(values))
    return found


# ------------------------------------------------------------------------- every project


@pytest.mark.parametrize("board", [*ALVEO, *ZYNQ, *VERSAL])
def test_packaging_runs_and_knows_every_port(board: str, tmp_path: Path) -> None:
    written(board, tmp_path)
    found = execute(board, tmp_path, "package.tcl")
    vendor, library, name, version = VLNV.split(":")
    assert found["package"] == [("build/ip", vendor, library)]
    assert ("core", "name", name) in found["property"]
    assert ("core", "version", version) in found["property"]
    wanted = ["s_axi_control", *master_ports(load_config(board))]
    clock = "ap_clk_2" if wants_half_ports(load_config(board)) else "ap_clk"
    assert found["associate"] == [(wanted[0], "ap_clk"), *((port, clock) for port in wanted[1:])]
    assert bool(found["xo"]) == (board in ALVEO)


@pytest.mark.parametrize("board", [*ZYNQ, *VERSAL])
def test_block_design_connects_every_port_once(board: str, tmp_path: Path) -> None:
    """The stubs fail for a port connected twice, a pin driven twice, or one left open."""
    config = load_config(board)
    written(board, tmp_path)
    found = execute(board, tmp_path, "build.tcl")
    assert found["validated"] == [()]
    ends = [pin for pair in found["join"] for pin in pair]
    for name in ("s_axi_control", *master_ports(config)):
        assert ends.count(f"{INSTANCE}/{name}") == 1
    control = [row for row in found["address"] if row[1] == f"{INSTANCE}/s_axi_control/reg0"]
    assert len(control) == 1 and int(control[0][3], 0) == 1 << ADDRESS_BITS
    clocked = {sink for _, sink in found["net"]}
    for cell, vlnv in found["cell"]:
        if "smartconnect" in vlnv:
            assert {f"{cell}/aclk", f"{cell}/aresetn"} <= clocked
    suffix = "bit" if board in ZYNQ else "pdi"
    for name in (f"{board}.{suffix}", f"{board}.hwh", "utilisation.rpt", "timing.rpt"):
        assert (tmp_path / "build" / name).exists(), name


@pytest.mark.parametrize("board", ZYNQ)
def test_zynq_channels_reach_the_high_performance_ports(board: str, tmp_path: Path) -> None:
    config = load_config(board)
    written(board, tmp_path)
    found = execute(board, tmp_path, "design.tcl")
    targets = [two for _, two in found["join"] if "S_AXI_HP" in two]
    assert len(set(targets)) == len(targets) == sum(config.channels)
    widths = [value for _, name, value in found["property"] if name.endswith("_DATA_WIDTH")
              and re.search(r"SAXIGP|S_AXI_HP", name)]  # fmt: skip
    assert widths == [str(config.memory.port_bits)] * len(targets)
    frequencies = {name: value for cell, name, value in found["property"] if "FREQMHZ" in name}
    assert f"{config.clock_mhz:g}" in frequencies.values()


@pytest.mark.parametrize("board", ["v80", "vhk158"])
def test_every_hbm_port_is_mapped_once(board: str, tmp_path: Path) -> None:
    config = load_config(board)
    written(board, tmp_path)
    found = execute(board, tmp_path, "design.tcl")
    flows = {
        pin: value.split()[0]
        for pin, name, value in found["property"]
        if name == "CONFIG.CONNECTIONS" and "/HBM" in pin
    }
    assert sorted(flows.values()) == sorted(
        f"HBM{c}_PORT{p}" for c in range(16) for p in range(4)
    )
    places = {space: (int(offset, 0), int(size, 0), segment)
              for space, segment, offset, size in found["address"] if "m_axi" in space}  # fmt: skip
    assert len(places) == sum(config.channels) == 64
    for channel, master in enumerate(master_ports(config)):
        offset, size, segment = places[f"{INSTANCE}/{master}"]
        assert size == 2 * config.channel_bytes
        assert offset == versal.HBM_BASE + channel // 2 * size
        assert segment.endswith(versal.hbm_port(channel)[1])


def test_vck190_channels_have_a_port_each(tmp_path: Path) -> None:
    written("vck190", tmp_path)
    found = execute("vck190", tmp_path, "design.tcl")
    used = [
        (pin.split("/")[0], value.split()[0])
        for pin, name, value in found["property"]
        if name == "CONFIG.CONNECTIONS" and value.startswith("MC_") and "_AXI" in pin
    ]
    assert len(set(used)) == len(used) == 6


# ------------------------------------------------------------------------- Alveo


@pytest.mark.parametrize("board", ALVEO)
def test_link_configuration_maps_every_port_to_its_pseudo_channel(
    board: str, tmp_path: Path
) -> None:
    config = load_config(board)
    project = written(board, tmp_path)
    text = project.files["link.cfg"]
    pairs = re.findall(rf"^sp={INSTANCE}\.(\w+):HBM\[(\d+)\]$", text, re.MULTILINE)
    assert [port for port, _ in pairs] == master_ports(config)
    assert [int(bank) for _, bank in pairs] == list(range(sum(config.channels)))
    assert f"nk={KERNEL}:1:{INSTANCE}" in text
    assert f"freqHz={round(config.clock_mhz * 1e6)}:{INSTANCE}.ap_clk\n" in text
    assert f"freqHz={round(config.memory.port_mhz * 1e6)}:{INSTANCE}.ap_clk_2\n" in text
    kernel = ElementTree.fromstring(project.files["kernel.xml"]).find("kernel")
    assert {port.get("name") for port in kernel.iter("port")} == {
        "s_axi_control", *master_ports(config)
    }  # fmt: skip


@pytest.mark.parametrize("board", ALVEO)
def test_each_core_has_an_slr(board: str, tmp_path: Path) -> None:
    written(board, tmp_path)
    found = execute(board, tmp_path, "slr.tcl")
    places = {cell: slr for cell, name, slr in found["property"] if "SLR" in name}
    cores = load_config(board).cores
    assert [places[f"*{INSTANCE}*/top/core{c}"] for c in range(cores)] == [
        f"SLR{c}" for c in range(cores)
    ]


# ------------------------------------------------------------------------- the wrapper


@pytest.mark.parametrize("board", ["tiny-2core", "kv260", "pynq-z2", "u280", "vck190"])
def test_the_wrapper_has_the_top_s_ports(board: str) -> None:
    """The ports of what `verilog_files` writes: half as wide where the memory's ports are."""
    config = load_config(board)
    half = wants_half_ports(config)
    assert half == (board in ("pynq-z2", "u280", "vck190"))
    inner = {name: len(value) for name, (value, _) in Top(config, half_ports=half).ports().items()}
    outer = {name: bits for name, bits, _ in ports(config)}
    clocks = {"clk": "ap_clk", "rst": "ap_rst_n", "port_clk": "ap_clk_2", "port_rst": "ap_rst_n_2"}
    assert {clocks.get(name, name): bits for name, bits in inner.items()} == outer
    assert outer["m_axi_00_rdata"] == 8 * port_bytes(config)
    outputs = {name for name, _, output in ports(config) if output}
    assert {"interrupt", "s_axi_control_rdata", "m_axi_00_araddr"} <= outputs
    assert not {"s_axi_control_wdata", "m_axi_00_rdata"} & outputs
    assert KERNEL == NAME
    text = wrapper_verilog(config)
    assert text.startswith(f"module {WRAPPER} (") and text.count(".m_axi_00_araddr(") == 1


# ------------------------------------------------------------------------- what can go wrong


def test_a_planted_error_is_caught_by_the_stubs(tmp_path: Path) -> None:
    project = written("kv260", tmp_path)
    design = tmp_path / "design.tcl"
    for old, new, message in (
        ("S_AXI_HP1_FPD", "S_AXI_HP0_FPD", "S_AXI_HP0_FPD is connected twice"),
        ("connect_bd_intf_net [get_bd_intf_pins flightllm_1/m_axi_03]",
         "# [get_bd_intf_pins flightllm_1/m_axi_03]", "m_axi_03 is not connected"),
        ("flightllm_1/m_axi_02", "flightllm_1/m_axi_09", "no pin flightllm_1/m_axi_09"),
        ("reset/peripheral_aresetn", "rset/peripheral_aresetn", "no cell rset"),
        ("assign_bd_address -offset", "assign_address -offset", "no command assign_address"),
    ):  # fmt: skip
        design.write_text(project.files["design.tcl"].replace(old, new))
        with pytest.raises(AssertionError, match=message):
            execute("kv260", tmp_path, "design.tcl")


def test_a_failed_run_stops_the_build(tmp_path: Path) -> None:
    written("kv260", tmp_path)
    with pytest.raises(AssertionError, match="implementation ended with: route_design ERROR"):
        execute("kv260", tmp_path, "build.tcl", STUB_FAILS="1")


def test_a_port_left_open_is_caught_by_the_stubs(tmp_path: Path) -> None:
    project = written("u280", tmp_path)
    text = project.files["package.tcl"]
    assert text.count("-clock ap_clk_2 $core") == 32 and "-clock ap_clk_2 -reset ap_rst_n_2" in text
    project = written("vck190", tmp_path / "versal")
    design = tmp_path / "versal" / "design.tcl"
    design.write_text(project.files["design.tcl"].replace("flightllm_1/ap_clk_2", "reset/other"))
    with pytest.raises(AssertionError, match="flightllm_1/ap_clk_2 is not driven"):
        execute("vck190", tmp_path / "versal", "design.tcl")


def test_families() -> None:
    kinds = {"u280": Alveo, "kv260": Zynq, "vhk158": Versal}
    assert all(isinstance(family(load_config(b)), kind) for b, kind in kinds.items())
    with pytest.raises(InputError, match="part: .simulation. has no project, only LFE5U-85F"):
        make_project(load_config("tiny"), EMPTY)


def test_too_many_channels_are_refused() -> None:
    import dataclasses

    board = dataclasses.replace(load_config("pynq-z2"), channels=(5,))
    with pytest.raises(InputError, match="channels: 5 in all, the processing system has 4 ports"):
        make_project(board, EMPTY)


# ------------------------------------------------------------------------- reports

UTILISATION = """\
| Tool Version : Vivado v.2024.1 (lin64) Build 5076996

1. CLB Logic
+----------------------------+--------+-------+------------+-----------+-------+
|          Site Type         |  Used  | Fixed | Prohibited | Available | Util% |
+----------------------------+--------+-------+------------+-----------+-------+
| CLB LUTs                   |  61234 |     0 |          0 |    117120 | 52.28 |
|   LUT as Logic             |  50000 |     0 |          0 |    117120 | 42.69 |
| CLB Registers              |  80001 |     0 |          0 |    234240 | 34.15 |
+----------------------------+--------+-------+------------+-----------+-------+
| Block RAM Tile    |   96.5 |     0 |          0 |       144 | 67.01 |
| URAM              |     16 |     0 |          0 |        64 | 25.00 |
| DSPs              |    612 |     0 |          0 |      1248 | 49.04 |
"""
TIMING = """\
------------------------------------------------------------------------------------------------
| Design Timing Summary
| ---------------------
------------------------------------------------------------------------------------------------

    WNS(ns)      TNS(ns)  TNS Failing Endpoints  TNS Total Endpoints      WHS(ns)      THS(ns)
    -------      -------  ---------------------  -------------------      -------      -------
     -0.123       -4.500                     12               210000        0.010        0.000
"""


def test_reports_become_the_resource_table() -> None:
    found = reports.utilisation(UTILISATION)
    assert found["lut"] == {"used": 61234, "available": 117120}
    assert found["bram36"]["used"] == 96.5
    assert set(found) == {"dsp", "lut", "ff", "bram36", "uram"}
    slack = reports.timing(TIMING)
    assert slack == reports.Timing(-0.123, 0.010) and not slack.met
    assert reports.Timing(0.0, 0.1).met
    assert reports.timing("no table") is None and reports.utilisation("") == {}
