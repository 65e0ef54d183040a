"""Write the generated files of this repository, or check that they are up to date.

Run from the repository root as ``python tools/generate.py [--check]``. Each entry of `GENERATED`
names a file and the function whose text it holds; the function is imported only when it runs.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["GENERATED", "generated_text", "main", "stale"]

ROOT = Path(__file__).resolve().parent.parent

# Output path -> "module:function"; the function takes nothing and returns the whole file as str.
GENERATED: dict[str, str] = {
    "docs/concepts.md": "module_list:page",
    "docs/isa.md": "flightllm.spec.isa_doc:manual",
    "docs/registers.md": "flightllm.spec.registers:manual",
    "docs/lengths.md": "lengths:page",
    "docs/support.md": "support_matrix:page",
    "docs/README.md": "docs_index:page",  # after the other pages: it lists them
    "spec/sfu_tables.py": "flightllm.spec.make_sfu_tables:page",
}


def generated_text(source: str) -> str:
    """Import the function that ``source`` ("module:function") names and return its text."""
    module, _, function = source.partition(":")
    text = getattr(importlib.import_module(module), function)()
    if not isinstance(text, str):
        raise TypeError(f"{source} returned {type(text).__name__}, not str")
    return text if text.endswith("\n") else text + "\n"


def stale(root: Path, registry: Mapping[str, str]) -> list[str]:
    """Return one unified diff for each file under ``root`` that differs from its generator."""
    diffs = []
    for path, source in registry.items():
        file = root / path
        old = file.read_text(encoding="utf-8") if file.is_file() else ""
        new = generated_text(source)
        if old != new:
            lines = difflib.unified_diff(
                old.splitlines(True), new.splitlines(True), path, f"{path} from {source}"
            )
            diffs.append("".join(lines))
    return diffs


def main(arguments: Sequence[str] | None = None) -> int:
    """Write every generated file, or with ``--check`` return 1 when one is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when stale")
    options = parser.parse_args(arguments)
    if options.check:
        diffs = stale(ROOT, GENERATED)
        for diff in diffs:
            sys.stderr.write(diff[:4000] + "\n")
        if diffs:
            sys.stderr.write(f"{len(diffs)} generated file(s) out of date: run `make generate`\n")
        return 1 if diffs else 0
    for path, source in GENERATED.items():
        (ROOT / path).write_text(generated_text(source), encoding="utf-8")
        print(f"{path} from {source}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
