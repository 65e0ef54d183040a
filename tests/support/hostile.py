"""Opens damaged and malicious model files under guard: what came out, how long it took, how much.

`hostile_formats.FORMATS` names a maker for each format: a folder of a good model, and named ways to
spoil a copy of it. `run_seeds` spoils and opens; anything but success or an `InputError`, more than
ten seconds or more than 2 GiB of new memory is a failure.
"""

from __future__ import annotations

import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flightllm.models.checkpoint import open_checkpoint
from flightllm.spec.errors import InputError, MissingToolError

__all__ = ["Format", "Outcome", "Spoiler", "guard", "open_model", "run_seeds"]

SECONDS, BYTES = 10, 2 << 30
Spoiler = Callable[[Path, np.random.Generator], None]


@dataclass(frozen=True)
class Format:
    """A good model in `folder`, the path to open in a copy, and what spoils the copy, by name."""

    folder: Path
    opened: str
    spoilers: Mapping[str, Spoiler]
    open: Callable[[Path], None]


@dataclass
class Outcome:
    """What opening did: by spoiler (refused, opened), the slowest, and the most memory."""

    name: str
    counts: dict[str, list[int]] = field(default_factory=dict)
    slowest: tuple[float, int, str] = (0.0, -1, "")
    peak: int = 0

    @property
    def refused(self) -> int:
        """Inputs that ended in one sentence."""
        return sum(refused for refused, _ in self.counts.values())

    @property
    def opened(self) -> int:
        """Inputs that opened all the same."""
        return sum(opened for _, opened in self.counts.values())

    def line(self) -> str:
        """A row of the table in docs/importing.md."""
        seconds, seed, how = self.slowest
        return (
            f"| {self.name} | {len(self.counts)} | {self.refused:,} | {self.opened:,} |"
            f" {seconds:.2f} s ({how}, seed {seed}) | {self.peak / 2**20:.0f} MiB |"
        )


def open_model(path: Path) -> None:
    """Open a model and read every tensor of it, its codes and its tokeniser."""
    checkpoint = open_checkpoint(path)
    for name in checkpoint.names:
        checkpoint.tensor(name)
        checkpoint.codes(name)
    if checkpoint.tokenizer is not None:
        checkpoint.tokenizer()


@contextmanager
def guard() -> Iterator[None]:
    """At most 2 GiB of new address space inside."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    used = pages * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _resident(which: str) -> int:
    """Resident memory now ("VmRSS") or at most since the last reset ("VmHWM"), bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(which))


def _late(number: int, frame: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def _good(form: Format, path: Path) -> bool:
    """Whether a model opened; False when it was refused in one sentence."""
    try:
        form.open(path)
    except InputError as error:
        assert str(error).strip() and "Traceback" not in str(error)
        return False
    except MissingToolError:
        return False
    return True


def _attempt(form: Format, work: Path, seed: int, outcome: Outcome) -> None:
    """Spoil and open once."""
    how = list(form.spoilers)[seed % len(form.spoilers)]
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(form.folder, work)
    form.spoilers[how](work, np.random.default_rng(seed))
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # begins VmHWM anew
    begun = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        good = _good(form, work / form.opened)
    except BaseException as error:
        raise AssertionError(f"{how}, seed {seed}: {type(error).__name__}: {error}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    taken = time.perf_counter() - begun
    assert taken < SECONDS, f"{how}, seed {seed}: {taken:.1f} s"
    outcome.counts.setdefault(how, [0, 0])[good] += 1
    outcome.slowest = max(outcome.slowest, (taken, seed, how))
    outcome.peak = max(outcome.peak, _resident("VmHWM") - before)


def run_seeds(name: str, form: Format, work: Path, seeds: Sequence[int]) -> Outcome:
    """Spoil and open once for each seed, the format's spoilers in turn.

    Raises
    ------
    AssertionError : naming spoiler and seed, when anything but an `InputError` came out.
    """
    outcome = Outcome(name)
    signal.signal(signal.SIGALRM, _late)
    with guard():
        for seed in seeds:
            _attempt(form, work, seed, outcome)
    return outcome
