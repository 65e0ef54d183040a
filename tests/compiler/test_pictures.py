"""Pictures show what the reports say, and the page needs nothing from elsewhere."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from random_checkpoint import random_checkpoint

from flightllm.compiler.pictures import (
    PICTURES,
    Run,
    accuracy_against_bytes,
    bits_per_layer,
    error_per_layer,
    png,
    svg,
    weight_histograms,
)
from flightllm.compiler.quant_report import PassReport
from flightllm.compiler.quantise import quantise
from flightllm.compiler.report_page import check_target, label, page, write_report
from flightllm.compiler.scheme import QuantOptions
from flightllm.spec.errors import InputError

pytest.importorskip("matplotlib")
torch.set_num_threads(1)


def passes(*figures: tuple[str, float, float, float]) -> list[PassReport]:
    return [
        PassReport(name, "how", size / 100, size, (0.1, 0.2), before, after)
        for name, size, before, after in figures
    ]


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    """Two compressions of a random model, with passes as calibration would report them."""
    made = []
    for options in (
        QuantOptions("w4g32", calibrate="none"),
        QuantOptions("w2g32", sparsity="8:16", calibrate="none"),
    ):
        done = quantise(random_checkpoint("llama"), options)
        size = 1000.0 if options.kept == 16 else 400.0
        done.report.passes = passes(("vectors", 4000, 5.0, 5.5), ("round", size, 5.5, 6.0))
        made.append(Run(label(done.report), done.report, done.model))
    return made


def test_errors(runs: list[Run]) -> None:
    left, right = error_per_layer(runs[:1]).axes
    assert {line.get_gid() for line in left.lines} == {"line vectors", "line round"}
    assert list(left.lines[0].get_ydata()) == [0.1, 0.2]
    shown = {line.get_gid(): list(line.get_ydata()) for line in right.lines}
    assert set(shown) == {f"line {n}" for n in ("q", "k", "v", "o", "gate", "up", "down")}
    wanted = [m.error for m in runs[0].report.matrices if m.name.endswith(".up")]
    assert shown["line up"] == wanted
    left, _ = error_per_layer(runs).axes
    assert [line.get_gid() for line in left.lines] == ["line w4g32", "line w2g32 8:16"]


def test_bits(runs: list[Run]) -> None:
    (axes,) = bits_per_layer(runs).axes
    bars = {patch.get_gid(): patch for patch in axes.patches}
    assert len(bars) == 2 * 2 * 2
    for run, codes in zip(runs, (4.0, 1.0)):  # half of the 2-bit codes are stored
        matrices = [m for m in run.report.matrices if m.name.startswith("layers.1.")]
        stored = sum(m.stored_bits for m in matrices) / sum(m.rows * m.columns for m in matrices)
        bottom, top = (bars[f"bar {run.label} 1 {kind}"] for kind in ("codes", "rest"))
        assert bottom.get_height() == pytest.approx(codes)
        assert top.get_y() + top.get_height() == pytest.approx(stored)


def test_histograms_count_kept_weights(runs: list[Run]) -> None:
    figure = weight_histograms(runs)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["q", "k", "v", "o", "gate", "up", "down", "head"]
    drawn = {patch.get_gid(): patch for axes in figure.axes for patch in axes.patches}
    assert set(drawn) == {f"histogram {r.label} {n}" for r in runs for n in titles}
    heights = drawn["histogram w2g32 8:16 up"].get_xy()[:, 1]
    assert heights[len(heights) // 2] == 0.0  # no kept weight of levels -3, -1, 1, 3 is zero


def test_front_of_accuracy_against_bytes(runs: list[Run]) -> None:
    (axes,) = accuracy_against_bytes(runs[:1]).axes
    assert {m.get_gid() for m in axes.collections} == {"point w4g32: vectors", "point w4g32: round"}
    scored = [
        replace(runs[0], perplexity=6.0, float_perplexity=4.5),
        replace(runs[1], perplexity=7.0, float_perplexity=4.5),
        replace(runs[0], label="worse", perplexity=8.0, float_perplexity=4.5),
    ]
    (axes,) = accuracy_against_bytes(scored).axes
    lines = {line.get_gid(): line for line in axes.lines}
    assert np.array(lines["front"].get_xydata()).tolist() == [[400.0, 7.0], [1000.0, 6.0]]
    assert set(lines["float"].get_ydata()) == {4.5}
    assert len(axes.collections) == 3


def test_without_calibration_the_pictures_say_so(runs: list[Run]) -> None:
    plain = replace(runs[0].report, passes=[PassReport("round", "nearest", 4.5, 900.0)])
    bare = [replace(run, report=plain) for run in runs]
    assert [text.get_text() for text in error_per_layer(bare).axes[0].texts] == [
        "measured with calibration only"
    ]
    assert "neither calibrated" in accuracy_against_bytes(bare).axes[0].texts[0].get_text()


def test_files_are_of_their_kind_and_repeat(runs: list[Run]) -> None:
    figure = bits_per_layer(runs)
    text = svg(figure)
    assert text.startswith("<svg") and text.rstrip().endswith("</svg>")
    assert "bits of each layer" in text and 'id="bar w4g32 0 codes"' in text
    assert text == svg(bits_per_layer(runs))
    assert png(figure).startswith(b"\x89PNG")


def test_page(runs: list[Run], tmp_path: Path) -> None:
    odd = replace(runs[0], label="a <b>", perplexity=6.25, float_perplexity=5.0)
    odd.report.notes.append("a note & more")
    text = page("The title", [odd, runs[1]])
    assert text.count("<svg") == len(PICTURES) and "<h1>The title</h1>" in text
    assert "a &lt;b&gt;" in text and "<b>" not in text and "a note &amp; more." in text
    assert "Perplexity of the evaluated text: 6.2500 (float: 5.0000)." in text
    assert "<td>round</td><td>how</td><td>10.000</td><td>1,000</td>" in text
    assert "<td>layers.1.down</td><td>48 x 88</td><td>2</td>" in text
    # Nothing is loaded: no address but the names of XML's own spaces.
    assert set(re.findall(r"\w+://[^\"'<\s]*", text)) <= {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink",
    }  # fmt: skip
    assert not re.findall(r"<(?:script|link|img|iframe)\b|@import|(?:src|href)=\"(?!#)", text)


def test_write_report(runs: list[Run], tmp_path: Path) -> None:
    (alone,) = write_report(tmp_path / "r.html", "T", runs)
    assert alone.read_text(encoding="utf-8") == page("T", runs)
    written = write_report(tmp_path / "folder", "T", runs)
    assert set((tmp_path / "folder").iterdir()) == set(written)
    assert {p.suffix for p in written} == {".html", ".svg", ".png"} and len(written) == 9


def test_bad_targets(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file; name an .html file or a folder"):
        check_target(tmp_path / "file")
    with pytest.raises(InputError, match="is in no folder that exists"):
        check_target(tmp_path / "no" / "r.html")
