"""Emit: scheduled blocks to instruction words, with every semaphore bit set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flightllm.compiler.ir import Loop, Step
from flightllm.compiler.parameters import Parameters
from flightllm.compiler.schedule import Schedule
from flightllm.compiler.sync import synchronise
from flightllm.spec.config import HwConfig
from flightllm.spec.encoding import encode
from flightllm.spec.errors import InputError, VerifyError
from flightllm.spec.image import CoreCode

__all__ = ["emit", "unrolled_words"]


def emit(plan: Schedule, params: Parameters, config: HwConfig) -> CoreCode:
    """One core's code: prefill program, decode program, parameters.

    Raises
    ------
    InputError
        When the program or the parameters do not fit the core's memories.
    """
    prefill = encode(synchronise(plan.prefill))
    decode = encode(synchronise(plan.decode))
    words = np.array(prefill + decode, np.uint32)
    for name, size, limit in (
        ("program_words", len(words), config.program_words),
        ("param_words", len(params.words), config.param_words),
    ):
        if size > limit:
            raise InputError(f"{name}: {size} words are needed, board {config.name} has {limit}")
    entries = {"prefill": 0, "decode": len(prefill)}
    return CoreCode(words, np.array(params.words, np.uint32), entries)


def unrolled_words(block: Sequence[Step | Loop], counts: dict[str, int]) -> int:
    """Words of the block with every loop written out and every address an immediate.

    Parameters
    ----------
    counts : times each loop runs, by name; loops with a constant count need not be named.

    Raises
    ------
    VerifyError
        For a loop whose count is in a register and not in `counts`.
    """
    total = 0
    for node in block:
        if isinstance(node, Loop):
            if node.name not in counts and node.count.reg:
                raise VerifyError(f"loop {node.name}: how often it runs is not told")
            times = counts.get(node.name, node.count.imm)
            total += times * unrolled_words(node.body, counts)
        elif not node.op.kind.scalar:
            total += node.op.kind.words
    return total
