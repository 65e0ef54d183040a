"""The fenced blocks of a page of documentation, and running them as a reader would.

What a block is follows from its language: in ``console`` a line that begins with ``$ `` is a
command, and the lines below it, if there are any, are what it must print (``...`` stands for
anything); ``python`` blocks without another block between them are one script; a block of any
language is a file when ``<!-- file: NAME -->`` stands above it. Other comments above a block:

    <!-- not run: REASON -->     hardware, minutes, or a download
    <!-- needs: test data -->    skipped where FLIGHTLLM_TEST_DATA is not set
    <!-- exit code: N -->        the commands end with N in place of 0
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Block", "blocks", "run_blocks", "why_skipped"]

DIRECTIVES = ("not run", "needs", "exit code", "file")
LIMIT = 300  # seconds a block may take before it counts as hanging


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, its language, its text and the comments above it."""

    page: str
    line: int
    language: str
    text: str
    directives: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """File and line."""
        return f"{self.page}:{self.line}"


def _directive(line: str, place: str) -> tuple[str, str]:
    body = line.strip()[4:-3].strip()
    key, _, value = body.partition(":")
    if key not in DIRECTIVES or not value.strip():
        raise ValueError(f"{place}: comment {body!r} above a block is not one of {DIRECTIVES}")
    return key, value.strip()


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a Markdown file, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found, at = list[Block](), 0
    while at < len(lines):
        fence = re.fullmatch(r"(`{3,})(\w*)\s*", lines[at])
        at += 1
        if fence is None:
            continue
        start = at
        while at < len(lines) and lines[at].strip() != fence[1]:
            at += 1
        if at == len(lines):
            raise ValueError(f"{page.name}:{start}: the block is never closed")
        above, directives = start - 2, {}
        while above >= 0 and lines[above].startswith("<!--"):
            key, value = _directive(lines[above], f"{page.name}:{above + 1}")
            directives[key] = value
            above -= 1
        text = "\n".join(lines[start:at]) + "\n"
        found.append(Block(page.name, start, fence[2], text, directives))
        at += 1
    return found


def why_skipped(block: Block) -> str | None:
    """Why a block is not run here, or None."""
    if "not run" in block.directives:
        return block.directives["not run"]
    if "needs" in block.directives and not os.environ.get("FLIGHTLLM_TEST_DATA"):
        return "FLIGHTLLM_TEST_DATA does not name a folder of real checkpoints"
    return None


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Each command of a console block, with what stands below it."""
    command, shown = "", list[str]()
    for line in block.text.splitlines():
        if command.endswith("\\"):
            command += "\n" + line
        elif line.startswith("$ "):
            if command:
                yield command, "\n".join(shown)
            command, shown = line[2:], []
        else:
            shown.append(line)
    if not command:
        raise ValueError(f"{block.place}: a console block needs a line that begins with '$ '")
    yield command, "\n".join(shown)


def prints(shown: str, printed: str) -> bool:
    """Whether `printed` is what `shown` says, with ``...`` for anything and no trailing spaces."""
    tidy = ["\n".join(x.rstrip() for x in text.strip().splitlines()) for text in (shown, printed)]
    pattern = re.escape(tidy[0]).replace(r"\.\.\.", ".*?")
    return re.fullmatch(pattern, tidy[1], re.DOTALL) is not None


def _execute(command: list[str], folder: Path, place: str, expected: int) -> str:
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONSAFEPATH="1")
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env=environment, timeout=LIMIT, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    name = "the script" if command[0] == sys.executable else command[-1]
    assert done.returncode == expected, (
        f"{place}: {name!r} ended with {done.returncode}, not {expected}:\n{done.stdout}"
    )
    return done.stdout


def _console(block: Block, folder: Path) -> None:
    expected = int(block.directives.get("exit code", "0"))
    for command, shown in commands(block):
        script = ["bash", "-eo", "pipefail", "-c", command]
        printed = _execute(script, folder, block.place, expected)
        if shown.strip():
            assert prints(shown, printed), (
                f"{block.place}: {command!r} printed\n{printed}\nbut the page shows\n{shown}"
            )


def run_blocks(found: list[Block], folder: Path) -> int:
    """Run a page's blocks in `folder`, in order; gives how many ran.

    Raises
    ------
    AssertionError
        When a command ends with another exit code, or prints something else, than the page says.
    """
    ran, script, place = 0, "", ""

    def flush() -> None:
        nonlocal script
        if script:
            _execute([sys.executable, "-c", script], folder, place, 0)
        script = ""

    for block in found:
        if why_skipped(block) is not None:
            continue
        if block.language == "python" and "file" not in block.directives:
            script, place = f"{script}\n{block.text}", place if script else block.place
            ran += 1
            continue
        flush()
        if "file" in block.directives:
            path = folder / block.directives["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "console":
            _console(block, folder)
        else:
            continue
        ran += 1
    flush()
    return ran
