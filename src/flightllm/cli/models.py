"""`flightllm models`: the models known by name."""

from __future__ import annotations

from flightllm.cli.options import Json
from flightllm.cli.output import print_json, table

__all__ = ["models"]


def models(json: Json = False) -> None:
    """List the models known by name; all but demo are shapes without weights."""
    from flightllm.models import zoo

    rows = []
    for name in zoo.names():
        config = zoo.shape(name)
        rows.append({
            "name": name, "family": config.family, "parameters": config.parameters,
            "layers": config.layers, "dim": config.dim, "heads": config.heads,
            "kv_heads": config.kv_heads, "vocab": config.vocab, "max_length": config.max_length,
            "weights": zoo.weights_folder(name) is not None,
        })  # fmt: skip
    if json:
        print_json({"models": rows})
        return
    columns = list(rows[0])
    shown = [[*list(row.values())[:-1], "yes" if row["weights"] else "no"] for row in rows]
    table(columns, shown)
