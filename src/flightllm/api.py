"""The Python interface: compile a model, run a program, evaluate a quantisation."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from flightllm.executors import Tracer, Watch, open_device
from flightllm.runtime.generate import Generation, TextStream, encode_prompt
from flightllm.runtime.sampling import Sampler
from flightllm.runtime.session import Session
from flightllm.spec.config import HwConfig, load_config
from flightllm.spec.errors import InputError
from flightllm.spec.image import Program, load_program, save_program

if TYPE_CHECKING:
    from flightllm.compiler.quantise import Quantised
    from flightllm.compiler.scheme import QuantOptions
    from flightllm.compiler.store import LayerStore
    from flightllm.evaluation import Evaluation
    from flightllm.models.checkpoint import Checkpoint
    from flightllm.models.tokenizer import Tokenizer

__all__ = [
    "LENGTHS", "Compilation", "LoadedProgram", "Progress", "VerilogFolder", "as_config", "build",
    "compile", "evaluate", "is_program", "load", "prompt_ids", "tokenizer_of", "write_verilog",
]  # fmt: skip

Board = str | Path | HwConfig
Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

LARGE = 1 << 28
"""Weights from which on finished layers are kept on disk, not in memory, while compiling."""
LENGTHS = ("adaptive", "bucketed", "unrolled")
_TOKENIZER_FILES: tuple[str, ...] = (
    "tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json",
    "chat_template.jinja",
)  # fmt: skip


def as_config(board: Board) -> HwConfig:
    """The configuration of a preset's name, a .toml file or a configuration itself."""
    return board if isinstance(board, HwConfig) else load_config(board)


def is_program(path: str | Path) -> bool:
    """Whether a path is a compiled program's folder."""
    return (Path(path) / "manifest.json").is_file()


# ------------------------------------------------------------------------------------ compile


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
    kv: int = 8,
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
    max_length: int | None = None,
    lengths: str = "adaptive",
    out: str | Path | None = None,
    dump: str | Path | None = None,
    report: str | Path | None = None,
    progress: Progress | None = None,
) -> Compilation:
    """`compile`, giving also the checkpoint, the tokeniser, the quantised model and the times."""
    from flightllm.compiler.build import build_program, build_shape_program
    from flightllm.compiler.scheme import QuantOptions
    from flightllm.models.checkpoint import open_checkpoint

    clock, config = _Clock(), as_config(board)
    options = QuantOptions(
        weights, kv, head_bits, sparsity, calibrate, rounding, scaling, pruning, masks,
        recover, recover_steps, recover_state,
    )  # fmt: skip
    if lengths not in LENGTHS:
        raise InputError(f"lengths: {lengths!r} is not one of {', '.join(LENGTHS)}")
    folder, texts = (None if path is None else Path(path) for path in (out, dump))
    if folder is not None:
        _check_destination(folder)
    if report is not None:
        from flightllm.compiler.report_page import check_target

        check_target(report)
    checkpoint = open_checkpoint(model)
    tokenizer = tokenizer_of(checkpoint)
    facts, shape_only = checkpoint.config, checkpoint.shape_only
    clock.note("open")
    program, quantised, store = None, None, None
    if shape_only or options.scheme(bool(checkpoint.code_readers)) is not None:
        # With weights this is for its errors: what does not fit must not be quantised first.
        dumped = texts if shape_only else None
        program = build_shape_program(facts, options, config, max_length, dumped)
        clock.note("build")
    if program is None or not shape_only:
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
    kv : bits of a KV cache entry, 8 or 4. head_bits : bits of the last projection.
    sparsity : "none", "2:16", "4:16" or "8:16".
    calibrate : "auto" (text sampled from the model itself), "none" or a file.
    rounding : "gptq" or "nearest". scaling : "balance", "awq", "smoothquant" or "none". pruning :
        "sparsegpt", "wanda" or "magnitude". masks : "pairs" or "rows".
    recover : "none", "auto" or a file: train what was quantised towards the float model.
    recover_steps : optimiser steps. recover_state : file from which an interrupted run goes on.
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


def _check_destination(folder: Path) -> None:
    """Refuse, before any work, what `save_program` would refuse at the end."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder; choose another -o")
    if folder.exists() and not is_program(folder) and any(folder.iterdir()):
        raise InputError(f"{folder} exists and is no program folder; choose another -o")


def _save(
    program: Program, checkpoint: Checkpoint, folder: Path, progress: Progress | None
) -> None:
    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress("writing", done, total)

    program.digest = save_program(program, folder, _tokenizer_files(checkpoint), tell)
    program.folder = folder


# ------------------------------------------------------------------------------------ tokenisers


def _tokenizer_files(checkpoint: Checkpoint) -> list[Path]:
    """The files that `load_tokenizer` needs of a model, to lie beside its program."""
    home = checkpoint.tokenizer_home()
    if home is None:
        return []
    folder, names = home, tuple(_TOKENIZER_FILES)
    if home.is_file():  # llama2.c's tokeniser, the first of these names
        folder = home.parent
        names = (f"tok{checkpoint.config.vocab}.bin", "tokenizer.bin")
        return [folder / name for name in names if (folder / name).is_file()][:1]
    return [folder / name for name in names if (folder / name).is_file()]


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer | None:
    """A checkpoint's tokeniser, checked against its model; None where it has none."""
    from flightllm.models.tokenizer import check_vocabulary, load_tokenizer

    files = _tokenizer_files(checkpoint)
    if not any(path.name.startswith("tok") and path.suffix in (".json", ".bin") for path in files):
        return None
    tokenizer = load_tokenizer(files[0])
    check_vocabulary(tokenizer, checkpoint.config)
    return tokenizer


def _tokenizer_beside(folder: Path) -> Tokenizer | None:
    """The tokeniser in a program's folder, or None."""
    from flightllm.models.tokenizer import load_tokenizer

    for path in (folder / "tokenizer.json", *sorted(folder.glob("tok*.bin"))):
        if path.is_file():
            return load_tokenizer(path)
    return None


def prompt_ids(program: Program, text: str) -> list[int]:
    """The tokens of a prompt, by the tokeniser in the program's folder."""
    tokenizer = None if program.folder is None else _tokenizer_beside(program.folder)
    if tokenizer is None:
        raise InputError(f"{program.model.name}: the program has no tokenizer beside it")
    return encode_prompt(tokenizer, text)


# ------------------------------------------------------------------------------------ hardware


@dataclass(frozen=True)
class VerilogFolder:
    """What `write_verilog` wrote.

    Members
    -------
    config : the hardware. folder : where. files : names of its files, the file list first.
    top : name of the top module. lines : of Verilog. seconds : that it took.
    """

    config: HwConfig
    folder: Path
    files: tuple[str, ...]
    top: str
    lines: int
    seconds: float


def write_verilog(board: Board, out: str | Path) -> VerilogFolder:
    """Write a board's hardware as Verilog.

    Parameters
    ----------
    board : a preset's name, a .toml file or a configuration.
    out : folder to write, which appears whole or not at all: a file for each unit, `flightllm.f`
        (the list of them) and `lint.vlt` (what Verilator's lint need not say, and why). A folder
        that this function wrote is replaced.

    Raises
    ------
    InputError
        When there is no such board, no hardware for it, or `out` is something else.
    """
    from flightllm.hw.verilog import FILE_LIST, TOP, folder_files

    clock, config, folder = _Clock(), as_config(board), Path(out).absolute()
    ours = (folder / FILE_LIST).is_file()
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and holds no Verilog of flightllm; choose another -o")
    files = folder_files(config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        for name, text in files.items():
            (work / name).write_text(text, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    clock.note("verilog")
    lines = sum(text.count("\n") for name, text in files.items() if name.endswith(".v"))
    return VerilogFolder(config, folder, tuple(files), TOP, lines, clock.seconds["verilog"])


# ------------------------------------------------------------------------------------ run


class LoadedProgram:
    """A program on a device, ready to generate text; close it, or use it in a `with` statement.

    Members
    -------
    program, session : see `flightllm.spec.image` and `flightllm.runtime.session`.
    tokenizer : of the program's model, or None; without it prompts are token ids.
    """

    def __init__(self, session: Session, tokenizer: Tokenizer | None) -> None:
        self.session, self.program, self.tokenizer = session, session.program, tokenizer

    def stream(
        self,
        prompt: Prompt,
        tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        steps: int = 1,
    ) -> TextStream:
        """As `generate`; iterate over it for pieces of text, then ask for its `result()`."""
        sampler = Sampler(temperature, top_p, seed)
        return TextStream(self.session, self.tokenizer, self._ids(prompt), tokens, sampler, steps)

    def generate(
        self,
        prompt: Prompt,
        tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        steps: int = 1,
        on_text: Callable[[str], None] | None = None,
    ) -> Generation:
        """Continue a prompt.

        Parameters
        ----------
        prompt : text; token ids; or messages, each with "role" and "content", which go through
            the model's chat template.
        tokens : how many to generate at most.
        temperature : 0 takes the likeliest token, which the device finds itself.
        top_p, seed : nucleus and random seed of the sampling.
        steps : tokens that the device decodes on its own before the host looks again.
        on_text : gets the text piece by piece.

        Raises
        ------
        InputError
            For a prompt longer than the program's maximum length, or a value out of range.
        """
        stream = self.stream(prompt, tokens, temperature, top_p, seed, steps)
        for piece in stream:
            if on_text is not None:
                on_text(piece)
        return stream.result()

    @property
    def build_seconds(self) -> float:
        """What building the executor's hardware took; 0 where it has none to build."""
        return float(getattr(self.session.device, "build_seconds", 0.0))

    def _ids(self, prompt: Prompt) -> str | list[int]:
        if isinstance(prompt, str):
            return prompt
        messages = [item for item in prompt if isinstance(item, Mapping)]
        if not messages:
            return [int(item) for item in prompt if not isinstance(item, Mapping)]
        if self.tokenizer is None:
            raise InputError(f"{self.program.model.name}: there is no tokenizer, so it cannot chat")
        return self.tokenizer.encode(self.tokenizer.chat(messages), bos=False)

    def close(self) -> None:
        """Give the device back."""
        self.session.device.close()

    def __enter__(self) -> LoadedProgram:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def load(
    program: str | Path | Program,
    on: str = "functional",
    *,
    board: Board | None = None,
    tokenizer: Tokenizer | None = None,
    trace: Tracer | None = None,
    device: str | None = None,
    bitstream: str | Path | None = None,
    wave: Path | None = None,
    wave_from: int = 0,
    progress: Callable[[str], None] | None = None,
) -> LoadedProgram:
    """Put a program on an executor.

    Parameters
    ----------
    program : a program folder, or what `compile` returned.
    on : the executor: "functional", "cycle", "rtl" or "board"; "functional:SEED" runs its units in
        a random legal order, "cycle:N" and "rtl:SETTINGS" change the memory.
    board : the hardware that the device has; left out, what the program was made for.
    tokenizer : in place of the one in the program's folder.
    trace : called with a `flightllm.spec.trace.TraceRecord` for each executed instruction.
    device, bitstream : of a board; see `flightllm.board_devices.open_board`.
    wave : file for a waveform, from cycle `wave_from` on; "rtl" only.
    progress : told what "rtl" is doing while it builds the hardware, which is kept.

    Raises
    ------
    InputError
        When the folder is no program, is altered, has no weights, or is for another board.
    DeviceError
        When a board is in use, is missing, or does not do what it should.
    """
    found = program if isinstance(program, Program) else load_program(Path(program))
    if tokenizer is None and found.folder is not None:
        tokenizer = _tokenizer_beside(found.folder)
    opened = open_device(
        on, found.config if board is None else as_config(board),
        Watch(trace, wave, wave_from, progress), device=device,
        bitstream=None if bitstream is None else Path(bitstream),
    )  # fmt: skip
    try:
        return LoadedProgram(Session(opened, found), tokenizer)
    except BaseException:
        opened.close()
        raise


def evaluate(model: str | Path, text: str, board: Board = "tiny", **options: Any) -> Evaluation:
    """Perplexity of a model on a text; see `flightllm.evaluation.evaluate`."""
    from flightllm import evaluation

    return evaluation.evaluate(model, text, board, **options)
