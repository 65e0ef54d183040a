"""The module list in docs/concepts.md, from the first sentence of each module."""

from __future__ import annotations

import ast
from pathlib import Path

__all__ = ["page", "sentence", "table"]

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- modules:begin -->", "<!-- modules:end -->"

# Folders in the order of the data's path. hw/ is described in docs/hardware.md.
FOLDERS = (
    "spec", "models", "compiler", "sim", "sim/functional", "sim/board", "runtime", "src/flightllm",
    "src/flightllm/cli",
)  # fmt: skip


def sentence(file: Path) -> str:
    """The first sentence of a module's docstring.

    Raises
    ------
    ValueError
        When it has none.
    """
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    if not doc:
        raise ValueError(f"{file} must open with a docstring that says what it is")
    paragraph = " ".join(doc.split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".").replace("|", "\\|")


def table(folder: str, root: Path = ROOT) -> str:
    """One folder's modules as a Markdown table, empty when it has none."""
    files = sorted(f for f in (root / folder).glob("*.py") if not f.name.startswith("__"))
    if not files:
        return ""
    rows = [f"| `{file.name}` | {sentence(file)} |" for file in files]
    return "\n".join([f"### `{folder}/`", "", "| module | what it is |", "|---|---|", *rows, ""])


def page(root: Path = ROOT) -> str:
    """docs/concepts.md with its module list brought up to date.

    Raises
    ------
    ValueError
        When the page does not hold both marks once.
    """
    text = (root / "docs" / "concepts.md").read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"docs/concepts.md must hold {BEGIN} and {END} once each")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    tables = [found for folder in FOLDERS if (found := table(folder, root))]
    return f"{before}{BEGIN}\n" + "\n".join(tables) + f"{END}{after}"
