"""The page docs/accuracy.md: what each weight scheme costs, measured by `flightllm.evaluate`.

Run as ``python tools/accuracy.py`` (``make accuracy``). It calibrates once for each row, which
takes minutes, so `make check` does not repeat it. Each row is kept in ``docs/accuracy.json`` and
the page written anew, so that an interrupted run goes on where it stopped; ``--again`` measures all
of them anew, ``--minutes N`` begins no row after N minutes, ``--only TEXT`` takes some. The page
carries the digest of the demo model that was measured, and a test fails when the repository holds
another one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flightllm
from flightllm.evaluation import Evaluation
from flightllm.models import zoo
from flightllm.models.corpus import HELD_OUT, TEXT_DIGEST, load_corpus
from flightllm.spec.errors import InputError

__all__ = [
    "CLOSES", "RECOVERED", "ROWS", "Subject", "bars", "digest", "main", "page", "section",
    "subjects",
]  # fmt: skip

PAGE = Path(__file__).resolve().parent.parent / "docs" / "accuracy.md"

FOUND = PAGE.with_suffix(".json")
"""Rows measured so far: an interrupted run goes on with the next one, on any machine."""

PIECES = 2
"""Pieces of each text that are executed; torch scores all."""

STEPS = 100
_RECOVER = {"recover": "auto", "recover_steps": STEPS}

# Row -> options of `flightllm.evaluate`.
ROWS: dict[str, dict[str, Any]] = {
    "w8g32": {"weights": "w8g32"},
    "w4g32, not calibrated": {"weights": "w4g32", "calibrate": "none"},
    "w4g32": {"weights": "w4g32"},
    "w3g32, not calibrated": {"weights": "w3g32", "calibrate": "none"},
    "w3g32": {"weights": "w3g32"},
    "w8g32, 8:16 by magnitude": {"weights": "w8g32", "sparsity": "8:16", "calibrate": "none"},
    "w8g32, 8:16": {"weights": "w8g32", "sparsity": "8:16"},
    "w3.5g32, not calibrated, recovered": {
        "weights": "w3.5g32", "calibrate": "none", **_RECOVER,
    },
    "w4g32, 8:16 by magnitude, recovered": {
        "weights": "w4g32", "sparsity": "8:16", "calibrate": "none", **_RECOVER,
    },
    "w8g32, K 8, V 4": {"weights": "w8g32", "kv": "8/4"},
    "w8g32, KV 4": {"weights": "w8g32", "kv": 4},
    "w8g32, KV 4, recovered": {"weights": "w8g32", "kv": 4, **_RECOVER},
    "w3.5g32": {"weights": "w3.5g32"},
    "w4g32, 8:16": {"weights": "w4g32", "sparsity": "8:16"},
    "w4g32, 8:16, recovered": {"weights": "w4g32", "sparsity": "8:16", **_RECOVER},
    "w8g32, 8:16 by rows, magnitude": {
        "weights": "w8g32", "sparsity": "8:16", "masks": "rows", "calibrate": "none",
    },
    "w8g32, 8:16 by rows": {"weights": "w8g32", "sparsity": "8:16", "masks": "rows"},
    "w2g32": {"weights": "w2g32"},
}  # fmt: skip


CLOSES = {
    "calibration at w4g32": ("w4g32, not calibrated", "w4g32", 0.5),
    "calibration at w3g32": ("w3g32, not calibrated", "w3g32", 0.5),
    "SparseGPT at 8:16": ("w8g32, 8:16 by magnitude", "w8g32, 8:16", 0.8),
}
"""What a method must close, as a share, of the loss that a plain one leaves: rows of both."""

_PLAIN_RECOVERED = (
    "w3.5g32, not calibrated, recovered", "w4g32, 8:16 by magnitude, recovered",
)  # fmt: skip
RECOVERED = ("w3.5g32, not calibrated, recovered", "w4g32, 8:16, recovered")
"""Rows of the demo model that may cost a tenth at most."""


@dataclass(frozen=True)
class Subject:
    """A model and the text that it is scored on.

    Members
    -------
    title : heading. model : what `flightllm.evaluate` opens. text : scored. text_format : how it is
    split. about : what the text is. skipped : rows that are not measured.
    """

    title: str
    model: str
    text: str
    text_format: str
    about: str
    skipped: frozenset[str] = frozenset()


def digest() -> str:
    """First 16 hex digits of the SHA-256 of the demo model's weights."""
    folder = zoo.weights_folder("demo")
    assert folder is not None
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]


def subjects() -> list[Subject]:
    """The demo model, and stories260k where its files are.

    Raises
    ------
    InputError
        When this Python's documentation is not the one that the demo model is held out from.
    """
    corpus = load_corpus()
    if corpus.digest != TEXT_DIGEST:
        raise InputError("this Python's help texts are not CPython 3.11.7's: the demo model's"
                         " held-out text is not at hand")  # fmt: skip
    held = "\n\n".join(corpus.held_out[name] for name in sorted(HELD_OUT))
    found = [
        Subject("The demo model", "demo", held, "continuous",
                f"the {len(HELD_OUT)} help topics that it was not trained on")
    ]  # fmt: skip
    data = os.environ.get("FLIGHTLLM_TEST_DATA")
    if data:
        text = Path(data) / "text" / "tinystories_sample.txt"
        found.append(
            Subject("stories260k", str(Path(data) / "models" / "stories260k"),
                    text.read_text(encoding="utf-8"), "documents",
                    "`text/tinystories_sample.txt` of the test data", frozenset(_PLAIN_RECOVERED))
        )  # fmt: skip
    return found


def section(subject: Subject, scores: Mapping[str, Evaluation]) -> str:
    """One model's table."""
    first = next(iter(scores.values()))
    lines = [
        f"## {subject.title}",
        "",
        f"Scored on {subject.about}: {first.tokens:,} tokens in {first.sequences:,} pieces of at"
        f" most {first.context:,}, {first.executed_tokens:,} of the tokens executed. Perplexity in"
        f" float32: {first.ppl_float:.4f}.",
        "",
        "| | perplexity | against float | executed | same top-1 as float |",
        "|---|---:|---:|---|---:|",
    ]
    for name, score in scores.items():
        cost = score.ppl_executed / score.ppl_float - 1
        equal = "equal" if score.ppl_quantized == score.ppl_executed else "DIFFERENT"
        lines.append(
            f"| {name} | {score.ppl_executed:.4f} | {cost:+.2%} | {equal} |"
            f" {score.top1_agreement:.2%} |"
        )
    return "\n".join(lines) + "\n"


def bars(title: str, scores: Mapping[str, Evaluation]) -> list[str]:
    """Rows of the table of bars: what a model's measured rows say of each."""
    cost = {name: score.ppl_executed / score.ppl_float - 1 for name, score in scores.items()}
    rows = []
    for what, (plain, better, share) in CLOSES.items():
        if plain in cost and better in cost:
            found = 1 - cost[better] / cost[plain]
            left = "magnitude" if "magnitude" in plain else "rounding"
            rows.append(
                f"| {title} | {what}: closed of what {left} leaves | {found:.0%} |"
                f" at least {share:.0%} | {_verdict(found >= share)} |"
            )
    for name in RECOVERED if title == "The demo model" else ():
        if name in cost:
            rows.append(
                f"| {title} | {name}: loss | {cost[name]:+.2%} | at most +10 % |"
                f" {_verdict(cost[name] <= 0.1)} |"
            )
    return rows


def _verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def page(sections: Sequence[str], verdicts: Sequence[str] = ()) -> str:
    """The page around its tables."""
    return f"""\
# Accuracy

What quantisation costs in perplexity, for each weight scheme. Measured by `make accuracy`, with the
demo model of digest `{digest()}`.

Activations are INT8. The last projection has 8 bits, and so has the KV cache where the row does not
say otherwise. Masks are shared by pairs of rows, except "by rows". "by magnitude" is not
calibrated; "recovered" is trained for {STEPS} steps. Text to calibrate and to train on is sampled
from the model itself, never the text under evaluation. [Compression](compression.md) explains the
methods. All of a text goes through the quantised model's reference in torch, and its first
{PIECES} pieces through the compiled program on the functional simulator as well: "executed" says
whether both give the same perplexity, to the last digit.

{chr(10).join(sections)}{_bars_section(verdicts)}"""


def _bars_section(verdicts: Sequence[str]) -> str:
    if not verdicts:
        return ""
    return """
## Bars

What calibration, SparseGPT and recovery must reach, from the rows above.

| model | | measured | bar | |
|---|---|---:|---:|---|
""" + "".join(f"{row}\n" for row in verdicts)


def _found(again: bool) -> dict[str, dict[str, Any]]:
    """Rows of earlier runs with this demo model, by subject and name."""
    if again or not FOUND.is_file():
        return {}
    stored = json.loads(FOUND.read_text(encoding="utf-8"))
    return dict(stored["rows"]) if stored["digest"] == digest() else {}


def _write(chosen: Sequence[Subject], rows: Mapping[str, dict[str, Any]]) -> None:
    """Store the rows, and the page with those that there are, in their order."""
    text = json.dumps({"digest": digest(), "rows": rows}, indent=1) + "\n"
    FOUND.write_text(text, encoding="utf-8")
    sections, verdicts, missing = [], list[str](), list[str]()
    for subject in chosen:
        scores = {
            name: Evaluation(**rows[f"{subject.title}: {name}"])
            for name in ROWS
            if f"{subject.title}: {name}" in rows
        }
        if scores:
            missing += [
                f"{subject.title}: {name}"
                for name in ROWS
                if name not in scores and name not in subject.skipped
            ]
            sections.append(section(subject, scores))
            verdicts += bars(subject.title, scores)
    text = page(sections, verdicts)
    if missing:
        names = "\n".join(f"- {name}" for name in missing)
        text += f"\n## Not measured yet\n\n`make accuracy` goes on with these rows.\n\n{names}\n"
    PAGE.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] = (), tell: Callable[[str], object] = print) -> int:
    """Measure every row of every subject that is not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--again", action="store_true", help="measure every row anew")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no row after these")
    parser.add_argument("--only", default="", help="only rows whose model and name hold this")
    asked = parser.parse_args(arguments)
    end = time.monotonic() + 60 * asked.minutes
    rows, chosen = _found(asked.again), subjects()
    for name, options in ROWS.items():
        for subject in chosen:
            key = f"{subject.title}: {name}"
            if name in subject.skipped or asked.only not in key:
                continue
            if key not in rows:
                if time.monotonic() > end:
                    tell(f"{key}: not measured yet; start again to go on")
                    return 0
                score = flightllm.evaluate(
                    subject.model, subject.text, text_format=subject.text_format, pieces=PIECES,
                    **options,
                )  # fmt: skip
                rows[key] = score.to_dict()
                _write(chosen, rows)
            tell(f"{key}: {rows[key]['ppl_executed']:.4f}")
    _write(chosen, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
