"""A small model folder with tokeniser, a program made of it, and a way to call the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from flightllm.cli import main
from flightllm.models.config import ModelConfig, RopeConfig, tensor_shapes
from flightllm.models.hf_writer import save_llama
from flightllm.models.vocabulary import save_tokenizer, train_tokenizer

TEXT = "a small model says small things about small models, and says them again and again. " * 9


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`cli("run", folder, "--prompt", "x")` runs the command in this process."""

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(cli: Callable[..., Done]) -> Callable[..., str]:
    """Runs a command that must end with exit code 2, one sentence and nothing else; gives that."""

    def run(*arguments: object) -> str:
        done = cli(*arguments)
        assert done.code == 2, done
        assert done.out == ""
        assert done.err.startswith("flightllm: ") and done.err.count("\n") == 1, done.err
        assert "Traceback" not in done.err and "defect" not in done.err
        return done.err

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a small random LLaMA; not to be changed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models") / "small"
    folder.mkdir()
    tokenizer = train_tokenizer([TEXT], 280)
    size = tokenizer.get_vocab_size()
    config = ModelConfig(
        "llama", size, 32, 2, 4, 2, 8, 48, 64, rope=RopeConfig(), tied=True, bos=0, eos=(0,)
    )
    generator = torch.Generator().manual_seed(3)
    tensors = {
        name: torch.randn(shape, generator=generator) / 4 + (len(shape) == 1)
        for name, shape in tensor_shapes(config).items()
    }
    save_llama(folder, config, tensors)
    save_tokenizer(tokenizer, folder, 64)
    return folder


@pytest.fixture
def own_model(model: Path, tmp_path: Path) -> Path:
    """A copy of the model for a test to spoil."""
    return Path(shutil.copytree(model, tmp_path / "model"))


@pytest.fixture(scope="session")
def program(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model compiled for board tiny; not to be changed."""
    folder = tmp_path_factory.mktemp("programs") / "small"
    assert main(["compile", str(model), "-o", str(folder), "--calibrate", "none"]) == 0
    return folder


@pytest.fixture
def own_program(program: Path, tmp_path: Path) -> Path:
    """A copy of the program for a test to spoil."""
    return Path(shutil.copytree(program, tmp_path / "program"))
