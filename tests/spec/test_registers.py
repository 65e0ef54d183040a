"""The host register map: no overlaps, addresses, and a manual that holds everything."""

import pytest

from flightllm.spec import registers
from flightllm.spec.config import HwConfig, load_config
from flightllm.spec.errors import InputError
from flightllm.spec.isa import UNITS, Register
from flightllm.spec.registers import (
    ADDRESS_BITS,
    CORE_REGISTERS,
    CORE_WINDOW,
    DEVICE_REGISTERS,
    Access,
    BitField,
    ErrorCode,
    HostRegister,
    address,
    manual,
)

ALL = (*DEVICE_REGISTERS, *CORE_REGISTERS)


def test_addresses_are_distinct_words_inside_the_map() -> None:
    found = [address(r.name, index) for r in DEVICE_REGISTERS for index in range(r.count)]
    for core in range(8):
        found += [address(r.name, i, core) for r in CORE_REGISTERS for i in range(r.count)]
    assert len(set(found)) == len(found)
    assert all(place % 4 == 0 and 0 <= place < 1 << ADDRESS_BITS for place in found)


def test_known_addresses() -> None:
    assert address("ID") == 0
    assert address("CONFIG_DIGEST", 7) == 0x3C
    assert address("ENTRY", core=2) == 3 * CORE_WINDOW
    assert address("COUNT_WAIT", 5) == CORE_WINDOW + 0x94
    assert address("CHANNEL_BASE_HIGH", 63) == CORE_WINDOW + 0x5FC


@pytest.mark.parametrize(
    "arguments", [("GONE",), ("ID", 1), ("WAITS", 6), ("ENTRY", 0, 8), ("ENTRY", -1)]
)
def test_what_is_not_there_is_refused(arguments: tuple) -> None:
    with pytest.raises(KeyError):
        address(*arguments)


def test_length_registers_are_those_of_the_instruction_set() -> None:
    names = {r.name: r for r in DEVICE_REGISTERS}
    for register in Register:
        if register != Register.ZERO:
            assert names[register.name].access is Access.WRITE


def test_one_of_each_counter_for_every_unit() -> None:
    for register in CORE_REGISTERS:
        if register.name.startswith("COUNT_") or register.name == "WAITS":
            assert register.count == len(UNITS)


def test_map_holds_the_largest_configuration() -> None:
    tiny = {**load_config("tiny").to_dict(), "slrs": []}
    HwConfig.from_dict({**tiny, "channels": [registers.CHANNELS] * registers.CORES})
    for channels in ([1] * (registers.CORES + 1), [registers.CHANNELS + 1]):
        with pytest.raises(InputError, match="channels"):
            HwConfig.from_dict({**tiny, "channels": channels})
    assert CORE_WINDOW * (registers.CORES + 1) <= 1 << ADDRESS_BITS


def test_fields_pick_their_bits() -> None:
    status = next(r for r in DEVICE_REGISTERS if r.name == "STATUS")
    assert [(f.name, f.low, f.width) for f in status.fields] == [
        ("busy", 0, 1), ("done", 1, 1), ("error", 2, 1), ("aborted", 3, 1), ("core", 8, 8),
    ]  # fmt: skip
    assert status.field("core").of(0x00000504) == 5
    assert status.field("core").mask == 0xFF00
    with pytest.raises(KeyError, match="STATUS has no field 'gone'"):
        status.field("gone")


def test_an_overlap_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    clash = HostRegister("CLASH", 0x3C, Access.READ, "on the digest's last word")
    monkeypatch.setattr(registers, "DEVICE_REGISTERS", (*DEVICE_REGISTERS, clash))
    with pytest.raises(AssertionError, match="two registers share an address"):
        registers._verify()


def test_overlapping_fields_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = HostRegister("WIDE", 0xF00, Access.READ, "", (BitField("a", 0, 33, ""),))
    monkeypatch.setattr(registers, "CORE_REGISTERS", (*CORE_REGISTERS, wide))
    with pytest.raises(AssertionError, match="WIDE"):
        registers._verify()


def test_manual_names_everything() -> None:
    text = manual()
    for register in ALL:
        assert f"| {register.name} |" in text
        for field in register.fields:
            assert f"| {field.name} | {field.doc} |" in text
    for code in ErrorCode:
        assert f"| {code.value} | {code.name} |" in text
    assert text.endswith("\n") and all(line == line.rstrip() for line in text.splitlines())
