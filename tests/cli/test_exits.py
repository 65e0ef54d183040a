"""Exit codes, and that a user sees sentences rather than tracebacks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flightllm import __version__
from flightllm.cli.exits import EXTRAS, explain, guarded
from flightllm.spec.errors import InputError, MissingToolError, VerifyError

COMMAND = (sys.executable, "-m", "flightllm")


def command(*arguments: str, **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, **options
    )


def test_version_in_a_process_of_its_own() -> None:
    done = command("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"flightllm {__version__}\n", "")


def test_version_imports_nothing_heavy() -> None:
    code = (
        "import sys; from flightllm.cli import main; main(['--version']);"
        "print([m for m in ('numpy', 'torch', 'numba', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[1] == "[]"


@pytest.mark.parametrize(
    "line", ["check demo", "compile llama2-7b --board u280 -o program", "estimate demo --context 8"]
)
def test_torch_waits_for_the_first_tensor(line: str, tmp_path: Path) -> None:
    code = (
        f"import sys; from flightllm.cli import main; main({line.split()}); print('torch' in"
        " sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("bogus",), 2, "flightllm: no such command 'bogus'\n"),
        (("compile",), 2, "flightllm: missing argument 'MODEL'\n"),
        (("run", "gone", "--prompt", "x"), 2, None),
        (("--debug", "run", "gone", "--prompt", "x"), 2, None),
    ],
)
def test_codes_of_a_process(arguments: tuple, code: int, message: str | None) -> None:
    done = command(*arguments)
    assert done.returncode == code and done.stdout == ""
    if message is not None:
        assert done.stderr == message
    assert ("Traceback" in done.stderr) == ("--debug" in arguments)


def test_interrupt_is_quiet(program: Path) -> None:
    running = subprocess.Popen(
        [*COMMAND, "run", str(program), "--prompt", "-"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A test run in the background inherits SIGINT as ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    time.sleep(4)  # it waits for the prompt
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert out == "" and "Traceback" not in err


def test_interrupt_that_a_library_reports_as_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """safetensors turns the KeyboardInterrupt that is raised inside it into a ValueError."""

    def app(interrupt: bool, **options: object) -> None:
        try:
            if interrupt:
                signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            pass
        raise ValueError("no shape")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        codes = [guarded(lambda x=x, **o: app(x), None) for x in (True, False)]  # type: ignore[arg-type, misc]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert codes == [130, 1]
    assert capsys.readouterr().err.count("ValueError") == 1


def test_closed_pipe_is_quiet() -> None:
    done = subprocess.run(
        f"{sys.executable} -m flightllm isa | head -1",
        shell=True, capture_output=True, text=True, env=os.environ,
    )  # fmt: skip
    assert done.stdout == "# Instruction set\n" and done.stderr == ""


def test_closed_pipe_is_no_failure(program: Path) -> None:
    """Also where the command prints line by line, and the shell looks at every exit code."""
    command = f"{sys.executable} -m flightllm disasm {program} | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (InputError("a"), 2, "a"),
        (VerifyError("b"), 1, "b"),
        (MissingToolError("c"), 3, "c"),
        (ModuleNotFoundError("no torch", name="torch"), 3, "pip install 'flightllm[models]'"),
        (ModuleNotFoundError("no numba", name="numba.core"), 3, "flightllm[sim]"),
        (ModuleNotFoundError("no such thing", name="flightllm.gone"), 1, "a defect"),
        (PermissionError(13, "Permission denied", "/x"), 2, "/x: Permission denied"),
        (ZeroDivisionError("d"), 1, "a defect of this toolkit: ZeroDivisionError: d"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_every_end_has_a_code(error: BaseException, code: int, part: str) -> None:
    found, sentence = explain(error)
    assert found == code and part in sentence


def test_a_missing_extra_is_named(cli, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("flightllm.sim.functional")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "numba", None)
    done = cli("run", program, "--prompt", "x")
    assert done.code == 3
    assert "the package numba is not installed: pip install 'flightllm[sim]'" in done.err


def test_extras_are_those_of_the_distribution() -> None:
    pyproject = Path(__file__).resolve().parents[2] / "pyproject.toml"
    text = pyproject.read_text(encoding="utf-8")
    for extra in set(EXTRAS.values()):
        assert f"\n{extra} = [" in text


def test_a_defect_is_one_line_without_debug(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[str]:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr("flightllm.cli.boards.preset_names", broken)
    done = cli("boards")
    assert done.code == 1 and done.err.count("\n") == 1 and "first second" in done.err
    assert "Traceback" in cli("--debug", "boards").err
