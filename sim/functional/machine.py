"""Queues, semaphores and schedule: which unit runs what next, on one core or several.

An instruction starts when the tokens it waits for are there, takes them, and gives its own when it
is done; a unit works in order. LD.stream starts when all matrices nobody took yet fit the weight
FIFO, and is done when its matrix is asked for: vectors need not wait for what is left of it. Any
order of units that respects this must give the same bits. The default order lets LD run as far
ahead as it can and ST stay behind, so that a missing semaphore shows; with a seed the order is
random.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from inspect import signature
from typing import Any

import numpy as np

from flightllm.sim.functional import linear, load_store, misc
from flightllm.sim.functional.core import CoreState
from flightllm.sim.functional.dispatch import Dispatcher, Step
from flightllm.spec.errors import FlightError, VerifyError
from flightllm.spec.image import Program
from flightllm.spec.isa import INSTRUCTIONS, QUEUE_DEPTH, UNITS, Unit
from flightllm.spec.trace import TraceRecord

__all__ = ["DeadlockError", "HANDLERS", "LocatedError", "Machine", "Tracer"]

Tracer = Callable[[TraceRecord], None]


class DeadlockError(VerifyError):
    """No unit of any core can go on; names what each waits for."""


class LocatedError(VerifyError):
    """An instruction cannot be executed.

    Members
    -------
    core : its number. step : the instruction. cause : what its handler raised.
    """

    def __init__(self, core: int, step: Step, cause: Exception) -> None:
        super().__init__(f"core {core}, word {step.address}, {step.kind.name}: {cause}")
        self.core, self.step, self.cause = core, step, cause


_ORDER = (Unit.LD, Unit.MM, Unit.MV, Unit.MISC, Unit.SYS, Unit.ST)
_SYS, _SHARED = int(Unit.SYS), ("sys.gather", "sys.barrier")


def _nothing(core: CoreState, flags: frozenset[str]) -> None:
    """A nop: only its tokens matter."""


HANDLERS: dict[str, Callable[..., None]] = {
    "ld.stream": load_store.ld_stream,
    "ld.vec": load_store.ld_vec,
    "ld.gather": load_store.ld_gather,
    "st.vec": load_store.st_vec,
    "st.keys": load_store.st_keys,
    "st.values": load_store.st_values,
    "mm.linear": linear.mm_linear,
    "mv.linear": linear.mv_linear,
    "misc.add": misc.misc_add,
    "misc.stat": misc.misc_stat,
    "misc.quant": misc.misc_quant,
    "misc.headq": misc.misc_headq,
    "misc.softmax": misc.misc_softmax,
    "misc.act": misc.misc_act,
    "misc.topk": misc.misc_topk,
    "misc.merge": misc.misc_merge,
    **{f"{unit.name.lower()}.nop": _nothing for unit in UNITS},
}
"""What executes each instruction that one core runs alone, called with its operands in order."""


def _verify_handlers() -> None:
    for kind in INSTRUCTIONS:
        if kind.scalar or kind.name in (*_SHARED, "sys.halt"):
            continue
        names = list(signature(HANDLERS[kind.name]).parameters)[2:]
        if names != [operand.name for operand in kind.operands]:
            raise VerifyError(f"{kind.name}: its handler takes other operands: {names}")


_verify_handlers()


class _Core:
    """One core's dispatcher, queues and tokens around its state."""

    def __init__(self, program: Program, number: int, cache_bytes: int) -> None:
        self.where = f"core {number}"
        self.state = CoreState(program, number, cache_bytes)
        self.dispatcher = Dispatcher(program.cores[number], self.where)
        self.queues: list[deque[tuple[Step, list[int]]]] = [deque() for _ in UNITS]
        self.tokens = [[0] * len(UNITS) for _ in UNITS]  # [to][from]
        self.halt: Step | None = None
        self.halted = False
        self.executed = [0] * len(UNITS)

    def start(self, entry: str, registers: Mapping[int, int]) -> None:
        self.dispatcher.start(entry, registers)
        self.halt, self.halted = None, False
        self.executed = [0] * len(UNITS)

    def can_dispatch(self) -> bool:
        if self.halt is not None:
            return False
        step = self.dispatcher.peek()
        return step.kind.name == "sys.halt" or len(self.queues[step.unit]) < QUEUE_DEPTH

    def dispatch(self) -> None:
        """Queue the next instruction."""
        step, values = self.dispatcher.take()
        if step.kind.name == "sys.halt":
            self.halt = step
        else:
            self.queues[step.unit].append((step, values))

    def has_tokens(self, step: Step) -> bool:
        tokens = self.tokens[step.unit]
        return all(tokens[unit] for unit in step.wait)

    def ready(self, unit: int) -> bool:
        """Whether the unit's next instruction can start (a shared one: whether it has arrived)."""
        queue = self.queues[unit]
        if not queue:
            return False
        step = queue[0][0]
        if step.wait and not self.has_tokens(step):
            return False
        if step.kind.name == "ld.stream":
            return self.state.waiting <= self.state.prefetch
        return not (step.kind.unit in (Unit.MM, Unit.MV) and step.kind.operands) or bool(
            self.state.fifo
        )

    def arrived(self) -> bool:
        """Whether SYS stands at a gather or barrier that can start."""
        queue = self.queues[_SYS]
        return bool(queue) and queue[0][0].kind.name in _SHARED and self.has_tokens(queue[0][0])

    def take(self, unit: int) -> tuple[Step, list[int]]:
        """Start the unit's next instruction: remove it and the tokens it waited for."""
        step, values = self.queues[unit].popleft()
        tokens = self.tokens[unit]
        for other in step.wait:
            tokens[other] -= 1
        return step, values

    def finish(self, step: Step) -> None:
        """Give the tokens of an instruction that is done."""
        for other in step.release:
            self.tokens[other][step.unit] += 1
        self.executed[step.unit] += 1

    def try_halt(self) -> bool:
        """Halt when everything is done; True when that happened."""
        if self.halt is None or any(self.queues) or not self.has_tokens(self.halt):
            return False
        for other in self.halt.wait:
            self.tokens[_SYS][other] -= 1
        self.halted = True
        self._check_empty()
        return True

    def _check_empty(self) -> None:
        if self.state.fifo:
            raise VerifyError(f"{self.where}: halt with {len(self.state.fifo)} unused matrices")
        for to in UNITS:
            for source in UNITS:
                if self.tokens[to][source]:
                    raise VerifyError(
                        f"{self.where}: halt with {self.tokens[to][source]} tokens from "
                        f"{source.name} to {to.name} that nobody took"
                    )

    def stuck(self) -> str:
        """What the core's units wait for."""
        parts = []
        for unit in UNITS:
            if not self.queues[unit]:
                continue
            step = self.queues[unit][0][0]
            missing = [UNITS[other].name for other in step.wait if not self.tokens[unit][other]]
            reason = "a token from " + " and ".join(missing)
            if not missing:
                other = "FIFO room" if unit == Unit.LD else "the weight FIFO"
                reason = "the other cores" if step.kind.name in _SHARED else other
            place = f"{unit.name} at word {step.address} ({step.kind.name})"
            parts.append(f"{place} waits for {reason}")
        if self.halt is not None and not parts:
            parts.append("sys.halt waits for a token")
        return f"{self.where}: " + "; ".join(parts)


class Machine:
    """All cores of a program.

    Parameters
    ----------
    program : with weights. seed : None for the default order, else of a random one; buffers then
        start with arbitrary contents. cache_bytes : decoded matrices to keep, over all cores.
    """

    def __init__(self, program: Program, seed: int | None, cache_bytes: int) -> None:
        cores = len(program.cores)
        self.cores = [_Core(program, i, cache_bytes // cores) for i in range(cores)]
        self._random = None if seed is None else random.Random(seed)
        self.tracer: Tracer | None = None
        if seed is not None:
            for core in self.cores:
                core.state.fill(np.random.default_rng([seed, core.state.number]))

    def run(self, entry: str, registers: Mapping[int, int]) -> dict[str, int]:
        """Run every core from `entry` to its halt; the instructions each unit executed, by name.

        Raises
        ------
        VerifyError
            For a fault of the program; names core, unit, word address and instruction.
        """
        for _ in self.steps(entry, registers):
            pass
        return {
            f"{unit.name.lower()}.instructions": sum(core.executed[unit] for core in self.cores)
            for unit in UNITS
        }

    def steps(self, entry: str, registers: Mapping[int, int]) -> Iterator[None]:
        """As `run`, pausing after each step of the schedule; it may be left there for good.

        Raises
        ------
        DeadlockError
            When no unit of any core can go on.
        VerifyError
            As `run`.
        """
        for core in self.cores:
            core.start(entry, registers)
            core.state.notes = None if self.tracer is None else []
        one_pass = self._random_pass if self._random else self._ordered_pass
        while not all(core.halted for core in self.cores):
            moved = False
            for step in one_pass():
                moved = step
                yield
            if not moved and not self._meet():
                where = [core.stuck() for core in self.cores if not core.halted]
                raise DeadlockError("deadlock: " + "; ".join(where))

    # ------------------------------------------------------------------------- scheduling

    def _ordered_pass(self) -> Iterator[bool]:
        """Run each core as far as it goes alone; True for each step."""
        for core in self.cores:
            while not core.halted and self._ordered_step(core):
                yield True

    def _ordered_step(self, core: _Core) -> bool:
        moved = False
        while core.can_dispatch():
            core.dispatch()
            moved = True
        for unit in _ORDER:
            if core.ready(unit) and not (unit == Unit.SYS and core.arrived()):
                self._execute(core, unit)
                return True
        return core.try_halt() or moved

    def _random_pass(self) -> Iterator[bool]:
        """One random thing that can happen now; whether there was one."""
        yield self._random_step()

    def _random_step(self) -> bool:
        assert self._random is not None
        actions: list[tuple[_Core, int]] = []
        for core in self.cores:
            if core.halted:
                continue
            if core.can_dispatch():
                actions.append((core, -1))
            for unit in range(len(UNITS)):
                if core.ready(unit) and not (unit == _SYS and core.arrived()):
                    actions.append((core, unit))
        if not actions:
            return any(core.try_halt() for core in self.cores if not core.halted)
        core, unit = self._random.choice(actions)
        if unit < 0:
            core.dispatch()
        else:
            self._execute(core, unit)
        return True

    # ------------------------------------------------------------------------- execution

    def _execute(self, core: _Core, unit: int) -> None:
        step, values = core.take(unit)
        try:
            HANDLERS[step.kind.name](core.state, step.flags, *values)
        except FlightError as error:
            raise self._located(core, step, error) from None
        self._trace(core, step, values)
        core.finish(step)

    @staticmethod
    def _located(core: _Core, step: Step, error: Exception) -> LocatedError:
        return LocatedError(core.state.number, step, error)

    def _trace(self, core: _Core, step: Step, values: Sequence[int]) -> None:
        notes = core.state.notes
        if self.tracer is None or notes is None:
            return
        digests: dict[str, Any] = {}
        for name, array in notes:
            digests.setdefault(name, sha256()).update(np.ascontiguousarray(array).tobytes())
        notes.clear()
        writes = {name: digest.hexdigest()[:16] for name, digest in digests.items()}
        self.tracer(TraceRecord(
            core.state.number, step.unit.name.lower(), step.address, step.kind.name,
            step.named(values), writes=writes,
        ))  # fmt: skip

    # ------------------------------------------------------------------------- between cores

    def _meet(self) -> bool:
        """Execute a gather or barrier when all cores have arrived at one; whether they had."""
        if not all(core.arrived() for core in self.cores):
            return False
        taken = [core.take(_SYS) for core in self.cores]
        for core, (step, _) in zip(self.cores, taken):
            if step.kind.name != taken[0][0].kind.name:
                raise self._located(
                    core, step, VerifyError(f"core 0 is at {taken[0][0].kind.name} instead")
                )
        if taken[0][0].kind.name == "sys.gather":
            self._gather(taken)
        for core, (step, values) in zip(self.cores, taken):
            self._trace(core, step, values)
            core.finish(step)
        return True

    def _gather(self, taken: Sequence[tuple[Step, list[int]]]) -> None:
        """Copy each core's slice to every other core."""
        slices = []
        for core, (step, values) in zip(self.cores, taken):
            try:
                slices.append(_slice(core.state, step, values).copy())
            except FlightError as error:
                raise self._located(core, step, error) from None
        for core in self.cores:
            for (step, values), part in zip(taken, slices):
                view = _slice(core.state, step, values)
                view[:] = part
                core.state.note("A" if "act" in step.flags else "F", view)


def _slice(state: CoreState, step: Step, values: Sequence[int]) -> np.ndarray[Any, Any]:
    addr, n, n1, stride = values
    buffer: Any = state.a if "act" in step.flags else state.f
    view: np.ndarray[Any, Any] = buffer.view(addr, (n1, stride), (n, 1))
    return view
