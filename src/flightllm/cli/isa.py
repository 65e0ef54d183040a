"""`flightllm isa`: the manual of the instruction set."""

from __future__ import annotations

from flightllm.cli.options import Json
from flightllm.cli.output import print_json

__all__ = ["isa"]


def isa(json: Json = False) -> None:
    """Print the manual of the instruction set."""
    from flightllm.spec.isa_doc import as_dict, manual

    if json:
        print_json(as_dict())
    else:
        print(manual(), end="")
