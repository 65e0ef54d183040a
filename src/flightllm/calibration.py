"""How far the cycle model is from the RTL: the measured table, and whether it is still true.

`make calibrate` runs programs on both and writes `spec/calibration.json`, keyed by the digests of
the gateware's sources and of what the model is made of. When either has changed since, nobody knows
the error, and the estimates say so.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from flightllm import spec
from flightllm.spec.config import HwConfig

__all__ = ["FIELDS", "digests", "load_calibration", "model_error", "outside"]

ROOT = Path(__file__).resolve().parent
TABLE = Path(spec.__file__).resolve().parent / "calibration.json"
RTL = ("hw", "spec/isa.py", "spec/parameters.py", "spec/formats.py")
APART = frozenset({"boards", "resources.py"})
"""What of them no simulated design is made of: projects of boards, the resource model."""
MODEL = ("sim/cycle", "spec/timing.py", "spec/dram.py")
FIELDS = (
    "beat_bytes", "macs_per_channel", "sfu_lanes", "prefetch_bytes", "prefill_tile",
    "attention_tile", "mv_vectors",
)  # fmt: skip
"""Parameters of a configuration that the model's times depend on, beside channels and DSP kind."""


def _code(file: Path) -> str:
    """A file's code: neither comments nor docstrings nor layout change it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_text(part)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    """A string that stands alone."""
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _digest(names: tuple[str, ...]) -> str:
    """SHA-256 over the code of Python sources, by path."""
    total = hashlib.sha256()
    for name in names:
        path = ROOT / name
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        for file in files:
            if not APART & set(file.relative_to(ROOT).parts):
                total.update(file.relative_to(ROOT).as_posix().encode() + b"\0")
                total.update(_code(file).encode())
    return total.hexdigest()


@lru_cache(maxsize=1)
def digests() -> Mapping[str, str]:
    """Digests of the gateware ("rtl") and of the cycle model ("model") as they are here."""
    return {"rtl": _digest(RTL), "model": _digest(MODEL)}


@lru_cache(maxsize=1)
def load_calibration() -> Mapping[str, Any] | None:
    """The measured table, or None where there is none."""
    if not TABLE.is_file():
        return None
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


def model_error() -> float | None:
    """The largest error in total cycles over the measured programs, percent; None when the gateware
    or the model has changed since, or nothing was measured."""
    table = load_calibration()
    if table is None or any(table[name] != digest for name, digest in digests().items()):
        return None
    return max(abs(float(program["error_percent"])) for program in table["programs"])


def outside(config: HwConfig) -> list[str]:
    """Parameters of a configuration that no measured program had, smaller and larger ones alike."""
    table = load_calibration()
    if table is None or not table["programs"]:
        return ["all"]
    measured = [program["config"] for program in table["programs"]]
    out = []
    for name in FIELDS:
        have = [values[name] for values in measured]
        if not min(have) <= getattr(config, name) <= max(have):
            out.append(name)
    channels = [count for values in measured for count in values["channels"]]
    if not all(min(channels) <= count <= max(channels) for count in config.channels):
        out.append("channels")
    if config.cores > max(len(values["channels"]) for values in measured):
        out.append("cores")
    if config.dsp_kind not in {values["dsp_kind"] for values in measured}:
        out.append("dsp_kind")
    if config.memory.kind not in {values["memory"] for values in measured}:
        out.append("memory.kind")
    return out
