"""Compiled inner loops of the cycle model: bursts from memory, and the matrix engine's walk.

Times are core cycles in float64 (memory adds in nanoseconds, as `spec.dram` does). All loops run
over bursts and over groups of at most eight row pairs, never over cycles or beats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from flightllm.spec.timing import (
    BURST_BEATS,
    FIFO_PASS,
    LATE_REQUEST,
    OUTSTANDING,
    STORE_BEATS,
    STORE_PIPE,
    TRANSFER,
    WRITES,
)

__all__ = [
    "DONE", "HANDED", "LATER", "MEMORY", "NEXT", "READ_AT", "UNKNOWN", "access", "ask", "consume",
    "note", "spend", "store",
]  # fmt: skip

BUS, RESUMED, REFRESHES, GROUP, WRITING = range(5)
"""Places in a channel's memory state."""
LAST_ISSUE, LAST_BEAT, COUNT, NEXT_ISSUE = range(4)
"""Places in a master's state: cycle of the last request, of the last beat, bursts so far; of the
next request, where that is `LATER`."""
NEXT_BURST, ISSUED, POINTER, RECORDS, TAKEN = range(5)
"""Places in a channel's counts: burst of the stream, beats asked for, place in the history, its
length; beats taken, of vectors."""
READ_AT, HANDED, NEXT, BEATS, BEGUN = range(5)
"""Places in ST's walk: cycles of its last read, of the last beat given to a master, and of the next
burst; beats so far, and of the transfer that is begun."""
UNKNOWN, LATER, DONE = range(3)
"""What became of a stream's requests."""
MEMORY = (
    "hit", "activate", "precharge", "row_cycle", "write_to_read", "read_to_write",
    "refresh_interval", "refresh", "bytes_per_ns", "banks", "row_bytes", "granule", "groups",
    "same_group",
)  # fmt: skip
"""Fields of `DramTiming`, in the order in which the kernels take them."""
(HIT, ACTIVATE, PRECHARGE, ROW_CYCLE, TO_READ, TO_WRITE, INTERVAL, REFRESH, RATE, BANKS, ROW_BYTES,
 GRANULE, GROUPS, SAME_GROUP) = range(len(MEMORY))  # fmt: skip


@njit(cache=True)
def access(t: Any, now: float, address: int, size: int, write: bool, rows: Any, free: Any,
           activated: Any, state: Any) -> tuple[float, float]:  # fmt: skip
    """`spec.dram.DramChannel.access`, step for step."""
    begin, row_bytes, banks = -1.0, int(t[ROW_BYTES]), int(t[BANKS])
    granule, groups = int(t[GRANULE]), int(t[GROUPS])
    while size > 0:
        part = min(size, row_bytes - address % row_bytes)
        page = address // row_bytes
        bank, row = page % banks, page // banks
        command = max(now, free[bank], state[RESUMED])
        if rows[bank] != row:
            closing = t[PRECHARGE] if rows[bank] >= 0 else 0.0
            command = max(command + closing, activated[bank] + t[ROW_CYCLE])
            activated[bank] = command
            command = command + t[ACTIVATE]
        command = max(command, state[BUS] - t[HIT])
        number = np.floor(command / t[INTERVAL])
        if number > state[REFRESHES]:
            state[REFRESHES] = number
            state[RESUMED] = max(number * t[INTERVAL], state[BUS] - t[HIT]) + t[REFRESH]
            rows[:] = -1
            activated[bank] = max(command, state[RESUMED])
            command = activated[bank] + t[ACTIVATE]
        rows[bank] = row
        idle = state[BUS]
        if write != (state[WRITING] > 0):
            idle = idle + (t[TO_WRITE] if write else t[TO_READ])
        elif address // granule % groups == int(state[GROUP]):
            idle = idle + t[SAME_GROUP]
        at = max(command + t[HIT], idle)
        state[BUS] = at + part / t[RATE]
        free[bank] = state[BUS] - t[HIT]
        state[GROUP] = (address + part - 1) // granule % groups
        state[WRITING] = 1.0 if write else 0.0
        begin = at if begin < 0 else begin
        address, size = address + part, size - part
    return begin, state[BUS]


@njit(cache=True)
def _room(need: int, beats: Any, times: Any, counts: Any) -> Any:
    """The cycle in which the `need`-th beat left the weight FIFO; -1 when nobody knows yet."""
    if need <= 0:
        return 0.0
    place = counts[POINTER]
    while place < counts[RECORDS] and beats[place] < need:
        place += 1
    counts[POINTER] = place
    if place == counts[RECORDS]:
        return -1.0
    if place == 0:
        return times[0] - (beats[0] - need)
    before, span = beats[place - 1], beats[place] - beats[place - 1]
    return times[place - 1] + (need - before) / span * (times[place] - times[place - 1])


@njit(cache=True)
def issue(t: Any, ideal: float, period: float, pace: float, depth: int, beat: int, address: int,
          total: int, earliest: float, wanted: int, first: Any, ring: Any, master: Any, counts: Any,
          beats: Any, times: Any, dram: tuple[Any, Any, Any, Any], certain: bool,
          until: float) -> int:  # fmt: skip
    """Ask for a stream's bursts until `wanted` of its `total` beats are (`DONE`); `UNKNOWN` where
    room for one is not known to come, `LATER` where the next one is asked for later than `until`.

    `first` gets each burst's first beat's arrival; the others follow `pace` cycles apart. With
    `depth` 0 nothing waits for room.
    `certain`: the caller knows that room comes, at the latest now.
    """
    begun = address // beat % BURST_BEATS
    while counts[NEXT_BURST] * BURST_BEATS - begun < wanted:
        number = counts[NEXT_BURST]
        low = max(0, number * BURST_BEATS - begun)
        size = min(total, (number + 1) * BURST_BEATS - begun) - low
        at = max(master[LAST_ISSUE] + 1, earliest + LATE_REQUEST)
        place = int(master[COUNT]) % OUTSTANDING
        at = max(at, ring[place] + 1)
        if depth:
            room = _room(counts[ISSUED] + size - depth, beats, times, counts)
            if room < 0:
                if not certain:
                    return UNKNOWN
                room = times[counts[RECORDS] - 1] if counts[RECORDS] else 0.0
            at = max(at, np.ceil(room) + 1)
        if at > until:
            master[NEXT_ISSUE] = at
            return LATER
        if depth:
            counts[ISSUED] += size
        master[LAST_ISSUE] = at
        if ideal > 0:
            ready = at + 1 + ideal
        else:
            rows, free, activated, state = dram
            begin, _ = access(t, (at + 1) * period, address + low * beat, size * beat, False, rows,
                              free, activated, state)  # fmt: skip
            ready = np.ceil(begin / period)
        ready = max(ready, master[LAST_BEAT] + pace)
        first[number] = ready
        master[LAST_BEAT] = ready + (size - 1) * pace
        ring[place] = master[LAST_BEAT]
        master[COUNT] += 1
        counts[NEXT_BURST] += 1
    return DONE


@njit(cache=True)
def ask(t: Any, ideal: float, period: float, pace: float, depth: int, beat: int, low: int,
        high: int, transfer: Any, rings: Any, masters: Any, counts: Any, beats: Any, times: Any,
        dram: Any, until: float) -> tuple[int, float]:  # fmt: skip
    """`issue` of a transfer's bursts in channels `low` to `high`: the worst of what became of them,
    and the cycle of the next request that is `LATER`.

    transfer : `Transfer`'s addresses, beats, earliest, bursts, first and ended.
    """
    addresses, totals, earliest, bursts, first, ended = transfer
    rows, free, activated, states = dram
    worst, later = DONE, np.inf
    for c in range(low, high):
        if bursts[c] < 0:
            continue
        counts[c, NEXT_BURST] = bursts[c]
        state = issue(t, ideal, period, pace, depth, beat, addresses[c], totals[c], earliest[c],
                      totals[c], first[c], rings[c], masters[c], counts[c], beats[c], times[c],
                      (rows[c], free[c], activated[c], states[c]), False, until)  # fmt: skip
        bursts[c] = counts[c, NEXT_BURST]
        if state == DONE:
            bursts[c] = -1
            ended[c] = max(masters[c, LAST_ISSUE], earliest[c])
        elif state == LATER:
            later = min(later, masters[c, NEXT_ISSUE])
        worst = min(worst, state)
    return worst, later


@njit(cache=True)
def _needed(pair_groups: int, header: int, chunk: int, pair_bytes: int, beat: int) -> int:
    """Beats that hold a channel's first `pair_groups`, headers included."""
    whole, rest = divmod(pair_groups, 16)
    if rest == 0:
        return whole * chunk
    return whole * chunk + header + -(-rest * pair_bytes // beat)


@njit(cache=True)
def note(runs: Any, begin: float, end: float) -> None:
    """Add a run of cycles to a history, whose first row counts the others: first, behind the
    last."""
    runs[0, 0] += 1
    place = int(runs[0, 0])
    runs[place, 0], runs[place, 1] = begin, end


@njit(cache=True)
def _behind(at: float, runs: Any, place: int) -> tuple[float, int]:
    """The first cycle from `at` on that lies in none of a history's runs, from `place` on; where to
    look next time."""
    while place < runs[0, 0] and runs[place + 1, 1] <= at:
        place += 1
    while place < runs[0, 0] and runs[place + 1, 0] <= at:
        at = max(at, runs[place + 1, 1])
        place += 1
    return at, place


@njit(cache=True)
def spend(at: float, cycles: float, runs: Any, place: int) -> tuple[float, int]:
    """The cycle behind so many that lie in none of a history's runs, the first of them not before
    `at`; where to look next time."""
    at, place = _behind(at, runs, place)
    while place < runs[0, 0] and runs[place + 1, 0] < at + cycles:
        cycles -= runs[place + 1, 0] - at
        at, place = _behind(runs[place + 1, 0], runs, place)
    return at + cycles, place


@njit(cache=True)
def _wanted(unit: int, groups: int, kind: int, block: int, width: int, mine: int, total: int,
            header: int, chunk: int, pair_bytes: int, beat: int) -> int:  # fmt: skip
    """Beats of a channel's `total` that a unit and those before it need; `mine` pairs are in its
    block."""
    if kind == 2:
        return (unit + 1) * total // groups
    own = block * width * groups + (unit % groups + 1) * mine
    return min(_needed(own, header, chunk, pair_bytes, beat), total)


@njit(cache=True)
def _taken(wanted: int, address: int, beat: int, pace: float, first: Any, base: int, begun: float,
           beats: Any, times: Any, counts: Any) -> float:  # fmt: skip
    """Note when a stream's beats up to `wanted` can leave the weight FIFO, and tell it."""
    start = address // beat % BURST_BEATS
    number = (start + wanted - 1) // BURST_BEATS
    low = max(0, number * BURST_BEATS - start)
    arrived: float = first[number] + (wanted - 1 - low) * pace + FIFO_PASS
    records, done = counts[RECORDS], base + wanted
    if records:
        arrived = max(arrived, times[records - 1] + done - beats[records - 1])
    arrived = max(arrived, begun + wanted - 1)
    beats[records], times[records] = done, arrived
    return arrived


@njit(cache=True)
def _close(outs: int, ready: float, cycles: float, waits: bool, others: Any, seen: Any, end: float,
           closed: int, closes: Any) -> tuple[float, int]:  # fmt: skip
    """Blocks' epilogues one after the other: the end of the last, and how many were closed."""
    for _ in range(outs):
        end = max(end, ready)
        if waits:
            end, seen[2] = spend(end, cycles, others, seen[2])
        else:
            end += cycles
        closes[closed % 2] = end
        closed += 1
    return end, closed


@njit(cache=True)
def consume(
    t: Any, ideal: float, period: float, pace: float, depth: int, beat: int, addresses: Any,
    totals: Any, earliest: Any, first: Any, rings: Any, masters: Any, counts: Any, beats: Any,
    times: Any, rows: Any, free: Any, activated: Any, states: Any, bases: Any,
    pairs: Any, shape: Any, walk: Any, closes: Any, windows: Any, others: Any, seen: Any,
    limit: float,
) -> bool:  # fmt: skip
    """Walk a matrix through the engine until a step lies behind `limit` (or a history is full);
    True at its end.

    shape : blocks of pairs a group, groups, kind (0 blocked, 1 cyclic, 2 whole), header beats,
        chunk beats, bytes of a pair-group, slices, batches, fill cycles of a group's windows,
        distance, epilogue cycles of a block, result latency, slice latency, slices of a beat,
        steps that a channel may be ahead, pair-groups that a step takes of blocks which all
        channels have whole, beats that its decode unit holds, whether addends are read.
    walk : next unit, cycle of the last step, end of the last epilogue, closed blocks, last freed,
        cycle of the first beat, end of the last run of windows.
    windows, others : see `note`. A group's windows are read when those of the group before the last
        have been used: there is room for two. Addends wait for others' reads; seen : where to look
        in those next, by port.
    """
    channels = len(pairs)
    groups, kind, header, chunk = int(shape[1]), int(shape[2]), int(shape[3]), int(shape[4])
    pair_bytes, slices, batches = int(shape[5]), int(shape[6]), int(shape[7])
    fill, distance, epilogue, result = shape[8], shape[9], shape[10], shape[11]
    behind, ahead, share, held = shape[12], shape[14], int(shape[15]), shape[16]
    most, least = 0, pairs[0]
    for c in range(channels):
        most, least = max(most, pairs[c]), min(least, pairs[c])
    width = most if kind == 2 else 8
    blocks = -(-most // width)
    unit, last, end = int(walk[0]), walk[1], walk[2]
    closed = int(walk[3])
    while unit < blocks * groups:
        full = counts[0, RECORDS] > beats.shape[1] - 2 or windows[0, 0] > len(windows) - 2
        if last > limit or full:
            walk[0], walk[1], walk[2], walk[3] = unit, last, end, closed
            return False
        block, group = divmod(unit, groups)
        here = min(width, most - block * width)
        whole = kind != 0 or (block + 1) * width <= least
        steps = float((-(-here // share) if whole else here) * slices * batches)
        steps = max(steps, fill, distance if group else 0.0)
        # Accumulated results leave in the last group; two blocks of them have room.
        final = group == groups - 1
        begun = last
        if final and closed >= 2:
            begun = max(begun, closes[(closed - 2) % 2])
        there = begun + steps
        for c in range(channels):
            mine = min(pairs[c], block * width + here) - block * width
            if mine <= 0:
                continue
            wanted = _wanted(unit, groups, kind, block, width, mine, totals[c], header, chunk,
                             pair_bytes, beat)  # fmt: skip
            issue(t, ideal, period, pace, depth, beat, addresses[c], totals[c], earliest[c], wanted,
                  first[c], rings[c], masters[c], counts[c], beats[c], times[c],
                  (rows[c], free[c], activated[c], states[c]), True, np.inf)  # fmt: skip
            arrived = _taken(wanted, addresses[c], beat, pace, first[c], bases[c], walk[5],
                             beats[c], times[c], counts[c])  # fmt: skip
            there = max(there, arrived + behind)
        for c in range(channels):
            if pairs[c] > block * width:
                place = counts[c, RECORDS]
                if beats[c, place] - bases[c] > held:
                    times[c, place] = max(times[c, place], there - ahead)
                counts[c, RECORDS] = place + 1
        last = there
        if unit + 2 < blocks * groups:
            begin = max(walk[6], last + 1)
            walk[6] = begin + fill
            note(windows, begin, walk[6])
        if final:
            end, closed = _close(-(-here // 8), last + result, epilogue, shape[17] > 0, others,
                                 seen, end, closed, closes)  # fmt: skip
        unit += 1
    walk[0], walk[1], walk[2], walk[3] = unit, last, end, closed
    return True


@njit(cache=True)
def store(t: Any, late: float, period: float, beat: int, jobs: Any, parts: int, place: int,
          limit: float, walk: Any, handed: Any, before: Any, seen: Any, rings: Any, counts: Any,
          dram: Any, answers: Any) -> int:  # fmt: skip
    """Read and write transfers in order, from `place` on, until a burst ends behind `limit`; the
    new place.

    jobs : `StoreJobs`' leads, reads, ports, channels, addresses and sizes. parts : as there.
    walk : see `READ_AT`. handed : cycles in which the last beats went to their masters.
    before : histories of reads that go before ST's, by port; seen : where to look in them next.
    rings, counts : responses of each channel's last bursts, and how many there were.
    answers : each channel's last response.
    """
    leads, reads, ports, channels, addresses, sizes = jobs
    rows, free, activated, states = dram
    given = np.empty(STORE_BEATS)
    while place < len(reads):
        c, size, port = channels[place], sizes[place], ports[place]
        begun, beats, look = int(walk[BEGUN]), int(walk[BEATS]), seen[port]
        number = addresses[place] // beat + begun  # strobes say where in a beat
        part = min(size - begun, BURST_BEATS - number % BURST_BEATS)
        # A burst is begun the cycle after one of those under way was answered, its beats next.
        slot = int(counts[c]) % WRITES
        taken, hand = walk[READ_AT] + (0 if begun else leads[place]), walk[HANDED]
        hand = max(hand, rings[c, slot] + 1)
        given[:] = handed
        for k in range(begun, begun + part):
            room = given[(beats + k - begun) % STORE_BEATS] + 1
            for _ in range(min(parts, reads[place] - k * parts)):
                taken, look = _behind(max(taken + 1, room), before[port], look)
            hand = max(hand + 1, taken + STORE_PIPE + (0 if k else TRANSFER))
            given[(beats + k - begun) % STORE_BEATS] = hand
        if max(taken, hand) > limit:
            walk[NEXT] = max(taken, hand)
            return place
        handed[:] = given
        seen[port] = look
        walk[READ_AT], walk[HANDED], walk[BEATS] = taken, hand, beats + part
        now = hand + 1  # the last beat is on the bus
        if late > 0:
            answer = now + late
        else:
            _, end = access(t, now * period, number * beat, part * beat, True, rows[c],
                            free[c], activated[c], states[c])  # fmt: skip
            answer = max(now + 1, np.ceil(end / period))
        answers[c] = max(answers[c] + 1, answer)
        rings[c, slot] = answers[c]
        counts[c] += 1
        walk[BEGUN] = begun + part
        if begun + part == size:
            walk[BEGUN] = 0
            place += 1
    return place
