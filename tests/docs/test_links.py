"""Links of the documentation lead somewhere, and every page opens as it should."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    out = set[str]()
    for line in re.sub(r"^```.*?^```", "", text, flags=re.M | re.S).splitlines():
        if line.startswith("#"):
            title = re.sub(r"[`*]", "", line.lstrip("#").strip()).lower()
            out.add(re.sub(r"[^\w\- ]", "", title).replace(" ", "-"))
    return out


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere inside this repository."""
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.M | re.S)
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        known = target.exists() and target.is_relative_to(ROOT)
        if known and anchor:
            known = anchor in anchors(target.read_text(encoding="utf-8"))
        if not known:
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_page_opens_with_title_and_sentence(page: Path) -> None:
    lines = [x for x in page.read_text(encoding="utf-8").splitlines() if not x.startswith("<!--")]
    assert lines[0].startswith("# ")
    assert lines[1] == ""
    assert re.match(r"[A-Z`].*", lines[2])


def test_broken_links_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "here.md").write_text("# A title, here\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n[good](here.md) [good](here.md#a-title-here) [good](https://example.org/x)"
        " [good](#page) [no](gone.md) [no](here.md#gone) [no](../outside.md) `[code](gone)`\n"
        "```\n[code](gone.md)\n```\n"
    )
    assert broken(page) == ["gone.md", "here.md#gone", "../outside.md"]
