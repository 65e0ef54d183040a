"""A checkpoint's own codes as a QuantTensor, where the decode unit can hold them.

Levels are always kept. Scales and minima are fp16 on the device: where a checkpoint's are wider
(GGUF's K types multiply two numbers, bf16 has a larger range), they are rounded, and what that
changes is said. `obstacle` says why a matrix cannot be kept at all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flightllm.compiler.scheme import QuantOptions, Scheme, group_for
from flightllm.compiler.shape import MatrixPlan
from flightllm.models.codes import CodeKind, Codes
from flightllm.models.config import ModelConfig
from flightllm.spec.formats import MatrixFormat, Second
from flightllm.spec.quant import GROUPS, QuantTensor

__all__ = [
    "FALLBACK", "AsIsReport", "Event", "Kept", "keep", "obstacle", "obstacle_of_kind", "plan_of",
    "unwanted",
]  # fmt: skip

F32 = NDArray[np.float32]
FALLBACK = Scheme(8, 32)
"""What codes that the decode unit cannot hold are rounded to."""
LEVEL_MAX = 127
LARGEST = float(np.finfo(np.float16).max)
FEW = 1e-3
"""Share of a matrix' levels that may be -128 and become -127."""


@dataclass(frozen=True)
class Kept:
    """A matrix of a checkpoint's codes.

    Members
    -------
    tensor : levels as they were. rounded : what is not: parts of a sentence, empty when exact.
    error : relative root-mean-square change of the weights.
    """

    tensor: QuantTensor
    rounded: tuple[str, ...]
    error: float


def obstacle(codes: Codes) -> str | None:
    """Why the decode unit cannot hold these codes, or None."""
    groups = codes.scales.shape[1]
    if codes.places is not None:
        return "the columns of a group lie apart (act-order with groups)"
    if groups > 1 and codes.group % GROUPS[0]:
        return f"groups of {codes.group} columns are no multiple of {GROUPS[0]}"
    if not bool(np.isfinite(codes.scales).all()) or np.abs(codes.scales).max(initial=0) > LARGEST:
        return f"a scale is beyond what fp16 holds ({LARGEST:g})"
    if codes.minima is not None and not np.abs(codes.minima).max(initial=0) <= LARGEST:
        return f"a minimum is beyond what fp16 holds ({LARGEST:g})"
    low, high = int(codes.levels.min(initial=0)), int(codes.levels.max(initial=0))
    if codes.bits == 8 and (codes.minima is not None or not -128 <= low <= high <= LEVEL_MAX):
        return f"levels {low} to {high} are beyond the array's -127 to 127"
    if low == -128 and np.count_nonzero(codes.levels == -128) > FEW * codes.levels.size:
        return "more than a thousandth of its levels are -128, and the array's lowest is -127"
    return None


def unwanted(name: str, config: ModelConfig, options: QuantOptions) -> str | None:
    """Why the codes of a matrix cannot stay although the decode unit may hold them, or None."""
    if name == "head":
        return None if options.head_bits == 8 else "--head-bits asks for another width"
    if options.kept != 16:
        return "--sparsity drops weights"
    if config.norm == "layer" and name.endswith((".o", ".down")):
        return "its rows are centred, as LayerNorm becomes RMSNorm"
    return None


def obstacle_of_kind(kind: CodeKind) -> str | None:
    """As `obstacle`, before codes are read: what only the numbers tell is taken to be as usual."""
    if kind.scattered:
        return "the columns of a group lie apart (act-order with groups)"
    if kind.group and kind.group % GROUPS[0]:
        return f"groups of {kind.group} columns are no multiple of {GROUPS[0]}"
    if kind.bits == 8 and kind.minima:
        return f"8-bit levels with minima are beyond the array's -{LEVEL_MAX} to {LEVEL_MAX}"
    return None


def plan_of(kind: CodeKind, columns: int) -> MatrixPlan | None:
    """How `keep` stores codes of a kind, or None where `obstacle` finds something.

    What only the numbers tell is taken to be as usual: scales that fp16 can reach, and products of
    two numbers that it cannot hold exactly.
    """
    whole = not 0 < kind.group < columns
    if obstacle_of_kind(replace(kind, group=0) if whole else kind) is not None:
        return None
    group = group_for(columns, GROUPS[-1])
    if not whole:
        group = max(g for g in GROUPS if kind.group % g == 0)
    bits, table, second = kind.bits, kind.table, Second.NONE
    if kind.minima:
        second = Second.MINIMUM
        table = tuple(range(1 << bits)) if bits <= 4 and not kind.wide else None
        bits += bits > 4 and not kind.wide
    elif kind.zeros and bits != 8 and table is None:
        second = Second.ZERO
    return MatrixPlan(MatrixFormat(bits, group, True, second, table=table is not None), table)


def keep(codes: Codes, order: NDArray[np.int64] | None = None, factor: F32 | None = None) -> Kept:
    """The matrix of the codes.

    Parameters
    ----------
    codes : of which `obstacle` finds nothing.
    order : rows in the order wanted, or None.
    factor : what each row (after ordering) is multiplied with, float32 [rows], or None.
    """
    wanted = codes if order is None else codes.rows(order)
    if factor is not None:
        minima = None if wanted.minima is None else wanted.minima * factor[:, None]
        wanted = replace(wanted, scales=wanted.scales * factor[:, None], minima=minima)
    wanted = _regrouped(wanted)
    rounded: list[str] = []
    if not _halves(wanted.scales):
        rounded.append("scales rounded to fp16")
    tensor = _affine(wanted, rounded) if wanted.minima is not None else _plain(wanted, rounded)
    return Kept(tensor, tuple(rounded), _error(wanted, tensor) if rounded else 0.0)


def _error(codes: Codes, tensor: QuantTensor) -> float:
    exact = codes.weights()
    size = float(np.linalg.norm(exact))
    return float(np.linalg.norm(tensor.dequantised() - exact)) / size if size else 0.0


def _halves(values: F32) -> bool:
    """Whether fp16 holds all values exactly."""
    return bool((values.astype(np.float16).astype(np.float32) == values).all())


def _regrouped(codes: Codes) -> Codes:
    """The codes with groups of 32, 64 or 128 columns, scales repeated."""
    columns = codes.levels.shape[1]
    if codes.scales.shape[1] == 1:
        group = group_for(columns, GROUPS[-1])
        repeats = -(-columns // group)
    else:
        group = max(g for g in GROUPS if codes.group % g == 0)
        repeats = codes.group // group
    count = -(-columns // group)

    def wide(values: NDArray[Any] | None) -> Any:
        return None if values is None else np.repeat(values, repeats, axis=1)[:, :count]

    return replace(
        codes, scales=wide(codes.scales), minima=wide(codes.minima), zeros=wide(codes.zeros),
        group=group,
    )  # fmt: skip


def _plain(codes: Codes, rounded: list[str]) -> QuantTensor:
    """Codes without minima: signed, with zero points, or through a table."""
    levels, bits = codes.levels, codes.bits
    zeros = codes.zeros
    half = 1 << (bits - 1)
    if bits == 8 or codes.table is not None or (zeros is not None and (zeros == half).all()):
        zeros = None  # an 8-bit level is stored as it is; half is what two's complement says
    if bits == 8 and (count := int(np.count_nonzero(levels == -128))):
        rounded.append(f"{count} levels of -128 became -127")
        levels = np.maximum(levels, -LEVEL_MAX)
    return QuantTensor(
        np.ascontiguousarray(levels, dtype=np.int8),
        codes.scales.astype(np.float16),
        bits,
        codes.group,
        zeros=None if zeros is None else zeros.astype(np.int8),
        table=codes.table,
    )


def _affine(codes: Codes, rounded: list[str]) -> QuantTensor:
    """Codes with minima.

    Levels from 0 up go through a table, or take one bit more. Where the minimum must be rounded
    anyway, levels move to the middle of their range: two's complement holds them, and the minimum,
    now of what lies in the middle, is smaller and loses less.
    """
    assert codes.minima is not None
    bits, levels, minima = codes.bits, codes.levels, codes.minima
    table: tuple[int, ...] | None = None
    if _halves(codes.scales) and _halves(minima):
        table = tuple(range(1 << bits)) if bits <= 4 else None
        bits += bits > 4
    else:
        half = 1 << (bits - 1)
        levels = levels - np.asarray(half, levels.dtype)
        minima = (minima.astype(np.float64) + half * codes.scales.astype(np.float64)).astype(
            np.float32
        )
        rounded.append("minima rounded to fp16")
    return QuantTensor(
        np.ascontiguousarray(levels, dtype=np.int8),
        codes.scales.astype(np.float16),
        bits,
        codes.group,
        minima=minima.astype(np.float16),
        table=table,
    )


@dataclass(frozen=True)
class Event:
    """Matrix `name` was rounded anew (`error` None), or kept but for `what`."""

    name: str
    what: str
    error: float | None = None


class AsIsReport:
    """What became of a checkpoint's codes, matrix by matrix, and the notes that say it."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def refused(self, name: str, why: str) -> None:
        """Matrix `name` is rounded anew, because `why`."""
        self.events.append(Event(name, why))

    def kept(self, name: str, made: Kept) -> None:
        """Matrix `name` keeps its codes."""
        if made.rounded:
            self.events.append(Event(name, " and ".join(made.rounded), made.error))

    def notes(self, fallback: str) -> list[str]:
        """Sentences for the user; `fallback` is the scheme of what was rounded anew."""
        out: dict[tuple[bool, str], list[Event]] = {}
        for event in self.events:
            out.setdefault((event.error is None, event.what), []).append(event)
        return [
            f"as-is: {_named([event.name for event in events])} "
            + (
                f"became {fallback}: {what}"
                if refused
                else f"kept the codes; {what}, which changes the weights by at most"
                f" {max(event.error or 0.0 for event in events):.2g} of their root mean square"
            )
            for (refused, what), events in out.items()
        ]


def _named(names: list[str]) -> str:
    """A few names, or how many there are."""
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"
