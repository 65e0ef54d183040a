"""What commands print: JSON or text on standard output, notes and progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["facts", "note", "print_json", "progress_bar", "stage_notes", "table"]


def print_json(value: Mapping[str, Any]) -> None:
    """One object on standard output."""
    print(json.dumps(value, indent=1))


def note(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; numbers are set to the right, and nothing is cut off in a pipe."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    grid = Table(box=None, header_style="bold", pad_edge=False)
    for place, name in enumerate(columns):
        number = all(isinstance(row[place], (int, float)) for row in rows)
        grid.add_column(name, justify="right" if number else "left")
    for row in rows:
        grid.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    with console.capture() as shown:
        console.print(grid, markup=False, highlight=False)
    print("\n".join(line.rstrip() for line in shown.get().splitlines()))


def facts(values: Mapping[str, object]) -> None:
    """Names and values, one a line."""
    width = max(len(name) for name in values)
    for name, value in values.items():
        print(f"{name:{width}}  {value}")


def stage_notes(what: str) -> Callable[[str], None] | None:
    """Gives a function that names a stage of long work on a terminal, and None elsewhere."""
    if not sys.stderr.isatty():
        return None
    return lambda stage: note(f"{what}: {stage}")


@contextmanager
def progress_bar() -> Iterator[Any]:
    """Gives a function (stage, done, total) that draws a bar on a terminal and none elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    bars: dict[str, TaskID] = {}
    with Progress(console=Console(stderr=True), transient=True) as shown:

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = shown.add_task(stage, total=total)
            shown.update(bars[stage], completed=done, total=total)

        yield tell
