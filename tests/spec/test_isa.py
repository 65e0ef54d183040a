"""The instruction table: every code, name and bit is used once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flightllm.spec.errors import InputError, VerifyError
from flightllm.spec.isa import (
    IMMEDIATE_BITS,
    INSTRUCTIONS,
    REGISTER_BITS,
    Instruction,
    Operand,
    Register,
    Unit,
    by_name,
    find,
    verify_table,
)


@pytest.mark.parametrize("entry", INSTRUCTIONS, ids=lambda entry: entry.name)
def test_entry_is_found_by_code_and_name(entry: Instruction) -> None:
    assert find(entry.unit, entry.function) is entry
    assert by_name(entry.name) is entry
    assert entry.name.split(".")[0] == entry.unit.name.lower()
    assert entry.words == 1 + len(entry.operands)


@pytest.mark.parametrize("entry", INSTRUCTIONS, ids=lambda entry: entry.name)
def test_entry_is_documented(entry: Instruction) -> None:
    assert entry.doc.strip() and all(operand.doc for operand in entry.operands)


def test_every_unit_has_a_nop() -> None:
    for unit in Unit:
        assert find(unit, 0).name == f"{unit.name.lower()}.nop"


def test_a_stream_is_the_matrix_of_its_linear() -> None:
    """LD.stream and the linear that eats its stream name the matrix by the same operands."""
    stream = {operand.name for operand in by_name("ld.stream").operands} - {"addr"}
    for name in ("mm.linear", "mv.linear"):
        assert stream <= {operand.name for operand in by_name(name).operands}


def test_an_operand_fills_a_word() -> None:
    assert REGISTER_BITS + IMMEDIATE_BITS == 32
    assert max(Register) < 1 << REGISTER_BITS and Register.ZERO == 0


def test_unknown_opcode_and_name() -> None:
    with pytest.raises(InputError, match="opcode 5 function 15 is no instruction"):
        find(Unit.SYS, 15)
    with pytest.raises(InputError, match="opcode 9"):
        find(9, 0)
    with pytest.raises(KeyError):
        by_name("mm.multiply")


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        (replace(by_name("mm.linear"), name="mm.other"), "name or its code"),
        (replace(by_name("mm.linear"), function=9), "name or its code"),
        (replace(by_name("mm.linear"), name="mm.other", function=16), "does not fit 4 bits"),
        (
            replace(by_name("mm.linear"), name="mm.a", function=9, flags=tuple("abcdefghijklm")),
            "overlap other bits",
        ),
        (
            replace(by_name("sys.add"), name="sys.a", function=14, flags=("x",)),
            "overlap other bits",
        ),
        (
            replace(
                by_name("mm.linear"), name="mm.a", function=9,
                operands=(Operand("x", "one"), Operand("x", "two")),
            ),
            "share a name",
        ),
        (replace(by_name("sys.add"), name="mm.add", unit=Unit.MM, function=9), "dispatcher"),
    ],
)  # fmt: skip
def test_planted_overlap_is_seen(planted: Instruction, message: str) -> None:
    verify_table(INSTRUCTIONS)
    with pytest.raises(VerifyError, match=message):
        verify_table((*INSTRUCTIONS, planted))
