"""How busy the beats of a channel and the array are, with beats always offered.

`pytest -s -m slow tests/hw/test_engine_rate.py` prints the figures of docs/units/engine.md.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path

import pytest

from flightllm.hw.engine import EngineSize

sys.path.insert(0, str(Path(__file__).parent))
from engine_cases import Machine, engine, plain  # noqa: E402

TINY = EngineSize(channels=2, k_lanes=32, cells=2, lanes=8, vectors=128, accumulators=32 * 64)
U280 = EngineSize(1, 64, 3, 16, 128, 64 * 43, twin=True)
"""One channel of it."""
ENGINES = {"tiny": (TINY, 16, 2048, 2048), "u280": (U280, 64, 512, 4096)}
"""Size, bytes of a beat, and a matrix: of `u280` the part of one of 8 channels of 4096 rows."""
FORMS = {
    **{f"w{bits}g{group}": (bits, group, 16) for group in (128, 64, 32) for bits in range(2, 9)},
    **{f"w{bits}g{group} 8:16": (bits, group, 8) for group in (128, 64) for bits in (2, 3, 4, 8)},
}
LIMITED = {
    ("u280", "w2g32"): 0.6, ("u280", "w3g32"): 0.85, ("u280", "w2g64 8:16"): 0.85,
}  # fmt: skip
"""Where lanes, not beats, are the limit."""


@lru_cache
def program(name: str) -> Path:
    size, beat, *_ = ENGINES[name]
    return engine(size, beat)


def beats_busy(name: str, form: str, rows: int, columns: int) -> float:
    """Beats a cycle of one vector times a matrix, from start to done."""
    size, beat, *_ = ENGINES[name]
    bits, group, kept = FORMS[form]
    machine = Machine(size.channels, 1)
    case = plain(bits, rows, columns, bits, group, size.channels, kept=kept, unit="mv")
    machine.add(case)
    ((cycles, *_),) = machine.check(program(name))
    return max(len(part) for part in case.streams) / beat / cycles


def test_beats_of_a_vector_product() -> None:
    assert beats_busy("tiny", "w4g128", 256, 2048) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_no_width_waits_for_the_array(name: str) -> None:
    *_, rows, columns = ENGINES[name]
    for form in FORMS:
        found = beats_busy(name, form, rows, columns)
        print(f"{name} {form}: {found:.3f} beats a cycle")
        assert found >= LIMITED.get((name, form), 0.95), form


@pytest.mark.slow
@pytest.mark.parametrize("name, tokens, rows", [("tiny", 16, 1024), ("u280", 64, 128)])
def test_products_of_many_vectors(name: str, tokens: int, rows: int) -> None:
    """128 tokens times a layer 1024 wide, tile by tile; of `u280` one of 8 channels."""
    size, *_ = ENGINES[name]
    machine = Machine(size.channels, 1)
    for tile in range(128 // tokens):
        machine.add(plain(tile, rows, 1024, 4, 128, size.channels, n1=tokens))
    counts = machine.check(program(name))
    array = 2 * size.k_lanes * size.cells * size.channels
    used = 128 * rows * 1024 / array / sum(cycles for cycles, *_ in counts)
    print(f"{name}: {used:.3f} of the array's products")
    assert used >= 0.9
