"""A board's hardware: its configuration, and its Verilog on disk."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from flightllm.spec.config import HwConfig, load_config
from flightllm.spec.errors import InputError

__all__ = ["Board", "VerilogFolder", "as_config", "write_verilog"]

Board = str | Path | HwConfig


def as_config(board: Board) -> HwConfig:
    """The configuration of a preset's name, a .toml file or a configuration itself."""
    return board if isinstance(board, HwConfig) else load_config(board)


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

    start, config, folder = time.perf_counter(), as_config(board), Path(out).absolute()
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
    seconds = time.perf_counter() - start
    lines = sum(text.count("\n") for name, text in files.items() if name.endswith(".v"))
    return VerilogFolder(config, folder, tuple(files), TOP, lines, seconds)
