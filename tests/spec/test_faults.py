"""spec.faults: sentences about a device's registers."""

from __future__ import annotations

import pytest

from flightllm.spec.encoding import Op, encode
from flightllm.spec.faults import explain
from flightllm.spec.isa import UNITS, Unit

IDLE = 1 << 12
PROGRAM = encode([Op.make("ld.nop"), Op.make("misc.nop"), Op.make("sys.halt")])


def _read(**values):
    """A device whose registers are 0, its units idle, but for `values`: NAME or NAME_index."""

    def read(name: str, index: int = 0, core: int = 0) -> int:
        default = IDLE if name == "WAITS" else 0
        return values.get(f"{name}_{index}", values.get(name, default)) if core == 0 else default

    return read


@pytest.mark.parametrize(("values", "said"), [
    ({}, "no unit waits for anything"),
    ({"STATUS": 8}, "the run was aborted"),
    ({"WAITS_0": 1 << 8}, "core 0: LD waits for room in the weight FIFO"),
    ({"WAITS_3": 1 << 8 | 1 << Unit.MISC},
     "core 0: MV waits for a token from MISC and data in the weight FIFO"),
    ({"STATUS": 4, "ERROR": 7 | Unit.LD << 8 | 1 << 16},
     "core 0, LD at word 0 (ld.nop): a memory channel answered a read with an error (channel 1)"),
    ({"STATUS": 4, "ERROR": 4 | 15 << 8, "ERROR_ADDRESS": 99},
     "core 0, the dispatcher at word 99: loops nest too deep, or an end has no loop"),
    ({"STATUS": 4, "ERROR": 9 | 15 << 8, "WATCHDOG": 700, "WAITS_0": 1 << 9},
     "nothing moved for 700 cycles: core 0: LD waits for data of a memory read"),
    ({"STATUS": 4, "ERROR": 200}, "core 0, LD at word 0 (ld.nop): error code 200"),
])  # fmt: skip
def test_sentences(values, said: str) -> None:
    assert explain(_read(**values), 2, [PROGRAM]) == said


def test_every_unit_is_named() -> None:
    for unit in UNITS:
        assert explain(_read(**{f"WAITS_{unit.value}": 1 << 9}), 1).startswith(
            f"core 0: {unit.name} waits for data of a memory read"
        )
