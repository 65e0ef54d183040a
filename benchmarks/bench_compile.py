"""Instruction bytes and compile time of well-known shapes, as `flightllm compile` reports them.

Each compiles in a process of its own, from nothing to the program folder. The bars: 65,536 bytes of
instructions for every length, 10 seconds, and the length that stands beside each model.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

BYTES, SECONDS = 65536, 10.0
LENGTHS = {
    "llama2-7b": 4096,
    "opt-6.7b": 2048,
    "llama3-8b": 4096,
    "qwen2.5-7b": 4096,
    "mistral-7b": 4096,
}


def compiled(model: str, folder: Path) -> dict:
    """What `flightllm compile --json` says."""
    command = [
        sys.executable, "-m", "flightllm", "compile", model, "--board", "u280", "--weights",
        "w4g128", "-o", str(folder / model), "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict = json.loads(done.stdout)
    return result


def main() -> int:
    """Print one line a model; 1 when a bar is missed."""
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        for model, length in LENGTHS.items():
            result = compiled(model, Path(folder))
            size, seconds = result["instruction_bytes"], result["compile_seconds"]
            print(f"{model:12} {size:7,} bytes {seconds:6.2f} s, {result['max_length']:7,} tokens")
            if size > BYTES or seconds > SECONDS or result["max_length"] < length:
                missed.append(model)
    if missed:
        print(f"bar missed: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
