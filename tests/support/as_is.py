"""Compiles a checkpoint as it is and holds the program's logits against the torch reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flightllm.compiler.build import build_program
from flightllm.compiler.quantise import Quantised, quantise
from flightllm.compiler.scheme import QuantOptions
from flightllm.compiler.shape import shape_of
from flightllm.compiler.shape_before import shape_before
from flightllm.models.checkpoint import Checkpoint, open_checkpoint
from flightllm.models.integer import IntegerModel
from flightllm.runtime.session import Session
from flightllm.sim.functional import FunctionalDevice
from flightllm.spec.config import load_config

__all__ = ["quantised_as_is", "same_bits"]

_LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


def quantised_as_is(source: Path | Checkpoint, **options: Any) -> tuple[Checkpoint, Quantised]:
    """A checkpoint and what it becomes without calibration and without K smoothing.

    Its formats must be those that were told before its codes were read.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    chosen = QuantOptions(**{"calibrate": "none", "smooth_k": False, **options})
    made = quantise(checkpoint, chosen)
    told = shape_before(checkpoint, chosen)
    assert told == shape_of(made.model, told.name)
    return checkpoint, made


def same_bits(made: Quantised, board: str = "tiny") -> None:
    """The compiled program on the functional simulator gives the reference's bits."""
    config = load_config(board)
    program = build_program(made.model, config, "imported")
    ids = np.random.default_rng(1).integers(0, made.model.vocab, 13).tolist()
    executed = next(Session(FunctionalDevice(config), program).score(ids))
    expected = IntegerModel(made.model).forward(ids)
    assert np.array_equal(executed.view(np.uint32), expected.view(np.uint32))
