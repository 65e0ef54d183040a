"""How cells of Yosys are counted as resources."""

from flightllm.synthesis import Netlist, counts_by_kind, functions, lut_sites


def sites(*inputs: str) -> int:
    return lut_sites(frozenset(names) for names in inputs)


def test_two_functions_of_five_inputs_together_share_a_site() -> None:
    assert sites("sab", "scd") == 1
    assert sites("sab", "tcd") == 2
    assert sites("abcde", "ab", "cde") == 2
    assert sites("abcdef", "a") == 2
    assert sites("abcd", "abcd", "abcd") == 2


def test_the_wider_partner_first() -> None:
    assert sites("abcd", "ab", "abcd", "ab") == 2


def cell(kind: str, out: int, *inputs: object) -> dict[str, object]:
    ports = {f"I{k}": [net] for k, net in enumerate(inputs)} | {"O": [out]}
    return {"type": kind, "connections": ports}


def test_tables_before_a_wide_multiplexer_stand_alone() -> None:
    tables = [cell("LUT2", 10, 1, 2), cell("LUT2", 11, 1, 3)]
    assert lut_sites(functions(tables)) == 1
    wide = {"type": "MUXF7", "connections": {"I0": [10], "I1": [11], "S": [4], "O": [12]}}
    assert lut_sites(functions([*tables, wide])) == 2
    assert functions([cell("LUT3", 9, 1, "0", 1)]) == [frozenset({1})]


def test_memories_and_shift_registers() -> None:
    tables = {"SRL16E": 5, "RAM32M16": 2, "RAM32M": 1, "RAM64X1S": 1, "RAM128X1D": 1}
    cells = tables | {"RAMB18E2": 3, "DSP48E2": 4, "FDRE": 6}
    assert counts_by_kind(cells, 7) == {"dsp": 4, "lut": 37, "ff": 6, "bram36": 1.5, "uram": 0}


def module(*types: str) -> dict[str, object]:
    return {"attributes": {}, "cells": {str(k): cell(t, k) for k, t in enumerate(types)}}


def test_modules_count_as_often_as_they_stand_and_to_their_unit() -> None:
    netlist = Netlist({
        "top": module("Core", "Core_2", "Control"),
        "Core": module("MatrixEngine", "FDRE"), "Core_2": module("SpecialFunctionUnit"),
        "MatrixEngine": module("DecodeUnit", "DecodeUnit", "FDRE"), "DecodeUnit": module("FDRE"),
        "SpecialFunctionUnit": module("Lane"), "Lane": module("FDSE", "FDRE"),
        "Control": module("FDRE"), "FDRE": {"attributes": {"blackbox": 1}, "cells": {}},
    })  # fmt: skip
    first, second = netlist.cores("top", [1, 1])
    assert {unit: counts["ff"] for unit, counts in first.items()} == {
        "control": 2, "engine": 1, "channels": 2,
    }  # fmt: skip
    assert second["sfu"]["ff"] == 2


def test_what_belongs_to_no_core_counts_to_the_first_of_equal_ones() -> None:
    netlist = Netlist({
        "top": module("Core", "Core", "Control"), "Core": module("FDRE"),
        "Control": module("FDRE", "FDRE"),
    })  # fmt: skip
    assert [core["control"]["ff"] for core in netlist.cores("top", [1, 1])] == [3, 1]


def test_a_channel_s_port_counts_to_its_core() -> None:
    netlist = Netlist({
        "top": module("HalfPort", "Core", "HalfPort", "HalfPort_2", "Core"),
        "Core": module("FDRE"), "HalfPort": module("FDRE", "FDRE"), "HalfPort_2": module("FDRE"),
    })  # fmt: skip
    first, second = netlist.cores("top", [1, 2])
    assert (first["channels"]["ff"], second["channels"]["ff"]) == (2, 3)
    assert (first["control"]["ff"], second["control"]["ff"]) == (1, 1)
