"""Programs written by hand, for tests of whatever executes them.

`from hand_program import ...` works in every test (tests/conftest.py puts this folder on the path).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flightllm.sim.functional import FunctionalDevice
from flightllm.spec.config import HwConfig, load_config
from flightllm.spec.encoding import Op, encode
from flightllm.spec.image import CoreCode, ModelFacts, Program, Segment, round_up
from flightllm.spec.isa import Register, Unit

FACTS = ModelFacts("hand", 0, 0, None, (), 0, 0, 0, 0, 0, 0, ())


def board(channels: Sequence[int] = (2,)) -> HwConfig:
    """The `tiny` board with other channels, one entry a core."""
    tiny = load_config("tiny")
    return dataclasses.replace(
        tiny, channels=tuple(channels), slrs=tiny.slrs[:1] * len(channels)
    )  # fmt: skip


def linked(op: Op, wait: Sequence[Unit] = (), release: Sequence[Unit] = ()) -> Op:
    """`op` with more units to wait on and to release."""
    return dataclasses.replace(
        op, wait=op.wait | frozenset(wait), release=op.release | frozenset(release)
    )


def chain(ops: Sequence[Op]) -> list[Op]:
    """`ops` one after the other: each change of unit passes a token. Ends with sys.halt.

    No scalar instructions among them: a loop would pass its tokens once an iteration.
    """
    out = [*ops, Op.make("sys.halt")]
    for i in range(len(out) - 1):
        a, b = out[i].kind.unit, out[i + 1].kind.unit
        if a != b:
            out[i] = linked(out[i], release=[b])
            out[i + 1] = linked(out[i + 1], wait=[a])
    return out


def program(config: HwConfig, codes: Sequence[Sequence[Op]],
            fixed: Mapping[str, NDArray[np.uint8]] | None = None,
            writable: Mapping[str, int] | None = None,
            params: Sequence[int] = ()) -> Program:  # fmt: skip
    """A program with entry "main" in every core.

    Parameters
    ----------
    codes : instructions of each core.
    fixed : read-only segments of every core, uint8 [channels, bytes].
    writable : bytes of writable segments. Segments lie one after the other from 64, with a gap of
        64 bytes behind each, fixed ones first.
    """
    segments, image = [], {}
    for core in range(config.cores):
        base = 64
        for name, data in (fixed or {}).items():
            size = round_up(data.shape[1])
            padded = np.pad(data, ((0, 0), (0, size - data.shape[1])))
            segments.append(Segment(name, core, base, size, False))
            image[core, name] = lambda padded=padded: padded
            base += size + 64
        for name, size in (writable or {}).items():
            segments.append(Segment(name, core, base, round_up(size), True))
            base += round_up(size) + 64
        image.setdefault((core, "nothing"), lambda: np.zeros((1, 0), np.uint8))
    cores = [
        CoreCode(np.array(encode(ops), np.uint32), np.array(params, np.uint32), {"main": 0})
        for ops in codes
    ]
    return Program(config, FACTS, cores, segments, image)


class Bench:
    """A loaded program on the functional simulator; its buffers can be looked into."""

    def __init__(self, made: Program, **options) -> None:
        self.program = made
        self.device = FunctionalDevice(made.config, **options)
        self.device.load(made)

    def state(self, core: int = 0):
        """The core's state."""
        return self.device._machine.cores[core].state

    def f(self, core: int = 0) -> NDArray[np.float32]:
        """The F buffer."""
        return self.state(core).f.data

    def a(self, core: int = 0) -> NDArray[np.int8]:
        """The A buffer."""
        return self.state(core).a.data

    def base(self, name: str, core: int = 0) -> int:
        """A segment's address in 64-byte units."""
        return self.program.segment(core, name).base // 64

    def bytes(self, name: str, core: int = 0) -> NDArray[np.uint8]:
        """A segment's contents, uint8 [channels, size]."""
        segment = self.program.segment(core, name)
        rows = [
            np.frombuffer(self.device.read(core, c, segment.base, segment.size), np.uint8)
            for c in range(self.program.config.channels[core])
        ]
        return np.stack(rows)

    def run(self, **registers: int) -> None:
        """Run "main"."""
        self.device.run("main", {Register[name]: value for name, value in registers.items()})


def spread(vector: NDArray[np.generic], channels: int) -> list[bytes]:
    """What each channel holds of a spread vector, stated apart from spec: pairs dealt in order."""
    pairs = -(-len(vector) // 2)
    out, at = [], 0
    for c in range(channels):
        take = 2 * (pairs // channels + (c < pairs % channels))
        out.append(vector[at : at + take].tobytes())
        at += take
    return out


def table(rows: NDArray[np.generic], channels: int) -> tuple[NDArray[np.uint8], int]:
    """A table of spread rows as a segment, and the bytes of a row in each channel."""
    parts = [spread(row, channels) for row in rows]
    size = round_up(max(len(part) for part in parts[0]))
    out = np.zeros((channels, len(rows) * size), np.uint8)
    for i, part in enumerate(parts):
        for c, data in enumerate(part):
            out[c, i * size : i * size + len(data)] = np.frombuffer(data, np.uint8)
    return out, size
