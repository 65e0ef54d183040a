"""DSPs that the resource model counts, against those that the generated design instantiates."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest

from flightllm.hw import resources
from flightllm.hw.memory.ram import shallow
from flightllm.hw.verilog import design_rtlil
from flightllm.resources import resource_table
from flightllm.spec.config import load_config

MODULE = re.compile(r"^module \\(\S+)$(.*?)^end$", re.MULTILINE | re.DOTALL)
CELL = re.compile(r"^\s+cell (\S+) \S+$(.*?)^\s+end$", re.MULTILINE | re.DOTALL)
WIDTH = re.compile(r"\\([AB])_WIDTH (\d+)")
# Operand widths of a product -> slices of a multiplier of 27 x 18 bits, signed. Narrower ones
# (addresses) become look-up tables.
PRODUCTS = {
    (24, 24): 2, (24, 16): 1, (24, 11): 1, (17, 11): 1, (11, 11): 1, (32, 32): 3,
}  # fmt: skip


def _direct(text: str) -> Counter[str]:
    """A module's cells: slices of its own under "dsp", instances under the module's name."""
    cells: Counter[str] = Counter()
    for kind, body in CELL.findall(text):
        if kind == "$mul":
            widths = dict(WIDTH.findall(body))
            cells["dsp"] += PRODUCTS.get((int(widths["A"]), int(widths["B"])), 0)
        elif kind.startswith("\\"):
            cells["dsp" if kind.startswith("\\DSP") else kind[1:]] += 1
    return cells


@cache
def design(board: str) -> str:
    """A board's design with AMD's multipliers."""
    return design_rtlil(replace(load_config(board), dsp_kind="dsp48e2"))


@cache
def instantiated(board: str) -> int:
    """Slices of the whole design."""
    modules = {name: _direct(body) for name, body in MODULE.findall(design(board))}

    @cache
    def total(name: str) -> int:
        parts = modules[name]
        return parts["dsp"] + sum(n * total(k) for k, n in parts.items() if k in modules)

    return total("flightllm")


@pytest.mark.parametrize("board", ["formal", pytest.param("tiny", marks=pytest.mark.slow)])
def test_the_count_is_exact(board: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(load_config(board), dsp_kind="dsp48e2")
    found = instantiated(board)
    assert found == sum(resources.dsp_count(config, core) for core in range(config.cores))
    monkeypatch.setattr(resources, "LANE_DSPS", 3)
    assert found != sum(resources.dsp_count(config, core) for core in range(config.cores))


def over(board: str) -> list[tuple[str, int]]:
    """(kind, die) of which more than 85 % is taken, as modelled."""
    table = resource_table(load_config(board))
    return [
        (kind, die)
        for kind, entry in table.items()
        for die, share in enumerate(entry.get("slrs", [entry]))
        if share["used"] > 0.85 * (share["available"] or 0)
    ]


@pytest.mark.parametrize(
    "board",
    [
        "u280-fit",
        "u50",
        "u55c",
        "zcu104",
        "kv260",
        "pynq-z2",
        "vhk158",
        "v80",
        "vck190",
        "ulx3s-85f",
    ],
)
def test_a_board_fits_85_percent_of_each_die(board: str) -> None:
    assert over(board) == []


def test_what_the_u280_exceeds() -> None:
    """Its rate of MM and its channels: docs/adr/0011-float-units-by-rate.md."""
    assert over("u280") == [
        ("dsp", 0), ("dsp", 1), ("lut", 0), ("lut", 1), ("lut", 2), ("bram36", 1),
    ]  # fmt: skip


def test_shallow_memories_of_amd_s_devices_are_in_look_up_tables() -> None:
    """As the model counts them."""
    found = {
        (name, shallow(int(words["WIDTH"]), int(words["DEPTH"])))
        for name, body in CELL.findall(design("formal")) if "flightllm_" in name
        for words in [dict(re.findall(r"parameter (?:signed )?\\(\w+) (\d+)", body))]
    }  # fmt: skip
    assert found == {("\\flightllm_ram", False), ("\\flightllm_lut_ram", True)}


@pytest.mark.slow
def test_in_simulation_they_are_as_the_others() -> None:
    config = replace(load_config("formal"), dsp_kind="dsp48e2")
    assert "flightllm_lut_ram" not in design_rtlil(config, modelled=True)
