"""Semaphores: which instruction waits for which, from what they touch.

Units work in order, tokens are counted, so a wait must meet the release it was paired with. Pairs
(producer p on unit U, consumer c on unit V) are made in program order and only when V does not
already know that p is done, which makes them monotone in both units: the n-th wait meets the n-th
release. A loop is closed in itself: dependencies from one iteration to the next are primed by
releases before it and drained by waits after it; what enters and leaves it passes through one nop
a unit on each side. Nops that turn out to have nothing to say are dropped. Two loops that run as
often as each other may be linked: a step of the first gives a token in every iteration that a step
of the second takes in its own, so that the second need not wait for the first one's end.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from flightllm.compiler.ir import Access, Loop, Step
from flightllm.spec.encoding import Op
from flightllm.spec.isa import Unit, by_name

__all__ = ["synchronise"]


@dataclass
class _Node:
    """A step on its way to an instruction. `closed`: part of a finished inner loop."""

    op: Op
    accesses: tuple[Access, ...] = ()
    waits: set[Unit] = field(default_factory=set)
    releases: set[Unit] = field(default_factory=set)
    closed: bool = False
    consumes: bool = True
    produces: bool = True
    optional: bool = False
    leaves: bool = False
    awaited: tuple[Access, ...] = ()
    link: tuple[Unit | None, Unit | None] = (None, None)  # who gets, who gives a token of a loop

    @property
    def unit(self) -> Unit:
        return self.op.kind.unit

    @property
    def tracked(self) -> bool:
        """Takes part in the pairing of the block it stands in."""
        return not self.closed and not self.op.kind.scalar

    def finish(self) -> Op:
        return dataclasses.replace(
            self.op, wait=frozenset(self.waits), release=frozenset(self.releases)
        )


@dataclass
class _Past:
    """An access that later ones may conflict with.

    `node`, `index`, `turn` say whom to wait for; `made` is the turn in which the access happened,
    `place` the index that it had then: who knows that one to be done need not wait.
    """

    access: Access
    unit: Unit
    index: int
    node: _Node
    turn: int
    made: int
    place: int


class _Tracker:
    """Pairs of one straight line of nodes (which may be walked more than once)."""

    def __init__(self) -> None:
        self.count: Counter[Unit] = Counter()
        self.known: dict[Unit, Counter[Unit]] = {unit: Counter() for unit in Unit}
        self.learned: dict[tuple[Unit, int], Counter[Unit]] = {}
        self.history: list[_Past] = []
        self.places: dict[tuple[int, int], int] = {}
        self.paired: dict[tuple[Unit, Unit], int] = {}

    def visit(self, node: _Node, turn: int, loop: str | None,
              settled: Sequence[_Node] = ()) -> list[tuple[_Node, int]]:  # fmt: skip
        """Advance over `node`.

        Parameters
        ----------
        settled : producers of this turn that it waits for in any case.

        Returns
        -------
        The producers it must wait for, with the turn they ran in.
        """
        unit = node.unit
        self.count[unit] += 1
        index, known = self.count[unit], self.known[unit]
        self.places[id(node), turn] = index
        pairs = []
        for producer in settled:
            place = self.places[id(producer), turn]
            if place > self.paired.get((producer.unit, unit), 0):  # else settled by a later pair
                self._learn(unit, producer.unit, place)
                pairs.append((producer, turn))
        for past in self._needed(node, turn, loop) if node.consumes else ():
            if past.index > known[past.unit]:  # else learned through another unit meanwhile
                self._learn(unit, past.unit, past.index)
                pairs.append((past.node, past.turn))
        self.learned[unit, index] = Counter(known)
        if node.leaves:
            self._pass_through(node, index, turn)
        if node.produces:
            self._remember(node, index, turn)
        return pairs

    def _learn(self, unit: Unit, owner: Unit, index: int) -> None:
        """`unit` meets the release of `owner`'s instruction `index`."""
        assert index > self.paired.get((owner, unit), 0), "semaphores would meet out of order"
        self.paired[owner, unit] = index
        known = self.known[unit]
        known[owner] = max(known[owner], index)
        for third, seen in self.learned[owner, index].items():
            if third != unit:
                known[third] = max(known[third], seen)

    def _needed(self, node: _Node, turn: int, loop: str | None) -> list[_Past]:
        """The latest conflicting access of each other unit that is not known to be done."""
        latest: dict[Unit, _Past] = {}
        for past in self.history:
            best = latest.get(past.unit)
            if past.unit == node.unit or past.place <= self.known[node.unit][past.unit]:
                continue
            if best and best.index >= past.index:
                continue
            if any(_ordered(past.access, a, past.made != turn, loop) for a in node.accesses):
                latest[past.unit] = past
        return [latest[unit] for unit in sorted(latest)]

    def _pass_through(self, node: _Node, index: int, turn: int) -> None:
        """Behind a loop, whoever waits for something older waits for the loop's end: a token that
        was released before the loop would be taken by a wait inside it."""
        for past in self.history:
            if past.unit == node.unit:
                past.node, past.index, past.turn = node, index, turn

    def _remember(self, node: _Node, index: int, turn: int) -> None:
        for access in node.accesses:
            self.history = [
                past
                for past in self.history
                if past.unit != node.unit or past.access != access
            ]
            self.history.append(_Past(access, node.unit, index, node, turn, turn, index))


def _ordered(before: Access, after: Access, carried: bool, loop: str | None) -> bool:
    if carried and loop in before.apart and loop in after.apart:
        return False
    return before.conflicts(after)


def _nop(unit: Unit) -> Op:
    return Op(by_name(f"{unit.name.lower()}.nop"))


def _close(loop: Loop) -> list[_Node]:
    """A loop as nodes: entry nops, primes, the loop, drains, exit nops."""
    body = _flatten(loop.body)
    tracked = [node for node in body if node.tracked]
    carried: Counter[tuple[Unit, Unit]] = Counter()
    for node, producer, turn in _steady_pairs(tracked, loop.name):
        node.waits.add(producer.unit)
        producer.releases.add(node.unit)
        if turn == 0:
            carried[producer.unit, node.unit] += 1
    _check_order(tracked)
    _link(tracked)
    touched = _touched(tracked)
    entry = [
        _Node(_nop(unit), acc, produces=False, optional=True)
        for unit, acc in _touched(tracked, entering=True).items()
    ]
    leave = [
        _Node(_nop(unit), acc, consumes=False, optional=True, leaves=True)
        for unit, acc in touched.items()
    ]
    primes = [
        _Node(_nop(owner), releases={unit}, closed=True)
        for (owner, unit), times in sorted(carried.items())
        for _ in range(times)
    ]
    drains = [
        _Node(_nop(unit), waits={owner}, closed=True)
        for (owner, unit), times in sorted(carried.items())
        for _ in range(times)
    ]
    for node in body:
        node.closed = True
    start = _Node(Op.make("sys.loop", count=loop.count), closed=True)
    end = _Node(Op.make("sys.end"), closed=True)
    return [*entry, *primes, start, *body, end, *drains, *leave]


def _steady_pairs(nodes: Sequence[_Node], loop: str) -> list[tuple[_Node, _Node, int]]:
    """Pairs (consumer, producer, turn) of an iteration behind another one; turn 0 is the earlier.

    An iteration's own pairs must be the same in all iterations. Those that only the second one
    needs (for something the first one left behind) are settled for both, until nothing changes.
    """
    settled: dict[int, dict[int, _Node]] = {id(node): {} for node in nodes}
    while True:
        tracker, found, grown = _Tracker(), [], False
        for turn in (0, 1):
            for node in nodes:
                mine = settled[id(node)]
                for producer, made in tracker.visit(node, turn, loop, list(mine.values())):
                    if made == turn and id(producer) not in mine:
                        mine[id(producer)] = producer
                        grown = True
                    if turn == 1:
                        found.append((node, producer, made))
        if not grown:
            return found


def _link(nodes: Sequence[_Node]) -> None:
    """The tokens from one loop to the next: nobody else in either may use their counter."""
    for node in nodes:
        to, source = node.link
        pairs = [(node.unit, to)] if to is not None else []
        pairs += [(source, node.unit)] if source is not None else []
        for giver, taker in pairs:
            given = any(n.unit == giver and taker in n.releases for n in nodes)
            taken = any(n.unit == taker and giver in n.waits for n in nodes)
            assert not (given or taken), f"{giver.name} to {taker.name}: tokens of two kinds"
        if to is not None:
            node.releases.add(to)
        if source is not None:
            node.waits.add(source)


def _touched(
    nodes: Iterable[_Node], entering: bool = False
) -> dict[Unit, tuple[Access, ...]]:
    """What each unit touches; when entering, without what a token of every iteration makes safe."""
    out: dict[Unit, dict[Access, None]] = {}
    for node in nodes:
        for access in node.accesses:
            if not (entering and access in node.awaited):
                out.setdefault(node.unit, {})[access] = None
    return {unit: tuple(accesses) for unit, accesses in sorted(out.items())}


def _check_order(nodes: Sequence[_Node]) -> None:
    """A node waits on a unit once and releases it once: the encoding has one bit for each."""
    for node in nodes:
        assert node.unit not in node.waits | node.releases, node.op


def _flatten(block: Sequence[Step | Loop]) -> list[_Node]:
    out: list[_Node] = []
    for item in block:
        if isinstance(item, Loop):
            out += _close(item)
        else:
            out.append(_Node(item.op, item.accesses, awaited=item.awaited,
                             link=(item.signals, item.awaits)))  # fmt: skip
    return out


def synchronise(block: Sequence[Step | Loop]) -> list[Op]:
    """The instructions of a program with loops in place and every wait and release bit set."""
    nodes = _flatten(block)
    tracker = _Tracker()
    for node in nodes:
        if node.tracked:
            for producer, _ in tracker.visit(node, 0, None):
                node.waits.add(producer.unit)
                producer.releases.add(node.unit)
    return [n.finish() for n in nodes if n.waits or n.releases or not n.optional]
