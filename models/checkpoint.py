"""Checkpoints: every file format behind one set of canonical tensor names, read lazily.

`open_checkpoint` recognises what it is given and checks every tensor's shape and type against the
model's configuration before anything is computed. Canonical names are those of
`config.tensor_shapes`; matrices are [out, in], RoPE rows in the order of transformers (the two
halves of a head form the pairs).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flightllm.models.codes import CodeKind, Codes
from flightllm.models.config import ModelConfig, tensor_shapes
from flightllm.models.tensors import from_numpy
from flightllm.spec.errors import InputError

if TYPE_CHECKING:
    import torch

    from flightllm.models.llama2c import Llama2cFile
    from flightllm.models.op_graph import Graph

__all__ = ["Checkpoint", "Codes", "open_checkpoint", "open_graph"]


@dataclass(frozen=True)
class Checkpoint:
    """A model's configuration and the means to read each of its tensors.

    Members
    -------
    config : what the model is.
    readers : one function per canonical tensor, which reads it; empty for a shape without weights.
    source : what was opened, for messages and reports.
    folder : where it lies (and where its tokeniser is looked for), or None.
    code_readers : the same for matrices that the checkpoint stores quantised.
    tokenizer : gives the folder or model file by which `load_tokenizer` finds the tokeniser, where
        that is not `folder`.
    notes : what a user should know of how the file was read.
    code_kinds : what is known of such matrices without reading their codes; none where only the
        codes themselves tell.
    """

    config: ModelConfig
    readers: Mapping[str, Callable[[], torch.Tensor]] = field(repr=False)
    source: str
    folder: Path | None = None
    code_readers: Mapping[str, Callable[[], Codes]] = field(default_factory=dict, repr=False)
    tokenizer: Callable[[], Path] | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    code_kinds: Mapping[str, Callable[[], CodeKind]] = field(default_factory=dict, repr=False)

    @classmethod
    def from_tensors(
        cls, config: ModelConfig, tensors: Mapping[str, torch.Tensor], source: str = "memory"
    ) -> Checkpoint:
        """A checkpoint of tensors already in memory, under canonical names.

        Raises
        ------
        InputError : when one is missing or its shape is not the configuration's.
        """
        readers: dict[str, Callable[[], torch.Tensor]] = {}
        for name, shape in tensor_shapes(config).items():
            if name not in tensors:
                raise InputError(f"{source}: tensor {name!r} is missing, expected {list(shape)}")
            tensor = tensors[name]
            if tuple(tensor.shape) != shape:
                raise InputError(
                    f"{source}: tensor {name!r} has shape {list(tensor.shape)}, expected"
                    f" {list(shape)}"
                )
            readers[name] = _constant(tensor)
        return cls(config, readers, source)

    def tokenizer_home(self) -> Path | None:
        """Where `load_tokenizer` finds the model's tokeniser, if anywhere."""
        return self.folder if self.tokenizer is None else self.tokenizer()

    @property
    def shape_only(self) -> bool:
        """Whether this is a shape without weights (a zoo entry)."""
        return not self.readers

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names of the model's tensors, in data-flow order; a tied head is not listed."""
        return tuple(tensor_shapes(self.config))

    def has(self, name: str) -> bool:
        """Whether `tensor(name)` gives a tensor."""
        return name in self.readers or (
            name == "head.weight" and self.config.tied and not self.shape_only
        )

    def identity(self) -> str | None:
        """Digest of the files behind it (names, sizes, times) and of the configuration; None for
        tensors that are only in memory, which may change."""
        source = Path(self.source) if self.folder is None else self.folder
        if not source.exists():
            return None
        files = sorted(source.iterdir()) if source.is_dir() else [source]
        stats = [(f.name, f.stat()) for f in files if f.is_file()]
        facts = [repr(self.config), [(name, s.st_size, s.st_mtime_ns) for name, s in stats]]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _source_name(self, name: str) -> str:
        if self.shape_only:
            raise InputError(
                f"{self.source} is a shape without weights: give a folder or file that holds them"
            )
        name = "embed" if name == "head.weight" and self.config.tied else name
        if name not in self.readers:
            raise InputError(f"{self.source}: the model has no tensor {name!r}")
        return name

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor; a tied "head.weight" is the embedding.

        Returns
        -------
        The tensor in the type it is stored in (float32, float16 or bfloat16), a view of the mapped
        file where the format allows it: do not write to it.

        Raises
        ------
        InputError : for a shape without weights or a name the model does not have.
        """
        return self.readers[self._source_name(name)]()

    def codes(self, name: str) -> Codes | None:
        """A matrix's own levels and scales where the checkpoint is quantised, else None."""
        reader = self.code_readers.get(self._source_name(name))
        return None if reader is None else reader()

    def code_kind(self, name: str) -> CodeKind | None:
        """What is known of a matrix' codes without reading them; None where that is nothing."""
        reader = self.code_kinds.get(self._source_name(name))
        return None if reader is None else reader()


def _constant(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: tensor


def open_checkpoint(model: str | Path) -> Checkpoint:
    """Open a Hugging Face folder, a GGUF, ONNX, torch.export or llama2.c file or a zoo entry.

    Parameters
    ----------
    model : a folder with config.json, a .gguf, .onnx, .pt2 or llama2.c .bin file, or a name of
        `zoo.names()`; a name wins over a folder of that name ("./demo" means the folder).

    Raises
    ------
    InputError : when there is no such thing, or its tensors are not what its configuration says.
    """
    from flightllm.models import zoo

    text = str(model)
    if isinstance(model, str) and text in zoo.names():
        return _open_zoo(text)
    path = Path(model)
    if path.is_dir():
        from flightllm.models.hf import read_folder

        made = read_folder(path)
        return Checkpoint(
            made.config, made.readers, text, path, made.codes, code_kinds=made.kinds
        )
    if path.is_file():
        return _open_file(path)
    raise InputError(
        f"{text}: there is no such folder or file, nor a model of that name"
        f" (known names: {', '.join(zoo.names())})"
    )


def _open_zoo(name: str) -> Checkpoint:
    from flightllm.models import zoo

    folder = zoo.weights_folder(name)
    if folder is None:
        return Checkpoint(zoo.shape(name), {}, name)
    return replace(open_checkpoint(folder), source=name)


def _open_file(path: Path) -> Checkpoint:
    """Recognise a file by what it begins with, and by its name where that says nothing."""
    try:
        with path.open("rb") as raw:
            first = raw.read(4)
        if first == b"GGUF":
            return _open_gguf(path)
        graph = open_graph(path)
        if graph is not None:
            return _of_graph(graph)
        if first[:2] == b"PK" or path.suffix != ".bin":
            raise InputError(
                f"{path}: is no llama2.c model, nor GGUF, ONNX or .pt2; of a Hugging Face model"
                " give the folder"
            )
        return _open_llama2c(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _open_gguf(path: Path) -> Checkpoint:
    from flightllm.models.gguf_model import read_gguf

    made = read_gguf(path)
    home = None if made.tokenizer is None else _Written(made.tokenizer)
    return Checkpoint(
        made.config, made.readers, str(path), None, made.codes, home, code_kinds=made.kinds
    )


def open_graph(path: Path) -> Graph | None:
    """The operator graph of an ONNX file or torch.export program, None for other files."""
    if path.suffix == ".onnx":
        from flightllm.models.onnx_file import open_onnx

        return open_onnx(path)
    if path.suffix == ".pt2":
        from flightllm.models.export_graph import open_export

        return open_export(path)
    return None


def _of_graph(graph: Graph) -> Checkpoint:
    from flightllm.models.graph_model import read_decoder

    made, path = read_decoder(graph), graph.path
    return Checkpoint(
        made.config, made.readers, str(path), path.parent, made.codes, notes=made.notes
    )


class _Written:
    """A folder of files made from texts when it is first asked for; it goes with this object."""

    def __init__(self, texts: Callable[[], Mapping[str, str]]) -> None:
        self._texts = texts
        self._folder: TemporaryDirectory[str] | None = None

    def __call__(self) -> Path:
        if self._folder is None:
            texts = self._texts()
            self._folder = TemporaryDirectory(prefix="flightllm-tokenizer-")
            for name, text in texts.items():
                (Path(self._folder.name) / name).write_text(text, encoding="utf-8")
        return Path(self._folder.name)


def _open_llama2c(path: Path) -> Checkpoint:
    from flightllm.models.llama2c import Llama2cFile

    file = Llama2cFile(path)
    readers = {name: _tensor_reader(file, name) for name in file.names}
    codes = {
        name: _codes_reader(read, file.header.group)
        for name in file.names
        if (read := file.codes_reader(name)) is not None
    }
    return Checkpoint(file.header.config, readers, str(path), path.parent, codes, lambda: path)


def _tensor_reader(file: Llama2cFile, name: str) -> Callable[[], torch.Tensor]:
    return lambda: from_numpy(file.read(name))


def _codes_reader(
    read: Callable[[], tuple[NDArray[np.int8], NDArray[np.float32]]], group: int
) -> Callable[[], Codes]:
    return lambda: Codes(*read(), group)
