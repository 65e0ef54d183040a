"""What quantisation did, pass by pass: bits spent, errors made, widths chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flightllm.models.quantized import QuantModel
from flightllm.spec.quant import QuantTensor

__all__ = ["MatrixReport", "PassReport", "QuantReport", "average_bits", "pass_reports",
           "pruned_bits", "stored_bits"]  # fmt: skip


@dataclass(frozen=True)
class MatrixReport:
    """One matrix.

    Members
    -------
    name : "layers.3.down" or "head". rows, columns, bits, group, kept : its format.
    error : relative root-mean-square error, of its outputs on text held out from calibration, or
        of its weights where nothing was calibrated. stored_bits : of codes, scales and indices.
    """

    name: str
    rows: int
    columns: int
    bits: int
    group: int
    kept: int
    error: float
    stored_bits: float


@dataclass(frozen=True)
class PassReport:
    """What one pass changed, measured on the calibration text that was held out.

    Members
    -------
    name : "vectors", "values", "keys", "scale", "smooth k", "prune", "round", "recover" or
        "attention".
    method : how, "awq".
    bits : stored bits a weight after it, all matrices together. bytes : of all matrices.
    errors : relative error of the residual stream after each layer, empty without calibration.
    before, after : perplexity, None without calibration.
    """

    name: str
    method: str
    bits: float
    bytes: float
    errors: tuple[float, ...] = ()
    before: float | None = None
    after: float | None = None

    def __str__(self) -> str:
        line = f"pass {self.name} ({self.method}): {self.bits:.3f} bits, {self.bytes:,.0f} bytes"
        if self.before is not None and self.after is not None:
            line += f", perplexity {self.before:.4f} -> {self.after:.4f}"
        if self.errors:
            line += ", errors " + " ".join(f"{error:.4f}" for error in self.errors)
        return line


@dataclass
class QuantReport:
    """The whole model.

    Members
    -------
    scheme, sparsity, calibration : what was asked for, and the text that was used.
    matrices, passes : in data-flow order. residual_errors : relative error of the residual stream
        after each layer, on held-out text. divergence : mean Kullback-Leibler divergence (nats a
        token) of the quantised model from the float one on that text; top1_agreement : share of
        tokens where both prefer the same one. None without calibration.
    code_bits : average bits of the layers' codes (what a mixed scheme's number means).
    average_weight_bits : codes, scales and indices of all matrices, head included, by weights.
    attention : the patterns of block-sparse attention, empty where it is dense.
    notes : everything a user should know.
    """

    scheme: str
    sparsity: str
    calibration: str
    matrices: list[MatrixReport] = field(default_factory=list)
    passes: list[PassReport] = field(default_factory=list)
    residual_errors: list[float] = field(default_factory=list)
    divergence: float | None = None
    top1_agreement: float | None = None
    code_bits: float = 0.0
    average_weight_bits: float = 0.0
    attention: str = ""
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"quantise {self.scheme}, sparsity {self.sparsity}, calibration: {self.calibration}",
            f"  {self.code_bits:.3f} bits a code in the layers,"
            f" {self.average_weight_bits:.3f} stored bits a weight in all",
        ]
        lines += [
            f"  {m.name:16} {m.rows:6}x{m.columns:<6} w{m.bits}g{m.group}"
            f"{'' if m.kept == 16 else f' {m.kept}:16'} error {m.error:.5f}"
            for m in self.matrices
        ]
        lines += [f"  {one}" for one in self.passes]
        lines += [
            f"  layer {i}: residual error {error:.5f}"
            for i, error in enumerate(self.residual_errors)
        ]
        if self.divergence is not None and self.top1_agreement is not None:
            lines.append(
                f"  held-out text: divergence {self.divergence:.6f} nats a token,"
                f" top-1 agreement {self.top1_agreement:.2%}"
            )
        lines += [f"  {line}" for line in self.attention.splitlines()]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines) + "\n"


def _index_bits(rows: int, columns: int, kept: int, private: bool) -> int:
    index_rows = rows if private else (rows + 1) // 2
    return index_rows * -(-columns // 16) * (4 * kept if kept == 2 else 16)


def stored_bits(tensor: QuantTensor) -> float:
    """Bits of codes, scales, minima, zero points and sparse indices, without alignment."""
    rows, columns = tensor.shape
    codes = rows * columns if tensor.mask is None else int(tensor.mask.sum())
    seconds = sum(part is not None for part in (tensor.minima, tensor.zeros))
    bits = codes * tensor.bits + tensor.scales.size * 16 * (1 + seconds)
    if tensor.mask is not None:
        bits += _index_bits(rows, columns, tensor.kept, tensor.private)
    return float(bits)


def pruned_bits(rows: int, columns: int, kept: int, private: bool) -> float:
    """Bits of a matrix that is pruned and not rounded: fp16 values, and where they are."""
    if kept == 16:
        return 16.0 * rows * columns
    whole, rest = divmod(columns, 16)
    values = rows * (whole * kept + min(kept, rest))
    return 16.0 * values + _index_bits(rows, columns, kept, private)


def pass_reports(
    methods: Mapping[str, str], bits: Mapping[str, float], weights: int,
    errors: Mapping[str, Sequence[float]], perplexities: Mapping[str, float | None],
) -> list[PassReport]:  # fmt: skip
    """The report of each step but the first.

    Parameters
    ----------
    methods : of each pass by its name, in order. bits : stored bits of all matrices after each.
    weights : of all matrices. errors, perplexities : see `flightllm.compiler.ladder.Ladder`; the
        first entry is what the first pass starts from.
    """
    before = next(iter(perplexities.values()), None)
    made = []
    for name, method in methods.items():
        after = perplexities.get(name)
        size = bits[name]
        made.append(
            PassReport(name, method, size / weights, size / 8, tuple(errors.get(name, ())),
                       before, after)
        )  # fmt: skip
        before = after
    return made


def _tensors(model: QuantModel) -> list[QuantTensor]:
    """The layers' matrices."""
    return [
        part.weight
        for layer in model.layers
        for name in ("q", "k", "v", "o", "gate", "up", "down")
        if (part := getattr(layer, name)) is not None
    ]


def average_bits(model: QuantModel) -> tuple[float, float]:
    """Average bits of the layers' codes, and of all that is stored for all matrices, by weight."""
    tensors = _tensors(model)
    size = sum(t.levels.size for t in tensors)
    codes = sum(t.levels.size * t.bits for t in tensors) / size
    total = sum(map(stored_bits, [*tensors, model.head.weight]))
    return codes, total / (size + model.head.weight.levels.size)
