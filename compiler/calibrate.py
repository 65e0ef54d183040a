"""Calibration text: sampled from the model itself, or from a file of the user's.

Sampled text starts at the token that begins the model's own texts and is drawn at temperature 1,
so it shows the distribution the model has learned without any text from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flightllm.models.checkpoint import Checkpoint
from flightllm.models.config import ModelConfig
from flightllm.models.reference import FloatModel, KVCache
from flightllm.models.tokenizer import check_vocabulary, load_tokenizer
from flightllm.spec.errors import InputError

__all__ = ["Calibration", "calibration_size", "float_model", "from_file", "sample",
           "sampled"]  # fmt: skip

MARK = "<|endoftext|>"
WORK = 4e12
"""Floating-point operations that sampling may take."""
IN_MEMORY = 1 << 32
"""Bytes of float32 weights up to which a model is converted once instead of at every use."""

Progress = Callable[[int, int], None]
KEPT_TEXTS = 4
"""Sampled texts that are remembered."""


@dataclass(frozen=True)
class Calibration:
    """Token sequences.

    Members
    -------
    ids : int64 [B, T]. valid : bool [B, T], False behind the end of a text.
    source : where they come from, for reports.
    """

    ids: Tensor
    valid: Tensor
    source: str


class _Stored(Mapping[str, Tensor]):
    """A checkpoint's tensors, converted to float32 each time one is used."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def __getitem__(self, name: str) -> Tensor:
        if not self._checkpoint.has(name):
            raise KeyError(name)
        return self._checkpoint.tensor(name).float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoint.names)

    def __len__(self) -> int:
        return len(self._checkpoint.names)


def float_model(checkpoint: Checkpoint) -> FloatModel:
    """The float model; a large one reads its weights from the mapped files as they are used."""
    if 4 * checkpoint.config.parameters <= IN_MEMORY:
        return FloatModel.load(checkpoint)
    return FloatModel(checkpoint.config, _Stored(checkpoint))


_DRAWN: dict[tuple[str | None, int, int, int], Calibration] = {}


def calibration_size(config: ModelConfig) -> tuple[int, int]:
    """Sequences and tokens in each: 128 of 256, fewer (at least 16) for large models."""
    length = min(256, config.max_length)
    affordable = int(WORK / (2 * config.parameters * length))
    return max(16, min(128, affordable)), length


def _first_tokens(config: ModelConfig, count: int, generator: torch.Generator) -> Tensor:
    """What a model's texts begin with; a model that names nothing begins anywhere."""
    start = config.bos if config.bos is not None else next(iter(config.eos), None)
    if start is None:
        return torch.randint(config.vocab, (count, 1), generator=generator)
    return torch.full((count, 1), start)


@torch.no_grad()
def sample(
    model: FloatModel, sequences: int, length: int, seed: int = 0, progress: Progress | None = None
) -> Calibration:
    """Draw texts from the model at temperature 1.

    Parameters
    ----------
    sequences, length : how many, and of how many tokens, the first one included.
    progress : called with tokens drawn and tokens wanted of each sequence.

    Returns
    -------
    Texts that end at the model's end token are not continued: what follows is not `valid`.
    """
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    ids = torch.empty(sequences, length, dtype=torch.int64)
    ids[:, :1] = _first_tokens(config, sequences, generator)
    valid = torch.zeros(sequences, length, dtype=torch.bool)
    valid[:, 0] = True
    ends = torch.tensor(sorted({*config.eos, *(() if config.bos is None else (config.bos,))}))
    cache = KVCache(config, sequences)
    for at in range(1, length):
        logits = model.forward(ids[:, at - 1 : at], cache, at - 1)[:, -1]
        chance = torch.softmax(logits.double(), dim=-1)
        ids[:, at] = torch.multinomial(chance, 1, generator=generator)[:, 0]
        valid[:, at] = valid[:, at - 1] & ~torch.isin(ids[:, at], ends)
        if progress is not None:
            progress(at + 1, length)
        if not bool(valid[:, at].any()):
            break
    stop = int(valid.any(0).sum())
    source = f"{sequences} texts of up to {stop} tokens sampled from the model (seed {seed})"
    return Calibration(ids[:, :stop], valid[:, :stop], source)


def sampled(
    checkpoint: Checkpoint, sequences: int, length: int, seed: int = 0,
    progress: Progress | None = None,
) -> Calibration:  # fmt: skip
    """`sample` of a checkpoint's model; of the same files it is drawn once in a process."""
    key = (checkpoint.identity(), sequences, length, seed)
    if key not in _DRAWN:
        drawn = sample(float_model(checkpoint), sequences, length, seed, progress)
        if key[0] is None:
            return drawn
        if len(_DRAWN) >= KEPT_TEXTS:
            del _DRAWN[next(iter(_DRAWN))]
        _DRAWN[key] = drawn
    return _DRAWN[key]


def _documents(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"calibrate: {path} cannot be read ({reason})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"calibrate: {path} is not UTF-8 text") from error
    return [part.strip() for part in text.split(MARK) if part.strip()]


def from_file(checkpoint: Checkpoint, path: str | Path, sequences: int, length: int) -> Calibration:
    """Texts of a file, in windows of `length` tokens, evenly chosen where there are too many.

    A document (the file, or what stands between `<|endoftext|>` marks) begins at a window; each
    window starts with the token that begins the model's texts, where it has one.

    Raises
    ------
    InputError : when the file cannot be read, is empty, or the model has no tokeniser beside it.
    """
    config = checkpoint.config
    home = checkpoint.tokenizer_home()
    if home is None:
        raise InputError(f"calibrate: {checkpoint.source} has no tokenizer to read {path} with")
    tokenizer = load_tokenizer(home)
    check_vocabulary(tokenizer, config)
    front = [] if tokenizer.bos is None else [tokenizer.bos]
    room = length - len(front)
    windows: list[list[int]] = []
    for document in _documents(Path(path)):
        ids = tokenizer.encode(document, bos=False)
        windows += [front + ids[at : at + room] for at in range(0, len(ids), room)]
    if not windows:
        raise InputError(f"calibrate: {path} holds no text")
    if len(windows) > sequences:
        windows = [windows[i * len(windows) // sequences] for i in range(sequences)]
    longest = max(map(len, windows))
    ids_out = torch.zeros(len(windows), longest, dtype=torch.int64)
    valid = torch.zeros(len(windows), longest, dtype=torch.bool)
    for row, window in enumerate(windows):
        ids_out[row, : len(window)] = torch.tensor(window)
        valid[row, : len(window)] = True
    return Calibration(ids_out, valid, f"{len(windows)} windows of {path}")

