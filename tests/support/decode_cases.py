"""Matrices for the decode unit, the slices they must give, and a unit with one input stream."""

from __future__ import annotations

from typing import Any

import numpy as np
from amaranth.hdl import Module
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.decode import Command, DecodeUnit, Slice
from flightllm.spec import formats
from flightllm.spec.formats import MatrixFormat, Second

__all__ = ["DecodeBench", "command_row", "expected", "rows_of", "slice_arrays", "twins"]


def rows_of(payload: bytes | Any, beat_bytes: int) -> Any:
    """Operand rows of a channel's bytes: one beat each."""
    words = np.frombuffer(bytes(payload), np.uint32).reshape(-1, beat_bytes // 4)
    out = np.zeros((len(words), words_of(beat_bytes)), np.uint32)
    out[:, : beat_bytes // 4] = words
    return out


def words_of(beat_bytes: int) -> int:
    return max(beat_bytes, 32) // 4 + 1


def command_row(fmt: MatrixFormat, pairs: int, kgroups: int, beat_bytes: int,
                sums: bool = False, table: Any = None, word: int | None = None,
                twin: bool = False, singles: int = 0) -> Any:  # fmt: skip
    """The operand row of a command."""
    levels = [0] * 16 if table is None else [v & 255 for v in table] + [0] * (16 - len(table))
    value, at = 0, 0
    widths = [sum(bits for _, bits in MatrixFormat.fields()), 1, 1, 4, 18, 16]
    fields = (fmt.word if word is None else word, int(sums), int(twin), singles, pairs, kgroups)
    for field, bits in zip(fields, widths):
        value |= field << at
        at += bits
    for level in levels:
        value |= level << at
        at += 8
    row = np.zeros((1, words_of(beat_bytes)), np.uint32)
    row[0, :6] = np.frombuffer(value.to_bytes(24, "little"), np.uint32)
    row[0, -1] = 1
    return row


class DecodeBench(wiring.Component):
    """A decode unit whose commands and beats come in one stream, the last word telling which.

    Commands wait in a queue, so that one may come ahead of its matrix.
    """

    def __init__(self, unit: DecodeUnit) -> None:
        self.unit = unit
        width = 8 * max(unit.beat_bytes, 32)
        super().__init__({
            "i": In(stream.Signature(data.StructLayout({"data": width, "command": 32}))),
            "o": Out(stream.Signature(Slice(unit.k_lanes, unit.twin))),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.unit = unit = self.unit
        m.submodules.queue = queue = fifo.SyncFIFOBuffered(
            width=data.Layout.cast(Command).size, depth=4
        )
        payload, command = self.i.payload, self.i.payload.command[0]
        m.d.comb += [
            queue.w_data.eq(payload.data),
            queue.w_en.eq(self.i.valid & command),
            unit.beats.payload.eq(payload.data),
            unit.beats.valid.eq(self.i.valid & ~command),
            self.i.ready.eq((command & queue.w_rdy) | (~command & unit.beats.ready)),
            unit.commands.payload.eq(queue.r_data),
            unit.commands.valid.eq(queue.r_rdy),
            queue.r_en.eq(unit.commands.ready),
        ]
        wiring.connect(m, unit.slices, wiring.flipped(self.o))
        return m


FIELDS = ("span", "dense", "rows", "sums", "again", "first", "last", "final")


def slice_arrays(words: Any, k_lanes: int, twin: bool = False) -> dict[str, Any]:
    """The fields of output rows; of twin slices codes, picks, scale and second by part."""
    parts = (2,) if twin else ()
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    out: dict[str, Any] = {}
    for name, field in Slice(k_lanes, twin):
        part = bits[:, field.offset : field.offset + field.width]
        if name == "codes":
            part = np.packbits(part.reshape(-1, *parts, 2, k_lanes, 8), axis=-1, bitorder="little")
            out[name] = part[..., 0].view(np.int8)
        elif name == "picks":
            part = part.reshape(-1, *parts, k_lanes, 4)
            out[name] = np.packbits(part, axis=-1, bitorder="little")[..., 0]
        elif name in ("scale", "second"):
            part = np.packbits(part.reshape(-1, *parts, 2, 16), axis=-1, bitorder="little")
            out[name] = part.view(np.uint16)[..., 0]
        else:
            out[name] = part @ (1 << np.arange(field.width))
    return out


def expected(fmt: MatrixFormat, payload: Any, pairs: int, kgroups: int, k_lanes: int,
             table: Any = None, sums: bool = False,
             full_pairs: bool = True) -> dict[str, Any]:  # fmt: skip
    """The slices of one channel's bytes, by `spec.formats.unpack_matrix`.

    Lanes without a code have pick 0 here; compare picks where `lanes` is True.
    """
    rows = 2 * pairs
    whole = formats.unpack_matrix(fmt, [payload], rows, kgroups, table=table)
    group = fmt.group
    levels = whole.levels.reshape(pairs, 2, kgroups, group)
    if fmt.cyclic:
        pair, at = np.arange(pairs), np.zeros(pairs, int)
    elif fmt.whole:
        at, pair = np.divmod(np.arange(pairs * kgroups), pairs)
    else:
        pair, at = formats._order(rows, kgroups)
    levels = levels[pair, :, at]
    kept = np.ones_like(levels, bool)
    if whole.kept is not None:
        kept = whole.kept.reshape(pairs, 2, kgroups, group)[pair, :, at]
    step = k_lanes if fmt.kept == 16 else 2 * k_lanes
    wide = fmt.bits == 8 or fmt.table or fmt.second == Second.ZERO
    phases = _phases((wide and not full_pairs) or (fmt.private and fmt.kept < 16), sums)
    parts, spans = [], []
    for begin in range(0, group, step):
        span = min(step, group - begin)
        cut = slice(begin, begin + span)
        for live, ones in phases:
            parts.append(_lanes(levels[..., cut], kept[..., cut], fmt, k_lanes, live, ones))
            spans.append(span)
    count, per = len(pair), len(parts)
    out = {
        name: np.stack([part[name] for part in parts], axis=1).reshape(
            count * per, *parts[0][name].shape[1:]
        )
        for name in ("codes", "picks", "lanes")
    }
    number = np.tile(np.arange(per), count)
    out["span"] = np.array(spans)[number]
    out["dense"] = np.full(count * per, fmt.kept == 16)
    out["rows"] = np.array([live for live, _ in phases])[number % len(phases)]
    out["sums"] = np.array([ones for _, ones in phases])[number % len(phases)]
    out["again"] = number % len(phases) > 0
    out["first"], out["last"] = number == 0, number == per - 1
    out["final"] = np.arange(count * per) == count * per - 1
    for name, part in zip(("scale", "second"), _sections(fmt, payload, count)):
        if part is not None:
            out[name] = np.repeat(part, per, axis=0)
    return out


def twins(fmt: MatrixFormat, slices: dict[str, Any], k_lanes: int, units: list[int],
          coupled: int) -> dict[str, Any]:  # fmt: skip
    """The twin slices that `expected`'s become.

    Parameters
    ----------
    units : pair-groups of each chunk, or block of a whole matrix. coupled : pair-groups, from the
        first, of which two may share a slice.
    """
    per = len(slices["span"]) // sum(units)
    phases = int(slices["again"][:per].sum()) // (per - int(slices["again"][:per].sum())) + 1
    dense, stored = fmt.kept == 16, fmt.codes_per_group
    join = dense and fmt.bits <= 4 and fmt.group > k_lanes
    couple = not join and stored & (stored - 1) == 0 and stored <= k_lanes // (1 + (fmt.bits > 4))
    couple &= dense or (not fmt.private and fmt.group <= 2 * k_lanes)
    chosen: list[tuple[int, int | None, bool]] = []
    at = 0
    for size in units:
        end = at + size
        while at < end:
            two = couple and at < coupled and at + 1 < end
            steps = 2 * phases if join else 1
            for first in range(0, per, steps):
                for k in range(first, min(first + steps // 2, per) if join else first + 1):
                    other = k + phases if join else k + per
                    there = other < per if join else two
                    chosen.append((at * per + k, at * per + other if there else None, two))
            at += 1 + two
    return _joined(slices, chosen, join)


def _joined(slices: dict[str, Any], chosen: list[tuple[int, int | None, bool]],
            join: bool) -> dict[str, Any]:  # fmt: skip
    first = np.array([a for a, _, _ in chosen])
    there = np.array([b is not None for _, b, _ in chosen])
    second = np.array([a if b is None else b for a, b, _ in chosen])
    two = np.array([c for _, _, c in chosen])
    out = {name: part[first] for name, part in slices.items()}
    for name in ("codes", "picks", "lanes"):
        other = slices[name][second].copy()
        other[~there] = 0
        out[name] = np.stack([out[name], other], axis=1)
    if join:
        out["span"] = out["span"] + np.where(there, slices["span"][second], 0)
    for name in ("last", "final"):
        out[name] = slices[name][second]
    out["couple"], out["join"] = two, np.full(len(first), join)
    for name in ("scale", "second"):
        if name in slices:
            out[name] = np.stack([slices[name][first], slices[name][second]], axis=1)
    return out


def _phases(split: bool, sums: bool) -> list[tuple[int, int]]:
    """(rows, ones) of the times that a slice goes out."""
    return [(live, ones) for ones in range(1 + sums) for live in ((1, 2) if split else (3,))]


def _sections(fmt: MatrixFormat, payload: Any, count: int) -> list[Any]:
    sizes = formats.section_bytes(fmt)
    out: list[Any] = []
    for k in range(2):
        if not sizes[k] or fmt.whole:
            out.append(None)
            continue
        chunks = np.asarray(payload).reshape(-1, formats.chunk_bytes(fmt))
        part = np.ascontiguousarray(chunks[:, sum(sizes[:k]) :][:, :64])
        out.append(part.view(np.uint16).reshape(-1, 2)[:count])
    return out


def _lanes(levels: Any, kept: Any, fmt: MatrixFormat, k_lanes: int, live: int,
           ones: int) -> dict[str, Any]:  # fmt: skip
    """[pair-groups, 2, span] -> codes [pair-groups, 2, lanes], and picks of the live row's mask."""
    count, _, span = levels.shape
    per_window = 8 if fmt.kept == 16 else 16
    windows = span // per_window
    codes = np.zeros((count, 2, k_lanes // 8, 8), np.int8)
    picks = np.zeros((count, k_lanes // 8, 8), np.uint8)
    lanes = np.zeros((count, k_lanes // 8, 8), bool)
    for row in range(2):
        if not live >> row & 1:
            continue
        mask = kept[:, row].reshape(count, windows, per_window)
        number = 8 if fmt.kept == 16 else fmt.kept
        place = np.nonzero(mask)[2].reshape(count, windows, number)
        found = levels[:, row].reshape(count, windows, per_window)[mask]
        values = np.ones_like(found) if ones else found
        codes[:, row, :windows, :number] = values.reshape(count, windows, number)
        picks[:, :windows, :number] = place
        lanes[:, :windows, :number] = True
    return {
        "codes": codes.reshape(count, 2, k_lanes), "picks": picks.reshape(count, k_lanes),
        "lanes": lanes.reshape(count, k_lanes),
    }  # fmt: skip
