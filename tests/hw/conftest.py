"""Where built RTL programs stay between tests, and between runs where FLIGHTLLM_RTL_CACHE says."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def rtl_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for `flightllm.sim.rtl.vectors.build`."""
    kept = os.environ.get("FLIGHTLLM_RTL_CACHE")
    return Path(kept) if kept else tmp_path_factory.mktemp("rtl")
