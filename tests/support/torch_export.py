"""Exports small transformers models with torch.export, as users do, and saves the program."""

from __future__ import annotations

import json
import logging
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from onnx_export import Logits, WithPast, open_axes, past_arguments
from transformers import PreTrainedModel

__all__ = ["export_program", "rewritten", "slimmed"]


class _Ids(torch.nn.Module):
    """Only the logits, from the ids alone."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


def _arguments(
    model: PreTrainedModel, form: str
) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...], Any]:
    if form == "past":
        arguments, _ = past_arguments(model)
        return WithPast(model), arguments, open_axes(arguments)
    ids = torch.randint(3, 90, (1 if form == "fixed" else 2, 5))
    if form == "mask":
        both = ids, torch.ones_like(ids)
        return Logits(model), both, open_axes(both)
    return _Ids(model), (ids,), None if form == "fixed" else open_axes((ids,))


def export_program(
    model: PreTrainedModel, path: Path, *, form: str = "ids", decomposed: bool = False
) -> Path:
    """Write a model's program; gives the path.

    Parameters
    ----------
    form : the inputs: "ids", "mask" with a mask, "past" with mask, positions and a cache, or
        "fixed", ids of one fixed length. decomposed : into the core ATen operators.
    """
    module, arguments, shapes = _arguments(model, form)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                module.eval(), arguments, dynamic_shapes=shapes, strict=False
            )
            if decomposed:
                program = program.run_decompositions()
            torch.export.save(program, path)
    finally:
        logging.disable(logging.NOTSET)
    return path


def rewritten(path: Path, out: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """Write an archive whose members (by name, without the root folder) are changed."""
    with zipfile.ZipFile(path) as file:
        members = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    change(members)
    with zipfile.ZipFile(out, "w") as file:
        for name, data in members.items():
            file.writestr(f"{out.stem}/{name}", data)
    return out


def slimmed(path: Path) -> Path:
    """An archive without the stack traces of its nodes, in place."""

    def change(members: dict[str, bytes]) -> None:
        data = json.loads(members["models/model.json"])
        for node in data["graph_module"]["graph"]["nodes"]:
            node["metadata"] = {}
        members["models/model.json"] = json.dumps(data).encode()

    rewritten(path, path.with_suffix(".slim"), change).replace(path)
    return path
