"""What the walks of ST hand to its pipeline: one read of a buffer and where its data go."""

from enum import IntEnum
from typing import Any

from amaranth.hdl import unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.memory.arithmetic import COUNT_BITS, FACTOR_BITS

__all__ = ["PLACE_BITS", "UNIT", "JobKind", "StoreJob", "math_port", "walk_members"]

UNIT = 16
"""Bytes; every part of the KV cache begins at a multiple, and no beat is shorter."""
PLACE_BITS = 6


class JobKind(IntEnum):
    """What the data of a job are."""

    WORDS = 0
    SCALE = 1
    KEYS = 2
    VALUES = 3


class StoreJob(data.StructLayout):
    """One read, giving one beat or a part of one.

    Members
    -------
    kind : `JobKind`; KEYS and VALUES read A, the others F.
    source : address in the buffer. count : words to read (WORDS).
    channel : where the beat goes. begin : it is the first of a transfer of `beats` beats at
        `address`, in units of 16 bytes, rounded down to a beat.
    part : which part of the beat the words are. whole : the beat's last part.
    narrow : codes are stored in 4 bits.
    place : of the data in the beat: bytes (SCALE, VALUES) or units of 16 bytes (KEYS).
    end : units of the beat up to which keys are written.
    odd : odd bytes hold this token's keys; of values: both rows of the pair exist.
    """

    def __init__(self, channels: int, beat_bytes: int, lanes: int) -> None:
        super().__init__({
            "kind": unsigned(2),
            "source": unsigned(32),
            "count": unsigned(lanes.bit_length()),
            "channel": unsigned(max(1, (channels - 1).bit_length())),
            "begin": unsigned(1),
            "address": unsigned(FACTOR_BITS + 2),
            "beats": unsigned(COUNT_BITS),
            "part": unsigned(max(1, (beat_bytes // 4 - 1).bit_length())),
            "whole": unsigned(1),
            "narrow": unsigned(1),
            "place": unsigned(PLACE_BITS),
            "end": unsigned(3),
            "odd": unsigned(1),
        })  # fmt: skip


def math_port(channels: int) -> Any:
    """A user's side of an `Arithmetic` that it shares; it drives 0 while it computes nothing."""
    return wiring.Signature({
        "start": Out(1), "divide": Out(1), "a": Out(FACTOR_BITS), "b": Out(COUNT_BITS),
        "done": In(1), "product": In(FACTOR_BITS), "quotient": In(COUNT_BITS),
        "remainder": In(range(max(channels, 2))),
    })  # fmt: skip


def walk_members(operands: tuple[str, ...], channels: int, job: StoreJob) -> dict[str, Any]:
    """Ports of a walk: its operands, `go`, `done` (all jobs given), jobs, and arithmetic."""
    return {
        **{name: In(32) for name in operands},
        "go": In(1),
        "done": Out(1),
        "jobs": Out(stream.Signature(job)),
        "math": Out(math_port(channels)),
    }
