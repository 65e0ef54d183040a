"""Every command that the documentation shows does what the page says."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from doc_blocks import Block, blocks, commands, prints, run_blocks, why_skipped

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])
RUNNABLE = [page for page in PAGES if any(b.language != "" for b in blocks(page))]
SKIPPED = [block for page in PAGES for block in blocks(page) if why_skipped(block)]
FIRST = "quick-start.md"
PROGRAM = "<!-- begins with: program -->"
"""A page that says this starts from the folder `program` that the quick start compiles."""


@pytest.fixture(scope="module")
def quick_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the quick start has been followed to its end."""
    folder = tmp_path_factory.mktemp("quick-start")
    assert run_blocks(blocks(DOCS / FIRST), folder)
    return folder


def test_quick_start(quick_start: Path) -> None:
    assert (quick_start / "program" / "manifest.json").is_file()


@pytest.mark.parametrize(
    "page", [page for page in RUNNABLE if page.name != FIRST], ids=lambda page: page.name
)
def test_page(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if PROGRAM in page.read_text(encoding="utf-8"):
        made = request.getfixturevalue("quick_start") / "program"
        shutil.copytree(made, tmp_path / "program")
    run_blocks(blocks(page), tmp_path)


@pytest.mark.parametrize("block", SKIPPED, ids=lambda block: block.place)
def test_block_that_is_not_run(block: Block) -> None:
    """A `make` target that takes minutes at least exists; then say why nothing more is done."""
    for command, _ in commands(block) if block.language == "console" else ():
        words = shlex.split(command, comments=True)
        while "=" in words[0]:
            words = words[1:]
        if words[0] == "make":
            subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    pytest.skip(f"{block.place} is not run: {why_skipped(block)}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_hides_in_a_block_without_a_language(page: Path) -> None:
    for block in blocks(page):
        if not block.language:
            hidden = re.search(r"^(\$ |flightllm |\S*/flightllm |pip |make )", block.text, re.M)
            assert hidden is None, f"{block.place}: {block.text}"


# ------------------------------------------------------------------- the checker itself


def write(folder: Path, text: str) -> list[Block]:
    (folder / "page.md").write_text(text, encoding="utf-8")
    return blocks(folder / "page.md")


def console(text: str, above: str = "") -> str:
    return f"# Page\n\n{above}```console\n{text}\n```\n"


@pytest.mark.parametrize(
    "text",
    [
        console("$ false"),
        console("$ echo one\ntwo"),
        console("$ true", "<!-- exit code: 2 -->\n"),
        console("$ false | true"),
        "```python\nassert False\n```\n",
        "```python\nx = 1\n```\n\n```console\n$ true\n```\n\n```python\nprint(x)\n```\n",
    ],
)
def test_wrong_pages_are_caught(tmp_path: Path, text: str) -> None:
    with pytest.raises(AssertionError, match=r"page.md:\d+"):
        run_blocks(write(tmp_path, text), tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (console("true"), "needs a line that begins with"),
        (console("$ true", "<!-- not runs: x -->\n"), "is not one of"),
        (console("$ true", "<!-- not run: -->\n"), "is not one of"),
        ("```console\n$ true\n", "never closed"),
    ],
)
def test_blocks_that_would_be_passed_over_are_refused(
    tmp_path: Path, text: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        run_blocks(write(tmp_path, text), tmp_path)


def test_right_page_runs(tmp_path: Path) -> None:
    text = (
        console("$ echo one \\\n  two\none two\n$ cat made\nhere")
        + console("$ exit 2", "<!-- exit code: 2 -->\n")
        + console("$ rm made", "<!-- not run: a reason -->\n")
        + "```python\nx = 1\n```\n\n```python\nassert x == 1\n```\n"
    )
    (tmp_path / "made").write_text("here\n")
    page = write(tmp_path, text)
    assert run_blocks(page, tmp_path) == 4
    assert why_skipped(page[2]) == "a reason"


def test_files_are_written(tmp_path: Path) -> None:
    text = "<!-- file: a/b.toml -->\n```toml\nx = 1\n```\n" + console("$ cat a/b.toml\nx = 1")
    assert run_blocks(write(tmp_path, text), tmp_path) == 2


def test_output_is_compared_with_ellipses() -> None:
    assert prints("a ... c\n...\nd", "a b c  \nx\ny\nd\n")
    assert not prints("a\nb", "a\nb\nc\n")
    assert not prints("a.c", "abc")
