"""The README's status table, made from what the tests show.

Run as ``python tools/status.py [--check] JUNIT.xml...`` with the files that ``pytest --junitxml``
wrote. A feature works when each of its patterns has a passing test and none a failing one, works
partly when a pattern has no test yet, and is planned when none has. Skipped
tests show nothing: a row that waits for them keeps what the README says.
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
    "Hardware configurations, board presets, digests": ("tests.spec.test_config*",),
    "Instruction set: table, encoding": ("tests.spec.test_isa*", "tests.spec.test_encoding*"),
    "Number formats and sparse formats": ("tests.spec.test_numerics*", "tests.spec.test_formats*"),
    "Memory image, program folder": ("tests.spec.test_image*",),
    "Host registers": ("tests.spec.test_registers*",),
    "Checkpoint readers: Hugging Face, llama2.c": (
        "tests.models.test_checkpoint*",
        "tests.models.test_hf*",
        "tests.models.test_llama2c*",
    ),
    "Float reference: LLaMA and OPT/GPT-2 families": ("tests.models.test_reference*",),
    "Integer reference, independent of the simulator": ("tests.models.test_integer*",),
    "Tokeniser and chat templates": ("tests.models.test_tokenizer*",),
    "Model zoo, demo model": ("tests.models.test_zoo*", "tests.models.test_demo*"),
    "Compiler: graph to program": ("tests.compiler.*",),
    "Functional simulator (bit-exact)": ("tests.sim.*functional*",),
    "Text generation over any device": ("tests.runtime.test_generate*",),
    "Command line": ("tests.cli.*",),
    "Distribution: sdist, wheel, board-only import": ("tests.test_packaging.*",),
    "Cycle model": ("tests.sim.*cycle*",),
    "RTL: units, cores, the whole device": ("tests.hw.*",),
    "RTL simulation, equal to the simulator bit for bit": ("tests.sim.*rtl*",),
    "Projects for vendors' tools (no tool has read them yet)": (
        "tests.hw.test_boards*",
        "tests.cli.test_bitstream*",
    ),
    "Runtime through PYNQ, on simulated boards (no real one yet)": ("tests.runtime.*pynq*",),
}
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
WORKS, BROKEN, PARTLY, PLANNED, UNKNOWN = "works", "fails", "partly", "planned", "not run"


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
    """Return what ``results`` show of the feature whose tests match ``patterns``.

    It works when every pattern has a passing test and none has a failing one.
    """
    seen = [
        {result for name, result in results.items() if fnmatchcase(name, pattern)}
        for pattern in patterns
    ]
    if any(FAILED in outcome for outcome in seen):
        return BROKEN
    if not any(seen):
        return PLANNED
    if not all(seen):
        return PARTLY
    return WORKS if all(PASSED in outcome for outcome in seen) else UNKNOWN


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
