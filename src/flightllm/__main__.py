"""`python -m flightllm` is the command `flightllm`."""

import sys

from flightllm.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
