"""How cells of Yosys are counted as resources."""

from flightllm.synthesis import counts_by_kind, lut_sites


def test_small_functions_share_a_site() -> None:
    assert lut_sites({"LUT6": 3, "LUT5": 2, "LUT4": 1}) == 6
    assert lut_sites({"LUT4": 2, "LUT2": 2}) == 2
    assert lut_sites({"LUT3": 1, "LUT2": 4}) == 3
    assert lut_sites({"LUT5": 1, "LUT2": 1}) == 2
    assert lut_sites({"LUT5": 1, "LUT1": 1, "INV": 1}) == 2
    assert lut_sites({"LUT6": 1, "LUT1": 1}) == 2


def test_an_adder_as_yosys_itself_estimates_it() -> None:
    """FloatAdd(3), of which `stat -tech xilinx` says 336."""
    cells = {"LUT1": 10, "LUT2": 49, "LUT3": 122, "LUT4": 66, "LUT5": 81, "LUT6": 67, "FDRE": 131}
    assert counts_by_kind(cells | {"FDSE": 9, "CARRY4": 24})["lut"] == 336


def test_memories_and_shift_registers() -> None:
    cells = {"SRL16E": 5, "RAM32M16": 2, "RAMB18E2": 3, "DSP48E2": 4, "FDRE": 6}
    assert counts_by_kind(cells) == {"dsp": 4, "lut": 21, "ff": 6, "bram36": 2, "uram": 0}
