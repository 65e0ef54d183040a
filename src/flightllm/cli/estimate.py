"""`flightllm estimate`: time, bandwidth, resources and power of a model on a board."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flightllm.cli.options import (
    AttentionDensity,
    Board,
    HeadBits,
    Json,
    Kv,
    Model,
    Sparsity,
    Weights,
)
from flightllm.cli.output import facts, note, print_json, table

__all__ = ["estimate"]


def estimate(
    model: Model,
    board: Board = "tiny",
    weights: Weights = None,
    kv: Kv = "8",
    head_bits: HeadBits = 8,
    sparsity: Sparsity = "none",
    attention_density: AttentionDensity = 1.0,
    context: Annotated[int, typer.Option(help="Tokens that the decoded token sees.")] = 1024,
    prefill: Annotated[int | None, typer.Option(help="Tokens of a prompt to time.")] = None,
    decode: Annotated[
        int | None, typer.Option(help="Tokens to decode behind the prompt, for a whole request.")
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Folder for a roofline and token/s against context (SVG).")
    ] = None,
    json: Json = False,
) -> None:
    """Time, bandwidth, resources and power, from the cycle model; each with its error."""
    from flightllm import estimation

    found = estimation.estimate(
        model, board, weights=weights, kv=kv, head_bits=head_bits, sparsity=sparsity,
        attention_density=attention_density, context=context, prefill=prefill, decode=decode,
    )  # fmt: skip
    values = found.to_dict()
    if plots is not None:
        from flightllm.plots import draw_context, draw_roofline

        options = {
            "weights": weights, "kv": kv, "head_bits": head_bits, "sparsity": sparsity,
            "attention_density": attention_density,
        }  # fmt: skip
        for path in (
            draw_context(plots / "context.svg", model, board, options, found),
            draw_roofline(plots / "roofline.svg", found),
        ):
            note(f"wrote {path}")
    if json:
        print_json(values)
    else:
        _print(values)


def _print(values: dict[str, Any]) -> None:
    resources, power = values["resources"], values["power"]
    error = values["model_error_percent"]
    facts({
        "decode": f"{values['tokens_per_second']:.1f} token/s at context {values['context']}, "
        f"{values['cycles_per_token']:,} cycles at {values['clock_mhz']:g} MHz",
        "reads": f"{values['bytes_per_token'] / 1e9:.3f} GB a token, "
        f"{100 * values['mbu']:.1f} % of the memory's peak",
        **_rates(values["tokens_per_second_by_memory_efficiency"]),
        **_request(values),
        "model error": "unknown: gateware or model changed since the last calibration"
        if error is None else f"{error:.2f} % in total cycles over the measured programs",
        "not measured": ", ".join(values["outside_measured_range"]) or "nothing",
        "power": "-" if power is None else
        f"{power['watts']} W, between {power['low']} and {power['high']} W (a coarse model)",
    })  # fmt: skip
    rows = [
        [kind, entry["used"], entry["available"] or "-", entry["percent"] or "-",
         ", ".join(str(die["percent"]) for die in entry.get("slrs", []))]
        for kind, entry in resources.items()
    ]  # fmt: skip
    table(["resource", "used", "available", "percent", "by die"], rows)
    for text in values["notes"]:
        note(text)


def _rates(rates: dict[str, float]) -> dict[str, str]:
    if not rates:
        return {}
    return {"by efficiency": ", ".join(f"{rate:.1f} token/s at {s}" for s, rate in rates.items())}


def _request(values: dict[str, Any]) -> dict[str, str]:
    out = {}
    if values["prefill"]:
        out["prefill"] = (
            f"{values['prefill_ms']:.1f} ms for {values['prefill']} tokens, "
            f"{100 * values['prefill_mac_utilization']:.1f} % of the array's multiply-accumulates"
        )
    if values["decode"]:
        out["request"] = f"{values['decode_ms']:.0f} ms for {values['decode']} decoded tokens"
    return out
