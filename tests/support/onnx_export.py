"""Exports small transformers models to ONNX, as users do: torch's two exporters, with and without
past key values."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

__all__ = ["Logits", "WithPast", "export_onnx", "open_axes", "past_arguments"]


class Logits(torch.nn.Module):
    """Only the logits, without a cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        logits: torch.Tensor = out.logits
        return logits


class WithPast(torch.nn.Module):
    """Logits and the cache, from ids, mask, positions and the cache so far: Optimum's interface."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        cache = DynamicCache()
        for index in range(len(past) // 2):
            cache.update(past[2 * index], past[2 * index + 1], index)
        out = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
        made = [part for layer in out.past_key_values.layers for part in (layer.keys, layer.values)]
        return (out.logits, *made)


def past_arguments(model: PreTrainedModel) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    config = model.config
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    size = config.hidden_size // config.num_attention_heads
    past = [torch.randn(2, heads, 4, size) for _ in range(2 * config.num_hidden_layers)]
    ids = torch.randint(3, 90, (2, 3))
    arguments = (ids, torch.ones(2, 7, dtype=torch.int64), torch.tensor([[4, 5, 6]] * 2), *past)
    names = ["input_ids", "attention_mask", "position_ids"]
    axes: dict[str, Any] = {
        "input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "total"},
        "position_ids": {0: "batch", 1: "sequence"},
    }  # fmt: skip
    for index in range(config.num_hidden_layers):
        for part in ("key", "value"):
            names.append(f"past_key_values.{index}.{part}")
            axes[names[-1]] = {0: "batch", 2: "past"}
    return arguments, {"input_names": names, "dynamic_axes": axes}


def open_axes(arguments: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
    """Open lengths for torch.export: of ids, or of ids, mask, positions and a cache."""
    batch, length = torch.export.Dim("batch", max=8), torch.export.Dim("sequence", max=64)
    tokens = {0: batch, 1: length}
    if len(arguments) < 4:
        return tuple(tokens for _ in arguments)
    total = {0: batch, 1: torch.export.Dim.AUTO}
    cache = {0: batch, 2: torch.export.Dim("past", max=64)}
    return tokens, total, tokens, tuple(cache for _ in arguments[3:])


def export_onnx(
    model: PreTrainedModel, path: Path, *, past: bool = False, dynamo: bool = False, opset: int = 17
) -> Path:
    """Write a model's graph; gives the path."""
    module: torch.nn.Module
    if past:
        module = WithPast(model)
        arguments, facts = past_arguments(model)
    else:
        module = Logits(model)
        arguments = (torch.randint(3, 90, (2, 5)), torch.ones(2, 5, dtype=torch.int64))
        names = ["input_ids", "attention_mask"]
        axes = {name: {0: "batch", 1: "sequence"} for name in names}
        facts = {"input_names": names, "dynamic_axes": axes}
    if dynamo:
        del facts["dynamic_axes"]
        facts["dynamic_shapes"] = open_axes(arguments)
    module.eval()  # the exporter puts back the mode that it found
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module, arguments, str(path), output_names=["logits"], opset_version=opset,
                dynamo=dynamo, **facts,
            )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)
    return path
