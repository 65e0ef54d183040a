"""The committed tables are what the generator writes, and it rounds as float32 does."""

import struct
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flightllm.spec import make_sfu_tables, sfu_tables


def test_committed_tables_are_up_to_date() -> None:
    assert make_sfu_tables.main(["--check"]) == 0


def test_a_changed_table_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(make_sfu_tables, "__file__", str(tmp_path / "make_sfu_tables.py"))
    assert make_sfu_tables.main(["--check"]) == 1
    assert make_sfu_tables.main([]) == 0 and make_sfu_tables.main(["--check"]) == 0
    written = tmp_path / "sfu_tables.py"
    written.write_text(written.read_text().replace("bf7e03b9", "bf7e03b8", 1))
    assert make_sfu_tables.main(["--check"]) == 1
    assert "out of date" in capsys.readouterr().err


@given(st.floats(2.0**-120, 2.0**120), st.booleans())
def test_rounding_is_that_of_float32(value: float, negative: bool) -> None:
    value = -value if negative else value
    expected = struct.unpack("<I", struct.pack("<f", value))[0]
    assert make_sfu_tables.float32_bits(Decimal(value)) == expected


def test_rounding_of_halves_and_limits() -> None:
    for steps, expected in ((1, 0x3F800000), (3, 0x3F800002), (2**25 - 1, 0x40400000)):
        assert make_sfu_tables.float32_bits(1 + steps * Decimal(2) ** -24) == expected
    assert make_sfu_tables.float32_bits(Decimal(0)) == 0
    for value in (Decimal("1e-39"), Decimal("1e39")):
        with pytest.raises(ValueError, match="no normal float32"):
            make_sfu_tables.float32_bits(value)


def test_shapes_and_constants() -> None:
    shapes = [table.shape for table in (sfu_tables.RECIP, sfu_tables.RSQRT, sfu_tables.EXP)]
    assert shapes == [(128, 3), (256, 3), (128, 3)]
    middle = 1 + (np.arange(128) + 0.5) / 128
    assert np.allclose(sfu_tables.RECIP[:, 0], 1 / middle, rtol=1e-7)
    assert np.allclose(sfu_tables.RSQRT[128:, 0], (2 * middle) ** -0.5, rtol=1e-7)
    assert np.allclose(sfu_tables.EXP[:, 0], 2 ** (middle - 1), rtol=1e-7)
    assert not sfu_tables.RECIP.flags.writeable
