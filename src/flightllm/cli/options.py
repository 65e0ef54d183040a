"""Options and arguments that several commands share."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from flightllm.spec.errors import InputError

__all__ = [
    "AttentionDensity", "Board", "HeadBits", "Json", "Kv", "MaxLength", "Model", "On", "Program",
    "Report", "Sparsity", "Weights", "quantising", "read_prompt", "read_text",
]  # fmt: skip

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Hugging Face folder, llama2.c file or zoo name.")
]
Program = Annotated[Path, typer.Argument(metavar="PROGRAM", help="Compiled program folder.")]
Board = Annotated[str, typer.Option("--board", help="Preset name or .toml file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
On = Annotated[
    str,
    typer.Option(
        "--on",
        help="Executor: functional, functional:SEED (random unit order), cycle, cycle:N (memory"
        " latency), rtl, rtl:SETTINGS (memory: latency=N,stalls=SHARE,dram, ...), board.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="w8g32, w4g128, w3.5g128, w2g128, ... or as-is.  [default: as-is for a quantised"
        " checkpoint, else w4g128]"
    ),
]
Kv = Annotated[
    str, typer.Option(help="Bits of a KV cache entry, 8 or 4; 8/4 for K in 8 and V in 4.")
]
HeadBits = Annotated[int, typer.Option(help="Bits of the last projection.")]
Sparsity = Annotated[str, typer.Option(help="none, 2:16, 4:16 or 8:16.")]
AttentionDensity = Annotated[
    float, typer.Option(help="Blocks of keys that prefill keeps on average, over 0 to 1.")
]
Report = Annotated[
    Path | None,
    typer.Option(help="An .html file, or a folder, for pictures and tables of the compression."),
]
MaxLength = Annotated[
    int | None,
    typer.Option(help="Tokens to serve.  [default: the model's, capped by the board's memory]"),
]
_QUANTISING: dict[str, tuple[Any, Any]] = {
    "weights": (Weights, None),
    "kv": (Kv, "8"),
    "head_bits": (HeadBits, 8),
    "sparsity": (Sparsity, "none"),
    "calibrate": (
        Annotated[
            str, typer.Option(help="auto (text sampled from the model), none, or a text file.")
        ],
        "auto",
    ),
    "rounding": (Annotated[str, typer.Option(help="gptq or nearest.")], "gptq"),
    "scaling": (
        Annotated[
            str, typer.Option(help="Channels between matrices: balance, awq, smoothquant or none.")
        ],
        "balance",
    ),
    "pruning": (Annotated[str, typer.Option(help="sparsegpt, wanda or magnitude.")], "sparsegpt"),
    "masks": (
        Annotated[str, typer.Option(help="Who shares a sparse mask: pairs or rows.")],
        "pairs",
    ),
    "recover": (
        Annotated[
            str,
            typer.Option(
                help="Train what was quantised: none, auto (on sampled text) or a text file."
            ),
        ],
        "none",
    ),
    "recover_steps": (Annotated[int, typer.Option(help="Optimiser steps of the recovery.")], 300),
    "recover_state": (
        Annotated[
            Path | None, typer.Option(help="File from which an interrupted recovery goes on.")
        ],
        None,
    ),
    "attention_density": (AttentionDensity, 1.0),
    "max_length": (MaxLength, None),
}
"""Type and default of each option that says how a model is quantised, by name."""


def quantising(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every quantisation option; it gets them together, as `quantised`."""
    hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if name != "quantised"
    ]
    more = [
        inspect.Parameter(
            name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind
        )
        for name, (kind, default) in _QUANTISING.items()
    ]

    @functools.wraps(command)
    def whole(**given: Any) -> None:
        quantised = {name: given.pop(name) for name in _QUANTISING}
        command(**given, quantised=quantised)

    at = next(k for k, parameter in enumerate(own) if parameter.name == "json")
    parameters = [*own[:at], *more, *own[at:]]
    whole.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    whole.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return whole


def read_text(path: Path) -> str:
    """A text file's contents; InputError when it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"text file {path} cannot be read: {reason}") from None


def read_prompt(prompt: str) -> str:
    """A prompt as given: the text itself, @FILE, or - for standard input."""
    if prompt == "-":
        return sys.stdin.read()
    return read_text(Path(prompt[1:])) if prompt.startswith("@") else prompt
