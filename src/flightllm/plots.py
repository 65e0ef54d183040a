"""Charts of an estimate: token/s against context, and the roofline. Needs the `plots` extra."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flightllm.estimation import Estimate, Estimator
from flightllm.hardware import Board
from flightllm.spec.dram import dram_timing, streaming
from flightllm.spec.errors import InputError

__all__ = ["CONTEXTS", "draw_context", "draw_layer", "draw_roofline"]

CONTEXTS = (128, 512, 1024, 2048, 4096)


def _figure() -> Any:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "flightllm"  # the same file each time
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(6.4, 4.0))


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None, "Title": figure.axes[0].get_title()})
    return path


def draw_context(path: Path, model: str | Path, board: Board, options: Mapping[str, Any],
                 found: Estimate) -> Path:  # fmt: skip
    """Token/s against context, with what the memory's best rate would give."""
    made = Estimator(model, board, **options)
    points: dict[int, float] = {}
    for context in CONTEXTS:
        try:
            points[context] = made.config.clock_mhz * 1e6 / made.decode(context)[0]
        except InputError:  # longer than what the board has room for
            break
    timing = dram_timing(made.config)
    figure, axes = _figure()
    axes.plot(list(points), list(points.values()), marker="o", label="cycle model")
    if timing is not None:
        rate = streaming(timing) * 1e9 * sum(made.config.channels)
        axes.plot(list(points), [rate / made.bytes_per_token(c) for c in points], linestyle="--",
                  label="memory's best rate")  # fmt: skip
    axes.set(xlabel="context, tokens", ylabel="token/s", ylim=(0, None),
             title=f"{found.model} on {found.board}")  # fmt: skip
    axes.legend()
    return _save(figure, path)


def draw_layer(path: Path, model: str | Path, board: Board, options: Mapping[str, Any],
               context: int) -> Path:  # fmt: skip
    """When each unit of core 0 works during a decode layer in the middle of the model."""
    made = Estimator(model, board, **options)
    records = [r for r in made.trace(context) if r.core == 0 and not r.name.endswith(".nop")]
    layers = len(made.shape.layers)
    step = max(r.end or 0 for r in records) / layers
    begin = step * (layers // 2)
    figure, axes = _figure()
    lanes = ["ld", "mv", "misc", "sys", "st"]
    for lane, unit in enumerate(lanes):
        spans = [
            (r.start - begin, max((r.end or 0) - r.start, 1))
            for r in records
            if r.unit == unit and r.start is not None and begin <= r.start < begin + step
        ]
        axes.broken_barh(spans, (lane - 0.4, 0.8), linewidth=0)
    axes.set(xlabel="cycles", xlim=(0, step), yticks=range(len(lanes)), yticklabels=lanes,
             title=f"a decode layer of {made.shape.name} on {made.config.name}")  # fmt: skip
    axes.invert_yaxis()
    return _save(figure, path)


def draw_roofline(path: Path, found: Estimate) -> Path:
    """Multiply-accumulates a second against multiply-accumulates a byte, decode and prefill."""
    config = found.config
    array = config.macs_per_channel * sum(config.channels) * config.clock_mhz * 1e6
    peak = config.memory.peak_gb_s * 1e9
    xs = [0.25 * 2**k for k in range(16)]
    figure, axes = _figure()
    axes.loglog(xs, [min(array, peak * x) for x in xs], color="black", label="roof")
    macs = 8 * found.bytes_per_token / 4  # at about four bits a weight
    axes.loglog([macs / found.bytes_per_token], [macs * found.tokens_per_second], "o",
                label="decode")  # fmt: skip
    if found.prefill_ms:
        rate = found.prefill_macs / (found.prefill_ms / 1e3)
        tiles = len(found.prefill_cycles) * found.bytes_per_token
        axes.loglog([found.prefill_macs / tiles], [rate], "s", label="prefill")
    axes.set(xlabel="multiply-accumulates a byte", ylabel="multiply-accumulates a second",
             title=f"{found.model} on {found.board}")  # fmt: skip
    axes.legend()
    return _save(figure, path)
