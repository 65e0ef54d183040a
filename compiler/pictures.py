"""Pictures of a compression: errors, bits, weights, and accuracy against bytes (extra `plots`).

Each function draws one figure from `Run`s; `svg` and `png` turn it into a file's contents. No
global state of matplotlib is touched, and equal runs give equal bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np

from flightllm.compiler.fold import MATRICES
from flightllm.compiler.quant_report import MatrixReport, QuantReport
from flightllm.models.quantized import QuantModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "PICTURES", "Run", "accuracy_against_bytes", "bits_per_layer", "error_per_layer", "png", "svg",
    "weight_histograms",
]  # fmt: skip

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5c5c5c", "#000000")
"""Of Okabe and Ito: told apart by everyone."""
SAMPLED = 1 << 18
"""Weights of a matrix' kind that a histogram counts."""
BINS = 81
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "flightllm", "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One compression of a model.

    Members
    -------
    label : what the pictures call it, "w4g32 8:16". report, model : what `quantise` gave.
    perplexity, float_perplexity : on a text that was evaluated, or None: the pictures then show
        those of the calibration text that was held out.
    """

    label: str
    report: QuantReport
    model: QuantModel
    perplexity: float | None = None
    float_perplexity: float | None = None


def _styled(draw: Callable[[Sequence[Run]], Figure]) -> Callable[[Sequence[Run]], Figure]:
    """The function, drawing in `STYLE`."""

    @wraps(draw)
    def drawn(runs: Sequence[Run]) -> Figure:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(runs)

    return drawn


def _figure(columns: int, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * columns, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _say(axes: Axes, text: str) -> None:
    """A sentence in place of a picture that has nothing to show."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])


def _line(axes: Axes, name: str, x: Sequence[float], y: Sequence[float], index: int) -> None:
    (line,) = axes.plot(
        x, y, marker="o", markersize=3, linewidth=1.2, label=name,
        color=COLOURS[index % len(COLOURS)], linestyle="-" if index < len(COLOURS) else "--",
    )  # fmt: skip
    line.set_gid(f"line {name}")


def _whole(axes: Axes) -> None:
    """Marks at whole numbers only: the axis counts layers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _by_kind(
    report: QuantReport, value: Callable[[MatrixReport], float]
) -> Mapping[str, list[float]]:
    """A value of each layer's matrix, by the matrix' kind, in the order of layers."""
    found: dict[str, list[float]] = {}
    for matrix in report.matrices:
        kind = matrix.name.split(".")[-1]
        found.setdefault(kind, []).append(value(matrix))
    return {name: found[name] for name in MATRICES if name in found}


@_styled
def error_per_layer(runs: Sequence[Run]) -> Figure:
    """Errors of the residual stream after each layer and pass, and of each matrix (first run)."""
    figure, (left, right) = _figure(2)
    lines = [(p.name, p.errors) for p in runs[0].report.passes if p.errors]
    if len(runs) > 1:
        last = [(run.label, run.report.passes[-1].errors) for run in runs]
        lines = [(name, errors) for name, errors in last if errors]
    for index, (name, errors) in enumerate(lines):
        _line(left, name, range(len(errors)), errors, index)
    for index, (name, values) in enumerate(
        _by_kind(runs[0].report, lambda matrix: matrix.error).items()
    ):
        _line(right, name, range(len(values)), values, index)
    left.set_title("residual stream, by pass" if len(runs) == 1 else "residual stream, by run")
    right.set_title(f"outputs of each matrix, {runs[0].label}")
    for axes in (left, right):
        axes.set_xlabel("layer")
        axes.set_ylabel("relative error")
        _whole(axes)
        if axes.lines:
            axes.set_yscale("log")
            axes.legend(fontsize=7, ncols=2)
        else:
            _say(axes, "measured with calibration only")
    return figure


@_styled
def bits_per_layer(runs: Sequence[Run]) -> Figure:
    """Stored bits a weight of each layer, split by what is stored; a bar for each run."""
    figure, (axes,) = _figure(1)
    width = 0.8 / len(runs)
    for index, run in enumerate(runs):
        codes = _by_kind(run.report, lambda m: m.rows * m.columns * m.bits * m.kept / 16)
        stored = _by_kind(run.report, lambda m: m.stored_bits)
        sizes = _by_kind(run.report, lambda m: m.rows * m.columns)
        total, lower, upper = (
            np.sum(list(part.values()), axis=0) for part in (sizes, codes, stored)
        )
        place = np.arange(len(total)) + (index - (len(runs) - 1) / 2) * width
        colour = COLOURS[index % len(COLOURS)]
        bars = axes.bar(place, lower / total, width, color=colour, label=f"{run.label}: codes")
        rest = axes.bar(
            place, (upper - lower) / total, width, bottom=lower / total, color=colour, alpha=0.4,
            label=f"{run.label}: scales, indices",
        )  # fmt: skip
        for kind, container in (("codes", bars), ("rest", rest)):
            for layer, patch in enumerate(container):
                patch.set_gid(f"bar {run.label} {layer} {kind}")
    axes.set_xlabel("layer")
    axes.set_ylabel("stored bits a weight")
    axes.set_title("bits of each layer")
    _whole(axes)
    figure.legend(fontsize=7, loc="outside right upper")
    return figure


def _weights(model: QuantModel, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Kept weights of a kind, in units of their root mean square; float32 [n]."""
    found = []
    parts = [model.head] if name == "head" else [getattr(layer, name) for layer in model.layers]
    for part in parts:
        tensor = part.weight
        values = tensor.dequantised()
        kept = values.ravel() if tensor.mask is None else values[tensor.mask]
        kept = kept[:: max(1, len(parts) * len(kept) // SAMPLED)]
        size = float(np.sqrt(np.mean(kept.astype(np.float64) ** 2))) or 1.0
        found.append(kept / np.float32(size))
    return np.concatenate(found)


@_styled
def weight_histograms(runs: Sequence[Run]) -> Figure:
    """Kept weights of each kind of matrix, all layers together, for each run."""
    from matplotlib.figure import Figure

    layer = runs[0].model.layers[0]
    names = [name for name in MATRICES if getattr(layer, name) is not None] + ["head"]
    figure = Figure(figsize=(8.8, 4.2), layout="constrained")
    grid = figure.subplots(2, 4)
    for axes, name in zip(grid.flat, names):
        for index, run in enumerate(runs):
            _, _, drawn = axes.hist(
                _weights(run.model, name), bins=BINS, range=(-4, 4), density=True,
                histtype="step", color=COLOURS[index % len(COLOURS)], label=run.label,
            )  # fmt: skip
            drawn[0].set_gid(f"histogram {run.label} {name}")
        axes.set_title(name)
        axes.set_yticks([])
    for axes in list(grid.flat)[len(names) :]:
        axes.set_axis_off()
    grid.flat[0].legend(fontsize=7)
    figure.supxlabel("weight / root mean square of its matrix", fontsize=9)
    return figure


def _points(run: Run) -> list[tuple[str, float, float]]:
    """(name, bytes, perplexity) of the passes, or of the run where a text was evaluated."""
    passes = run.report.passes
    if run.perplexity is not None:
        return [(run.label, passes[-1].bytes, run.perplexity)]
    return [(f"{run.label}: {p.name}", p.bytes, p.after) for p in passes if p.after is not None]


@_styled
def accuracy_against_bytes(runs: Sequence[Run]) -> Figure:
    """Perplexity against bytes of all matrices, with the points that no other one beats joined."""
    figure, (axes,) = _figure(1, 3.6)
    points = [point for run in runs for point in _points(run)]
    exact = [run.float_perplexity for run in runs if run.float_perplexity is not None]
    if not exact:
        exact = [p.before for run in runs for p in run.report.passes[:1] if p.before is not None]
    for index, (name, size, value) in enumerate(points):
        marks = axes.scatter([size], [value], s=18, color=COLOURS[index % len(COLOURS)], zorder=3)
        marks.set_gid(f"point {name}")
        axes.annotate(name, (size, value), xytext=(4, 4), textcoords="offset points", fontsize=7)
    best = sorted(
        (size, value)
        for _, size, value in points
        if not any(s <= size and v <= value and (s, v) != (size, value) for _, s, v in points)
    )
    if not points:
        _say(axes, "no perplexity: neither calibrated nor evaluated")
    elif max(value for _, _, value in points) > 3 * min(value for _, _, value in points):
        axes.set_yscale("log")
    if best:
        (front,) = axes.plot(*zip(*best), color="#888888", linewidth=1, drawstyle="steps-post")
        front.set_gid("front")
    if exact:
        axes.axhline(exact[0], color="#888888", linestyle=":", linewidth=1).set_gid("float")
    axes.set_xlabel("bytes of all matrices")
    axes.set_ylabel("perplexity")
    axes.set_title("accuracy against bytes (dotted: float)")
    return figure


PICTURES: dict[str, Callable[[Sequence[Run]], Figure]] = {
    "error-per-layer": error_per_layer,
    "bits-per-layer": bits_per_layer,
    "weight-histograms": weight_histograms,
    "accuracy-against-bytes": accuracy_against_bytes,
}
"""Every picture by the name of its file."""


def svg(figure: Figure) -> str:
    """The figure as an `<svg>` element, which can stand in a page or in a file of its own."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context(STYLE):
        none = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # they name web addresses
        figure.savefig(out, format="svg", metadata=none)
    text = out.getvalue()
    return text[text.index("<svg") :]


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    from matplotlib import rc_context

    out = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(out, format="png", dpi=150, metadata={"Software": None})
    return out.getvalue()
