"""The module list: every module, with its own first sentence."""

from pathlib import Path

import module_list
import pytest


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "part.py").write_text(text)
    return folder / "part.py"


def test_first_sentence_of_a_wrapped_docstring(tmp_path: Path) -> None:
    file = write(tmp_path, '"""What it is: a\nthing | other. More.\n\nRest."""\n')
    assert module_list.sentence(file) == "What it is: a thing \\| other"


def test_module_without_a_docstring_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="part.py must open with a docstring"):
        module_list.sentence(write(tmp_path, "x = 1\n"))


def test_only_the_list_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "spec", '"""A part."""\n')
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "concepts.md"
    page.write_text(f"before\n{module_list.BEGIN}\nold\n{module_list.END}\nafter\n")
    text = module_list.page(tmp_path)
    assert "| `part.py` | A part |" in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    page.write_text(text)
    assert module_list.page(tmp_path) == text
    page.write_text("no marks\n")
    with pytest.raises(ValueError, match="must hold"):
        module_list.page(tmp_path)


def test_every_folder_has_modules() -> None:
    for folder in module_list.FOLDERS:
        if folder != "sim":  # executors are folders of their own
            assert module_list.table(folder)
