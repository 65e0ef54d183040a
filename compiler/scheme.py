"""Quantisation options as a user writes them: weight schemes, sparsity and what goes with them.

No torch here: the command line reads options before it loads anything heavy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from flightllm.spec.errors import InputError
from flightllm.spec.quant import GROUPS, WIDTHS

__all__ = ["AS_IS", "DEFAULT_WEIGHTS", "QuantOptions", "Scheme", "group_for", "parse_scheme"]

AS_IS = "as-is"
DEFAULT_WEIGHTS = "w4g128"
_SPARSITY = {"none": 16, "2:16": 2, "4:16": 4, "8:16": 8}
_CACHES = {"8": (8, 8), "4": (4, 4), "8/4": (8, 4), "4/8": (4, 8)}
_CHOICES = {
    "sparsity": tuple(_SPARSITY),
    "pruning": ("sparsegpt", "wanda", "magnitude"),
    "masks": ("pairs", "rows"),
    "scaling": ("balance", "awq", "smoothquant", "none"),
    "rounding": ("gptq", "nearest"),
}


@dataclass(frozen=True)
class Scheme:
    """Average bits of a weight's code, and how many columns share a scale.

    Members
    -------
    bits : 2 to 8; a fraction asks for widths mixed matrix by matrix to that average.
    group : 32, 64 or 128.
    """

    bits: float
    group: int

    @property
    def mixed(self) -> bool:
        """Whether matrices get different widths."""
        return self.bits != int(self.bits)

    def __str__(self) -> str:
        return f"w{self.bits:g}g{self.group}"


def parse_scheme(text: str) -> Scheme:
    """Read a weight scheme such as "w4g128" or "w3.5g64".

    Raises
    ------
    InputError : when it has another form, or bits or group are out of range.
    """
    match = re.fullmatch(r"w(\d+(?:\.\d+)?)g(\d+)", text.strip().lower())
    if match is None:
        raise InputError(
            f"weights: {text!r} is not a scheme: write w<bits>g<group>, such as w4g128, or {AS_IS}"
        )
    bits, group = float(match[1]), int(match[2])
    if not WIDTHS[0] <= bits <= WIDTHS[-1]:
        raise InputError(f"weights: {match[1]} bits in {text!r} is not {WIDTHS[0]} to {WIDTHS[-1]}")
    if group not in GROUPS:
        allowed = ", ".join(map(str, GROUPS))
        raise InputError(f"weights: group {group} in {text!r} is not one of {allowed}")
    return Scheme(bits, group)


def group_for(columns: int, group: int) -> int:
    """The group of a matrix of `columns`: `group`, or what fits a narrower matrix (at least 32)."""
    return max((g for g in GROUPS if g <= min(columns, group)), default=GROUPS[0])


@dataclass(frozen=True)
class QuantOptions:
    """How to quantise a model.

    Parameters
    ----------
    weights : a scheme ("w8g32", "w3.5g128"), "as-is" for the checkpoint's own codes, or None:
        as-is where the checkpoint is quantised, else w4g128.
    kv : bits of a KV cache entry, 8 or 4, or "8/4": K in 8 bits, V in 4 ("4/8" the other way).
    head_bits : bits of the last projection, 2 to 8.
    sparsity : "none", "2:16", "4:16" or "8:16": kept weights in every 16 of the layers' matrices.
    calibrate : "auto" (text sampled from the model), "none", or a file of text.
    rounding : "gptq" (columns make up for each other's errors) or "nearest". scaling : of channels
        between matrices, "balance", "awq", "smoothquant" or "none" (see `scaling.py`). pruning :
        "sparsegpt", "wanda" or "magnitude". Without calibration weights are rounded to the nearest
        level, pruned by magnitude, and channels are left as they are.
    masks : "pairs" of rows share a mask, or "rows" have their own.
    recover : train the quantised model towards the float one: "none", "auto" (on text sampled from
        the model) or a file of text. recover_steps : optimiser steps. recover_state : file from
        which an interrupted recovery goes on, or None.
    attention_density : share of causal attention's blocks that prefill keeps on average, patterns
        being chosen by calibration text and meant at its length; 1 for dense.
    smooth_k : scale K per pair of channels (and Q inversely) before they are quantised.
    max_length : longest context to prepare for, at most the model's own; None for that.
    seed : of everything that is drawn at random.

    Raises
    ------
    InputError : for a value that is not one of these.
    """

    weights: str | None = None
    kv: int | str = 8
    head_bits: int = 8
    sparsity: str = "none"
    calibrate: str = "auto"
    rounding: str = "gptq"
    scaling: str = "balance"
    pruning: str = "sparsegpt"
    masks: str = "pairs"
    recover: str = "none"
    recover_steps: int = 300
    recover_state: str | Path | None = None
    attention_density: float = 1.0
    smooth_k: bool = True
    max_length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.weights not in (None, AS_IS):
            parse_scheme(str(self.weights))
        if str(self.kv) not in _CACHES:
            raise InputError(f"kv: {self.kv} bits is not one of {', '.join(_CACHES)}")
        if self.head_bits not in WIDTHS:
            raise InputError(f"head bits: {self.head_bits} is not {WIDTHS[0]} to {WIDTHS[-1]}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(
                    f"{name}: {getattr(self, name)!r} is not one of {', '.join(choices)}"
                )
        if self.max_length is not None and self.max_length < 1:
            raise InputError(f"max length: {self.max_length} is not a positive number of tokens")
        for name, source in (("calibrate", self.calibrate), ("recover", self.recover)):
            if source not in ("auto", "none") and not Path(source).is_file():
                raise InputError(
                    f"{name}: there is no file {source!r}; give auto, none or a text file"
                )
        if not 0 < self.attention_density <= 1:
            raise InputError(f"attention density: {self.attention_density:g} is not over 0 to 1")
        if self.attention_density < 1 and self.calibrate == "none":
            raise InputError(
                "attention density: patterns come from calibration text; give --calibrate auto or"
                " a text file"
            )
        if self.recover_steps < 1:
            raise InputError(f"recover steps: {self.recover_steps} is not a positive number")
        if self.recover_state is not None and not Path(self.recover_state).parent.is_dir():
            raise InputError(f"recover state: {self.recover_state} is in no folder that exists")

    @property
    def kv_bits(self) -> tuple[int, int]:
        """Bits of K and of V in the cache."""
        return _CACHES[str(self.kv)]

    @property
    def kept(self) -> int:
        """N of N:16; 16 for dense."""
        return _SPARSITY[self.sparsity]

    def scheme(self, quantised_checkpoint: bool = False) -> Scheme | None:
        """The scheme to quantise to; None stands for as-is."""
        if self.weights == AS_IS or (self.weights is None and quantised_checkpoint):
            return None
        return parse_scheme(self.weights or DEFAULT_WEIGHTS)

    def length(self, longest: int) -> int:
        """The context to prepare for, given the model's own.

        Raises
        ------
        InputError : when more is asked for than the model has.
        """
        if self.max_length is not None and self.max_length > longest:
            raise InputError(
                f"max length: {self.max_length} tokens exceed the model's context of {longest}"
            )
        return self.max_length or longest
