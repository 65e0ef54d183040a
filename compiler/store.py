"""Finished layers on disk: what makes a large model compile in little memory, and a run resumable.

Each layer is one safetensors file in a work folder beside the output, named by a digest of
everything that the layers depend on. A run that is cut short finds them again; another model,
other options or a changed file have another digest. The folder goes when the program is written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from flightllm.compiler.as_is import Event
from flightllm.compiler.quant_report import MatrixReport
from flightllm.compiler.scheme import QuantOptions
from flightllm.models.checkpoint import Checkpoint
from flightllm.models.patterns import Pattern
from flightllm.models.quantized import QuantLayer, QuantLinear
from flightllm.spec.quant import QuantTensor

__all__ = ["LayerStore", "StoredLayers", "run_digest"]

VERSION = 2
_NORMS = ("attn_norm", "mlp_norm")
_ARRAYS = ("levels", "scales", "minima", "zeros", "mask")


def run_digest(checkpoint: Checkpoint, options: QuantOptions) -> str:
    """What the layers of a run depend on: files, configuration, options, as 16 hex digits."""
    facts = {"version": VERSION, "model": checkpoint.identity(), "options": repr(options)}
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


class LayerStore:
    """Layers of one run in a folder.

    Parameters
    ----------
    folder : the work folder; it holds a folder a digest. digest : see `run_digest`.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder, self._home = folder, folder / digest

    def _path(self, index: int) -> Path:
        return self._home / f"layer-{index:04}.safetensors"

    def has(self, index: int) -> bool:
        """Whether a layer is finished and whole."""
        try:
            with safe_open(str(self._path(index)), framework="pt") as file:
                return file.metadata() is not None
        except (SafetensorError, OSError):
            return False

    def save(
        self, index: int, layer: QuantLayer, reports: Sequence[MatrixReport],
        events: Sequence[Event],
    ) -> None:  # fmt: skip
        """Keep a layer and what is reported of its matrices; it appears whole or not at all."""
        arrays = {name: torch.from_numpy(getattr(layer, name)) for name in _NORMS}
        told: dict[str, Sequence[Any]] = {"reports": reports, "events": events}
        facts: dict[str, Any] = {
            name: [dataclasses.asdict(part) for part in parts] for name, parts in told.items()
        }
        if layer.patterns is not None:
            facts["patterns"] = [dataclasses.astuple(pattern) for pattern in layer.patterns]
        for name, linear in _linears(layer):
            facts[name] = {
                key: getattr(linear.weight, key)
                for key in ("bits", "group", "table", "kept", "private")
            }
            for key in _ARRAYS:
                value = getattr(linear.weight, key)
                if value is not None:
                    arrays[f"{name}.{key}"] = torch.from_numpy(np.ascontiguousarray(value))
            if linear.bias is not None:
                arrays[f"{name}.bias"] = torch.from_numpy(linear.bias)
        self._home.mkdir(parents=True, exist_ok=True)
        part = self._path(index).with_suffix(f".{os.getpid()}.part")
        save_file(arrays, part, metadata={"facts": json.dumps(facts)})
        part.rename(self._path(index))

    def _facts(self, index: int) -> dict[str, Any]:
        with safe_open(str(self._path(index)), framework="pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["facts"])
        return facts

    def reports(self, index: int) -> list[MatrixReport]:
        """What was reported of a finished layer."""
        return [MatrixReport(**part) for part in self._facts(index)["reports"]]

    def events(self, index: int) -> list[Event]:
        """What became of a finished layer's own codes."""
        return [Event(**part) for part in self._facts(index)["events"]]

    def load(self, index: int) -> QuantLayer:
        """A finished layer, its arrays mapped from the file."""
        with safe_open(str(self._path(index)), framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
        parts: dict[str, Any] = {"gate": None, **{name: arrays[name] for name in _NORMS}}
        patterns = facts.pop("patterns", None)
        if patterns is not None:
            parts["patterns"] = tuple(Pattern(*pattern) for pattern in patterns)
        for name, values in facts.items():
            if name in ("reports", "events"):
                continue
            found = {key: arrays.get(f"{name}.{key}") for key in _ARRAYS}
            table = None if values["table"] is None else tuple(values.pop("table"))
            weight = QuantTensor(**{**values, "table": table, **found})
            parts[name] = QuantLinear(weight, arrays.get(f"{name}.bias"))
        return QuantLayer(**parts)

    def remove(self) -> None:
        """Drop this run's layers, and the folder when nothing else lies in it."""
        shutil.rmtree(self._home, ignore_errors=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def _linears(layer: QuantLayer) -> Iterator[tuple[str, QuantLinear]]:
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        if isinstance(value, QuantLinear):
            yield field.name, value


class StoredLayers(Sequence[QuantLayer]):
    """All layers of a store, each read when it is asked for."""

    def __init__(self, store: LayerStore, count: int) -> None:
        self._store, self._count = store, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> QuantLayer: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[QuantLayer]: ...

    def __getitem__(self, index: int | slice) -> QuantLayer | Sequence[QuantLayer]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(f"layer {index} of {self._count}")
        return self._store.load(index % self._count)
