"""The back end in one call: shape, graph, fuse, tile, allocate, schedule, emit, link."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flightllm.compiler.allocate import Layout, allocate, fit_length
from flightllm.compiler.emit import emit, unrolled_words
from flightllm.compiler.fuse import fuse, verify_fused
from flightllm.compiler.graph import Graph, build_graph, verify_graph
from flightllm.compiler.ir import listing
from flightllm.compiler.link import fill, pieces
from flightllm.compiler.parameters import parameters
from flightllm.compiler.schedule import Schedule, schedule
from flightllm.compiler.scheme import QuantOptions
from flightllm.compiler.shape import ModelShape, shape_of
from flightllm.compiler.shape_before import shape_before
from flightllm.compiler.shape_only import shape_only
from flightllm.compiler.tile import CoreTile, tile
from flightllm.models.checkpoint import Checkpoint
from flightllm.models.config import ModelConfig
from flightllm.models.quantized import QuantModel
from flightllm.spec.config import HwConfig
from flightllm.spec.encoding import disassemble
from flightllm.spec.errors import InputError
from flightllm.spec.formats import kgroups_for, stream_bytes
from flightllm.spec.image import CoreCode, ModelFacts, Program, Segment

__all__ = [
    "build_before", "build_program", "build_shape", "build_shape_program", "length_schemes",
]  # fmt: skip

PREFILL_BUCKET, DECODE_BUCKET = 128, 16
"""Length buckets of the paper's artefact."""


@dataclass(frozen=True)
class _Backend:
    """What the passes made."""

    graph: Graph
    fused: Graph
    parts: list[CoreTile]
    layouts: list[Layout]
    schedules: list[Schedule]
    codes: list[CoreCode]


def _passes(shape: ModelShape, config: HwConfig, max_length: int | None) -> _Backend:
    graph = verify_graph(build_graph(shape))
    fused = verify_fused(verify_graph(fuse(graph)))
    parts = tile(shape, config)
    length, inner = fit_length(shape, parts, config, max_length)
    layouts = [allocate(shape, part, config, length, inner) for part in parts]
    params = [parameters(shape, layout, part) for layout, part in zip(layouts, parts)]
    schedules = [
        schedule(fused, shape, parts, core, layouts[core], params[core], config)
        for core in range(len(parts))
    ]
    codes = [emit(plan, words, config) for plan, words in zip(schedules, params)]
    return _Backend(graph, fused, parts, layouts, schedules, codes)


def weight_report(shape: ModelShape) -> dict[str, Any]:
    """Bytes and bits of the matrices: codes, scales, indices and head, before padding of shares."""
    total, weights, code_bits = 0, 0, 0
    plans = [*shape.layers, {"head": shape.head}]
    for layer in plans:
        for name, plan in layer.items():
            rows, columns = shape.rows(name), shape.columns(name)
            groups = kgroups_for(columns, plan.fmt.group)
            total += stream_bytes(plan.fmt, rows, groups, 1)[0]
            weights += rows * columns
            code_bits += 0 if name == "head" else rows * columns * plan.fmt.bits
    body = weights - shape.rows("head") * shape.columns("head")
    return {
        "matrix_bytes": total,
        "average_weight_bits": 8 * total / weights,
        "average_code_bits": code_bits / body,
    }


def length_schemes(shape: ModelShape, backend: _Backend, config: HwConfig) -> dict[str, int]:
    """Instruction bytes of the three ways to serve every length up to the maximum.

    adaptive: as emitted. bucketed: one straight-line stream per bucket (prefill to multiples of
    128, decode to multiples of 16), as the paper does. unrolled: one per length.
    """
    length = backend.layouts[0].max_length
    adaptive = sum(4 * (len(c.words) + len(c.params)) for c in backend.codes)
    sizes = {"adaptive": adaptive}
    for name, prefill_step, decode_step in (
        ("bucketed", PREFILL_BUCKET, DECODE_BUCKET), ("unrolled", 1, 1),
    ):  # fmt: skip
        sizes[name] = 4 * sum(
            _prefill_words(
                plan, layout, range(prefill_step, length + prefill_step, prefill_step),
                shape.group_heads,
            )
            + len(range(0, length, decode_step)) * unrolled_words(plan.decode, _ONE)
            for plan, layout in zip(backend.schedules, backend.layouts)
        )
    return sizes


_ONE = {"steps": 1, "logits": 1, "first": 0, "next": 0, "later": 1}
"""Of a decode program of one token; each layer asks for its own first matrix."""


def _prefill_words(plan: Schedule, layout: Layout, lengths: Sequence[int], group: int) -> int:
    """Words of straight-line prefill programs for each of `lengths`; where attention is
    block-sparse, as if every head kept two runs of blocks."""
    tokens, inner = layout.prefill_tile, layout.attention_tile

    def words(count: int) -> int:
        half = tokens // 2  # of a tile that goes through the layers in two
        rest = max(count - half, 0)
        loops = {"tiles": count, "tiles0": half, "tiles1": rest}
        counts = {name: -(-queries // inner) for name, queries in loops.items()}
        counts |= {"logits": 1, "both": min(rest, 1), "one": 1 - min(rest, 1)}
        counts |= {"first run": 1, "first runs": group}
        return unrolled_words(plan.prefill, counts)

    full, sizes, total = words(tokens), {}, 0
    for length in lengths:
        whole, rest = divmod(length, tokens)
        if rest not in sizes:
            sizes[rest] = words(rest) if rest else 0
        total += whole * full + sizes[rest]
    return total


def _program(shape: ModelShape, config: HwConfig, backend: _Backend, bos: int | None,
             eos: Sequence[int]) -> Program:  # fmt: skip
    segments: list[Segment] = []
    for layout in backend.layouts:
        segments += layout.memory.segments.values()
    length = backend.layouts[0].max_length
    facts = ModelFacts(
        shape.name, shape.vocab, length, bos, tuple(eos), len(shape.layers), shape.dim,
        shape.heads, shape.kv_heads, shape.head_dim, config.top_k,
        tuple((part.vocab.start, part.vocab.stop) for part in backend.parts),
    )  # fmt: skip
    schemes = length_schemes(shape, backend, config)
    held = {
        s.name: sum(t.size * config.channels[t.core] for t in segments if t.name == s.name)
        for s in segments
    }
    report = {
        **weight_report(shape),
        "weight_bytes": sum(held[name] for name in {s.name for s in segments if not s.writable}),
        "segment_bytes": held,
        "instruction_bytes_by_lengths": schemes,
        "model_max_length": shape.max_length,
        "attention_tile": backend.layouts[0].attention_tile,
    }
    return Program(config, facts, backend.codes, segments, report=report)


def _dump(folder: Path, shape: ModelShape, backend: _Backend) -> None:
    """Each stage as text."""
    folder.mkdir(parents=True, exist_ok=True)
    plans = "".join(
        f"layer {i} {name}: bits {p.fmt.bits} group {p.fmt.group} kept {p.fmt.kept}/16\n"
        for i, layer in enumerate([*shape.layers, {"head": shape.head}])
        for name, p in layer.items()
    )
    plans += "".join(
        f"layer {i} attention: {', '.join(map(str, heads))}\n"
        for i, heads in enumerate(shape.patterns)
    )
    stages = {
        "1-graph": str(backend.graph),
        "2-quantise": plans,
        "3-fuse": str(backend.fused),
        "4-tile": "".join(f"{part}\n" for part in backend.parts),
        "5-allocate": "\n".join(str(layout) for layout in backend.layouts) + "\n",
    }
    for core, (plan, code) in enumerate(zip(backend.schedules, backend.codes)):
        stages[f"6-schedule-core{core}"] = (
            f"prefill\n{listing(plan.prefill)}\ndecode\n{listing(plan.decode)}"
        )
        stages[f"7-emit-core{core}"] = disassemble(code.words.tolist())
    for name, text in stages.items():
        (folder / f"{name}.txt").write_text(text)


def build_shape(shape: ModelShape, config: HwConfig, bos: int | None = None,
                eos: Sequence[int] = (), max_length: int | None = None,
                dump: Path | None = None) -> Program:  # fmt: skip
    """Compile a shape: instructions and a manifest, no weight image.

    Raises
    ------
    InputError
        When the model does not fit the hardware.
    """
    if max_length is not None and not 1 <= max_length <= shape.max_length:
        raise InputError(f"--max-length: {max_length} is not 1 to the model's {shape.max_length}")
    backend = _passes(shape, config, max_length)
    if dump:
        _dump(dump, shape, backend)
    return _program(shape, config, backend, bos, eos)


def build_program(model: QuantModel, config: HwConfig, name: str, bos: int | None = None,
                  eos: Sequence[int] = (), max_length: int | None = None,
                  dump: Path | None = None) -> Program:  # fmt: skip
    """Compile a quantised model; the image is made when it is asked for.

    Parameters
    ----------
    max_length : tokens the KV cache must hold; None takes the most that fits.
    dump : folder for the text of each stage.
    """
    shape = shape_of(model, name)
    if max_length is not None and not 1 <= max_length <= shape.max_length:
        raise InputError(f"--max-length: {max_length} is not 1 to the model's {shape.max_length}")
    backend = _passes(shape, config, max_length)
    if dump:
        _dump(dump, shape, backend)
    program = _program(shape, config, backend, bos, eos)
    return dataclasses.replace(
        program,
        image=fill(model, shape, backend.parts, backend.layouts),
        pieces=pieces(model, shape, backend.parts, backend.layouts),
    )  # fmt: skip


def build_shape_program(config: ModelConfig, options: QuantOptions, hw: HwConfig,
                        max_length: int | None = None,
                        dump: Path | None = None) -> Program:  # fmt: skip
    """Compile a model of which only the configuration is known (see `shape_only`)."""
    shape = shape_only(config, options)
    return build_shape(shape, hw, config.bos, config.eos, max_length, dump)


def build_before(checkpoint: Checkpoint, options: QuantOptions, hw: HwConfig,
                 max_length: int | None = None) -> Program:  # fmt: skip
    """What a checkpoint will compile to, before its weights are read (see `shape_before`)."""
    shape, config = shape_before(checkpoint, options), checkpoint.config
    return build_shape(shape, hw, config.bos, config.eos, max_length)
