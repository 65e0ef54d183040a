"""Errors planted in the float units are caught; every latency gives the same bits."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from long_lists import one_in

sys.path.insert(0, str(Path(__file__).parent))

import floating_cases as fc
import mutations_floating as mutations

from flightllm.hw import floating
from flightllm.sim.rtl.vectors import SimulationError, VectorProgram, build, unpack

_LONGEST = {
    "add": 6, "mul": 5, "mul_exact": 5, "max": 2, "int_to_float": 4, "wide_to_float": 4,
    "to_int8": 3, "to_half": 2, "from_half": 2, "scale": 1,
}  # fmt: skip


def _mutant(name: str, mutation: mutations.Mutation) -> Any:
    package = mutations.mutated(mutation)
    unit = fc.CASES[name].unit
    if hasattr(package, unit.__name__):
        return getattr(package, unit.__name__)()
    return {
        "mul_exact": lambda: package.FloatMul(subnormal_operands=True),
        "wide_to_float": lambda: package.IntToFloat(48, exponent=-20),
    }[name]()


def _variants(name: str) -> list[Any]:
    """Units of every latency, composed ones with the shortest of parts; and mutants."""
    unit = fc.CASES[name].unit
    if name in ("recip", "rsqrt", "exp"):
        sound = [unit(add=2, mul=1)]
    else:
        sound = [unit(latency=k + 1) for k in range(_LONGEST[name])]
    return sound + [_mutant(name, mutation) for mutation in mutations.MUTATIONS[name]]


def _built(name: str, unit: Any) -> VectorProgram:
    return build({name: unit}, fc.CACHE)[name]


@pytest.mark.parametrize("name", one_in(6, fc.CASES))
def test_latencies_agree_and_mutants_do_not(name: str) -> None:
    case = fc.CASES[name]
    program = _built(f"variants_{name}", floating.Streamed(fc.SideBySide(_variants(name))))
    planted = mutations.MUTATIONS[name]
    fields, rows = fc.operands(case, 50_000)
    want = fc.wanted(case, fields)
    words, _ = program.run(rows)
    low, high = min(case.width, 32), case.width - 32
    widths = [low, high] if high > 0 else [low]
    count = program.out_bits // case.width
    sound = count - len(planted)
    got = unpack(words, *(widths * count))
    results = [a | b << np.uint64(32) for a, b in zip(got[::2], got[1::2])] if high > 0 else got
    for k, result in enumerate(results[:sound]):
        assert np.array_equal(result, want), f"latency {k + 1}"
    for mutation, result in zip(planted, results[sound:]):
        assert not np.array_equal(result, want), mutation


@pytest.mark.parametrize("k", range(len(mutations.STREAM_MUTATIONS)))
def test_stream_mutants(k: int) -> None:
    package = mutations.mutated(mutations.STREAM_MUTATIONS[k])
    program = _built(f"stream_{k}", package.Streamed(package.FloatMax(latency=2)))
    case = fc.CASES["max"]
    fields, rows = fc.operands(case, 0)
    try:
        words, _ = program.run(rows, idle=30, stall=30)
    except SimulationError:
        return
    low, high = unpack(words, 32, 1)
    assert not np.array_equal(low | high << np.uint64(32), fc.wanted(case, fields))


def test_each_unit_has_three_mutations_at_least() -> None:
    assert set(mutations.MUTATIONS) == set(fc.CASES)
    assert all(len(planted) >= 3 for planted in mutations.MUTATIONS.values())


def test_mutation_that_fits_nowhere() -> None:
    with pytest.raises(ValueError, match="0 places, not 1"):
        mutations.mutated(mutations.Mutation("add.py", "no such text", "", ""))
    assert sys.modules["flightllm.hw.floating"] is floating
