"""From a checkpoint to a program: what `flightllm compile` does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flightllm.hardware import Board, as_config
from flightllm.prompts import tokenizer_files, tokenizer_of
from flightllm.spec.errors import InputError
from flightllm.spec.image import Program, save_program

if TYPE_CHECKING:
    from flightllm.compiler.quantise import Quantised
    from flightllm.compiler.scheme import QuantOptions
    from flightllm.compiler.store import LayerStore
    from flightllm.models.checkpoint import Checkpoint
    from flightllm.models.tokenizer import Tokenizer

__all__ = [
    "LENGTHS", "Compilation", "Progress", "build", "compile", "is_program", "write_report",
]  # fmt: skip

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

LARGE = 1 << 28
"""Weights from which on finished layers are kept on disk, not in memory, while compiling."""
LENGTHS = ("adaptive", "bucketed", "unrolled")


def is_program(path: str | Path) -> bool:
    """Whether a path is a compiled program's folder."""
    return (Path(path) / "manifest.json").is_file()


@dataclass(frozen=True)
class Compilation:
    """A program and what it was made from.

    Members
    -------
    program : ready to load. checkpoint : what was opened. tokenizer : the model's, if it has one.
    quantised : the quantised model and its report, None for a shape without weights.
    seconds : what each stage took: "open", "quantise", "build", "save".
    """

    program: Program
    checkpoint: Checkpoint
    tokenizer: Tokenizer | None
    quantised: Quantised | None
    seconds: dict[str, float]


class _Clock:
    """Seconds of each stage, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def note(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def build(
    model: str | Path,
    board: Board = "tiny",
    *,
    weights: str | None = None,
    kv: int | str = 8,
    head_bits: int = 8,
    sparsity: str = "none",
    calibrate: str = "auto",
    rounding: str = "gptq",
    scaling: str = "balance",
    pruning: str = "sparsegpt",
    masks: str = "pairs",
    recover: str = "none",
    recover_steps: int = 300,
    recover_state: str | Path | None = None,
    attention_density: float = 1.0,
    max_length: int | None = None,
    lengths: str = "adaptive",
    out: str | Path | None = None,
    dump: str | Path | None = None,
    report: str | Path | None = None,
    progress: Progress | None = None,
) -> Compilation:
    """`compile`, giving also the checkpoint, the tokeniser, the quantised model and the times."""
    from flightllm.compiler.build import build_before, build_program, build_shape_program
    from flightllm.compiler.scheme import QuantOptions
    from flightllm.models.checkpoint import open_checkpoint

    config = as_config(board)
    options = QuantOptions(
        weights, kv, head_bits, sparsity, calibrate, rounding, scaling, pruning, masks,
        recover, recover_steps, recover_state, attention_density,
    )  # fmt: skip
    if lengths not in LENGTHS:
        raise InputError(f"lengths: {lengths!r} is not one of {', '.join(LENGTHS)}")
    folder, texts = (None if path is None else Path(path) for path in (out, dump))
    _check_targets(folder, report)
    clock = _Clock()
    checkpoint = open_checkpoint(model)
    tokenizer = tokenizer_of(checkpoint)
    facts, shape_only = checkpoint.config, checkpoint.shape_only
    clock.note("open")
    quantised, store = None, None
    if shape_only:
        program = build_shape_program(facts, options, config, max_length, texts)
    else:  # for its errors: what does not fit must not be quantised first
        program = build_before(checkpoint, options, config, max_length)
    clock.note("build")
    if not shape_only:
        store = _store(checkpoint, options, folder)
        quantised = _quantised(checkpoint, options, texts, progress, store)
        clock.note("quantise")
        ends = (facts.bos, facts.eos)
        if tokenizer is not None:
            ends = (tokenizer.bos, tokenizer.eos or facts.eos)
        program = build_program(quantised.model, config, facts.name, *ends, max_length, texts)
        clock.note("build")
    if folder is not None:
        _save(program, checkpoint, folder, progress)
        if store is not None:
            store.remove()
        clock.note("save")
    if report is not None:
        write_report(report, checkpoint, quantised)
    return Compilation(program, checkpoint, tokenizer, quantised, clock.seconds)


def _store(checkpoint: Checkpoint, options: QuantOptions, out: Path | None) -> LayerStore | None:
    """Where a large model's finished layers are kept until its program is written."""
    if out is None or checkpoint.config.parameters < LARGE:
        return None
    from flightllm.compiler.store import LayerStore, run_digest

    return LayerStore(out.with_name(f".{out.name}.work"), run_digest(checkpoint, options))


def _quantised(
    checkpoint: Checkpoint, options: QuantOptions, dump: Path | None, progress: Progress | None,
    store: LayerStore | None,
) -> Quantised:  # fmt: skip
    from flightllm.compiler.quantise import quantise

    made = quantise(checkpoint, options, progress, store)
    if dump is not None:
        dump.mkdir(parents=True, exist_ok=True)
        (dump / "2-quantise-report.txt").write_text(str(made.report), encoding="utf-8")
    return made


def write_report(
    path: str | Path, checkpoint: Checkpoint, quantised: Quantised | None,
    perplexity: float | None = None, float_perplexity: float | None = None,
) -> None:  # fmt: skip
    """Write the report of one compression; see `flightllm.compiler.report_page.write_report`.

    Raises
    ------
    InputError
        For a shape without weights.
    """
    from flightllm.compiler import report_page
    from flightllm.compiler.pictures import Run

    if quantised is None:
        raise InputError(f"report: {checkpoint.source} is a shape without weights, so none is made")
    run = Run(
        report_page.label(quantised.report), quantised.report, quantised.model,
        perplexity, float_perplexity,
    )  # fmt: skip
    report_page.write_report(path, f"Compression of {checkpoint.config.name}", [run])


def compile(model: str | Path, board: Board = "tiny", **options: Any) -> Program:
    """Compile a model for a board.

    Parameters
    ----------
    model : a Hugging Face folder, a llama2.c file or a zoo name. A shape without weights gives
        instructions without an image.
    board : a preset's name, a .toml file or a configuration.
    weights : scheme, such as "w4g128" or "w3.5g64"; "as-is" keeps a quantised checkpoint's codes.
        Left out: as-is for a quantised checkpoint, else w4g128.
    kv : bits of a KV cache entry, 8 or 4; "8/4" for K in 8 and V in 4.
    head_bits : bits of the last projection.
    sparsity : "none", "2:16", "4:16" or "8:16".
    calibrate : "auto" (text sampled from the model itself), "none" or a file.
    rounding : "gptq" or "nearest". scaling : "balance", "awq", "smoothquant" or "none". pruning :
        "sparsegpt", "wanda" or "magnitude". masks : "pairs" or "rows".
    recover : "none", "auto" or a file: train what was quantised towards the float model.
    recover_steps : optimiser steps. recover_state : file from which an interrupted run goes on.
    attention_density : share of causal attention's blocks of 32 keys that prefill keeps, 1: all.
    max_length : tokens the program must serve; left out, as many as the model and the memory take.
    lengths : "adaptive"; "bucketed" and "unrolled" also size the schemes of others
        (``program.report["instruction_bytes_by_lengths"]``), the program is adaptive still.
    out : folder to write, which appears whole or not at all. dump : folder for each stage as text.
    report : an .html file, or a folder, for pictures and tables of what compression did.
    progress : see `Progress`.

    Raises
    ------
    InputError
        When the model cannot be read, is not supported, or does not fit the board.
    """
    return build(model, board, **options).program


def _check_targets(folder: Path | None, report: str | Path | None) -> None:
    """Refuse, before any work, what could not be written at the end."""
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file, not a folder; choose another -o")
        if folder.exists() and not is_program(folder) and any(folder.iterdir()):
            raise InputError(f"{folder} exists and is no program folder; choose another -o")
    if report is not None:
        from flightllm.compiler.report_page import check_target

        check_target(report)


def _save(
    program: Program, checkpoint: Checkpoint, folder: Path, progress: Progress | None
) -> None:
    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress("writing", done, total)

    program.digest = save_program(program, folder, tokenizer_files(checkpoint), tell)
    program.folder = folder
