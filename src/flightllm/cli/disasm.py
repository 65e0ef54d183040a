"""`flightllm disasm`: the listing of a program."""

from __future__ import annotations

from flightllm.cli.options import Json, Program
from flightllm.cli.output import print_json

__all__ = ["disasm"]


def disasm(program: Program, json: Json = False) -> None:
    """List a program's instructions, core by core."""
    from flightllm.spec.encoding import disassemble
    from flightllm.spec.image import load_program

    found = load_program(program, verify=False)
    listings = [disassemble(core.words.tolist()) for core in found.cores]
    if json:
        cores = [
            {"entries": dict(core.entries), "words": core.words.tolist(),
             "params": core.params.tolist(), "listing": text}
            for core, text in zip(found.cores, listings)
        ]  # fmt: skip
        print_json({"digest": found.digest, "cores": cores})
        return
    for number, (core, text) in enumerate(zip(found.cores, listings)):
        print(f"core {number}: {len(core.words)} words, {len(core.params)} parameters")
        names = {address: name for name, address in core.entries.items()}
        for line in text.splitlines():
            name = names.get(int(line.split(maxsplit=1)[0]))
            if name is not None:
                print(f"{name}:")
            print(line)
