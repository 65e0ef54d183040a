"""From configuration to bitstream: write the project, run the vendor's tool, read its reports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flightllm.resources import excess
from flightllm.spec.config import HwConfig
from flightllm.spec.errors import FlightError, InputError, MissingToolError

if TYPE_CHECKING:
    from flightllm.hw.boards.project import Project
    from flightllm.hw.boards.reports import Timing

__all__ = ["Built", "make_bitstream", "run_make", "write_project"]

KEPT_LINES = 12
"""Of a tool's last words, shown when it fails without naming an error."""


@dataclass(frozen=True)
class Built:
    """A bitstream.

    Members
    -------
    path : its file; the hand-over lies beside it. resources : used and available, by kind.
    timing : worst slacks, None where the tool reported none.
    """

    path: Path
    resources: dict[str, dict[str, float]]
    timing: Timing | None


def write_project(project: Project, folder: Path) -> None:
    """Write or bring up to date a project folder; what a tool built in it stays.

    Raises
    ------
    InputError
        When `folder` holds something else.
    """
    ours = (folder / "hardware.json.in").is_file()
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is no project folder; choose another -o")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        work = Path(scratch) / "project"
        for name, text in project.files.items():
            path = work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        if not folder.exists() or not ours:
            if folder.exists():
                folder.rmdir()
            work.rename(folder)
            return
        shutil.rmtree(folder / "rtl")
        for name in project.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(work / name, folder / name)


def _path() -> str:
    """The PATH, and behind it where pip puts the programs of this Python's packages."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])


def run_make(folder: Path, on_line: Callable[[str], None]) -> None:
    """Run `make` in a project; `on_line` gets what it says, line by line.

    Raises
    ------
    FlightError
        When it fails, with the tool's own errors.
    """
    errors: list[str] = []
    last: deque[str] = deque(maxlen=KEPT_LINES)
    with subprocess.Popen(
        ["make", "-C", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", env={**os.environ, "PATH": _path()},
    ) as make:  # fmt: skip
        assert make.stdout is not None
        for line in make.stdout:
            text = line.rstrip()
            on_line(text)
            last.append(text)
            if text.lstrip().upper().startswith("ERROR"):
                errors.append(text.strip())
    if make.returncode:
        said = errors or [line for line in last if line]
        raise FlightError(f"make -C {folder} failed: " + " | ".join(said[:KEPT_LINES]))


def _first(folder: Path, pattern: str) -> str:
    """The text of the newest file that matches, "" when none does."""
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
    return found[-1].read_text(encoding="utf-8", errors="replace") if found else ""


def make_bitstream(
    config: HwConfig, folder: Path, on_line: Callable[[str], None] = lambda line: None
) -> Built:
    """Write a configuration's project to a folder and build its bitstream there.

    Parameters
    ----------
    on_line : gets what the tool says, and before it a warning when the configuration takes more
        than there is.

    Raises
    ------
    InputError
        When the configuration has no project, or the folder holds something else.
    MissingToolError
        When the tool is not on the PATH; the project is complete then.
    FlightError
        When the tool fails; holds its own message.
    """
    from flightllm.hw.boards import reports
    from flightllm.hw.boards.project import make_project

    if too_much := excess(config):
        on_line(f"warning: {too_much}")
    project = make_project(config)
    write_project(project, folder)
    missing = [name for name in (project.tool, "make") if shutil.which(name, path=_path()) is None]
    if missing:
        raise MissingToolError(
            f"{missing[0]} is not on the PATH; the project in {folder} is complete: where"
            f" {project.tools} is installed, run: make -C {folder}"
        )
    run_make(folder, on_line)
    resources, timing = reports.read(
        _first(folder, project.utilisation), _first(folder, project.timing)
    )
    return Built(folder / project.bitstream, resources, timing)
