"""The shape that a checkpoint will be compiled to, told before its weights are read.

With a scheme it follows from the configuration. As-is it follows from what the checkpoint says of
its codes; where only the codes tell, they are read.
"""

from __future__ import annotations

from dataclasses import replace

from flightllm.compiler.as_is import FALLBACK, keep, obstacle, plan_of, unwanted
from flightllm.compiler.scheme import QuantOptions
from flightllm.compiler.shape import MatrixPlan, ModelShape
from flightllm.compiler.shape_only import shape_only
from flightllm.models.checkpoint import Checkpoint
from flightllm.spec.formats import format_for

__all__ = ["shape_before"]


def _kept(checkpoint: Checkpoint, name: str, columns: int) -> MatrixPlan | None:
    """How a matrix' own codes will be stored, or None where they cannot stay."""
    kind = checkpoint.code_kind(f"{name}.weight")
    if kind is not None:
        return plan_of(kind, columns)
    codes = checkpoint.codes(f"{name}.weight")
    if codes is None or obstacle(codes) is not None:
        return None
    tensor = keep(codes).tensor
    return MatrixPlan(format_for(tensor), tensor.table)


def shape_before(checkpoint: Checkpoint, options: QuantOptions) -> ModelShape:
    """What the back end will compile.

    Raises
    ------
    InputError
        For "as-is" of a shape without weights.
    """
    config = checkpoint.config
    if options.scheme(bool(checkpoint.code_readers)) is not None or checkpoint.shape_only:
        return shape_only(config, options)
    shape = shape_only(config, replace(options, weights=str(FALLBACK)))

    def plan(name: str, part: str, otherwise: MatrixPlan) -> MatrixPlan:
        if unwanted(name, config, options) is not None:
            return otherwise
        return _kept(checkpoint, name, shape.columns(part)) or otherwise

    layers = tuple(
        {part: plan(f"layers.{index}.{part}", part, found) for part, found in layer.items()}
        for index, layer in enumerate(shape.layers)
    )
    return replace(shape, layers=layers, head=plan("head", "head", shape.head))
