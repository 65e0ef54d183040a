"""Damaged and malicious files: one clear sentence, no crash, no hang, no flood of memory.

`pytest -m slow -s tests/models/test_hostile.py` opens 10,000 damaged files of each format and
prints the rows of the table in docs/importing.md.
"""

from pathlib import Path

import pytest
from hostile import guard, run_seeds
from hostile_formats import FORMATS
from hostile_spoilers import MARKER

CLASSES = {
    "bytes": set(FORMATS),
    "offsets": {"safetensors", "gptq", "awq", "compressed-tensors", "gguf", "onnx", "torch-export"},
    "shapes": set(FORMATS) - {"tokenizer", "llama2c-tokenizer"},
    "pickle": {"safetensors", "pytorch", "gptq", "awq", "compressed-tensors", "torch-export"},
    "cycle": {"onnx", "torch-export"},
    "a billion tensors": {
        "safetensors", "gptq", "awq", "compressed-tensors", "gguf", "onnx", "torch-export"
    },
}  # fmt: skip
"""What each format must have been tried with."""


@pytest.mark.parametrize("name", FORMATS)
def test_some_damaged_files(name: str, tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    form = FORMATS[name](tmp_path / "good")
    form.open(form.folder / form.opened)
    MARKER.unlink(missing_ok=True)
    found = run_seeds(name, form, tmp_path / "bad", range(60))
    assert found.refused > 20 and found.refused + found.opened == 60
    assert set(found.counts) == set(form.spoilers)
    assert not MARKER.exists()
    for kind, formats in CLASSES.items():
        assert (name in formats) <= (kind in form.spoilers), kind


@pytest.mark.parametrize("name, seeds", {"torch-export": (3378,)}.items())
def test_seeds_that_once_got_through(name: str, seeds: tuple[int, ...], tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    form = FORMATS[name](tmp_path / "good")
    assert run_seeds(name, form, tmp_path / "bad", seeds).refused == len(seeds)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", FORMATS)
def test_ten_thousand_damaged_files(name: str, tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    form = FORMATS[name](tmp_path / "good")
    MARKER.unlink(missing_ok=True)
    found = run_seeds(name, form, tmp_path / "bad", range(10_000))
    print(f"\n{found.line()}")
    assert not MARKER.exists()


def test_the_guard_sees_a_flood_of_memory() -> None:
    with guard(), pytest.raises(MemoryError):
        bytearray(3 << 30)
