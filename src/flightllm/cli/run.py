"""`flightllm run`: text from a prompt, on an executor."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flightllm.cli.options import (
    Json,
    On,
    quantising,
    read_prompt,
)
from flightllm.cli.output import note, print_json, progress_bar, stage_notes

if TYPE_CHECKING:
    from flightllm.executors import Tracer
    from flightllm.models.tokenizer import Tokenizer
    from flightllm.runtime.generate import Generation
    from flightllm.spec.image import Program

__all__ = ["run"]


@quantising
def run(
    model: Annotated[str, typer.Argument(metavar="MODEL|PROGRAM", help="What to run.")],
    prompt: Annotated[str, typer.Option(help="Text, @FILE, or - for standard input.")],
    tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus to sample from.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Random seed of the sampling.")] = 0,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompt through the chat template.")
    ] = False,
    on: On = "functional",
    device: Annotated[
        str | None,
        typer.Option(help="PYNQ device, remote:ADDRESS, serial:PATH, sim:functional or sim:rtl."),
    ] = None,
    bitstream: Annotated[
        Path | None, typer.Option(help="What to program the board with.")
    ] = None,
    steps: Annotated[
        int, typer.Option(help="Tokens the device decodes on its own (greedy only).")
    ] = 1,
    trace: Annotated[
        Path | None, typer.Option(help="File for the executed instructions, JSON lines.")
    ] = None,
    wave: Annotated[
        Path | None, typer.Option(help="File for a waveform (VCD); with --on rtl.")
    ] = None,
    wave_from: Annotated[int, typer.Option(help="First cycle of the waveform.")] = 0,
    board: Annotated[
        str | None,
        typer.Option(help="Preset name or .toml file.  [default: the program's, or tiny]"),
    ] = None,
    json: Json = False,
    *,
    quantised: dict[str, Any],
) -> None:
    """Continue a prompt; the text streams to standard output."""
    from flightllm import api

    text = read_prompt(prompt)
    begin = time.perf_counter()
    program: Program | Path = Path(model)
    tokenizer: Tokenizer | None = None
    if not api.is_program(model):
        with progress_bar() as progress:
            made = api.build(model, board or "tiny", progress=progress, **quantised)
        program, tokenizer = made.program, made.tokenizer
    built = time.perf_counter() - begin
    with (
        _tracer(trace) as tracer,
        api.load(
            program, on, board=board, tokenizer=tokenizer, trace=tracer, device=device,
            bitstream=bitstream, wave=wave, wave_from=wave_from, progress=stage_notes(on),
        ) as loaded,  # fmt: skip
    ):
        ready = time.perf_counter() - begin - built - loaded.build_seconds
        built += loaded.build_seconds
        result = loaded.generate(
            [{"role": "user", "content": text}] if chat else text,
            tokens, temperature, top_p, seed, steps, None if json else _show,
        )  # fmt: skip
    if json:
        extra = {"build_seconds": built, "load_seconds": ready}
        print_json({**result.to_dict(), **extra, "program_digest": loaded.program.digest})
    else:
        print()
        _say(result)


def _show(piece: str) -> None:
    print(piece, end="", flush=True)


def _say(result: Generation) -> None:
    """Why it ended and how fast it was, on a terminal."""
    if result.stop == "context":
        note("the context is full")
    if sys.stderr.isatty() and result.seconds_per_token:
        note(f"{len(result.token_ids)} tokens, {1 / result.seconds_per_token:.1f} tokens/s")


@contextmanager
def _tracer(path: Path | None) -> Iterator[Tracer | None]:
    """Writes records as JSON lines; the file appears when the run is over."""
    if path is None:
        yield None
        return
    from dataclasses import asdict
    from json import dumps

    work = path.with_name(f".{path.name}.part")
    try:
        with work.open("w", encoding="utf-8") as file:
            yield lambda record: print(dumps(asdict(record)), file=file)
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)
