"""The manual of the instruction set says what the tables say."""

import re

import pytest

from flightllm.spec import isa_doc
from flightllm.spec.encoding import Op, encode
from flightllm.spec.formats import MatrixFormat
from flightllm.spec.isa import INSTRUCTIONS, Instruction, Unit


def section(name: str) -> str:
    return isa_doc.manual().split(f"#### {name}\n")[1].split("\n#")[0]


@pytest.mark.parametrize("entry", INSTRUCTIONS, ids=lambda entry: entry.name)
def test_every_instruction_is_described(entry: Instruction) -> None:
    text = section(entry.name)
    (head,) = re.findall(r"word 0 = `0x([0-9a-f]+)`", text)
    op = Op.make(entry.name, **{operand.name: 0 for operand in entry.operands})
    assert int(head, 16) == encode([op])[0]
    for place, operand in enumerate(entry.operands, 1):
        assert f"| {place} | {operand.name} | {operand.doc}" in text
    for bit, flag in enumerate(entry.flags):
        assert f"flag `{flag}` in [{20 + bit}]" in text
    assert entry.doc in text


def test_format_fields_are_where_the_word_has_them() -> None:
    text = isa_doc.manual()
    plain = MatrixFormat(2, 16, scale=False)
    for name in ("scale", "private", "indices", "bytewise", "cyclic", "whole", "table"):
        changed = MatrixFormat(2, 16, **{"scale": False, name: True})
        bit = (plain.word ^ changed.word).bit_length() - 1
        assert f"| [{bit}] | {name} |" in text


def test_a_new_instruction_appears(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = Instruction("misc.new", Unit.MISC, 15, (), "Something new.")
    monkeypatch.setattr(isa_doc, "INSTRUCTIONS", (*INSTRUCTIONS, extra))
    assert "#### misc.new" in isa_doc.manual()
    assert isa_doc.as_dict()["instructions"][-1]["doc"] == "Something new."


def test_manual_is_tidy() -> None:
    text = isa_doc.manual()
    assert text.startswith("# Instruction set\n") and text.endswith("\n")
    assert all(line == line.rstrip() for line in text.splitlines())
    assert text.count("```") % 2 == 0
