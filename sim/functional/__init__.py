"""The bit-exact simulator: the living definition of the instruction set."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flightllm.sim.functional.device import FunctionalDevice

__all__ = ["FunctionalDevice"]


def __getattr__(name: str) -> object:
    # Loaded when it is asked for: the simulator needs numba, importing the package must not.
    if name == "FunctionalDevice":
        from flightllm.sim.functional.device import FunctionalDevice

        return FunctionalDevice
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
