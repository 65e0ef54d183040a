"""The page docs/scale.md: what compiling a model of 7B parameters takes, measured.

Run as ``python tools/scale.py`` (``make scale``). It writes checkpoints with random weights
(`synthetic_checkpoint.py`), compiles them with the `flightllm` command as a process of its own,
interrupts it once, starts it again, and holds the image against the size that `flightllm check`
predicts. It needs 30 GB of disk and a quarter of an hour on two cores. Files lie in ``out/scale``
(or ``--folder``); checkpoints stay there, unless ``--clean`` is given.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import synthetic_checkpoint

from flightllm.models import zoo
from flightllm.models.config import ModelConfig

__all__ = ["CASES", "Case", "Result", "main", "measure", "page"]

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "scale.md"
SHAPE, BOARD = "llama2-7b", "u280"
INTERRUPTED = 130


@dataclass(frozen=True)
class Case:
    """What is compiled.

    Members
    -------
    title : of its row. gguf : a GGUF file rather than a folder. options : of `flightllm compile`.
    minutes, gib : what it may take.
    """

    title: str
    gguf: bool
    options: tuple[str, ...]
    minutes: float
    gib: float


CASES = (
    Case("safetensors, bfloat16, to w4g128 by rounding", False,
         ("--weights", "w4g128", "--calibrate", "none"), 20, 6),
    Case("GGUF, Q4_K, as it is", True, ("--weights", "as-is", "--calibrate", "none"), 10, 6),
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What one case took.

    Members
    -------
    checkpoint_bytes : on disk. seconds : of both runs, wall clock. cpu_seconds : of all threads.
    peak_bytes : largest resident set of either run, mapped files included. stopped_after,
    layers : layers that were finished at the interruption, and in all. taken_over : the second run
    said that it went on from them. image_bytes, predicted_bytes : of image.bin.
    """

    checkpoint_bytes: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    stopped_after: int
    layers: int
    taken_over: bool
    image_bytes: int
    predicted_bytes: int


def _size(path: Path) -> int:
    return sum(part.stat().st_size for part in path.rglob("*") if part.is_file())


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "flightllm", *map(str, arguments)]


def _run(command: Sequence[str], stop: Callable[[], bool]) -> tuple[int, float, int, str]:
    """Run a command, interrupted when `stop` says so: exit code, CPU seconds, peak, errors."""
    # Ctrl-C must reach it also where this process was started with it ignored.
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    asked = False
    while True:
        done, status, used = os.wait4(process.pid, os.WNOHANG)
        if done:
            break
        if not asked and stop():
            process.send_signal(signal.SIGINT)
            asked = True
        time.sleep(0.2)
    assert process.stderr is not None
    errors = process.stderr.read()
    code = os.waitstatus_to_exitcode(status)
    process.returncode = code
    return code, used.ru_utime + used.ru_stime, 1024 * used.ru_maxrss, errors


def _checkpoint(case: Case, config: ModelConfig, folder: Path) -> Path:
    home = folder / f"{config.name}-{config.layers}{'-gguf' if case.gguf else ''}"
    if not case.gguf:
        synthetic_checkpoint.write_folder(home, config)
        return home
    if not (home / "model.gguf").is_file():
        synthetic_checkpoint.write_gguf(home / "model.gguf", config)
    return home / "model.gguf"


def _predicted(model: Path, options: Sequence[str]) -> int:
    """The size that `check` states beforehand."""
    wanted = [*options[: options.index("--calibrate")]]
    done = subprocess.run(
        _command("check", model, "--board", BOARD, *wanted, "--json"),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(json.loads(done.stdout)["weight_bytes"])


def measure(case: Case, config: ModelConfig, folder: Path) -> Result:
    """Compile a case in two runs, the first one cut short after a third of the layers.

    Raises
    ------
    RuntimeError
        When a run ends otherwise than it should.
    """
    model = _checkpoint(case, config, folder)
    out = folder / "program"
    shutil.rmtree(out, ignore_errors=True)
    work = out.with_name(f".{out.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    predicted = _predicted(model, case.options)
    command = _command("compile", model, "--board", BOARD, *case.options, "-o", out, "--json")
    finished: list[int] = []

    def third() -> bool:
        finished.append(len(list(work.rglob("layer-*.safetensors"))))
        return finished[-1] >= max(1, config.layers // 3)

    start = time.perf_counter()
    first = _run(command, third)
    second = _run(command, lambda: False)
    seconds = time.perf_counter() - start
    if first[0] != INTERRUPTED or second[0]:
        raise RuntimeError(f"exit codes {first[0]} and {second[0]}: {first[3]}{second[3]}")
    image = (out / "image.bin").stat().st_size
    shutil.rmtree(out)
    return Result(
        _size(model) if model.is_dir() else model.stat().st_size, seconds, first[1] + second[1],
        max(first[2], second[2]), finished[-1], config.layers, "taken over" in second[3], image,
        predicted,
    )  # fmt: skip


def _row(case: Case, found: Result) -> str:
    equal = "equal" if found.image_bytes == found.predicted_bytes else "DIFFERENT"
    return (
        f"| {case.title} | {found.checkpoint_bytes / 1e9:.2f} GB | {found.seconds / 60:.1f} |"
        f" {case.minutes:g} | {found.cpu_seconds / 60:.1f} | {found.peak_bytes / 2**30:.2f} |"
        f" {case.gib:g} | {found.stopped_after} of {found.layers} | {found.image_bytes:,} |"
        f" {equal} |"
    )


_HEAD = """\
| checkpoint | size | minutes | bar | CPU minutes | peak GiB | bar | interrupted after\
 | image bytes | as predicted |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---|"""


def page(results: Mapping[Case, Result], config: ModelConfig, cores: int) -> str:
    """The page; cases without a result are named as not measured."""
    rows = "\n".join(
        _row(case, results[case])
        if case in results
        else f"| {case.title} | not measured yet | | {case.minutes:g} | | | {case.gib:g} | | | |"
        for case in CASES
    )
    return f"""\
# Scale

What compiling {config.name} ({config.parameters:,} random weights) for `{BOARD}` takes, measured on
{cores} cores by `make scale`.

{_HEAD}
{rows}

Minutes are those of two runs: the first is interrupted (Ctrl-C) when a third of the layers are
finished, the second goes on there. The peak is the largest resident set, mapped files included. "As
predicted" compares the size of `image.bin` with `weight_bytes` of `flightllm check`, which reads
headers only. Other programs that run at the same time make the minutes longer.

`python tools/synthetic_checkpoint.py` writes such checkpoints by themselves.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every case and write the page; 1 where a bar or a size is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "scale")
    parser.add_argument("--layers", type=int, help="a model of fewer layers; writes no page")
    parser.add_argument("--case", type=int, choices=range(len(CASES)), help="one case only")
    parser.add_argument("--clean", action="store_true", help="remove the checkpoints at the end")
    asked = parser.parse_args(arguments)
    config = zoo.shape(SHAPE)
    if asked.layers is not None:
        config = replace(config, layers=asked.layers)
    known = asked.folder / "results.json"
    asked.folder.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(CASES):
        if asked.case not in (None, number):
            continue
        found = measure(case, config, asked.folder)
        print(_row(case, found))
        if asked.layers is None:
            stored = json.loads(known.read_text()) if known.is_file() else {}
            known.write_text(json.dumps({**stored, str(number): asdict(found)}, indent=1))
    results = json.loads(known.read_text()) if known.is_file() else {}
    if asked.clean:
        shutil.rmtree(asked.folder)
    if asked.layers is not None:
        return 0
    made = {CASES[int(number)]: Result(**found) for number, found in results.items()}
    PAGE.write_text(page(made, config, os.cpu_count() or 1), encoding="utf-8")
    missed = [
        case
        for case, found in made.items()
        if found.image_bytes != found.predicted_bytes
        or found.seconds > 60 * case.minutes
        or found.peak_bytes > case.gib * 2**30
    ]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
