"""What `check` says of a model's operators and of a checkpoint's own codes, one by one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flightllm.compiler.scheme import QuantOptions
    from flightllm.models.checkpoint import Checkpoint
    from flightllm.models.config import ModelConfig

__all__ = ["Finding", "of_codes", "of_config", "of_graph"]

_ACTIVATIONS = {
    "silu": ("SiLU", ""), "relu": ("ReLU", ""), "gelu": ("GELU", ", in its tanh form"),
    "gelu_erf": ("GELU", ", computed in its tanh form"),
}  # fmt: skip
_SHOWN = 3
"""Names of matrices that a row lists."""
_REMEDIES = {
    "act-order": "quantise without act-order (desc_act) to keep the width",
    "groups of": "quantise with groups of 32, 64 or 128 columns to keep the width",
    "levels": "quantise 8 bits symmetrically to keep the codes",
    "centred": "this costs bytes, not accuracy",
}
"""What to do where codes cannot stay, by a word of the reason."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `what`, whether it is all right, and why or why not."""

    what: str
    ok: bool
    detail: str


def of_graph(path: Path) -> list[Finding]:
    """Of an exported graph, each operator; of those not supported each node, why, and a remedy.

    Gives nothing for files of another kind.
    """
    from flightllm.models.checkpoint import open_graph
    from flightllm.models.graph_structure import unsupported

    graph = open_graph(path) if path.is_file() else None
    if graph is None:
        return []
    missing = unsupported(graph)
    wrong = [
        Finding(f"operator {node.called}", False, f"node {node.name!r} is not supported: {remedy}")
        for node, remedy in missing
    ]
    names = {node.called for node, _ in missing}
    found = [
        Finding(f"operator {name}", True, _nodes(count))
        for name, count in sorted(graph.counts().items())
        if name not in names
    ]
    return found + wrong


def _nodes(count: int) -> str:
    return f"{count} node{'s' if count > 1 else ''}"


def of_config(facts: ModelConfig) -> list[Finding]:
    """Of a model that its configuration describes, each operator: how often, and in what form."""
    return [Finding(f"operator {name}", True, detail) for name, detail in _described(facts)]


def _described(facts: ModelConfig) -> Iterator[tuple[str, str]]:
    layers = facts.layers
    each = _nodes(layers)
    yield "Embedding", f"1 node: {facts.vocab:,} ids" + (", the head as well" if facts.tied else "")
    if facts.learned_positions:
        yield "Positions", f"1 node: {facts.max_length:,} learned ones"
    norm = "RMSNorm" if facts.norm == "rms" else "LayerNorm"
    how = "" if facts.norm == "rms" else ", computed as RMSNorm with the matrices before it centred"
    yield norm, f"{_nodes(2 * layers + 1)}: epsilon {facts.norm_eps:g}{how}"
    biased = [
        name for name, there in (("query, key, value", facts.qkv_bias), ("output", facts.o_bias),
                                 ("MLP", facts.mlp_bias)) if there
    ]  # fmt: skip
    count = layers * (7 if facts.gated else 6) + 1
    yield "Linear", _nodes(count) + (f": biases of {', '.join(biased)}" if biased else "")
    if facts.rope is not None:
        kind = "" if facts.rope.kind == "default" else f", {facts.rope.kind} scaling"
        yield "RoPE", f"{each}: {facts.head_dim} numbers a head{kind}"
    window = "" if facts.window is None else f", a window of {facts.window:,} tokens"
    yield (
        "Attention",
        (f"{each}: {facts.heads} query heads on {facts.kv_heads} of key and value{window}"),
    )
    name, form = _ACTIVATIONS[facts.activation]
    yield name, f"{each}{', times a second matrix' if facts.gated else ''}{form}"


def of_codes(checkpoint: Checkpoint, options: QuantOptions) -> list[Finding]:
    """What of a checkpoint's own codes stays as it is, and what does not: matrices, why, remedy."""
    from flightllm.compiler.as_is import FALLBACK

    if options.scheme(bool(checkpoint.code_readers)) is not None or not checkpoint.code_readers:
        return []
    fates: dict[str, list[str]] = {}
    for reader in checkpoint.code_readers:
        name = reader.removesuffix(".weight")
        if name != "embed":
            fates.setdefault(_fate(checkpoint, name, options), []).append(name)
    total, kept = sum(map(len, fates.values())), len(fates.pop("", []))
    out = [Finding("codes", True, f"{kept} of {total} quantised matrices stay as they are")]
    for why, names in fates.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        verb = "become" if len(names) > 1 else "becomes"
        remedy = next((f"; {text}" for word, text in _REMEDIES.items() if word in why), "")
        text = f"{', '.join(names[:_SHOWN])}{more} {verb} {FALLBACK}: {why}{remedy}"
        out.append(Finding("codes", True, text))
    return out


def _fate(checkpoint: Checkpoint, name: str, options: QuantOptions) -> str:
    """Why a matrix' codes cannot stay, empty when they can."""
    from flightllm.compiler.as_is import obstacle, obstacle_of_kind, unwanted

    why = unwanted(name, checkpoint.config, options)
    if why is None:
        kind = checkpoint.code_kind(f"{name}.weight")
        if kind is not None:
            why = obstacle_of_kind(kind)
        else:
            codes = checkpoint.codes(f"{name}.weight")
            why = None if codes is None else obstacle(codes)
    return re.sub(r"^levels -?\d+ to -?\d+ are", "some levels are", why or "")
