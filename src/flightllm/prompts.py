"""A model's tokeniser, beside its checkpoint and beside its program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flightllm.runtime.generate import encode_prompt
from flightllm.spec.errors import InputError
from flightllm.spec.image import Program

if TYPE_CHECKING:
    from flightllm.models.checkpoint import Checkpoint
    from flightllm.models.tokenizer import Tokenizer

__all__ = ["prompt_ids", "tokenizer_beside", "tokenizer_files", "tokenizer_of"]

_TOKENIZER_FILES: tuple[str, ...] = (
    "tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json",
    "chat_template.jinja",
)  # fmt: skip


def tokenizer_files(checkpoint: Checkpoint) -> list[Path]:
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

    files = tokenizer_files(checkpoint)
    if not any(path.name.startswith("tok") and path.suffix in (".json", ".bin") for path in files):
        return None
    tokenizer = load_tokenizer(files[0])
    check_vocabulary(tokenizer, checkpoint.config)
    return tokenizer


def tokenizer_beside(folder: Path) -> Tokenizer | None:
    """The tokeniser in a program's folder, or None."""
    from flightllm.models.tokenizer import load_tokenizer

    for path in (folder / "tokenizer.json", *sorted(folder.glob("tok*.bin"))):
        if path.is_file():
            return load_tokenizer(path)
    return None


def prompt_ids(program: Program, text: str) -> list[int]:
    """The tokens of a prompt, by the tokeniser in the program's folder."""
    tokenizer = None if program.folder is None else tokenizer_beside(program.folder)
    if tokenizer is None:
        raise InputError(f"{program.model.name}: the program has no tokenizer beside it")
    return encode_prompt(tokenizer, text)
