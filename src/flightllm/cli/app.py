"""The commands together, and the options of `flightllm` itself."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flightllm import __version__
from flightllm.cli.bitstream import bitstream
from flightllm.cli.boards import boards
from flightllm.cli.check import check
from flightllm.cli.compare import compare
from flightllm.cli.compile import compile_model
from flightllm.cli.disasm import disasm
from flightllm.cli.estimate import estimate
from flightllm.cli.evaluate import evaluate
from flightllm.cli.isa import isa
from flightllm.cli.models import models
from flightllm.cli.resources import resources
from flightllm.cli.run import run
from flightllm.cli.trace import trace
from flightllm.cli.verilog import verilog

__all__ = ["app"]

app = typer.Typer(
    name="flightllm", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        print(f"flightllm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """From an LLM checkpoint to an FPGA accelerator and back to text."""
    options: dict[str, Any] = context.ensure_object(dict)
    options["debug"] = debug


app.add_typer(boards, name="boards")
for name, command in (
    ("models", models), ("check", check), ("compile", compile_model), ("run", run),
    ("eval", evaluate), ("compare", compare), ("disasm", disasm), ("isa", isa),
    ("bitstream", bitstream), ("estimate", estimate), ("resources", resources), ("trace", trace),
    ("verilog", verilog),
):  # fmt: skip
    app.command(name)(command)
