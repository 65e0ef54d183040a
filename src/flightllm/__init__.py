"""FlightLLM toolkit: from an LLM checkpoint to an FPGA accelerator and back to text.

`compile`, `load` and `evaluate` are everything the command line does; see `flightllm.api`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flightllm.api import compile, evaluate, load

__all__ = ["__version__", "compile", "evaluate", "load"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # Resolved when asked for: importing the package must stay quick and need nothing heavy.
    if name in ("compile", "evaluate", "load"):
        from flightllm import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
