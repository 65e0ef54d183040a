"""The command `flightllm`. Every subcommand is a file here, and a documented Python call too."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

__all__ = ["STARTED", "main"]

STARTED = time.perf_counter()
"""When the command began, for the times that it reports."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code (see `flightllm.cli.exits`)."""
    # Read when torch loads OpenMP. Its threads spin otherwise, which on a busy machine takes time
    # from everything else, this command included.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from flightllm.cli.app import app
    from flightllm.cli.exits import guarded

    return guarded(app, arguments)
