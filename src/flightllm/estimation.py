"""How fast a model runs on a board, before there is one: time, bandwidth, resources, power."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flightllm.hardware import Board, as_config
from flightllm.spec.config import HwConfig
from flightllm.spec.errors import InputError
from flightllm.spec.formats import BLOCK
from flightllm.spec.isa import UNITS, Register

if TYPE_CHECKING:
    from flightllm.compiler.scheme import QuantOptions
    from flightllm.compiler.shape import ModelShape
    from flightllm.models.patterns import Pattern
    from flightllm.spec.image import Program
    from flightllm.spec.trace import TraceRecord

__all__ = ["Estimate", "Estimator", "estimate"]

EFFICIENCIES = (0.85, 0.90, 0.92)
"""Memory efficiencies at which decoding is shown where none was measured (HBM2e)."""
EXTRAPOLATION = 1e-3
"""Layers of a tile are alike when their times differ by no more than this share."""


@dataclass(frozen=True)
class Estimate:
    """What one estimate found; see docs/cli.md for the keys of `to_dict`.

    Members
    -------
    cycles : of one decoded token at the context, in a running sequence. bytes_per_token : that it
        must read. prefill_cycles : of each tile of the prompt, or empty. decode_seconds : of all
        tokens of a request, or None. counters : of each unit for that token, summed over cores.
    """

    model: str
    board: str
    config: HwConfig
    context: int
    cycles: int
    bytes_per_token: int
    counters: dict[str, int]
    prefill: int | None
    prefill_cycles: tuple[int, ...]
    prefill_macs: int
    decode: int | None
    decode_seconds: float | None
    by_efficiency: dict[float, float]
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decoded tokens a second at the context."""
        return self.config.clock_mhz * 1e6 / self.cycles

    @property
    def mbu(self) -> float:
        """Bytes that decoding must read over what the data sheet's peak would give."""
        return self.bytes_per_token * self.tokens_per_second / (self.config.memory.peak_gb_s * 1e9)

    @property
    def prefill_ms(self) -> float | None:
        """Milliseconds of the prompt."""
        if self.prefill is None:
            return None
        return sum(self.prefill_cycles) / self.config.clock_mhz / 1e3

    @property
    def prefill_mac_utilization(self) -> float | None:
        """Multiply-accumulates that the prompt needs over all that the array could do."""
        if self.prefill is None:
            return None
        array = self.config.macs_per_channel * sum(self.config.channels)
        return self.prefill_macs / (array * sum(self.prefill_cycles))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        from flightllm.calibration import model_error, outside
        from flightllm.power import board_power
        from flightllm.resources import resource_table

        config = self.config
        resources = resource_table(config)
        after = None if self.decode_seconds is None else round(1e3 * self.decode_seconds, 2)
        return {
            "model": self.model,
            "board": self.board,
            "context": self.context,
            "tokens_per_second": round(self.tokens_per_second, 2),
            "cycles_per_token": self.cycles,
            "bytes_per_token": self.bytes_per_token,
            "peak_bytes_per_second": round(config.memory.peak_gb_s * 1e9),
            "mbu": round(self.mbu, 4),
            "tokens_per_second_by_memory_efficiency": {
                f"{share:.2f}": round(rate, 2) for share, rate in self.by_efficiency.items()
            },
            "busy_cycles": {
                name.removesuffix(".busy"): round(cycles / config.cores)
                for name, cycles in self.counters.items()
                if name.endswith(".busy")
            },
            "prefill": self.prefill,
            "prefill_ms": None if self.prefill_ms is None else round(self.prefill_ms, 3),
            "prefill_mac_utilization": None
            if self.prefill_mac_utilization is None
            else round(self.prefill_mac_utilization, 4),
            "decode": self.decode,
            "decode_ms": after,
            "clock_mhz": config.clock_mhz,
            "resources": resources,
            "power": board_power(config, resources, self.bytes_per_token * self.tokens_per_second),
            "model_error_percent": model_error(),
            "outside_measured_range": outside(config),
            "notes": self.notes,
            "estimate_seconds": round(self.seconds, 2),
        }


class Estimator:
    """Compiles a shape once and runs it in time.

    Parameters
    ----------
    model : anything that compiles; of a checkpoint only the shape is used.
    board, options : as for `flightllm.compile`.
    """

    def __init__(self, model: str | Path, board: Board, **options: Any) -> None:
        from flightllm.compiler.build import build_shape
        from flightllm.compiler.scheme import QuantOptions
        from flightllm.compiler.shape_before import shape_before
        from flightllm.models.checkpoint import open_checkpoint

        self.config = as_config(board)
        self.options: QuantOptions = QuantOptions(**options)
        self.shape: ModelShape = shape_before(open_checkpoint(model), self.options)
        self._build = build_shape
        self.program: Program = build_shape(self.shape, self.config)

    def cycles(self, entry: str, registers: dict[Register, int], program: Program | None = None,
               efficiency: float | None = None) -> tuple[int, dict[str, int]]:  # fmt: skip
        """Cycles and counters of one run."""
        from flightllm.sim.cycle import CycleDevice

        device = CycleDevice(self.config, efficiency=efficiency)
        device.load(program or self.program)
        result = device.run(entry, registers)
        assert result.cycles is not None
        return result.cycles, dict(result.counters)

    def decode(self, context: int, efficiency: float | None = None) -> tuple[int, dict[str, int]]:
        """One token of a running sequence that sees `context` tokens, itself among them.

        Returns
        -------
        Cycles between the end of the token before and its own; counters of each unit for it,
        summed over cores: "mv.instructions", "mv.busy".
        """
        cycles, records = self._token(context, efficiency)
        counters = dict.fromkeys(
            (f"{unit.name.lower()}.{what}" for unit in UNITS for what in ("instructions", "busy")),
            0,
        )
        for record in records:
            counters[f"{record.unit}.instructions"] += 1
            counters[f"{record.unit}.busy"] += _end(record) - _start(record)
        return cycles, counters

    def trace(self, context: int) -> list[TraceRecord]:
        """What every unit does for that token; cycle 0 is the end of the token before, so that its
        first matrix, asked for ahead, is in negative ones."""
        return self._token(context)[1]

    def _token(self, context: int, efficiency: float | None = None
               ) -> tuple[int, list[TraceRecord]]:  # fmt: skip
        """Cycles and records of that token: the second of two in one run, as the first has nothing
        asked for ahead. A token without one before it is a run of its own."""
        from flightllm.sim.cycle import CycleDevice

        self._check(context)
        records: list[TraceRecord] = []
        device = CycleDevice(self.config, trace=records.append, efficiency=efficiency)
        device.load(self.program)
        steps = min(context, 2)
        result = device.run("decode", {
            Register.POS: context - steps, Register.NTOK: 1, Register.STEPS: steps,
            Register.LOGITS: 1,
        })  # fmt: skip
        if steps == 1:
            assert result.cycles is not None
            return result.cycles, records
        mine, ends = [], []
        for core in range(self.config.cores):
            own = [record for record in records if record.core == core]
            begin, first, second = _second_token(own)
            mine += [
                record for record in own
                if (record.unit == "ld" and begin <= _end(record) <= second)
                or first < _end(record) <= second
            ]  # fmt: skip
            ends.append((first, second))
        before, after = map(max, zip(*ends))
        return after - before, [
            dataclasses.replace(record, start=_start(record) - before, end=_end(record) - before)
            for record in mine
        ]

    def prefill(self, tokens: int) -> tuple[int, ...]:
        """Cycles of each tile of a prompt."""
        self._check(tokens)
        tile = self.config.prefill_tile
        return tuple(
            self._tile(start, min(tile, tokens - start), start + tile >= tokens)
            for start in range(0, tokens, tile)
        )

    def _tile(self, position: int, tokens: int, last: bool) -> int:
        registers = {
            Register.POS: position, Register.NTOK: tokens, Register.LOGITS: int(last),
        }  # fmt: skip
        layers = len(self.shape.layers)
        alike = zip(self.shape.layers, self.shape.patterns or ((),) * layers)
        if layers > 6 and len(list(itertools.groupby(alike))) == 1:
            few = [self._layers(count, registers) for count in (2, 3, 4)]
            first, second = few[1] - few[0], few[2] - few[1]
            if abs(first - second) <= EXTRAPOLATION * second:
                return few[2] + (layers - 4) * second
        return self.cycles("prefill", registers)[0]

    def _layers(self, count: int, registers: dict[Register, int]) -> int:
        """Cycles of the tile on the model's first layers."""
        key = f"_{count}_layers"
        if key not in self.__dict__:
            shape = dataclasses.replace(self.shape, layers=self.shape.layers[:count])
            length = self.program.model.max_length
            self.__dict__[key] = self._build(shape, self.config, max_length=length)
        return self.cycles("prefill", registers, self.__dict__[key])[0]

    def request(self, prompt: int, tokens: int) -> float:
        """Seconds of `tokens` decoded tokens behind a prompt: by the trapezoidal rule between
        contexts at most 256 apart."""
        self._check(prompt + tokens)
        points = sorted({prompt + 1, prompt + tokens, *range(prompt + 1, prompt + tokens, 256)})
        cycles = [self.decode(context)[0] for context in points]
        total = float(cycles[0])
        for a, b, low, high in zip(points, points[1:], cycles, cycles[1:]):
            total += sum(low + (high - low) * (k - a) / (b - a) for k in range(a + 1, b + 1))
        return total / (self.config.clock_mhz * 1e6)

    def bytes_per_token(self, context: int) -> int:
        """What one token must read: matrices with scales and indices, keys and values with their
        scales, one row of the embedding."""
        s = self.shape
        view = context if s.window is None else min(context, s.window)
        entry = s.head_dim * (s.key_bits + s.value_bits) // 8 + 4
        cache = len(s.layers) * s.kv_heads * entry * view
        return int(self.program.report["matrix_bytes"]) + cache + 2 * s.dim

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates of a prompt: causal attention, kept weights, the head once."""
        s = self.shape
        total = 0
        for layer in s.layers:
            for name, plan in layer.items():
                total += tokens * s.rows(name) * s.columns(name) * plan.fmt.kept // 16
        seen = sum(min(k, s.window or k) for k in range(1, tokens + 1)) * s.kv_heads
        for heads in s.patterns or (() for _ in s.layers):
            kept = sum(_kept(pattern, tokens) for pattern in heads) if heads else seen
            total += 2 * s.group_heads * s.head_dim * kept
        return total + s.rows("head") * s.columns("head")

    def _check(self, context: int) -> None:
        longest = self.program.model.max_length
        if not 1 <= context <= longest:
            raise InputError(
                f"{context} tokens are not 1 to {longest}, what {self.shape.name} has room for on "
                f"{self.config.name}"
            )


def _start(record: TraceRecord) -> int:
    """The cycle in which an instruction began."""
    assert record.start is not None
    return record.start


def _end(record: TraceRecord) -> int:
    """The cycle in which an instruction was done."""
    assert record.end is not None
    return record.end


def _second_token(records: Sequence[TraceRecord]) -> tuple[int, int, int]:
    """From when on a core's loads are the second token's, and when the first and the second token
    are done: when their largest logits are stored, the last thing that a pass of the program does.

    The loads begin with a layer's first matrix, behind all other matrices of the pass in the
    program; it is asked for once in a run of two tokens.
    """
    last = max(record.address for record in records if record.name == "st.vec")
    first, second = (_end(r) for r in records if r.address == last)
    matrices = [record for record in records if record.name == "ld.stream"]
    ahead = max(matrices, key=lambda record: record.address)
    once = sum(record.address == ahead.address for record in matrices) == 1
    return _end(ahead) if once else first, first, second


def _kept(pattern: Pattern, tokens: int) -> int:
    """Keys that the queries of a prompt see under a pattern, summed."""
    total = 0
    for block in range(-(-tokens // BLOCK)):
        own = range(block * BLOCK + 1, min(tokens, (block + 1) * BLOCK) + 1)
        left_out = max(0, block + 1 - pattern.first - pattern.last) * BLOCK
        total += sum(own) - left_out * len(own)
    return total


def estimate(model: str | Path, board: Board = "tiny", *, weights: str | None = None,
             kv: int | str = 8, head_bits: int = 8, sparsity: str = "none",
             attention_density: float = 1.0, context: int = 1024, prefill: int | None = None,
             decode: int | None = None) -> Estimate:  # fmt: skip
    """Estimate a model on a board.

    Parameters
    ----------
    model, board, weights, kv, head_bits, sparsity, attention_density : as for `flightllm.compile`;
        without calibration every head keeps the same blocks, the most that the density allows.
    context : tokens that the decoded token sees. prefill : tokens of a prompt, or None.
    decode : tokens that follow it, for the time of a whole request, or None.

    Raises
    ------
    InputError
        When the model does not fit the board, or the lengths do not fit the model.
    """
    began = time.perf_counter()
    made = Estimator(model, board, weights=weights, kv=kv, head_bits=head_bits, sparsity=sparsity,
                     attention_density=attention_density)  # fmt: skip
    cycles, counters = made.decode(context)
    tiles = made.prefill(prefill) if prefill else ()
    after = made.request(prefill or 0, decode) if decode else None
    rates = {}
    if made.config.memory.kind == "hbm2e":
        for share in EFFICIENCIES:
            rates[share] = made.config.clock_mhz * 1e6 / made.decode(context, share)[0]
    found = Estimate(
        made.shape.name, made.config.name, made.config, context, cycles,
        made.bytes_per_token(context), counters, prefill, tiles,
        made.macs(prefill) if prefill else 0, decode, after, rates, _notes(made.config),
    )  # fmt: skip
    return dataclasses.replace(found, seconds=time.perf_counter() - began)


def _notes(config: HwConfig) -> list[str]:
    notes = []
    if config.memory.kind == "hbm2e":
        notes.append("HBM2e: nothing is published; 90 % of the peak for a stream is assumed")
    if config.memory.kind == "ddr4":
        notes.append("DDR4: ports have a share of one memory; their conflicts are not modelled")
    return notes
