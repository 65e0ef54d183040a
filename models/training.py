"""The demo model's training loop: Muon and AdamW on the float reference, regularised, resumable.

Every random choice of a step follows from the seed and the step's number, so that a run that was
interrupted and resumed gives the same weights as one that was not.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from flightllm.models.config import ModelConfig, tensor_shapes
from flightllm.models.lessons import Lessons
from flightllm.models.reference import FloatModel
from flightllm.spec.errors import InputError

__all__ = ["Recipe", "Training", "initial_tensors"]

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes
    ----------
    steps : int
        Optimiser steps, `tokens` tokens each.
    tokens : int
        Tokens a step; `sampled` of them from the n-gram model, the others from the text.
    length : int
        Window in tokens; the whole context, so that every distance is trained.
    finish, finish_rate, finish_dropout : int, float, float
        Last steps, which take text alone with its plain targets, at this share of the peak rates at
        first, and their dropout: what the n-gram models taught stays, their manner of writing does
        not.
    rate, decay : float, float
        AdamW's peak rate and weight decay, for the embedding; norms take the rate alone.
    matrix_rate, matrix_decay : float, float
        Muon's (torch 2.9 or later), for the layers' matrices.
    warmup : int
        Steps to the peak; the rates then fall in a cosine to a twentieth.
    dropout : float
        Share of the layers' weights that a step leaves out (DropConnect, Wan et al. 2013).
    blank : float
        Share of the vocabulary whose embedding a step blanks on the way in, not in the head.
    belief : float
        Share of the n-gram model's prediction in a text token's target.
    tolerance : float
        How far above the lowest bits per character on validation topics the exported weights may
        be, as a share: the last weights within it write more fluently than the lowest.
    average : float
        Decay of the running average of the weights, which is what is measured and exported.
    seed : int
    """

    steps: int = 3000
    tokens: int = 2048
    sampled: float = 0.25
    length: int = 512
    finish: int = 600
    finish_rate: float = 0.5
    finish_dropout: float = 0.1
    rate: float = 3e-3
    decay: float = 0.1
    matrix_rate: float = 0.02
    matrix_decay: float = 0.1
    warmup: int = 50
    dropout: float = 0.2
    blank: float = 0.1
    belief: float = 0.4
    tolerance: float = 0.03
    average: float = 0.998
    seed: int = 0


class _FloatAttention(TorchFunctionMode):
    """Keeps attention in float32 under autocast: on a CPU its bfloat16 gradient is slower."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return func(*(tensor.float() for tensor in args), **(kwargs or {}))


def initial_tensors(config: ModelConfig, seed: int) -> Tensors:
    """Random float32 tensors by canonical name: norms 1, matrices normal over their inputs."""
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for name, shape in tensor_shapes(config).items():
        if len(shape) == 1:
            tensors[name] = torch.ones(shape)
            continue
        spread = 0.05 if name in ("embed", "head.weight") else shape[1] ** -0.5
        if name.endswith((".o.weight", ".down.weight")):  # what adds to the residual
            spread *= (2 * config.layers) ** -0.5
        tensors[name] = torch.randn(shape, generator=generator) * spread
    return tensors


class Training:
    """A run: weights, their average, the optimiser and how far it has come.

    Parameters
    ----------
    config : ModelConfig
    recipe : Recipe
    lessons : Lessons
    """

    def __init__(self, config: ModelConfig, recipe: Recipe, lessons: Lessons) -> None:
        self.config, self.recipe, self.lessons = config, recipe, lessons
        self._untied = replace(config, tied=False)
        self.step, self.loss, self.seconds = 0, math.nan, 0.0
        self.tensors = initial_tensors(config, recipe.seed)
        self.average = {name: tensor.clone() for name, tensor in self.tensors.items()}
        self.kept: Tensors = self.average
        self.kept_step, self.kept_bits, self.lowest_bits = 0, math.inf, math.inf
        for tensor in self.tensors.values():
            tensor.requires_grad_()
        layers = [t for name, t in self.tensors.items() if t.ndim == 2 and name != "embed"]
        norms = [tensor for tensor in self.tensors.values() if tensor.ndim == 1]
        rest = [
            {"params": [self.tensors["embed"]], "weight_decay": recipe.decay},
            {"params": norms, "weight_decay": 0.0},
        ]
        self._optimisers: tuple[tuple[torch.optim.Optimizer, float], ...] = (
            (torch.optim.Muon(layers, weight_decay=recipe.matrix_decay), recipe.matrix_rate),
            (torch.optim.AdamW(rest, betas=(0.9, 0.98), fused=True), recipe.rate),
        )

    @property
    def _finishing(self) -> bool:
        return self.step >= self.recipe.steps - self.recipe.finish

    def advance(self) -> None:
        """One optimiser step."""
        begin = time.monotonic()
        for optimiser, rate in self._optimisers:
            optimiser.zero_grad()
            for group in optimiser.param_groups:
                group["lr"] = rate * _schedule(self.step, self.recipe)
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)
        loss, self.loss = self._loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.tensors.values(), 1.0)
        for optimiser, _ in self._optimisers:
            optimiser.step()
        self.step += 1
        keep = min(self.recipe.average, self.step / (self.step + 20))
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                self.average[name].lerp_(tensor, 1 - keep)
        self.seconds += time.monotonic() - begin

    def _loss(self) -> tuple[Tensor, float]:
        """The loss to descend, and the text's own cross-entropy in nats a token."""
        recipe = self.recipe
        batch = recipe.tokens // recipe.length
        dreams = 0 if self._finishing else round(batch * recipe.sampled)
        text = self.lessons.text(self.step, batch - dreams, recipe.length)
        ids, beliefs = torch.from_numpy(text.ids), torch.from_numpy(text.beliefs)
        if dreams:
            sampled = self.lessons.sampled(self.step, dreams, recipe.length)
            ids = torch.cat([ids, torch.from_numpy(sampled.ids)])
        with torch.autocast("cpu", torch.bfloat16), _FloatAttention():
            logits = FloatModel(self._untied, self._noisy()).forward(ids)
        logits = logits.float().flatten(0, 1)
        count = len(beliefs)
        plain = functional.cross_entropy(logits[:count], torch.from_numpy(text.targets).flatten())
        loss = plain
        if not self._finishing:
            soft = functional.cross_entropy(logits[:count], beliefs)
            loss = (1 - recipe.belief) * plain + recipe.belief * soft
        if dreams:
            dreamt = functional.cross_entropy(logits[count:], torch.from_numpy(sampled.beliefs))
            loss = (count * loss + (len(logits) - count) * dreamt) / len(logits)
        return loss, float(plain.detach())

    def _noisy(self) -> Tensors:
        """The tensors with some weights left out, and a head that is the whole embedding."""
        noisy = dict(self.tensors)
        dropout = self.recipe.finish_dropout if self._finishing else self.recipe.dropout
        for name, tensor in self.tensors.items():
            if tensor.ndim == 2 and name != "embed":
                noisy[name] = functional.dropout(tensor, dropout)
        rows = functional.dropout(torch.ones(self.config.vocab, 1), self.recipe.blank)
        noisy["embed"], noisy["head.weight"] = self.tensors["embed"] * rows, self.tensors["embed"]
        return noisy

    def judge(self, measure: Callable[[Tensors], float]) -> float:
        """Measure the averaged weights and keep them if they are near the lowest figure so far."""
        bits = measure(self.average)
        self.lowest_bits = min(self.lowest_bits, bits)
        if bits <= self.lowest_bits * (1 + self.recipe.tolerance):
            self.kept = {name: tensor.clone() for name, tensor in self.average.items()}
            self.kept_step, self.kept_bits = self.step, bits
        return bits

    def save(self, path: Path) -> None:
        """Write everything that `restore` needs; the file is replaced whole or not at all."""
        state = {
            "recipe": asdict(self.recipe),
            "tensors": {name: tensor.detach() for name, tensor in self.tensors.items()},
            "average": self.average,
            "kept": self.kept,
            "optimisers": [optimiser.state_dict() for optimiser, _ in self._optimisers],
            "numbers": (self.step, self.loss, self.seconds),
            "marks": (self.kept_step, self.kept_bits, self.lowest_bits),
        }
        partial = path.with_name(path.name + ".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def restore(self, path: Path) -> None:
        """Go on from a file of `save`.

        Raises
        ------
        InputError
            It is of a run with another recipe.
        """
        state = torch.load(path, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise InputError(
                f"{path}: is of a run with the recipe {state['recipe']}, not"
                f" {asdict(self.recipe)}; give another output folder"
            )
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(state["tensors"][name])
        self.average, self.kept = state["average"], state["kept"]
        for (optimiser, _), saved in zip(self._optimisers, state["optimisers"]):
            optimiser.load_state_dict(saved)
        self.step, self.loss, self.seconds = state["numbers"]
        self.kept_step, self.kept_bits, self.lowest_bits = state["marks"]


def _schedule(step: int, recipe: Recipe) -> float:
    """Learning rate as a share of its peak: a linear rise, then a cosine down to a twentieth.

    The finishing steps take a smaller cosine of their own.
    """
    main = recipe.steps - recipe.finish
    if step < main:
        peak, progress = min(1.0, (step + 1) / recipe.warmup), step / main
    else:
        peak, progress = recipe.finish_rate, (step - main) / recipe.finish
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
