"""The report of one or more compressions: a page of its own, or a folder of pictures around it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from flightllm.compiler.pictures import PICTURES, Run, png, svg
from flightllm.compiler.quant_report import PassReport, QuantReport
from flightllm.spec.errors import InputError

__all__ = ["check_target", "label", "page", "write_report"]

_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-size: 13px; margin: 0.5rem 0 1.5rem }
th, td { padding: 0.15rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left }
svg { max-width: 100%; height: auto }"""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in rows)
    return f"<table>\n{row(head, 'th')}\n{body}\n</table>"


def label(report: QuantReport) -> str:
    """What a run is called: "w4g32 8:16"."""
    return report.scheme if report.sparsity == "none" else f"{report.scheme} {report.sparsity}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _pass_row(one: PassReport) -> list[str]:
    error = one.errors[-1] if one.errors else None
    return [
        one.name, one.method, f"{one.bits:.3f}", f"{one.bytes:,.0f}", _number(error),
        _number(one.before), _number(one.after),
    ]  # fmt: skip


def _run(run: Run) -> str:
    """A run's tables."""
    report = run.report
    parts = [
        f"<h2>{escape(run.label)}</h2>",
        f"<p>Weights {escape(report.scheme)}, sparsity {escape(report.sparsity)}, calibration:"
        f" {escape(report.calibration)}. {report.code_bits:.3f} bits a code in the layers,"
        f" {report.average_weight_bits:.3f} stored bits a weight in all.</p>",
    ]
    if run.perplexity is not None:
        exact = "" if run.float_perplexity is None else f" (float: {run.float_perplexity:.4f})"
        parts.append(f"<p>Perplexity of the evaluated text: {run.perplexity:.4f}{exact}.</p>")
    parts += [
        _table(
            ("pass", "how", "bits", "bytes", "error after the last layer", "perplexity before",
             "after"),
            map(_pass_row, report.passes),
        ),
        "<details><summary>Every matrix</summary>",
        _table(
            ("matrix", "size", "bits", "group", "kept of 16", "bytes", "error"),
            (
                [m.name, f"{m.rows} x {m.columns}", str(m.bits), str(m.group), str(m.kept),
                 f"{m.stored_bits / 8:,.0f}", f"{m.error:.5f}"]
                for m in report.matrices
            ),
        ),
        "</details>",
    ]  # fmt: skip
    parts += [f"<p>Note: {escape(note)}.</p>" for note in report.notes]
    return "\n".join(parts)


def page(title: str, runs: Sequence[Run]) -> str:
    """The page: pictures within it, nothing loaded from elsewhere."""
    pictures = [f"<figure>\n{svg(draw(runs))}\n</figure>" for draw in PICTURES.values()]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f"<title>{escape(title)}</title>\n<style>\n{_STYLE}\n</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            "<p>Errors, and perplexities of passes, are of calibration text that was held out.</p>",
            *pictures,
            *map(_run, runs),
            "</body></html>\n",
        ]
    )


def check_target(path: str | Path) -> None:
    """Refuse, before any work, what `write_report` would refuse at the end.

    Raises
    ------
    InputError : when the file's folder is not there, or a file stands where a folder is wanted.
    ImportError : without matplotlib.
    """
    import matplotlib.figure  # noqa: F401  # the caller wants to know now

    path = Path(path)
    if path.suffix == ".html":
        if not path.absolute().parent.is_dir():
            raise InputError(f"report: {path} is in no folder that exists")
    elif path.is_file():
        raise InputError(f"report: {path} is a file; name an .html file or a folder")


def write_report(path: str | Path, title: str, runs: Sequence[Run]) -> list[Path]:
    """Write what was done to a model.

    Parameters
    ----------
    path : a file that ends in .html, which gets the page; or a folder, which gets the page as
        index.html and each picture as SVG and PNG. title : of the page. runs : one at least.

    Returns
    -------
    The files written; each is replaced whole or not at all.

    Raises
    ------
    InputError : see `check_target`.
    """
    check_target(path)
    path = Path(path)
    if path.suffix == ".html":
        return [_write(path, page(title, runs).encode())]
    path.mkdir(parents=True, exist_ok=True)
    written = [_write(path / "index.html", page(title, runs).encode())]
    for name, draw in PICTURES.items():
        figure = draw(runs)
        written.append(_write(path / f"{name}.svg", svg(figure).encode()))
        written.append(_write(path / f"{name}.png", png(figure)))
    return written


def _write(path: Path, contents: bytes) -> Path:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(contents)
    os.replace(partial, path)
    return path
