"""Mixed precision: a width for each matrix of each layer under an average of code bits.

With measured sensitivities the widths are the exact optimum of an integer program. A shape without
weights follows a rule: every matrix is taken to lose the same, 4^-bits, so bits go first where they
cost least, to the small matrices (attention before the MLP, K and V before Q and O under GQA), and
among equals to v, k, o, q, down, up, gate and the earlier layer.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flightllm.models.config import ModelConfig, tensor_shapes
from flightllm.spec.errors import InputError
from flightllm.spec.quant import WIDTHS

__all__ = [
    "by_layer",
    "candidate_widths",
    "matrix_sizes",
    "mixed_widths_for_shapes",
    "solve_choices",
    "solve_widths",
]

PREFERENCE = ("v", "k", "o", "q", "down", "up", "gate")
Widths = tuple[dict[str, int], ...]


def candidate_widths(bits: float) -> tuple[int, ...]:
    """The widths among which an average is made: from one below to two above it."""
    low = int(bits)
    return tuple(w for w in WIDTHS if low - 1 <= w <= low + 2)


def matrix_sizes(config: ModelConfig) -> dict[tuple[int, str], int]:
    """Number of weights of each (layer, matrix), in data-flow order, without embedding and head."""
    sizes = {}
    for name, shape in tensor_shapes(config).items():
        parts = name.split(".")
        if parts[0] == "layers" and parts[2] in PREFERENCE and parts[3] == "weight":
            sizes[int(parts[1]), parts[2]] = shape[0] * shape[1]
    return sizes


def by_layer(widths: Mapping[tuple[int, str], int]) -> Widths:
    """{(layer, matrix): bits} as one dictionary a layer."""
    layers = 1 + max(layer for layer, _ in widths)
    return tuple({name: w for (at, name), w in widths.items() if at == i} for i in range(layers))


def mixed_widths_for_shapes(config: ModelConfig, bits: float) -> Widths:
    """Widths of a model without weights.

    Parameters
    ----------
    bits : average of code bits over the layers' matrices, 2 to 8; a whole number gives that width
        to all.

    Returns
    -------
    {matrix: bits} for each layer.
    """
    sizes = matrix_sizes(config)
    budget = bits * sum(sizes.values())
    if bits == int(bits):
        return by_layer(dict.fromkeys(sizes, int(bits)))
    floor = WIDTHS[0]
    widths = dict.fromkeys(sizes, floor)
    spent = floor * sum(sizes.values())
    # The most error removed per stored bit first; a step that does not fit leaves room for others.
    queue = [(size * 4.0**floor, PREFERENCE.index(m), i) for (i, m), size in sizes.items()]
    heapq.heapify(queue)
    while queue:
        price, rank, layer = heapq.heappop(queue)
        key = layer, PREFERENCE[rank]
        if widths[key] == WIDTHS[-1] or spent + sizes[key] > budget:
            continue
        widths[key] += 1
        spent += sizes[key]
        heapq.heappush(queue, (price * 4, rank, layer))
    return by_layer(widths)


def solve_choices(
    losses: NDArray[np.float64], costs: NDArray[np.float64], budget: float
) -> NDArray[np.int64]:
    """One choice for each item, of least total loss under a budget: an integer program.

    Parameters
    ----------
    losses, costs : [items, choices]. budget : what the costs of the choices may sum to.

    Returns
    -------
    [items], indices of choices; empty when no combination keeps the budget.
    """
    from scipy.optimize import LinearConstraint, milp

    count, choices = losses.shape
    answer = milp(
        (losses / max(float(losses.max()), 1e-300)).reshape(-1),
        integrality=np.ones(count * choices),
        bounds=(0, 1),
        constraints=[
            LinearConstraint(costs.reshape(1, -1), ub=budget),
            LinearConstraint(np.kron(np.eye(count), np.ones(choices)), lb=1, ub=1),
        ],
        options={"time_limit": 20.0, "mip_rel_gap": 1e-6},
    )
    if answer.x is None:
        return np.zeros(0, np.int64)
    picked: NDArray[np.int64] = answer.x.reshape(count, choices).argmax(1)
    return picked


def solve_widths(
    losses: NDArray[np.float64], sizes: Sequence[int], widths: Sequence[int], bits: float
) -> list[int]:
    """The widths of least total loss under an average.

    Parameters
    ----------
    losses : [matrices, widths], what each matrix costs at each width. sizes : weights of each.
    bits : the average that the widths, weighed by size, may not exceed.

    Raises
    ------
    InputError : when even the narrowest widths exceed it.
    """
    weight = np.asarray(sizes, np.float64) / np.sum(sizes)
    spent = weight[:, None] * np.asarray(widths, np.float64)
    # More bits may measure slightly worse by chance; they are never taken to be.
    clean = np.maximum.accumulate(losses[:, ::-1], axis=1)[:, ::-1]
    picked = solve_choices(clean, spent, bits + 1e-9)
    if not picked.size:
        raise InputError(f"weights: no mixture of widths {tuple(widths)} averages {bits:g} bits")
    return [widths[i] for i in picked]
