"""Recovery: train a quantised model towards the float one, its code widths and masks kept.

The student is the quantised model as the device computes it. Its levels are rounded in every step,
to the same grids and under the same masks, and gradients pass the rounding straight through; what
is trained beside them are fp16 scales, norms and biases. The teacher is the float model: the loss
is the divergence of the student's predictions from it. Needs the whole model in memory, several
times.

Every random choice of a step follows from the seed and the step's number, so a run that was
interrupted and resumed ends with the same weights as one that was not.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flightllm.compiler import calibrate
from flightllm.compiler.block import Block, straight
from flightllm.compiler.calibrate import Calibration
from flightllm.compiler.fold import MATRICES, FoldedEnds, FoldedLayer, fold_ends, fold_layer
from flightllm.compiler.grid import Grid, grid_for
from flightllm.compiler.ladder import perplexity
from flightllm.compiler.quant_report import PassReport, stored_bits
from flightllm.compiler.rounding import LARGEST_SCALE, SMALLEST_SCALE, spread
from flightllm.compiler.scheme import QuantOptions
from flightllm.models.checkpoint import Checkpoint
from flightllm.models.config import ModelConfig
from flightllm.models.quantized import QuantLinear, QuantModel
from flightllm.models.reference import FloatModel
from flightllm.spec.errors import InputError
from flightllm.spec.quant import QuantTensor

__all__ = ["Progress", "Recipe", "Recovery", "check_trainable", "recover"]

Progress = Callable[[str, int, int], None]
"""Called with what is being done, steps done and steps in all."""
TEXTS = 256
"""Texts sampled from the model to train on."""
LARGEST = 1 << 28
"""Parameters of a model that may be trained: it lies in memory about eight times in float32."""


@dataclass(frozen=True)
class Recipe:
    """How a model is recovered.

    Members
    -------
    steps : optimiser steps of `tokens` tokens each. rate : of the levels, as a share of their
        root mean square. fine_rate : of scales, norms, biases and embedding, as a share of
        themselves. warmup : steps to the peak; the rates then fall in a cosine to zero.
    every : steps between two looks at the held-out text. seed : of the order of the texts.
    """

    steps: int = 300
    tokens: int = 2048
    rate: float = 4e-3
    fine_rate: float = 1e-3
    warmup: int = 20
    every: int = 50
    seed: int = 0

    def share(self, step: int) -> float:
        """The rates of a step as a share of their peak."""
        rise = min(1.0, (step + 1) / self.warmup)
        return rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def check_trainable(model: QuantModel) -> None:
    """Refuse a model with codes that were not rounded here.

    Raises
    ------
    InputError : for a matrix with minima, zero points or a code table of its own.
    """
    for name, part in _linears(model):
        tensor = part.weight
        if tensor.minima is not None or tensor.zeros is not None:
            raise InputError(f"recover: {name} has zero points; quantise it with --weights first")
        if tensor.table != grid_for(tensor.bits).table:
            raise InputError(
                f"recover: {name} has a code table of its own; quantise it with --weights first"
            )


def _linears(model: QuantModel) -> Iterator[tuple[str, QuantLinear]]:
    for index, layer in enumerate(model.layers):
        for name in MATRICES:
            part: QuantLinear | None = getattr(layer, name)
            if part is not None:
                yield f"layers.{index}.{name}", part
    yield "head", model.head


class _Linear:
    """A projection with trainable levels, scales and bias."""

    def __init__(self, part: QuantLinear) -> None:
        tensor = part.weight
        self.stored, self.grid = tensor, grid_for(tensor.bits)
        self.mask = None if tensor.mask is None else torch.from_numpy(tensor.mask)
        self.levels = torch.from_numpy(tensor.levels.astype(np.float32)).requires_grad_()
        self.scales = torch.from_numpy(tensor.scales.astype(np.float32))
        self.growth = torch.zeros_like(self.scales).requires_grad_()
        self.bias = None
        if part.bias is not None:
            self.bias = torch.from_numpy(part.bias.copy()).requires_grad_()

    def rounded(self) -> tuple[Tensor, Tensor]:
        """Levels [rows, columns] and scales [rows, groups] as they would be stored."""
        grid: Grid = self.grid
        levels = straight(self.levels.clamp(grid.low, grid.high), grid.clamp(self.levels.detach()))
        wanted = (self.scales * self.growth.exp()).clamp(SMALLEST_SCALE, LARGEST_SCALE)
        scales = straight(wanted, wanted.detach().half().float())
        return levels if self.mask is None else levels * self.mask, scales

    def weight(self) -> Tensor:
        """The weights of this step, float32 [rows, columns]."""
        levels, scales = self.rounded()
        return levels * spread(scales, self.stored.group, levels.shape[1])

    def result(self) -> QuantLinear:
        """What is stored."""
        levels, scales = self.rounded()
        tensor: QuantTensor = replace(
            self.stored,
            levels=levels.detach().to(torch.int8).numpy(),
            scales=scales.detach().half().numpy(),
        )
        return QuantLinear(tensor, None if self.bias is None else self.bias.detach().numpy().copy())


class _Student:
    """The quantised model with what can be trained in it."""

    def __init__(self, model: QuantModel, config: ModelConfig, length: int) -> None:
        self.model = model
        self.block = Block.of(config, length, (model.key_bits, model.value_bits), quantised=True)
        self.linears = {name: _Linear(part) for name, part in _linears(model)}
        gains = {"final_norm": model.final_norm}
        for index, layer in enumerate(model.layers):
            gains |= {f"{index}.attn_norm": layer.attn_norm, f"{index}.mlp_norm": layer.mlp_norm}
        self.gains = {name: torch.from_numpy(gain.copy()) for name, gain in gains.items()}
        self.growth = {n: torch.zeros_like(g).requires_grad_() for n, g in self.gains.items()}
        self.embed = torch.from_numpy(model.embed.astype(np.float32))

    def parameters(self, recipe: Recipe) -> dict[str, tuple[Tensor, float]]:
        """Everything trainable by name, with its peak rate."""
        out = {f"{name} gain": (growth, recipe.fine_rate) for name, growth in self.growth.items()}
        for name, part in self.linears.items():
            size = float(part.levels.detach().square().mean().sqrt())
            out[f"{name} levels"] = (part.levels, recipe.rate * max(size, 1.0))
            out[f"{name} scales"] = (part.growth, recipe.fine_rate)
            if part.bias is not None:
                size = float(part.bias.detach().square().mean().sqrt())
                out[f"{name} bias"] = (part.bias, recipe.fine_rate * max(size, 1e-3))
        return out

    def gain(self, name: str) -> Tensor:
        return self.gains[name] * self.growth[name].exp()

    def _layer(self, index: int) -> FoldedLayer:
        parts = {
            name: self.linears[f"layers.{index}.{name}"]
            for name in MATRICES
            if f"layers.{index}.{name}" in self.linears
        }
        return FoldedLayer(
            self.gain(f"{index}.attn_norm"),
            self.gain(f"{index}.mlp_norm"),
            {name: part.weight() for name, part in parts.items()},
            {name: part.bias for name, part in parts.items() if part.bias is not None},
        )

    def states(self, ids: Tensor) -> Iterator[Tensor]:
        """The residual stream [B, T, dim] of ids [B, T] after each layer."""
        x = self.embed[ids]
        if self.model.positions is not None:
            x = x + torch.from_numpy(self.model.positions[: ids.shape[1]].astype(np.float32))
        for index in range(len(self.model.layers)):
            x = self.block.run(self._layer(index), x)
            yield x

    def logits(self, ids: Tensor) -> Tensor:
        """Logits [B, T, vocab] of ids [B, T]."""
        *_, x = self.states(ids)
        head = self.linears["head"]
        ends = FoldedEnds(self.embed, None, self.gain("final_norm"), head.weight(), head.bias)
        return self.block.logits(x, ends)

    def result(self) -> QuantModel:
        """The model as it would be stored."""
        layers = []
        for index, layer in enumerate(self.model.layers):
            made: dict[str, QuantLinear] = {
                name: self.linears[f"layers.{index}.{name}"].result()
                for name in MATRICES
                if getattr(layer, name) is not None
            }
            gains = {
                norm: self.gain(f"{index}.{norm}").detach().numpy()
                for norm in ("attn_norm", "mlp_norm")
            }
            layers.append(replace(layer, **made, **gains))  # type: ignore[arg-type]
        final = self.gain("final_norm").detach().numpy()
        head = self.linears["head"].result()
        return replace(self.model, layers=tuple(layers), final_norm=final, head=head)


class Recovery:
    """A run: the student, its optimiser and how far it has come.

    Parameters
    ----------
    teacher : the float model. model : what was made of it. text : an eighth of its sequences is
        held out and measures what was achieved. recipe : see `Recipe`.

    Members
    -------
    step : optimiser steps done. first, best : divergence from the teacher on the held-out text,
        nats a token, before the first step and at the best look so far.

    Raises
    ------
    InputError : see `check_trainable`.
    """

    def __init__(
        self, teacher: FloatModel, model: QuantModel, text: Calibration, recipe: Recipe
    ) -> None:
        check_trainable(model)
        self.teacher, self.model, self.text, self.recipe = teacher, model, text, recipe
        self.student = _Student(model, teacher.config, text.ids.shape[1])
        self._named = self.student.parameters(recipe)
        self._optimiser = torch.optim.Adam(
            [{"params": [tensor], "lr": rate} for tensor, rate in self._named.values()],
            betas=(0.9, 0.98),
        )
        held = max(1, len(text.ids) // 8)
        self._fitted = max(1, len(text.ids) - held)
        self.held = torch.arange(len(text.ids) - held, len(text.ids))
        self._size = min(self._fitted, max(1, recipe.tokens // text.ids.shape[1]))
        self.step = 0
        self.first = self.best = self.measure()
        self._kept = self._copy()

    def _copy(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, (tensor, _) in self._named.items()}

    def _losses(self, rows: Tensor) -> Tensor:
        """Divergence of each valid token of texts, float32 [n]."""
        ids, valid = self.text.ids[rows], self.text.valid[rows]
        with torch.no_grad():
            wanted = torch.log_softmax(self.teacher.forward(ids)[valid], -1)
        found = torch.log_softmax(self.student.logits(ids)[valid], -1)
        return (wanted.exp() * (wanted - found)).sum(-1)

    @torch.no_grad()
    def measure(self) -> float:
        """Mean divergence on the held-out text, nats a token."""
        return float(torch.cat([self._losses(part) for part in self.held.split(8)]).mean())

    @torch.no_grad()
    def perplexity(self) -> float | None:
        """Of the held-out text."""
        ids = self.text.ids[self.held]
        return perplexity(self.student.logits(ids), ids, self.text.valid[self.held])

    def _rows(self) -> Tensor:
        """The texts of this step: every text once before any comes again."""
        count, picked = self._fitted, []
        for at in range(self.step * self._size, (self.step + 1) * self._size):
            generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + at // count)
            picked.append(int(torch.randperm(count, generator=generator)[at % count]))
        return torch.tensor(picked)

    def advance(self) -> None:
        """One optimiser step."""
        share = self.recipe.share(self.step)
        for group, (_, rate) in zip(self._optimiser.param_groups, self._named.values()):
            group["lr"] = rate * share
        with torch.enable_grad():
            self._optimiser.zero_grad()
            self._losses(self._rows()).mean().backward()
        self._optimiser.step()
        self.step += 1

    def look(self) -> float:
        """Measure, and keep what is better than all before."""
        now = self.measure()
        if now < self.best:
            self.best, self._kept = now, self._copy()
        return now

    def finish(self) -> QuantModel:
        """The best model seen, which the student becomes."""
        self._put(self._kept)
        return self.student.result()

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, (tensor, _) in self._named.items():
            tensor.copy_(values[name])

    # ------------------------------------------------------------------ interruptions

    def _digest(self) -> str:
        """Of everything that a run's result follows from."""
        total = hashlib.sha256(repr(asdict(self.recipe)).encode())
        total.update(self.text.ids.numpy().tobytes() + self.text.valid.numpy().tobytes())
        for _, part in _linears(self.model):
            tensor = part.weight
            total.update(tensor.levels.tobytes() + tensor.scales.tobytes())
        return total.hexdigest()

    def save(self, path: Path) -> None:
        """Write everything that `restore` needs; the file is replaced whole or not at all."""
        state = {
            "digest": self._digest(),
            "now": self._copy(),
            "kept": self._kept,
            "optimiser": self._optimiser.state_dict(),
            "numbers": (self.step, self.first, self.best),
        }
        partial = path.with_name(path.name + ".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def restore(self, path: Path) -> None:
        """Go on from a file of `save`.

        Raises
        ------
        InputError : when the file is none, or of a run with another model, text or recipe.
        """
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
            same = state["digest"] == self._digest()
        except Exception as error:  # whatever torch makes of a file that is none of its own
            raise InputError(f"recover: {path} is not the state of a recovery") from error
        if not same:
            raise InputError(
                f"recover: {path} is of another model, text or number of steps; name another file"
            )
        self._put(state["now"])
        self._kept = state["kept"]
        self._optimiser.load_state_dict(state["optimiser"])
        self.step, self.first, self.best = state["numbers"]


@torch.no_grad()
def _layer_errors(run: Recovery, checkpoint: Checkpoint) -> tuple[float, ...]:
    """Relative difference of the residual streams after each layer, on the held-out text."""
    ids, valid = run.text.ids[run.held], run.text.valid[run.held]
    block = Block.of(checkpoint.config, ids.shape[1], 8, quantised=False)
    ends = fold_ends(checkpoint)
    x = ends.embed[ids]
    if ends.positions is not None:
        x = x + ends.positions[: ids.shape[1]]
    errors = []
    for index, y in enumerate(run.student.states(ids)):
        x = block.run(fold_layer(checkpoint, index), x)
        errors.append(float((x - y)[valid].norm() / x[valid].norm().clamp(min=1e-20)))
    return tuple(errors)


def _text(
    checkpoint: Checkpoint, longest: int, options: QuantOptions, progress: Progress
) -> Calibration:
    length = min(longest, calibrate.calibration_size(checkpoint.config)[1])
    if options.recover != "auto":
        return calibrate.from_file(checkpoint, options.recover, 1 << 30, length)
    return calibrate.sampled(
        checkpoint, TEXTS, length, options.seed + 1,
        lambda done, total: progress("sample text to recover on", done, total),
    )  # fmt: skip


@torch.no_grad()
def recover(
    checkpoint: Checkpoint, model: QuantModel, options: QuantOptions, progress: Progress
) -> tuple[QuantModel, PassReport]:
    """Train a quantised model towards its checkpoint, as the options ask.

    Parameters
    ----------
    options : `recover` ("auto" or a file), `recover_steps`, and `recover_state`, a file from which
        an interrupted run goes on.

    Returns
    -------
    A model that is no worse on the held-out text, and the pass' report.

    Raises
    ------
    InputError : for a model that is too large or has codes of its own, or a state of another run.
    """
    size = checkpoint.config.parameters
    if size > LARGEST:
        raise InputError(f"recover: {size:,} parameters are more than the {LARGEST:,} that train")
    check_trainable(model)
    recipe = Recipe(steps=options.recover_steps, seed=options.seed)
    text = _text(checkpoint, model.max_length, options, progress)
    run = Recovery(FloatModel.load(checkpoint), model, text, recipe)
    before = run.perplexity()
    state = None if options.recover_state is None else Path(options.recover_state)
    if state is not None and state.exists():
        run.restore(state)
    while run.step < recipe.steps:
        progress("recover", run.step, recipe.steps)
        run.advance()
        if run.step % recipe.every == 0 or run.step == recipe.steps:
            run.look()
            if state is not None:
                run.save(state)
    progress("recover", recipe.steps, recipe.steps)
    made = run.finish()
    parts = [part.weight for _, part in _linears(made)]
    bits, weights = sum(map(stored_bits, parts)), sum(part.levels.size for part in parts)
    source = "sampled text" if options.recover == "auto" else Path(options.recover).name
    method = f"{recipe.steps} steps on {source}"
    return made, PassReport("recover", method, bits / weights, bits / 8,
                            _layer_errors(run, checkpoint), before, run.perplexity())  # fmt: skip
