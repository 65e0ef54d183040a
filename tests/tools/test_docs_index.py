"""The documentation's index."""

from pathlib import Path

import docs_index
import pytest


def test_summary_is_title_and_first_sentence(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- x -->\n# A title\n\nOne line\ngoes on. Another.\n\n## Part\n")
    assert docs_index.summary(page) == ("A title", "One line goes on")


def test_links_of_the_sentence_are_dropped(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title\n\nAs [a page](../page.md) says. More.\n")
    assert docs_index.summary(page) == ("A title", "As a page says")


def test_page_without_text_has_no_sentence(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title\n\n| a | b |\n")
    assert docs_index.summary(page) == ("A title", "")


def test_page_without_title_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n")
    with pytest.raises(ValueError, match="page.md must open with a line '# Title'"):
        docs_index.summary(page)


def test_every_page_is_listed_once() -> None:
    text = docs_index.page()
    for file in docs_index.DOCS.rglob("*.md"):
        link = f"]({file.relative_to(docs_index.DOCS).as_posix()})"
        assert text.count(link) == (0 if file.name == "README.md" else 1)
