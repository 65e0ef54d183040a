"""Whether a model will run on a board: what, where, why not, and what to change."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flightllm.hardware import Board, as_config
from flightllm.operators import Finding, of_codes, of_config, of_graph
from flightllm.prompts import tokenizer_of
from flightllm.spec.config import HwConfig, load_config, preset_names
from flightllm.spec.errors import InputError

if TYPE_CHECKING:
    from flightllm.compiler.scheme import QuantOptions
    from flightllm.compiler.shape import ModelShape
    from flightllm.models.checkpoint import Checkpoint
    from flightllm.spec.image import Program

__all__ = ["CheckReport", "Finding", "check"]


@dataclass(frozen=True)
class CheckReport:
    """Everything that was looked at.

    Members
    -------
    findings : in the order of the way from checkpoint to tokens. changes : what would help.
    program : the shape compiled for the board, None where it does not fit.
    """

    findings: list[Finding]
    changes: list[str]
    program: Program | None

    @property
    def ok(self) -> bool:
        """Whether the model will run on the board."""
        return all(finding.ok for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values: dict[str, Any] = {
            "ok": self.ok, "findings": [asdict(f) for f in self.findings], "changes": self.changes,
        }  # fmt: skip
        if self.program is not None:
            values["max_length"] = self.program.model.max_length
            values["instruction_bytes"] = self.program.instruction_bytes
            values["segment_bytes"] = self.program.report["segment_bytes"]
            values["weight_bytes"] = self.program.report["weight_bytes"]
        return values


def check(model: str | Path, board: Board = "tiny", **options: Any) -> CheckReport:
    """Look at everything that compiling and running would need, without quantising.

    Parameters
    ----------
    model, board, options : as for `flightllm.compile` (`weights`, `kv`, `head_bits`, `sparsity`,
        `attention_density`, `max_length`).

    Raises
    ------
    InputError
        When the model or the board cannot be read at all, or an option is none.
    """
    from flightllm.compiler.scheme import QuantOptions
    from flightllm.models.checkpoint import open_checkpoint

    config = as_config(board)
    max_length = options.pop("max_length", None)
    wanted = QuantOptions(**options)
    operators = of_graph(Path(model))
    if not all(finding.ok for finding in operators):
        return CheckReport(operators, [], None)
    try:
        checkpoint = open_checkpoint(model)
    except InputError as error:
        if not operators:
            raise
        return CheckReport([*operators, Finding("decoder", False, str(error))], [], None)
    operators = operators or of_config(checkpoint.config)
    findings = [*operators, _model(checkpoint), _weights(checkpoint)]
    findings += [*of_codes(checkpoint, wanted), _tokenizer(checkpoint)]
    findings += [Finding("note", True, text) for text in checkpoint.notes]
    shapes = _Shapes(checkpoint)
    program, fit = _fit(shapes, wanted, config, max_length)
    findings.append(fit)
    changes = list[str]()
    if program is None:
        changes = list(_changes(shapes, wanted, config, max_length))
    elif wanted.kept != 16:
        findings.append(_sparsity(shapes, wanted, config, program))
    return CheckReport(findings, changes, program)


def _model(checkpoint: Checkpoint) -> Finding:
    from flightllm.compiler.shape_only import check_supported

    facts = checkpoint.config
    try:
        check_supported(facts)
    except InputError as error:
        return Finding("model", False, str(error))
    return Finding(
        "model", True,
        f"{facts.family}, {facts.parameters:,} parameters, {facts.layers} layers,"
        f" context {facts.max_length:,}",
    )  # fmt: skip


def _weights(checkpoint: Checkpoint) -> Finding:
    if checkpoint.shape_only:
        text = "none: compiles to instructions, but cannot run; give a folder that holds them"
    else:
        text = f"{len(checkpoint.readers)} tensors of the right shapes"
        if checkpoint.code_readers:
            text += f", {len(checkpoint.code_readers)} of them quantised"
    return Finding("weights", True, text)


def _tokenizer(checkpoint: Checkpoint) -> Finding:
    try:
        tokenizer = tokenizer_of(checkpoint)
    except InputError as error:
        return Finding("tokenizer", False, str(error))
    if tokenizer is None:
        return Finding("tokenizer", True, "none: prompts are token ids")
    return Finding("tokenizer", True, f"{tokenizer.vocab:,} ids")


class _Shapes:
    """A checkpoint's shape under some options, told once for each kind of weights."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.facts = checkpoint, checkpoint.config
        self._known: dict[QuantOptions, ModelShape] = {}

    def compiled(self, options: QuantOptions, config: HwConfig, max_length: int | None) -> Program:
        from flightllm.compiler.build import build_shape
        from flightllm.compiler.shape_before import shape_before

        weights = dataclasses.replace(options, kv=8)
        if weights not in self._known:
            self._known[weights] = shape_before(self.checkpoint, weights)
        key, value = options.kv_bits
        shape = dataclasses.replace(self._known[weights], key_bits=key, value_bits=value)
        return build_shape(shape, config, self.facts.bos, self.facts.eos, max_length)


def _fit(
    shapes: _Shapes, options: QuantOptions, config: HwConfig, max_length: int | None
) -> tuple[Program | None, Finding]:
    try:
        program = shapes.compiled(options, config, max_length)
    except InputError as error:
        return None, Finding(f"board {config.name}", False, str(error))
    length = program.model.max_length
    used = [
        sum(segment.size for segment in program.segments if segment.core == core)
        for core in range(config.cores)
    ]
    text = (
        f"{length:,} tokens, {max(used) / 2**20:.1f} of {config.memory.channel_mib} MiB a channel,"
        f" {program.instruction_bytes:,} instruction bytes"
    )
    if length < (max_length or shapes.facts.max_length):
        text += f"; the model's {shapes.facts.max_length:,} tokens do not fit its memory"
    return program, Finding(f"board {config.name}", True, text)


def _changes(
    shapes: _Shapes, options: QuantOptions, config: HwConfig, max_length: int | None
) -> Iterator[str]:
    """What would make a model fit, by trying."""
    for label, other in (
        ("--kv 8/4", dataclasses.replace(options, kv="8/4")),
        ("--kv 4", dataclasses.replace(options, kv=4)),
        ("--weights w3.5g128", dataclasses.replace(options, weights="w3.5g128")),
        ("--weights w2g128", dataclasses.replace(options, weights="w2g128")),
        ("--weights w2g128 --kv 4", dataclasses.replace(options, weights="w2g128", kv=4)),
    ):
        length = _length(shapes, other, config, None)
        if length:
            yield f"{label} serves {length:,} tokens on this board"
    for name in preset_names():
        length = _length(shapes, options, load_config(name), max_length)
        if length:
            yield f"--board {name} serves {length:,} tokens"


def _length(
    shapes: _Shapes, options: QuantOptions, config: HwConfig, max_length: int | None
) -> int:
    try:
        return shapes.compiled(options, config, max_length).model.max_length
    except InputError:
        return 0


def _sparsity(
    shapes: _Shapes, options: QuantOptions, config: HwConfig, program: Program
) -> Finding:
    """Whether the mask's bits cost more than the weights that it drops."""
    dense = shapes.compiled(
        dataclasses.replace(options, sparsity="none"), config, program.model.max_length
    ).report["matrix_bytes"]
    ratio = dense / program.report["matrix_bytes"]
    text = f"{ratio:.2f} times fewer weight bytes than dense"
    if ratio <= 1.05:
        text = f"{options.sparsity} saves nothing at these widths ({text}): leave it out"
    return Finding("sparsity", ratio > 1.05, text)
