"""One core in time: its dispatcher, the queues and tokens of its units, what each unit takes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flightllm.sim.cycle import kernels
from flightllm.sim.cycle.memory import ChannelMemory, PlainMemory, Stream, Transfer
from flightllm.sim.cycle.ports import ENGINE_F, ST_A, ST_F, PortReads
from flightllm.sim.cycle.stores import store_jobs
from flightllm.sim.functional.dispatch import Dispatcher, Step
from flightllm.sim.functional.matrices import format_of
from flightllm.spec import timing
from flightllm.spec.config import HwConfig
from flightllm.spec.dram import DramTiming
from flightllm.spec.errors import VerifyError
from flightllm.spec.formats import ALIGN, row_shares
from flightllm.spec.image import Program
from flightllm.spec.isa import QUEUE_DEPTH, UNITS, Unit
from flightllm.spec.parameters import exchanged_bytes, row_words

__all__ = ["CoreTime", "Started"]

SHARED = ("sys.gather", "sys.barrier")


@dataclass
class Started:
    """An instruction that a unit executes.

    Members
    -------
    step, values : what it is. start : cycle of its start pulse. collected : cycle in which the unit
        had all its words. progress : state of one that is
        worked on piece by piece. now : the cycle up to which that is done.
    """

    step: Step
    values: list[int]
    start: float
    collected: float
    progress: Any = None
    now: float = 0.0


@dataclass
class _Rows:
    """How far ld.vec or ld.gather is.

    Members
    -------
    asked, written : cycles from which on the next row's requests are sent, and its beats are taken.
    row : its number.
    """

    asked: float
    written: float
    row: int = 0


@dataclass
class _Unit:
    """A unit's queue.

    Members
    -------
    queue : (step, operands, cycle of the last word at the queue). granted : cycle in which the
        last instruction got its tokens. starts : of those that count for the queue's depth.
    done : cycle in which the last one was done. running : the one that is not finished yet.
    busy, executed : cycles between grant and done, instructions.
    """

    queue: deque[tuple[Step, list[int], float]] = field(default_factory=deque)
    granted: float = -1e9
    done: float = -1e9
    starts: deque[float] = field(default_factory=deque)
    dispatched: int = 0
    running: Started | None = None
    busy: float = 0.0
    executed: int = 0


class _TimedDispatcher(Dispatcher):
    """Adds up what the scalar instructions take."""

    _cycles = 0

    def _scalar(self, step: Step) -> None:
        before = self._next
        super()._scalar(step)
        self._cycles += timing.scalar_cycles(step.kind.name, step.kind.words)
        if step.kind.name == "sys.loop" and self._next == step.match + 1 != before:
            self._cycles += sum(
                skipped.kind.words + skipped.scalar for skipped in self._steps[before : self._next]
            )

    def spend(self) -> int:
        """Cycles since the last call."""
        spent, self._cycles = self._cycles, 0
        return spent


class CoreTime:
    """One core.

    Parameters
    ----------
    program, number : whose. dram : of the memory, None for a plain one like `memory`.
    """

    def __init__(self, program: Program, number: int, dram: DramTiming | None,
                 memory: PlainMemory) -> None:  # fmt: skip
        self.config: HwConfig = program.config
        self.number, self.where = number, f"core {number}"
        self.channels = self.config.channels[number]
        self.dispatcher = _TimedDispatcher(program.cores[number], self.where)
        self.memory = ChannelMemory(self.config, number, dram, memory)
        self.engine = timing.engine_timing(self.config, number)
        self.streams: deque[Stream] = deque()
        self.handlers: dict[Unit, Callable[[Started, float], float | None]] = {
            Unit.LD: self._load, Unit.ST: self._store, Unit.MM: self._matrix,
            Unit.MV: self._matrix, Unit.MISC: self._misc, Unit.SYS: self._system,
        }  # fmt: skip
        self.reset()

    def reset(self) -> None:
        """Forget everything but the state of the memory."""
        self.units = [_Unit() for _ in UNITS]
        self.tokens: list[list[deque[float]]] = [[deque() for _ in UNITS] for _ in UNITS]
        self.halt: tuple[Step, float] | None = None
        self.halted: float | None = None
        self.blocked = False  # LD's instruction needs what the engine has not done yet
        self.sent: float | None = None  # when LD's last instruction, of vectors, had asked for all
        self.array = self.stepped = -1e9  # when the engine is free, when its last step was
        self.reads = PortReads(self.config.sfu_lanes)

    def begin(self, entry: str, registers: Mapping[int, int], now: float) -> None:
        """Start a run in cycle `now`."""
        self.reset()
        self.dispatcher.start(entry, registers)
        self.clock = now + timing.RUN_START + timing.CLEAR

    # ------------------------------------------------------------------------ dispatch

    def dispatch(self) -> bool:
        """Queue instructions as far as it is known when; whether there was one."""
        moved = False
        while self.halt is None:
            step = self.dispatcher.peek()
            self.clock += self.dispatcher.spend()
            unit = self.units[step.unit]
            if step.kind.name != "sys.halt" and not self._place(unit):
                break
            step, values = self.dispatcher.take()
            self.clock += step.kind.words
            unit.dispatched += 1
            if step.kind.name == "sys.halt":
                self.halt = step, self.clock - 1
            else:
                unit.queue.append((step, values, self.clock - 1))
            moved = True
        return moved

    def _place(self, unit: _Unit) -> bool:
        """Whether it is known when the unit's queue takes one more; the clock moves there."""
        if unit.dispatched >= QUEUE_DEPTH:
            if not unit.starts:
                return False
            self.clock = max(self.clock, unit.starts.popleft() + 1)
        return True

    # ------------------------------------------------------------------------ tokens

    def ready(self, number: int) -> float | None:
        """The cycle in which the unit's next instruction is granted, as far as this is known."""
        unit = self.units[number]
        if not unit.queue or unit.running is not None:
            return None
        step = unit.queue[0][0]
        at = max(self._collected(unit), unit.done)
        for other in step.wait:
            given = self.tokens[number][other]
            if not given:
                return None
            at = max(at, given[0] + 1)
        if step.unit in (Unit.MM, Unit.MV) and step.kind.operands and not self.streams:
            return None
        return at

    def _collected(self, unit: _Unit) -> float:
        """The cycle in which the unit has all words of the instruction at its queue's head."""
        step, _, word = unit.queue[0]
        return max(word + timing.QUEUE_PASS + 1, unit.granted + step.kind.words + 1)

    def start(self, number: int, at: float) -> Started:
        """Take the unit's next instruction and its tokens."""
        unit = self.units[number]
        collected = self._collected(unit)
        step, values, _ = unit.queue.popleft()
        for other in step.wait:
            self.tokens[number][other].popleft()
        unit.granted = at
        unit.starts.append(at + timing.GRANT)
        unit.running = Started(step, values, at + timing.GRANT, collected)
        unit.running.now = unit.running.start
        return unit.running

    def work(self, number: int, limit: float) -> bool:
        """Go on with what a unit executes, up to `limit` where it goes piece by piece; whether it
        is done."""
        unit = self.units[number]
        running = unit.running
        assert running is not None
        done = self.handlers[running.step.unit](running, limit)
        if done is None:
            return False
        self.finish(number, done)
        return True

    def finish(self, number: int, done: float) -> Started:
        """Give the tokens of an instruction that is done."""
        unit = self.units[number]
        running = unit.running
        assert running is not None
        for other in running.step.release:
            self.tokens[other][number].append(done)
        unit.busy += done - unit.granted
        unit.executed += 1
        unit.done, unit.running = done, None
        running.now = done
        return running

    def try_halt(self) -> bool:
        """Halt when everything is done."""
        if self.halt is None or self.halted is not None:
            return False
        step, word = self.halt
        if any(unit.queue or unit.running for unit in self.units):
            return False
        given = [self.tokens[Unit.SYS][other] for other in step.wait]
        if not all(given):
            return False
        before = self.units[Unit.SYS].done
        at = max([word + timing.QUEUE_PASS + 1, before, *(t[0] + 1 for t in given)])
        for tokens in given:
            tokens.popleft()
        quiet = max([unit.done for unit in self.units] + [at + timing.GRANT])
        if self.streams:
            raise VerifyError(f"{self.where}: halt with {len(self.streams)} unused matrices")
        self.halted = quiet + 1
        self.units[Unit.SYS].busy += self.halted + 1 - at
        return True

    def stuck(self) -> str:
        """What the core's units wait for."""
        waits = [
            f"{UNITS[n].name} at word {unit.queue[0][0].address}"
            for n, unit in enumerate(self.units)
            if unit.queue
        ]
        return f"{self.where}: " + ", ".join(waits or ["the dispatcher"])

    # ------------------------------------------------------------------------ LD

    def _load(self, run: Started, limit: float) -> float | None:
        name = run.step.kind.name
        if name == "ld.nop":
            self.sent = None
            return run.start + 1
        if name == "ld.stream":
            done = self._stream(run, limit)
            if done is not None:
                self.sent = None
            elif self.memory.later < math.inf:
                run.now = max(limit + 1, self.memory.later)
            else:
                self.blocked = True
            return done
        done = self._vectors(run, limit)
        if done is not None:
            self.sent = run.progress.asked
        return done

    def _stream(self, run: Started, limit: float) -> float | None:
        addr, rows, kgroups, word, first, start = run.values
        if rows == 0:
            self.streams.append(Stream(0, 0, format_of(word), _nothing(self.channels),
                                       np.zeros(self.channels, np.int64),
                                       self.memory.pushed.copy()))  # fmt: skip
            return run.start + 1
        room = self.memory.room_for_command(limit)
        if room is None:
            return None
        fmt, go = format_of(word), run.start
        if self.sent is not None and not run.step.wait:  # behind vectors, planned meanwhile
            go = min(go, max(self.sent, run.collected))
        at = go + timing.stream_plan_cycles(fmt, rows, kgroups, first, start, self.channels)
        accepted = np.empty(self.channels)
        for c in range(self.channels):
            at = max(at, room[c])
            accepted[c] = at
            at += 1
        self.streams.append(
            self.memory.stream(addr, rows, kgroups, fmt, first, start, accepted)
        )
        return float(max(at - 1, run.start + 1))

    def _vectors(self, run: Started, limit: float) -> float | None:
        """ld.vec and ld.gather: one part of the unit sends the requests of row after row, another
        takes the beats and writes their parts to F, channel by channel. Matrices are asked for
        between the rows."""
        addr, _, n, count, mstride = run.values[:5]
        size = 2 if "half" in run.step.flags else 4
        width = min(row_words(self.config), self.memory.beat // size)
        shares = [b - a for a, b in row_shares(n, self.channels)]
        beats = np.array([-(-share * size // self.memory.beat) for share in shares], np.int64)
        if run.progress is None:
            begin = run.start + timing.vector_setup(n)
            run.progress = _Rows(begin, begin)
            self.memory.clear_vectors()
        rows: _Rows = run.progress
        while rows.row < count:
            if rows.asked > limit:
                run.now = rows.asked
                return None
            if run.step.kind.name == "ld.gather":
                rows.asked += timing.gather_number_cycles(mstride)
            row = Transfer(np.full(self.channels, (addr + rows.row * mstride) * ALIGN, np.int64),
                           beats, np.empty(self.channels))  # fmt: skip
            room = self.memory.room_for_vectors()
            for c in range(self.channels):
                row.earliest[c] = rows.asked = max(rows.asked, room[c] if beats[c] else 0.0)
                rows.asked += 1
            rows.written = self.memory.take_row(
                row, [-(-share // width) for share in shares], rows.written
            )
            rows.row += 1
        return rows.written + 1

    # ------------------------------------------------------------------------ ST

    def _store(self, run: Started, limit: float) -> float | None:
        if run.step.kind.name == "st.nop":
            return run.start + 1
        if run.progress is None:
            values = run.step.named(run.values)
            jobs = store_jobs(run.step.kind.name, values, self.channels, self.memory.beat,
                              row_words(self.config))  # fmt: skip
            begin = run.start + timing.store_setup(run.step.kind.name, values, self.channels)
            walk = np.array([begin - 1, -1e9, begin, 0, 0])
            run.progress = [jobs, 0, walk, np.full(timing.STORE_BEATS, -1e9)]
            self.memory.answers[:] = -1e9
        jobs, place, walk, handed = run.progress
        self.reads.catch_up(ST_F, walk[kernels.READ_AT])
        run.progress[1] = place = self.memory.write(
            jobs, place, walk, handed, self.reads, limit
        )
        if place < len(jobs.reads):
            run.now = float(walk[kernels.NEXT])
            return None
        end = walk[kernels.READ_AT] + jobs.behind
        return float(max(end, self.memory.answers.max(initial=-1e9))) + 1

    # ------------------------------------------------------------------------ MM, MV

    def _matrix(self, run: Started, limit: float) -> float | None:
        if not run.step.kind.operands:
            return run.start + 1
        if run.progress is None:
            self._begin_matrix(run)
            if run.progress is None:
                return max(run.start, self.array) + 1
        stream, shape, walk, closes = run.progress
        self.blocked = False
        if "add" in run.step.flags:
            self.reads.catch_up(ENGINE_F, walk[2])
        while not self.memory.consume(stream, shape, walk, closes, self.reads, limit):
            run.now = float(walk[1])
            if run.now > limit:
                return None
        done = float(walk[2] + self.engine.drain)
        self.array, self.stepped = done, float(walk[1])
        return done

    def _command(self, run: Started) -> float:
        """When a matrix's decode units get their commands: as soon as it is collected if the other
        of MM and MV has nothing to do, else when its instruction starts."""
        other = self.units[Unit.MV if run.step.unit == Unit.MM else Unit.MM]
        known = max(run.collected, other.done)
        alone = other.running is None and not (other.queue and other.queue[0][2] < known)
        return (min(known, run.start) if alone else run.start) + self.engine.command

    def _begin_matrix(self, run: Started) -> None:
        values = run.step.named(run.values)
        stream, engine = self.streams.popleft(), self.engine
        if (stream.rows, stream.kgroups) != (values["rows"], values["kgroups"]):
            raise VerifyError(
                f"{self.where}, word {run.step.address}: the matrix in the weight FIFO has "
                f"{stream.rows} rows, not {values['rows']}"
            )
        if not stream.rows:
            return
        command, table = self._command(run), engine.table if stream.fmt.table else 0
        begin = max(
            max(run.start, self.array) + engine.start,
            command + engine.prepared + (engine.fetch if table else 0),
        )
        vectors = values.get("n1", 1) * values["n2"]
        made = timing.matrix_timing(stream.fmt, engine, vectors)
        batches = -(-vectors // engine.cells)
        windows = -(-stream.fmt.group // (2 * engine.k_lanes))
        fill = vectors * windows
        epilogue = (vectors + made.emit) * engine.channels * engine.parts
        beat_slices = max(1, engine.beat_bytes * made.slices // max(made.pair_bytes, 1))
        # The decode unit holds a header, and codes whose steps are still to come.
        step_beats = made.share * made.pair_bytes / made.slices / engine.beat_bytes
        codes = engine.ring + engine.stages * step_beats
        ahead = (engine.ring / step_beats + engine.slice) * batches
        kind = 2 if stream.fmt.whole else 1 if stream.fmt.cyclic else 0
        groups = 1 if stream.fmt.cyclic else stream.kgroups
        distance = engine.distance if made.scaled else engine.integer_distance
        result = engine.result + (engine.late if made.minima else 0)
        shape = np.array([
            0, groups, kind, made.header, made.chunk, made.pair_bytes, made.slices, batches, fill,
            distance, epilogue, result, engine.slice + (beat_slices - 1) * batches, beat_slices,
            ahead, made.share, made.header + codes, "add" in run.step.flags,
        ], np.float64)  # fmt: skip
        first = begin + 3 + fill  # the first group's windows are there
        self.reads.catch_up(ENGINE_F, begin)
        scales, _ = kernels.spend(begin + 1, vectors, self.reads.before[ENGINE_F], 0)
        fetched = scales + timing.READ_LATENCY  # the vectors' scales, rows' places
        ready = max(fetched, begin + 1 + engine.channels)
        beats = max(command + engine.beats + table, self.stepped - engine.slice + 1,
                    first + 1 - made.header - codes)
        units = groups * (1 if kind == 2 else -(-int(stream.pairs.max()) // 8))
        ahead_end = begin + 1 + min(2, units) * fill
        kernels.note(self.reads.before[ST_A], begin + 1, ahead_end)
        walk = np.array([0, first - 1, ready - 1, 0, 0, beats, ahead_end], np.float64)
        run.progress = stream, shape, walk, np.zeros(2)

    # ------------------------------------------------------------------------ MISC, SYS

    def _misc(self, run: Started, limit: float) -> float | None:
        cycles = timing.misc_cycles(run.step.kind.name, run.step.flags,
                                    run.step.named(run.values), self.config.sfu_lanes)  # fmt: skip
        self.reads.start(run.start, run.step, run.values)
        return run.start + cycles

    def _system(self, run: Started, limit: float) -> float | None:
        if run.step.kind.name in SHARED and self.config.cores > 1:
            return None
        return run.start + 1

    def messages(self, step: Step, values: Sequence[int]) -> int:
        """Messages of a core's slice at a gather."""
        _, n, n1, _ = values
        act = "act" in step.flags
        return n1 * -(-n // (exchanged_bytes(self.config) if act else row_words(self.config)))


def _nothing(channels: int) -> Transfer:
    zeros = np.zeros(channels, np.int64)
    return Transfer(zeros, zeros, np.zeros(channels))

