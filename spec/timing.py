"""How long everything takes: one table of cycles for every unit, by `HwConfig` and operands.

The RTL's state machines read as numbers. The cycle model adds what only a run can tell (tokens,
queues, memory, the weight FIFO); `tests/spec/test_timing.py` holds the constants against the
gateware they describe, and calibration holds the sum against RTL runs (docs/calibration.md).

Conventions: *start* is the cycle of a unit's start pulse, *done* the cycle of its done pulse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from flightllm.spec.config import HwConfig
from flightllm.spec.formats import BLOCK, MatrixFormat, Second, chunk_bytes, section_bytes
from flightllm.spec.parameters import MatrixParameters, matrix_parameters, row_words, words_of

__all__ = [
    "ADD", "BARRIER", "BURST_BEATS", "CLEAR", "CONVERT", "FIFO_PASS", "GRANT", "MASTER_COMMANDS",
    "MUL", "OUTSTANDING", "QUEUE_PASS", "READ_LATENCY", "RUN_START", "STORE_BEATS", "STORE_PIPE",
    "TRANSFER", "VECTOR_BEATS", "WRITES", "EngineTiming", "MatrixTiming", "engine_timing",
    "gather_cycles", "heads_together", "matrix_timing", "misc_cycles", "misc_reads",
    "reduce_cycles", "scalar_cycles", "store_setup", "stream_plan_cycles", "sums_at_once",
    "vector_setup",
]  # fmt: skip

ADD, MUL, CONVERT = 3, 3, 2
"""Latencies of the float32 adder, multiplier and integer converters."""
READ_LATENCY = 2
"""From a read of F or A to its data."""
BURST_BEATS = 16
OUTSTANDING = 16
"""Bursts that a memory master has under way at most."""
MASTER_COMMANDS = 4
"""Transfers that wait at a memory master."""
FIFO_PASS = 2
"""Cycles in which a beat passes the weight FIFO, or that of vectors."""
VECTOR_BEATS = 32
"""Depth of a channel's FIFO for vectors."""

# ---------------------------------------------------------------------------------- dispatcher

CLEAR = 32
"""Cycles in which a start clears the registers."""
RUN_START = 2
"""From the host's start to the first cycle of the clearing."""
QUEUE_PASS = 2
"""Cycles in which a word passes a unit's queue."""
GRANT = 1
"""From the cycle in which words and tokens are there to the start pulse."""


def scalar_cycles(name: str, words: int) -> int:
    """Cycles of an instruction that the dispatcher runs: its words, and what it does with them."""
    return words + {"sys.param": 2, "sys.mul": 4}.get(name, 1)


# ---------------------------------------------------------------------------------- LD

LATE_REQUEST = 2
"""From a master's taking of a command to the first cycle in which it can ask for a burst."""


def _digits(value: int) -> int:
    """Cycles of LD's arithmetic with this second factor: a hexadecimal digit each, and one more."""
    return max(1, -(-max(value, 0).bit_length() // 4)) + 1


def stream_plan_cycles(fmt: MatrixFormat, rows: int, kgroups: int, first: int, start: int,
                       channels: int) -> int:  # fmt: skip
    """From ld.stream's start to its first request: shares, sizes and offsets are computed."""
    if fmt.cyclic:
        blocks = -(-rows // BLOCK)
        turn = first % channels + start
        factor = chunk_bytes(fmt) // 64
        return 1 + sum(map(_digits, (first, blocks, turn, factor, factor)))
    pairs = -(-rows // 2)
    if fmt.whole:
        return 1 + sum(map(_digits, (pairs, fmt.bits, kgroups, kgroups, first, first)))
    factor = chunk_bytes(fmt) // 64
    return 1 + sum(map(_digits, (pairs, kgroups, factor, factor)))


def vector_setup(n: int) -> int:
    """From the start of ld.vec or ld.gather to the first cycle in which it can ask."""
    return 1 + _digits(-(-n // 2)) + 1


def gather_number_cycles(mstride: int) -> int:
    """Cycles in which ld.gather fetches a row number and computes the row's address."""
    return 1 + READ_LATENCY + _digits(mstride)


# ---------------------------------------------------------------------------------- ST


def heads_together(pairs: int) -> int:
    """Heads of V, a power of two, whose writes to a channel go before those to the next one: as
    many as its master can have under way, where most pairs of a head's rows in one are `pairs`."""
    return 1 << max(0, (WRITES // max(pairs, 1)).bit_length() - 1)


def store_setup(name: str, operands: Mapping[str, int], channels: int) -> int:
    """From a store's start to its first job."""
    if name == "st.vec":
        return 1 + _digits(-(-operands["n"] // 2)) + 1
    block = operands["pos"] // BLOCK
    if name == "st.keys":
        fmt = MatrixFormat.from_word(operands["fmt"])
        turn = block % channels + operands["start"]
        factors = (block, chunk_bytes(fmt) // 64, operands["pos"] % BLOCK // 2, turn)
        return 1 + sum(map(_digits, factors))
    return 1 + sum(map(_digits, (-(-operands["rows"] // 2), block, block)))


STORE_PIPE = 4
"""From a store's job to its beat: a read of F or A, a register behind it, the FIFO of beats."""
STORE_BEATS = 8
"""Beats between their jobs and their masters at most; a job waits for room."""
TRANSFER = 3
"""A beat that begins a transfer waits for its command to pass the master: its queue, the splitter,
the FIFO of bursts."""
WRITES = 32
"""Bursts without a response that a write master has at most."""

# ---------------------------------------------------------------------------------- engine


def _cell_latency(made: MatrixParameters) -> int:
    """Cycles of a cell: sparse multiplexer, chains, the tree over the chains."""
    lanes, chain = made.k_lanes, made.chain_length
    if made.dsp_kind == "inferred":
        return 2 + _log4(lanes)
    if made.dsp_kind == "dsp58":
        length = min(chain, -(-lanes // 3))
        return 1 + length + 3 + _log4(-(-lanes // (3 * length)))
    length = min(chain, lanes)
    return 1 + length + 4 + _log4(-(-lanes // length))


def _log4(value: int) -> int:
    return max(0, -(-(value - 1).bit_length() // 2))


@dataclass(frozen=True)
class EngineTiming:
    """One core's matrix engine.

    Members
    -------
    channels, cells, k_lanes, beat_bytes : its size. parts : writes of a block's 16 rows to F.
    ring : beats of codes that a decode unit holds, beside a slice at each of `stages`.
    command : from the cycle in which a matrix is known to its decode units' commands; fetch : more
        with a code table. prepared : from there to the array's start, at least; start : from the
        start pulse to it. beats : from the commands to the first beat taken; table : more for a
        format with a code table. slice : from a beat to its slice's first step.
    result : from a step to the result memory; late : more with minima.
    drain : from the last move of the epilogue to done.
    distance, integer_distance : cycles between two visits of an accumulator.
    twin : slices have two parts where there is one vector.
    """

    channels: int
    cells: int
    k_lanes: int
    beat_bytes: int
    parts: int
    ring: int
    result: int
    full_pairs: bool
    twin: bool
    command: int = 2
    prepared: int = 2
    start: int = 1
    beats: int = 5
    fetch: int = 7
    table: int = 20
    stages: int = 4
    slice: int = 5
    late: int = ADD
    drain: int = 2 + MUL + ADD + 1
    distance: int = ADD + 1
    integer_distance: int = 3


@lru_cache(maxsize=64)
def engine_timing(config: HwConfig, core: int = 0) -> EngineTiming:
    """The engine of a core."""
    made = matrix_parameters(config)
    sums = 1 + _cell_latency(made) + made.twin
    return EngineTiming(
        config.channels[core], made.cells, made.k_lanes, made.beat_bytes,
        max(1, 16 // row_words(config)),
        max(4, 1 << (4 * made.k_lanes // made.beat_bytes - 1).bit_length()),
        sums + 2 + CONVERT + MUL + ADD, made.full_pairs, made.twin,
    )  # fmt: skip


@dataclass(frozen=True)
class MatrixTiming:
    """One format in one engine.

    Members
    -------
    header : beats before the codes of a chunk. chunk : beats of a chunk, or of a pair of rows of
        a 32-token block where the matrix is whole (as a fraction: beats times 64 codes).
    pair_bytes : bytes of codes of a pair-group. slices : steps of one pair-group and batch.
    share : pair-groups that a step can take, 2 where twin slices hold two.
    scaled : results pass the float accumulators.
    """

    header: int
    chunk: int
    pair_bytes: int
    slices: int
    share: int
    scaled: bool
    minima: bool
    emit: bool


def _twins(fmt: MatrixFormat, k_lanes: int, slices: int) -> tuple[int, int]:
    """(slices of a pair-group, pair-groups of a slice) when slices have two parts.

    Both parts come from 2 * k_lanes bytes: they are halves of a group, or two pairs of rows.
    """
    stored = fmt.codes_per_group
    if fmt.kept == 16 and fmt.group > k_lanes and fmt.bits <= 4:
        return -(-fmt.group // (2 * k_lanes)), 1
    fits = stored & (stored - 1) == 0 and stored <= k_lanes // (1 if fmt.bits <= 4 else 2)
    if fmt.kept != 16:
        fits = fits and not fmt.private and fmt.group <= 2 * k_lanes
    return slices, 1 + fits


@lru_cache(maxsize=1024)
def matrix_timing(fmt: MatrixFormat, engine: EngineTiming, vectors: int) -> MatrixTiming:
    """What a matrix of this format costs the engine when it meets so many vectors."""
    sparse = fmt.kept != 16
    span = engine.k_lanes * (2 if sparse else 1)
    slices, share = -(-fmt.group // span), 1
    if engine.twin and vectors == 1:
        slices, share = _twins(fmt, engine.k_lanes, slices)
    full = fmt.bits == 8 or fmt.table or fmt.second == Second.ZERO
    if (fmt.private and sparse) or (full and not engine.full_pairs):
        slices *= 2
    if sparse and fmt.second == Second.MINIMUM:
        slices *= 2
    scale, second, index, codes = section_bytes(fmt)
    beat = engine.beat_bytes
    header = (scale + second + index) // beat
    return MatrixTiming(
        header, header + codes // beat, 2 * fmt.codes_per_group * fmt.bits // 8, slices, share,
        fmt.scale,
        fmt.second == Second.MINIMUM, fmt.second == Second.EMIT,
    )  # fmt: skip


# ---------------------------------------------------------------------------------- MISC

_EXP, _RECIP = 4 * ADD + 3 * MUL + 6, 2 * (ADD + MUL) + 3
_RSQRT = _RECIP
_SIGMOID = _EXP + ADD + _RECIP
_TREE = 4 * ADD
_PASS = {  # cycles of a pass behind its last group of lanes
    "add": ADD, "stat": MUL + _TREE, "quant": 2 * MUL + 2, "rope": MUL + ADD, "scan": 1,
    "soft": ADD + _EXP + max(2 * MUL + 2, _TREE), "silu": _SIGMOID + 2 * MUL, "relu": 2 * MUL,
    "gelu": 4 * MUL + ADD + _SIGMOID + 2 * MUL,
}  # fmt: skip
_MUL, _ADD, _TABLE, _HALF = MUL + 1, ADD + 1, _RECIP + 1, 3
"""Cycles of a scalar step."""
_INVERSE = 2 + _TABLE + _MUL
"""From the scalars' taking of a job to its inverse, which a pass can use."""
WAYS = 16


def _asking(n: int, lanes: int, twice: bool = False) -> int:
    """Cycles in which a pass asks for its words, a row of F at a time: `twice` each for a rotation,
    and where one lane takes a row's two words in turn."""
    return -(-n // words_of(lanes)) * (2 if twice or lanes == 1 else 1)


def _pass(kind: str, n: int, lanes: int, twice: bool = False) -> int:
    """From a pass's start to where the sequencer can start another."""
    turn = lanes == 1 and kind != "scan"
    return _asking(n, lanes, twice) + READ_LATENCY + 1 + _PASS[kind] + turn + 2


def sums_at_once(lanes: int) -> int:
    """Block sums of a norm that are read and added in a cycle: a way rests for `ADD` + 1 cycles
    between two of its sums. A small special function unit does with one adder."""
    return 4 if lanes >= 8 else 1


def reduce_cycles(first: int, blocks: int) -> int:
    """From the sum of the last of some blocks, the first in way `first`, to their total."""
    highest = WAYS - 1 if first + blocks > WAYS else first + blocks - 1
    width, total = 1 << highest.bit_length() >> 1, _ADD
    while width:
        total, width = total + width + _ADD, width >> 1
    return total


Begins = list[int]
"""Cycles in which those of an instruction's passes begin that read F."""


def _heads(v: Mapping[str, int], flags: frozenset[str], lanes: int) -> tuple[int, Begins]:
    """headq: passes of rope and of levels take turns, the scalars work on a head between them."""
    rope = _pass("rope", v["size"], lanes, "rope" in flags)
    levels = _pass("quant", v["pad"], lanes)
    scale = _MUL + (_HALF if "half" in flags else 0)
    jobs, now, rest = v["n1"] * v["heads"], 1, 1
    read = written = 0
    taken, ready, turned = 0, 0, 1  # of the last job read, and when the pass before it began
    begins: Begins = []
    while written < jobs:
        if read > written and (read == jobs or read == written + 2 or ready <= max(now, taken + 1)):
            begin = max(now, ready)
            now, written = begin + levels, written + 1
            if read > written:  # one more is read: its maximum waited for this inverse to go
                taken = max(turned, rest, begin + 1)
                ready, rest = taken + _INVERSE, taken + _INVERSE + scale + 1
        else:
            begins.append(max(now, taken + 1))
            now = begins[-1] + rope
            read, turned = read + 1, now
            if read == written + 1:
                taken = max(now, rest)
                ready, rest = taken + _INVERSE, taken + _INVERSE + scale + 1
    return max(now, rest) + 1, begins


def _softmax(v: Mapping[str, int], lanes: int) -> tuple[int, Begins]:
    """The sum and the factor of a vector while the next one is scanned and raised."""
    padded = -(-v["length"] // BLOCK) * BLOCK
    scan, soft = _pass("scan", v["length"], lanes), _pass("soft", padded, lanes)
    total = reduce_cycles(v["base"] // 16 % WAYS, padded // 16)
    quant, factor = _INVERSE + _MUL, 2 + 2 * _MUL + _TABLE
    now, rest, summed, put = 1, 1, -1, 0
    begins: Begins = []
    for _ in range(v["n1"] * v["n2"]):
        scanned = now + scan
        if summed >= 0 and max(summed, rest) < max(scanned, rest):
            put = max(summed, rest) + factor
            rest, summed = put + 1, -1
        taken = max(scanned, rest)
        rest = taken + quant
        if summed >= 0:
            put = max(summed, rest) + factor
            rest, summed = put + 1, -1
        begins += [now, taken + 1]
        finish = max(taken + 1 + soft, put + 1)
        now, summed = finish + 1, finish + total + 1
    put = max(summed, rest) + factor
    return max(now, put + 1) + 1, begins


def _quant(v: Mapping[str, int], flags: frozenset[str], lanes: int) -> tuple[int, Begins]:
    """quant: the scale while the levels are made."""
    now, begins = 1, list[int]()
    for _ in range(v["n1"]):
        taken = now + 1 + READ_LATENCY + 1
        reads = -(-v["blocks"] // sums_at_once(lanes))
        free = taken + (reads + READ_LATENCY + 1 if "norm" in flags else 0)
        ready = taken + _INVERSE
        put = ready + _MUL
        if "norm" in flags:
            summed = free + reduce_cycles(0, v["blocks"])
            put = max(put, summed) + 2 + 2 * _MUL + _ADD + _RSQRT + 1
        begins.append(max(free, ready))
        now = max(begins[-1] + _pass("quant", v["pad"], lanes), put + 1)
    return now + 1, begins


def _row(function: str, flags: frozenset[str], v: Mapping[str, int], lanes: int) -> int:
    """Cycles of one row of an instruction without scalars."""
    if function == "add":
        return _pass("add", v["n"], lanes)
    (kind,) = ("stat",) if function == "stat" else flags
    return _pass(kind, v["n"], lanes) + 1


def _inserting(n: int, k: int, step: int) -> float:
    """Cycles in which topk inserts, of candidates in random order.

    A fetch stays for a lane after another as long as a word from the last lane on exceeds the k-th
    largest so far; it leaves at the lane that finds none.
    """
    total = 0.0
    for index in range(0, n, step):
        words = min(step, n - index)
        below = 1 - min(1.0, k / (index + 1))  # that a word does not enter
        total += 1 + sum(1 - below ** (words - lane + 1) for lane in range(1, step)
                         if words - lane + 1 > 0)  # fmt: skip
    return total


@lru_cache(maxsize=256)
def _list_cycles(merging: bool, n: int, k: int, parts: int, lanes: int) -> int:
    step = words_of(lanes) // (2 if merging else 1)
    fetches = parts * -(-(k if merging else n) // step)
    inserted = fetches * step if merging else round(_inserting(n, k, step))
    # A part ends with a fetch of nothing.
    return 1 + fetches * (1 + READ_LATENCY) + inserted + parts + k


def misc_cycles(name: str, flags: frozenset[str], v: Mapping[str, int], lanes: int) -> int:
    """From the start of a MISC instruction to done.

    Parameters
    ----------
    name : "misc.add" and so on. flags, v : its flags and operands. lanes : of the SFU.
    """
    function = name.removeprefix("misc.")
    if function == "nop":
        return 1
    if function in ("topk", "merge"):
        merging = function == "merge"
        return _list_cycles(merging, v["k"] if merging else v["n"], v["k"],
                            v["parts"] if merging else 1, lanes)  # fmt: skip
    return _passes(function, flags, v, lanes)[0]


def _passes(function: str, flags: frozenset[str], v: Mapping[str, int],
            lanes: int) -> tuple[int, Begins]:  # fmt: skip
    """Cycles of an instruction of passes, and when those begin that read F."""
    heads = {"headq": "heads", "softmax": "n2"}.get(function)
    count = max(0, v["n1"] * (v[heads] if heads else 1))
    if function == "headq":
        return _heads(v, flags, lanes) if count else (2, [])
    if function == "softmax":
        return _softmax(v, lanes) if count else (2, [])
    if function == "quant":
        return _quant(v, flags, lanes) if count else (2, [])
    row = _row(function, flags, v, lanes)
    return 1 + count * row, [1 + i * row for i in range(count)]


def misc_reads(name: str, flags: frozenset[str], v: Mapping[str, int], lanes: int,
               shared: bool) -> list[tuple[int, int]]:  # fmt: skip
    """When a MISC instruction reads F, all lanes a cycle: nobody else reads at that port then.

    It reads vectors and block sums at the matrix engine's port; at the one of LD, ST and SYS what
    meets a vector: the other summand, gains, sines and cosines, scales of values.

    Parameters
    ----------
    name, flags, v, lanes : see `misc_cycles`. shared : the port of LD, ST and SYS.

    Returns
    -------
    Runs of cycles from the instruction's start on: first, one behind the last; a pass begins one.
    """
    function = name.removeprefix("misc.")
    both = {"add": True, "stat": "norm" in flags, "quant": "norm" in flags,
            "headq": "rope" in flags, "softmax": True, "act": "silu" in flags}  # fmt: skip
    if function not in both or (shared and not both[function]):
        return []
    length = v[{"headq": "size", "softmax": "length"}.get(function, "n")]
    # Sines are read behind cosines, at the same port.
    groups = _asking(length, lanes, function == "headq" and both[function])
    begins = _passes(function, flags, v, lanes)[1]
    runs = [(begin + 1, begin + 1 + groups) for begin in begins]
    if function == "quant" and both[function] and not shared:
        reads = -(-v["blocks"] // sums_at_once(lanes))
        before = max(reads + READ_LATENCY + 1, _INVERSE)
        runs += [(begin - before, begin - before + reads) for begin in begins]
    return sorted(runs)


# ---------------------------------------------------------------------------------- SYS

WIRE = 2
"""Registers between a core and the exchange, each way."""
BARRIER = 2 + 2 * WIRE
"""From the last core's start at a barrier to done: into the state in which it is here, the wires
to the exchange and back, out of the state again."""


def gather_cycles(messages: Sequence[int]) -> list[int]:
    """From the last core's start at a gather to each core's done.

    Cores send one after the other: `messages` of each core, and one more that says so. It passes
    the reads of the buffer, the wires to the bus and a register there; on the wires back are the
    next core's turn, and the message to the others' inboxes. A core is done when it has sent its
    own and received all others.
    """
    pass_ = READ_LATENCY + 2 * WIRE + 1
    turn, sent, received = BARRIER, [], []  # the first turn: `go` is a register behind the meeting
    for count in messages:
        sent.append(turn + count + 1)
        received.append(turn + count + pass_ + 1)
        turn += count + pass_
    last = len(messages) - 1
    return [
        1 + max(own, received[last if core < last else last - 1]) for core, own in enumerate(sent)
    ]
