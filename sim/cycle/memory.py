"""A core's channels in time: read and write masters, the device memory, and the weight FIFOs."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flightllm.sim.cycle import kernels
from flightllm.sim.cycle.ports import ENGINE_F, ST_A, ST_F, PortReads
from flightllm.sim.cycle.stores import StoreJobs
from flightllm.spec.config import HwConfig
from flightllm.spec.dram import DramTiming
from flightllm.spec.formats import (
    ALIGN,
    BLOCK,
    MatrixFormat,
    block_bytes,
    chunk_bytes,
    row_shares,
    stream_bytes,
)
from flightllm.spec.timing import (
    BURST_BEATS,
    FIFO_PASS,
    MASTER_COMMANDS,
    OUTSTANDING,
    VECTOR_BEATS,
    WRITES,
)

__all__ = ["WINDOW", "ChannelMemory", "PlainMemory", "Stream", "Transfer"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
HISTORY = 1 << 15
"""Records of how the weight FIFOs were emptied; old ones are dropped."""
VECTOR_HISTORY = 1 << 14
"""Records of how the FIFOs of vectors were emptied by one instruction."""
WINDOW = 1.0
"""Cycles within which a core's reads come to memory before its writes."""


@dataclass(frozen=True)
class PlainMemory:
    """A memory without banks.

    Parameters
    ----------
    latency : cycles from a request to its first beat. write_latency : from a write's last beat to
        its response. pace : cycles from a beat to the next one, more than 1 where the bus pauses.
    """

    latency: int
    write_latency: int = 20
    pace: float = 1.0


@dataclass
class Transfer:
    """What one LD instruction asks of every channel.

    Members
    -------
    addresses, beats : of each channel. earliest : cycle in which its master took the command.
    bursts : the next burst of each channel, -1 when all are asked for.
    first : arrival of each burst's first beat. ended : cycle of the last request.
    """

    addresses: Ints
    beats: Ints
    earliest: Floats
    bursts: Ints = field(init=False)
    first: Floats = field(init=False)
    ended: Floats = field(init=False)
    complete: bool = False

    def __post_init__(self) -> None:
        most = int(self.beats.max(initial=0))
        self.bursts = np.zeros(len(self.beats), np.int64)
        self.first = np.zeros((len(self.beats), most // BURST_BEATS + 2))
        self.ended = np.zeros(len(self.beats))


@dataclass
class Stream:
    """A matrix on its way: operands of ld.stream, its transfer, and the row pairs of each channel.

    Members
    -------
    base : beats of earlier matrices, of each channel.
    """

    rows: int
    kgroups: int
    fmt: MatrixFormat
    transfer: Transfer
    pairs: Ints
    base: Ints


class ChannelMemory:
    """All channels of a core.

    Parameters
    ----------
    config, core : whose. timing : of the device memory, None for a plain one like `memory`.
    """

    def __init__(self, config: HwConfig, core: int, timing: DramTiming | None,
                 memory: PlainMemory) -> None:  # fmt: skip
        self.channels = n = config.channels[core]
        self.beat = config.beat_bytes
        self.depth = config.prefetch_bytes // config.beat_bytes
        self.period = 1000.0 / config.clock_mhz
        self.ideal = 0.0 if timing else float(memory.latency)
        self.late = 0.0 if timing else float(memory.write_latency)
        self.pace = memory.pace
        values = [getattr(timing, name) for name in kernels.MEMORY] if timing else [0.0] * 14
        self.timing = np.array(values, np.float64)
        banks = timing.banks if timing else 1
        self.rows = np.full((n, banks), -1, np.int64)
        self.free = np.zeros((n, banks))
        self.activated = np.full((n, banks), -1e9)
        self.states = np.zeros((n, 5))
        self.states[:, kernels.GROUP] = -1
        self.rings = np.full((n, OUTSTANDING), -1e9)
        self.masters = np.zeros((n, 4))
        self.masters[:, :2] = -1e9
        self.counts = np.zeros((n, 4), np.int64)
        self.beats = np.zeros((n, HISTORY), np.int64)
        self.times = np.zeros((n, HISTORY))
        self.pushed = np.zeros(n, np.int64)
        self.vectors = np.zeros((n, 5), np.int64)
        self.taken = np.zeros((n, VECTOR_HISTORY), np.int64)
        self.taken_at = np.zeros((n, VECTOR_HISTORY))
        self.responses = np.full((n, WRITES), -1e9)
        self.written = np.zeros(n, np.int64)
        self.answers = np.full(n, -1e9)
        self.queue: deque[Transfer] = deque()  # not yet asked for completely
        self.recent: deque[Transfer] = deque(maxlen=MASTER_COMMANDS + 1)
        self.recent_rows: deque[Transfer] = deque(maxlen=MASTER_COMMANDS + 1)
        self.later = math.inf

    # ------------------------------------------------------------------------ requests

    def room_for_command(self, until: float = math.inf) -> Floats | None:
        """The cycle from which each master takes another command for a matrix; None when nobody
        knows yet, or it is behind `until`."""
        if len(self.recent) < MASTER_COMMANDS + 1:
            return np.zeros(self.channels)
        oldest = self.recent[0]
        if not oldest.complete:
            self.ask(until)
        return oldest.ended + 1 if oldest.complete else None

    def room_for_vectors(self) -> Floats:
        """The same for vectors; rows before have been asked for."""
        if len(self.recent_rows) < MASTER_COMMANDS + 1:
            return np.zeros(self.channels)
        return self.recent_rows[0].ended + 1

    def add(self, transfer: Transfer) -> None:
        """Give the masters a command each."""
        self.queue.append(transfer)
        self.recent.append(transfer)

    def ask(self, until: float) -> bool:
        """Ask for all that can be asked for up to a cycle; whether nothing is left. `later` is the
        cycle behind it of the next request, as far as that is known."""
        while self.queue:
            if not self._ask_first(until):
                return False
        self.later = math.inf
        return True

    def _ask_first(self, until: float) -> bool:
        """The same for the first transfer alone."""
        state, self.later = self._ask(self.queue[0], 0, self.channels, until)
        if state != kernels.DONE:
            return False
        self.queue.popleft().complete = True
        return True

    def _ask(self, transfer: Transfer, low: int, high: int, until: float) -> tuple[int, float]:
        """Ask for a matrix in some channels, see `kernels.ask`."""
        return self._issue(
            transfer, low, high, self.depth, (self.counts, self.beats, self.times), until
        )

    def _issue(self, transfer: Transfer, low: int, high: int, depth: int,
               fifos: tuple[Ints, Ints, Floats], until: float) -> tuple[int, float]:  # fmt: skip
        made: tuple[int, float] = kernels.ask(
            self.timing, self.ideal, self.period, self.pace, depth, self.beat, low, high,
            (transfer.addresses, transfer.beats, transfer.earliest, transfer.bursts,
             transfer.first, transfer.ended),
            self.rings, self.masters, *fifos,
            (self.rows, self.free, self.activated, self.states), until,
        )  # fmt: skip
        return made

    # ------------------------------------------------------------------------ matrices

    def stream(self, address: int, rows: int, kgroups: int, fmt: MatrixFormat, first: int,
               start: int, earliest: Floats) -> Stream:  # fmt: skip
        """What ld.stream asks for."""
        n = self.channels
        sizes = np.array(stream_bytes(fmt, rows, kgroups, n, first, start), np.int64)
        offsets = np.zeros(n, np.int64)
        if fmt.cyclic:
            chunk = chunk_bytes(fmt)
            pairs = sizes // chunk * (BLOCK // 2)
            block = first + (np.arange(n) - first - start) % n
            offsets = block // n * chunk
        else:
            shares = [b - a for a, b in row_shares(rows, n)]
            pairs = np.array([-(-share // 2) for share in shares], np.int64)
            if fmt.whole:
                offsets = first * np.array([block_bytes(fmt, s) for s in shares], np.int64)
        transfer = Transfer(address * ALIGN + offsets, sizes // self.beat, earliest)
        made = Stream(rows, kgroups, fmt, transfer, pairs, self.pushed.copy())
        self.pushed += transfer.beats
        self.add(transfer)
        return made

    def consume(self, stream: Stream, shape: Floats, walk: Floats, closes: Floats,
                reads: PortReads, limit: float) -> bool:  # fmt: skip
        """Walk a matrix through the engine, see `kernels.consume`."""
        transfer = stream.transfer
        while self.queue and self.queue[0] is not transfer and not transfer.complete:
            if not self._ask_first(math.inf):
                break
        if not transfer.complete:
            ready = self.queue[0] is transfer
            assert ready, "an earlier transfer waits for this matrix"
            self.counts[:, kernels.NEXT_BURST] = np.where(
                transfer.bursts < 0, 1 << 40, transfer.bursts
            )
        else:
            self.counts[:, kernels.NEXT_BURST] = 1 << 40
        self._trim()
        reads.trim()
        done: bool = kernels.consume(
            self.timing, self.ideal, self.period, self.pace, self.depth, self.beat,
            transfer.addresses,
            transfer.beats, transfer.earliest, transfer.first, self.rings, self.masters,
            self.counts, self.beats, self.times, self.rows, self.free, self.activated, self.states,
            stream.base, stream.pairs, shape, walk, closes, reads.before[ST_A],
            reads.before[ENGINE_F], reads.seen, limit,
        )  # fmt: skip
        if not transfer.complete:
            transfer.bursts = np.where(
                self.counts[:, kernels.NEXT_BURST] >= 1 << 40, -1,
                self.counts[:, kernels.NEXT_BURST],
            )
        return done

    def _trim(self) -> None:
        """Drop records that no request will look at again."""
        counts = self.counts
        if int(counts[:, kernels.RECORDS].max()) < HISTORY // 2:
            return
        for c in range(self.channels):
            low = max(0, int(counts[c, kernels.POINTER]) - 1)
            kept = int(counts[c, kernels.RECORDS]) - low
            for array in (self.beats, self.times):
                array[c, :kept] = array[c, low : low + kept].copy()
            counts[c, kernels.POINTER] -= low
            counts[c, kernels.RECORDS] = kept

    # ------------------------------------------------------------------------ vectors, writes

    def clear_vectors(self) -> None:
        """Begin vectors: their FIFOs are empty."""
        self.vectors[:] = 0

    def take_row(self, row: Transfer, parts: list[int], now: float) -> float:
        """Ask for a row, before matrices that are not asked for by then, and take its beats channel
        by channel.

        Parameters
        ----------
        parts : writes to F of each channel's share. now : when the last row was taken.

        Returns
        -------
        The cycle behind the last part.
        """
        self.recent_rows.append(row)
        for c in range(self.channels):
            self._ask_part(row, c)
        for c, count in enumerate(parts):
            if not count:
                now += 1
                continue
            beats, taken = int(row.beats[c]), 0
            while taken < beats:
                known = beats if row.bursts[c] < 0 else self._before(row, c)
                begun = max(now, self._arrival(row, c, taken))
                last = self._arrival(row, c, known - 1)
                now = max(begun + (known - taken) * count / beats, last + 1)
                self._record(c, int(self.vectors[c, kernels.TAKEN]) + known - taken, begun, now)
                taken = known
                self._ask_part(row, c)
        row.complete = True
        return math.ceil(now)

    def _before(self, row: Transfer, c: int) -> int:
        """Beats of the bursts that were asked for."""
        begun = int(row.addresses[c]) // self.beat % BURST_BEATS
        return int(row.bursts[c]) * BURST_BEATS - begun

    def _ask_part(self, row: Transfer, c: int) -> None:
        """Ask for what the channel's FIFO of vectors has room for. While a burst waits for room,
        matrices are asked for, which may then have taken its turn."""
        state, at = self._ask_row(row, c, -math.inf)
        while state == kernels.LATER:
            for transfer in self.queue:
                if self._ask(transfer, c, c + 1, at - 1)[0] != kernels.DONE:
                    break
            burst = row.bursts[c]
            state, at = self._ask_row(row, c, at)
            if state == kernels.LATER and row.bursts[c] == burst:
                state, at = self._ask_row(row, c, at)

    def _ask_row(self, row: Transfer, c: int, until: float) -> tuple[int, float]:
        fifo = self.vectors, self.taken, self.taken_at
        return self._issue(row, c, c + 1, VECTOR_BEATS, fifo, until)

    def _record(self, c: int, beats: int, begun: float, ended: float) -> None:
        """Note that the writer took the beats up to `beats` between two cycles."""
        counts = self.vectors[c]
        place = int(counts[kernels.RECORDS])
        self.taken[c, place : place + 2] = counts[kernels.TAKEN], beats
        self.taken_at[c, place : place + 2] = begun, ended - 1
        counts[kernels.RECORDS] = place + 2
        counts[kernels.TAKEN] = beats

    def _arrival(self, transfer: Transfer, c: int, beat: int) -> float:
        """The cycle in which a beat that was asked for can be taken from its FIFO."""
        begun = int(transfer.addresses[c]) // self.beat % BURST_BEATS
        number = (begun + beat) // BURST_BEATS
        low = max(0, number * BURST_BEATS - begun)
        return float(transfer.first[c, number]) + (beat - low) * self.pace + FIFO_PASS

    def write(self, jobs: StoreJobs, place: int, walk: Floats, handed: Floats, reads: PortReads,
              limit: float) -> int:  # fmt: skip
        """Write transfers up to a cycle, see `kernels.store`; the place of the next one.

        Reads and writes come to memory in order, but for those of a window, where reads go first.
        """
        while place < len(jobs.reads):
            until = min(limit, walk[kernels.NEXT] + WINDOW)
            self.ask(until)
            until = min(limit, max(until, self.later - 1))
            place = kernels.store(
                self.timing, self.late, self.period, self.beat,
                (jobs.leads, jobs.reads, jobs.ports, jobs.channels, jobs.addresses, jobs.sizes),
                jobs.parts, place, until, walk, handed, (reads.before[ST_F], reads.before[ST_A]),
                reads.seen, self.responses, self.written,
                (self.rows, self.free, self.activated, self.states), self.answers,
            )  # fmt: skip
            if place < len(jobs.reads) and walk[kernels.NEXT] > limit:
                break
        return place
