"""Damaged and malicious files: one clear sentence, no crash, no hang, no flood of memory.

`pytest -m slow tests/models/test_hostile.py` opens 10,000 damaged files of each format.
"""

from pathlib import Path

import pytest
from hostile import FORMATS, guard, run_seeds

MARKER = Path("/tmp/flightllm-hostile-ran")


@pytest.mark.parametrize("name", FORMATS)
def test_some_damaged_files(name: str, tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    form = FORMATS[name](tmp_path / "good")
    MARKER.unlink(missing_ok=True)
    refused, accepted, _ = run_seeds(form, tmp_path / "bad", range(60))
    assert refused > 20 and refused + accepted == 60
    assert not MARKER.exists()


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", FORMATS)
def test_ten_thousand_damaged_files(name: str, tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    form = FORMATS[name](tmp_path / "good")
    MARKER.unlink(missing_ok=True)
    refused, accepted, slowest = run_seeds(form, tmp_path / "bad", range(10_000))
    print(f"{name}: {refused} refused, {accepted} opened, slowest {slowest:.2f} s")
    assert not MARKER.exists()


def test_the_guard_sees_a_flood_of_memory() -> None:
    with guard(), pytest.raises(MemoryError):
        bytearray(3 << 30)
