"""The README's status table, made from what the tests show.

Run as ``python tools/status.py [--check] JUNIT.xml...`` with the files that ``pytest --junitxml``
wrote. A feature works when its tests ran and none failed; it is planned when it has no test.
Skipped tests show nothing, so a row whose tests were all skipped keeps what the README says.
"""

from __future__ import annotations

import argparse
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

__all__ = ["FEATURES", "main", "outcomes", "rows", "state", "table", "with_table"]

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- status:begin -->", "<!-- status:end -->"

# Feature -> patterns over "tests.folder.test_file.test_name".
FEATURES: dict[str, tuple[str, ...]] = {
    "Contract: configurations, ISA, number and sparse formats, image, registers": ("tests.spec.*",),
    "Models: readers, float reference, tokeniser, zoo, demo model": ("tests.models.*",),
    "Compiler: graph, quantise, prune, fuse, tile, schedule, emit, link": ("tests.compiler.*",),
    "Functional simulator (bit-exact)": ("tests.sim.test_functional*", "tests.sim.functional.*"),
    "Runtime: generate() over any device": ("tests.runtime.test_generate*",),
    "Command line": ("tests.cli.*",),
    "Distribution: sdist, wheel, board-only import": ("tests.test_packaging.*",),
    "Cycle model": ("tests.sim.test_cycle*", "tests.sim.cycle.*"),
    "RTL generator and RTL simulation": ("tests.hw.*", "tests.sim.rtl.*", "tests.sim.test_rtl*"),
    "Boards through PYNQ": ("tests.runtime.test_pynq*", "tests.runtime.test_board*"),
}
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
WORKS, BROKEN, PLANNED, UNKNOWN = "works", "fails", "planned", "not run"


def outcomes(files: Iterable[Path]) -> dict[str, str]:
    """Return each test's outcome by its dotted name, from JUnit files."""
    result: dict[str, str] = {}
    for file in files:
        for case in ElementTree.parse(file).iter("testcase"):
            name = f"{case.get('classname', '')}.{case.get('name', '')}"
            kinds = {child.tag for child in case}
            if kinds & {"failure", "error"}:
                result[name] = FAILED
            elif result.get(name) != FAILED:
                result[name] = SKIPPED if "skipped" in kinds else PASSED
    return result


def state(patterns: Sequence[str], results: Mapping[str, str]) -> str:
    """Return what ``results`` show of the feature whose tests match ``patterns``."""
    seen = {
        outcome
        for name, outcome in results.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    if not seen:
        return PLANNED
    if FAILED in seen:
        return BROKEN
    return WORKS if PASSED in seen else UNKNOWN


def rows(text: str) -> dict[str, str]:
    """Return feature -> state as the table in ``text`` states them."""
    found = {}
    for line in _between(text).splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 3 and cells[0] in FEATURES:
            found[cells[0]] = cells[1]
    return found


def _between(text: str) -> str:
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"README.md must hold {BEGIN} and {END} once each")
    return text.split(BEGIN)[1].split(END)[0]


def table(states: Mapping[str, str]) -> str:
    """Return the Markdown table of ``states``."""
    lines = ["| Part | State | Shown by |", "|---|---|---|"]
    for feature, patterns in FEATURES.items():
        where = ", ".join(f"`{pattern}`" for pattern in patterns)
        lines.append(f"| {feature} | {states[feature]} | {where} |")
    return "\n".join(lines) + "\n"


def with_table(text: str, results: Mapping[str, str]) -> str:
    """Return ``text`` with its status table brought up to date with ``results``."""
    old, states = rows(text), {}
    for feature, patterns in FEATURES.items():
        shown = state(patterns, results)
        states[feature] = old.get(feature, UNKNOWN) if shown == UNKNOWN else shown
    return text.replace(BEGIN + _between(text) + END, f"{BEGIN}\n{table(states)}{END}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the README's table, or with ``--check`` return 1 when it says otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when stale")
    parser.add_argument("junit", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    text = README.read_text(encoding="utf-8")
    new = with_table(text, outcomes(options.junit))
    if not options.check:
        README.write_text(new, encoding="utf-8")
        return 0
    if new == text:
        return 0
    before, after = rows(text), rows(new)
    for feature in FEATURES:
        if before.get(feature) != after[feature]:
            sys.stderr.write(
                f"README.md says '{before.get(feature, 'nothing')}' of \"{feature}\", "
                f"the tests say '{after[feature]}'\n"
            )
    sys.stderr.write("README.md's status table is out of date: run `make status`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
