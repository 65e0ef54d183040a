"""Planted errors in the SFU, each of which the comparison must catch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from amaranth.back import rtlil

from flightllm.hw.sfu import lanes, passes, scalar, topk
from flightllm.hw.sfu.unit import SpecialFunctionUnit
from flightllm.sim.rtl.verilate import verilate

sys.path.insert(0, str(Path(__file__).parent))
import test_sfu as sfu  # noqa: E402
from floating_cases import CACHE  # noqa: E402

Patch = Callable[[pytest.MonkeyPatch], None]


def last_bit_of_gelu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lanes, "TWICE_ROOT", lanes.TWICE_ROOT + 1)


def order_of_the_softmax_factor(patch: pytest.MonkeyPatch) -> None:
    program = [
        (scalar._Step.RECIP, "total", "total", "work"), (scalar._Step.MUL, "amax", "work", "work"),
        (scalar._Step.MUL, "work", "alpha", "scale"),
    ]  # fmt: skip
    patch.setitem(scalar._PROGRAMS, scalar.ScalarProgram.SOFT, program)


def magnitude_instead_of_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(topk, "zero_merged", lambda bits: bits[:31])


def unsigned_scan(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(passes, "order_key", lambda bits: bits)
    patch.setattr(passes, "unkey", lambda key: key)


MUTATIONS: dict[Patch, str] = {
    last_bit_of_gelu: "gelu",
    order_of_the_softmax_factor: "softmax",
    magnitude_instead_of_order: "topk",
    unsigned_scan: "softmax",
}


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.__name__)
def test_is_caught(mutation: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation(monkeypatch)
    unit = SpecialFunctionUnit(sfu.LANES, sfu.TOP_K, 2)
    text = rtlil.convert(unit, name="sfu", emit_src=False)
    harness = Path(__file__).with_name("sfu_harness.cpp")
    program = verilate(text, "sfu", harness, CACHE, [f"LANES={sfu.LANES}"])
    assert any(sfu.differences(program, MUTATIONS[mutation], seed) for seed in range(8))
