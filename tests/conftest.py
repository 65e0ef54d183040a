"""Fixtures that every test may use."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Helpers that several test files import by name (`from random_quantized import random_model`).
sys.path.insert(0, str(Path(__file__).parent / "support"))

settings.register_profile("flightllm", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("flightllm")


GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run rewrite the golden texts instead of comparing with them."""
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)` holds `text` against tests/golden/name."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path} is missing; run pytest --update-golden"
        assert text == path.read_text(encoding="utf-8"), f"{name} changed; see --update-golden"

    return check


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real checkpoints and texts, outside the repository."""
    folder = os.environ.get("FLIGHTLLM_TEST_DATA")
    if not folder:
        pytest.skip("FLIGHTLLM_TEST_DATA does not name a folder of real checkpoints")
    path = Path(folder).resolve()
    if not (path / "models" / "stories260k" / "config.json").is_file():
        pytest.skip(f"FLIGHTLLM_TEST_DATA={folder} holds no models/stories260k")
    return path


@pytest.fixture(scope="session")
def stories(test_data: Path) -> Path:
    """The stories260k Hugging Face folder."""
    return test_data / "models" / "stories260k"


@pytest.fixture(scope="session")
def rtl_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where built RTL stays between tests, and between runs where FLIGHTLLM_RTL_CACHE says."""
    kept = os.environ.get("FLIGHTLLM_RTL_CACHE")
    if kept:
        return Path(kept)
    # A worker's own folder lies in the run's: what one builds the other uses.
    beside = os.environ.get("PYTEST_XDIST_WORKER") is not None
    base = tmp_path_factory.getbasetemp()
    return (base.parent if beside else base) / "rtl"


@pytest.fixture(scope="session")
def random_model() -> Callable[..., Any]:
    """`random_model(seed, **options)` makes a QuantModel: see support/random_quantized.py."""
    import random_quantized

    return random_quantized.random_model


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where a shell started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
