"""The second half of `make demo`: the same program on the generated hardware, in Verilator.

    python tools/demo_rtl.py PROGRAM PROMPT TOKENS

Exits with 1 when the hardware gives another token or another bit of memory than the simulator.
"""

from __future__ import annotations

import sys
import time

import flightllm
from flightllm.runtime.generate import Generation

__all__ = ["main"]


def main(program: str, prompt: str, tokens: int) -> int:
    """Run both executors and say what they gave."""
    begin = time.perf_counter()
    print("hardware in Verilator: the first build takes some minutes, later runs find it")
    with flightllm.load(
        program, on="rtl", progress=lambda stage: print(f"  {stage} ...", flush=True)
    ) as model:
        print(f"  ready after {time.perf_counter() - begin:.0f} s")
        found = model.generate(prompt, tokens=tokens)
    with flightllm.load(program) as model:
        want = model.generate(prompt, tokens=tokens)
    _say(prompt, found)
    same = found.token_ids == want.token_ids and found.memory_sha256 == want.memory_sha256
    print("equal to the functional simulator to the bit" if same else "NOT equal to the simulator")
    return 0 if same else 1


def _say(prompt: str, found: Generation) -> None:
    print(f"  {prompt}{found.text}")
    cycles = found.cycles_per_token or 0
    seconds = found.seconds_per_token or 0
    print(
        f"  prompt: {found.prefill_cycles:,} cycles; a token: {cycles:,.0f} cycles, "
        f"{seconds:.2f} s of simulation"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
