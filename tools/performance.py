"""The page docs/performance.md and its charts: what the cycle model says of the presets.

Run as ``python tools/performance.py`` (``make performance``). Rows are `flightllm estimate`s, so it
takes minutes and `make check` does not repeat it. The page carries the digest of the model that
made it.
"""

from __future__ import annotations

import pickle
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flightllm import calibration
from flightllm.estimation import Estimate, estimate
from flightllm.plots import draw_context, draw_layer
from flightllm.resources import resource_table
from flightllm.spec.config import load_config
from flightllm.spec.dram import MEASURED, reproduce
from flightllm.spec.errors import InputError

__all__ = ["BARS", "main", "page", "text_of"]

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "performance.md"
TEMPLATE = Path(__file__).resolve().parent / "performance.template.md"
MODELS = ("llama2-7b", "opt-6.7b", "llama3-8b", "qwen2.5-7b", "mistral-7b")
CONTEXTS = (128, 1024, 4096)


@dataclass(frozen=True)
class Bar:
    """A figure that the design must reach.

    Members
    -------
    board, options : of `estimate`. value : key of its JSON. least : the bar. beside : what others
        publish.
    """

    board: str
    options: Mapping[str, Any]
    value: str
    least: float
    beside: str


BARS = (
    Bar("u280", {"weights": "w3.5g128", "context": 1024}, "tokens_per_second", 125,
        "FlightLLM, board: 55"),
    Bar("u280", {"weights": "w3.5g128", "context": 1024}, "mbu", 0.88, "EdgeLLM: about 0.75"),
    Bar("u280", {"weights": "w3.5g128", "context": 4096}, "tokens_per_second", 100, "-"),
    Bar("u280", {"weights": "w2g128", "kv": 4, "context": 1024}, "tokens_per_second", 210,
        "AccLLM: 164"),
    Bar("u280", {"weights": "w4g128", "context": 1024}, "tokens_per_second", 112, "-"),
    Bar("vhk158", {"weights": "w3.5g128", "context": 1024}, "tokens_per_second", 220,
        "FlightLLM, simulator: 92.5"),
    Bar("u280", {"weights": "w4g128", "context": 1024, "prefill": 512}, "prefill_mac_utilization",
        0.90, "FlightLLM: about 0.45"),
)  # fmt: skip

ARTEFACT = {
    (128, 512): (290, 4946), (128, 1024): (290, 10319), (128, 1536): (290, 16103),
    (512, 512): (1181, 5269), (512, 1024): (1181, 10950), (512, 1536): (1181, 17044),
}  # fmt: skip
"""[prefill, decode] tokens -> milliseconds of both in the authors' artefact for the VHK158."""

SMALL = (
    ("kv260", "llama2-7b", {"weights": "w4g128", "context": 512}, 0.94),
    ("kv260", "tinyllama-1.1b", {"weights": "w4g128", "context": 1024}, 0.94),
    ("zcu104", "tinyllama-1.1b", {"weights": "w4g128", "context": 1024}, 0.93),
)
"""Board, model, options, and the share of the bandwidth that Hummingbird publishes for it."""


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [" | ".join(map(str, row)) for row in (columns, *rows)]
    lines = [f"| {line} |" for line in lines]
    return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:]]) + "\n"


def command(model: str, board: str, options: Mapping[str, Any]) -> str:
    """The command that prints an estimate."""
    words = [f"--{name.replace('_', '-')} {value}" for name, value in options.items()]
    return f"`flightllm estimate {model} --board {board} {' '.join(words)}`"


class Measurer:
    """Makes each estimate once, also over runs of this tool: `file` keeps them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found: dict[str, Estimate] = {}
        if file.is_file():
            self._found = pickle.loads(file.read_bytes())

    def __call__(self, model: str, board: str, options: Mapping[str, Any]) -> Estimate:
        key = command(model, board, options)
        if key not in self._found:
            found = self._found[key] = estimate(model, board, **options)
            print(f"{key}: {found.tokens_per_second:.1f} token/s, MBU {found.mbu:.3f}, "
                  f"prefill {found.prefill_mac_utilization}", file=sys.stderr, flush=True)
            self._file.parent.mkdir(exist_ok=True)
            self._file.write_bytes(pickle.dumps(self._found))
        return self._found[key]


def bars(measure: Measurer) -> str:
    """Figures of LLaMA2-7B beside their bars."""
    rows = []
    for bar in BARS:
        found = measure("llama2-7b", bar.board, bar.options)
        value = getattr(found, bar.value)
        shown = f"{value:.1f}" if value > 2 else f"{value:.3f}"
        verdict = "yes" if value >= bar.least else f"no, {100 * (1 - value / bar.least):.1f} % less"
        rows.append([command("llama2-7b", bar.board, bar.options), bar.value, shown, bar.least,
                     verdict, bar.beside])  # fmt: skip
    return table(["command", "figure", "modelled", "bar", "reached", "published"], rows)


def fitting(measure: Measurer) -> str:
    """The bars' figures on the preset of the U280 that fits."""
    rows = []
    for bar in (bar for bar in BARS if bar.board == "u280"):
        figures = [getattr(measure("llama2-7b", board, bar.options), bar.value)
                   for board in ("u280-fit", "u280")]  # fmt: skip
        options = " ".join(f"{name} {value}" for name, value in bar.options.items())
        rows.append([options, bar.value, *(f"{x:.1f}" if x > 2 else f"{x:.3f}" for x in figures)])
    return table(["llama2-7b", "figure", "`u280-fit`", "`u280`"], rows)


def efficiencies(measure: Measurer) -> str:
    """VHK158 at several memory efficiencies."""
    found = measure("llama2-7b", "vhk158", {"weights": "w3.5g128", "context": 1024})
    rows = [[f"{share:.0%}", f"{rate:.1f}"] for share, rate in found.by_efficiency.items()]
    return table(["assumed share of 819.2 GB/s", "token/s, modelled"], rows)


def roof(measure: Measurer) -> dict[str, str]:
    """What the VHK158's memory would give at 90 % of its peak, were it never without a request, and
    how near the design comes to that."""
    options = {"weights": "w3.5g128", "context": 1024}
    found = measure("llama2-7b", "vhk158", options)
    small_head = measure("llama2-7b", "vhk158", {**options, "head_bits": 4})
    most = 0.9e9 * found.config.memory.peak_gb_s / found.bytes_per_token
    return {
        "bytes": f"{found.bytes_per_token / 1e9:.3f}", "roof": f"{most:.1f}",
        "share": f"{100 * found.tokens_per_second / most:.1f} %",
        "small_head": f"{small_head.tokens_per_second:.1f}",
    }  # fmt: skip


def models(measure: Measurer) -> str:
    """Models and contexts on the U280."""
    rows = []
    for model in MODELS:
        rates = []
        for context in CONTEXTS:
            try:
                found = measure(model, "u280", {"weights": "w3.5g128", "context": context})
                rates.append(f"{found.tokens_per_second:.1f}")
            except InputError:  # longer than the model
                rates.append("-")
        rows.append([model, *rates])
    return table(["model, w3.5g128, kv 8", *(f"context {c}" for c in CONTEXTS)], rows)


def small(measure: Measurer) -> str:
    """Boards with DDR4."""
    rows = []
    for board, model, options, published in SMALL:
        try:
            found = measure(model, board, options)
            figures = [f"{found.tokens_per_second:.2f}", f"{found.mbu:.3f}"]
        except InputError:
            figures = ["does not fit", "-"]
        rows.append([command(model, board, options), *figures, published])
    return table(["command", "token/s", "share of the peak", "Hummingbird"], rows)


def requests(measure: Measurer) -> str:
    """The paper's six cases on its own parallelism."""
    board = "flightllm-vhk158"
    prompts = {
        n: measure("llama2-7b", board, {"weights": "w4g128", "prefill": n}).prefill_ms or 0.0
        for n in sorted({p for p, _ in ARTEFACT})
    }
    points = {
        c: measure("llama2-7b", board, {"weights": "w3.5g128", "context": c})
        for c in (128, 1024, 2048)
    }
    ends = {c: 1e3 / found.tokens_per_second for c, found in points.items()}
    rows = []
    for (prompt, tokens), (first, second) in ARTEFACT.items():
        middle = prompt + tokens / 2  # time a token is nearly straight in the context
        after = tokens * float(np.interp(middle, list(ends), list(ends.values())))
        rows.append([f"[{prompt}, {tokens}]", first, f"{prompts[prompt]:.0f}", second,
                     f"{after:.0f}", f"{1e3 * tokens / second:.1f}",
                     f"{1e3 * tokens / after:.1f}"])  # fmt: skip
    return table(["case", "prefill ms, artefact", "ours", "decode ms, artefact", "ours",
                  "token/s, artefact", "ours"], rows)  # fmt: skip


def paper_u280(measure: Measurer) -> str:
    """The paper's design on the U280 beside its 55 token/s."""
    options = {"weights": "w3.5g128", "context": 1024}
    theirs, ours = (measure("llama2-7b", b, options) for b in ("flightllm-u280", "u280"))
    rows = [
        ["paper, board", "55"],
        ["its parallelism in our model", f"{theirs.tokens_per_second:.1f}"],
        ["`u280`", f"{ours.tokens_per_second:.1f}"],
    ]
    return table(["LLaMA2-7B, 3.5 bit, context 1024", "token/s"], rows)


def memory() -> str:
    """The memory model beside measurements."""
    rows = []
    for point in MEASURED:
        value = reproduce(point)
        rows.append([point.kind, point.what, f"{point.value:g} {point.unit}",
                     f"{value:.4g} {point.unit}", f"{100 * (value / point.value - 1):+.1f} %",
                     "calibrated" if point.calibrated else "kept out", point.source])  # fmt: skip
    return table(["memory", "figure", "measured", "modelled", "error", "", "source"], rows)


def resources() -> str:
    """What the presets take."""
    rows = []
    for board in ("u280", "u280-fit", "u50", "u55c", "vhk158", "v80", "zcu104", "kv260"):
        found = resource_table(load_config(board))
        rows.append([board, *(_percent(entry) for entry in found.values())])
    return table(["board", "DSP", "LUT", "FF", "BRAM36", "URAM"], rows)


def _percent(entry: Mapping[str, Any]) -> str:
    dies = ", ".join(str(die["percent"]) for die in entry.get("slrs", []))
    return f"{entry['used']:,} ({entry['percent']} %{'; ' + dies if dies else ''})"


def idle(measure: Measurer) -> str:
    """Busy cycles of each unit in decoding, the mean of the cores."""
    found = measure("llama2-7b", "u280", {"weights": "w3.5g128", "context": 1024})
    busy = Counter({
        name.removesuffix(".busy"): round(cycles / found.config.cores)
        for name, cycles in found.counters.items()
        if name.endswith(".busy")
    })  # fmt: skip
    rows = [[unit, f"{cycles:,}", f"{100 * cycles / found.cycles:.1f} %"]
            for unit, cycles in busy.most_common() if cycles]  # fmt: skip
    return table(["unit", "busy cycles a token", "of all"], rows)


def text_of(sections: Mapping[str, str]) -> str:
    """The page from its generated sections."""
    template = TEMPLATE.read_text(encoding="utf-8")
    for name, text in {**sections, "digest": calibration.digests()["model"][:16]}.items():
        template = template.replace("{" + name + "}", text.rstrip("\n"))
    return template


def page() -> str:
    """Estimate everything and make the page's text."""
    measure = Measurer(DOCS.parent / "out" / f"performance-{calibration.digests()['model']}.pickle")
    options = {"weights": "w3.5g128"}
    found = measure("llama2-7b", "u280", {**options, "context": 1024})
    draw_context(DOCS / "performance-context.svg", "llama2-7b", "u280", options, found)
    draw_layer(DOCS / "performance-layer.svg", "llama2-7b", "u280", options, 1024)
    return text_of({
        "bars": bars(measure), "fitting": fitting(measure),
        "efficiencies": efficiencies(measure), "models": models(measure),
        "small": small(measure), "requests": requests(measure), "paper": paper_u280(measure),
        "memory": memory(), "resources": resources(), "idle": idle(measure),
        **roof(measure),
    })  # fmt: skip


def main() -> int:
    """Write the page and its charts."""
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
