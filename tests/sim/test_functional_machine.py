"""Dispatcher, semaphores and schedule of the functional simulator."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from hand_program import Bench, board, chain, linked, program, table
from hypothesis import given
from hypothesis import strategies as st
from random_quantized import random_tensor

from flightllm.spec.device import check_program
from flightllm.spec.encoding import Op, Value
from flightllm.spec.errors import InputError, VerifyError
from flightllm.spec.formats import format_for, kgroups_for, matrix_bytes, pack_matrix
from flightllm.spec.isa import Unit

pytest.importorskip("numba")

LD, ST, MM, MV, MISC, SYS = Unit
HALT = Op.make("sys.halt")


def _add(dst: int, a: int, b: int) -> Op:
    return Op.make("misc.add", a=a, a1=0, b=b, b1=0, dst=dst, dst1=0, n=1, n1=1)


def _show(value: Value, row: int = 0) -> Op:
    """Store F[value] as row `row` of the first segment: makes a register's value visible."""
    return Op.make("st.vec", addr=Value(1 + row), src=value, n=1, count=1, mstride=0, sstride=0)


def _shown(ops: list[Op], rows: int, **registers: int) -> list[int]:
    """Run on a core whose F[i] is i; what each row of the segment holds."""
    bench = Bench(program(board([1]), [[*ops, HALT]], writable={"out": 64 * rows}, params=[7, -3]))
    bench.f()[:] = np.arange(len(bench.f()))
    bench.run(**registers)
    return bench.bytes("out")[0].view(np.float32)[::16].astype(int).tolist()


# ------------------------------------------------------------------------------- dispatcher


def _alu(name: str, a: int, b: int) -> int:
    value = {"add": a + b, "sub": a - b, "min": min(a, b), "max": max(a, b), "shr": a >> (b & 31),
             "mul": a * b}[name]  # fmt: skip
    return (value + 2**31) % 2**32 - 2**31


@given(st.sampled_from(["add", "sub", "min", "max", "shr", "mul"]),
       st.integers(-(2**31), 2**31 - 1), st.integers(-(2**26), 2**26 - 1))  # fmt: skip
def test_scalar_instructions_are_32_bit(name: str, a: int, b: int) -> None:
    b %= 32 if name == "shr" else 2**26
    ops = [
        Op.make(f"sys.{name}", rd=9, a=Value(0, 1), b=b),
        Op.make("sys.shr", rd=10, a=Value(0, 9), b=16),
        Op.make("sys.mul", rd=11, a=Value(0, 10), b=-65536),
        Op.make("sys.add", rd=11, a=Value(0, 11), b=Value(0, 9)),
        _show(Value(0, 11), 0), _show(Value(40000, 10), 1),
    ]  # fmt: skip
    want = _alu(name, a, b)
    assert _shown(ops, 2, POS=a) == [want & 0xFFFF, 40000 + (want >> 16)]


@pytest.mark.parametrize("counts", [(3, 2), (1, 1), (0, 4), (2, 0)])
def test_loops_nest_and_zero_skips(counts: tuple[int, int]) -> None:
    outer, inner = counts
    ops = [
        Op.make("sys.loop", count=Value(0, 1)), Op.make("sys.add", rd=8, a=Value(0, 8), b=100),
        Op.make("sys.loop", count=inner), Op.make("sys.add", rd=8, a=Value(0, 8), b=1),
        Op.make("sys.end"), Op.make("sys.end"), _show(Value(0, 8)),
    ]  # fmt: skip
    assert _shown(ops, 1, POS=outer) == [outer * (100 + inner)]


def test_parameters_registers_and_register_zero() -> None:
    ops = [
        Op.make("sys.param", rd=5, index=1), Op.make("sys.add", rd=0, a=9, b=9),
        _show(Value(10, 5), 0), _show(Value(2, 0), 1), _show(Value(0, 3), 2),
        Op.make("sys.param", rd=3, index=0), _show(Value(0, 3), 3),
    ]  # fmt: skip
    assert _shown(ops, 4, STEPS=33) == [7, 2, 33, 7]


@pytest.mark.parametrize(("ops", "message"), [
    ([Op.make("sys.end"), HALT], "word 0: sys.end without sys.loop"),
    ([Op.make("sys.nop"), Op.make("sys.loop", count=1), HALT], "word 1: sys.loop without sys.end"),
    ([Op.make("sys.loop", count=1)] * 7 + [Op.make("sys.end")] * 7, "word 12: loops nest over 6"),
    ([Op.make("sys.nop")], "runs over its end"),
    ([Op.make("sys.param", rd=1, index=2), HALT], "word 0: parameter 2 of 2"),
])  # fmt: skip
def test_bad_programs_are_refused(ops: list[Op], message: str) -> None:
    with pytest.raises(VerifyError, match=f"core 0.*{message}"):
        Bench(program(board(), [ops], params=[1, 2])).run()


def test_an_unknown_entry_is_refused() -> None:
    bench = Bench(program(board(), [[HALT]]))
    with pytest.raises(VerifyError, match="no entry 'prefill'"):
        bench.device.run("prefill", {})


# ------------------------------------------------------------------------------- semaphores


def _producer_and_reader(token: bool) -> Bench:
    """MISC reads F[0] while LD overwrites it with 5: in order only with a token."""
    data, _ = table(np.full((1, 1), 5, np.float32), 1)
    read = _add(1, 0, 0)
    load = Op.make("ld.vec", addr=1, dst=0, n=1, count=1, mstride=0, dstride=0)
    if token:
        read, load = linked(read, release=[LD]), linked(load, wait=[MISC])
    return Bench(program(board([1]), [[read, load, HALT]], {"row": data}))


def test_the_default_order_shows_a_missing_semaphore() -> None:
    for token, want in ((True, 0), (False, 10)):
        bench = _producer_and_reader(token)
        bench.run()
        assert bench.f()[1] == want


def test_deadlock_names_core_unit_and_reason() -> None:
    ops = [linked(_add(1, 0, 0), wait=[LD]), linked(Op.make("ld.nop"), wait=[MISC]), HALT]
    bench = Bench(program(board(), [ops]))
    with pytest.raises(VerifyError, match=re.escape(
        "deadlock: core 0: LD at word 9 (ld.nop) waits for a token from MISC; "
        "MISC at word 0 (misc.add) waits for a token from LD"
    )):  # fmt: skip
        bench.run()
    with pytest.raises(InputError, match="no program is loaded"):
        bench.run()  # after a fault the program must be loaded again


def test_tokens_are_counted() -> None:
    ops = [linked(Op.make("ld.nop"), release=[MISC])] * 3
    ops += [linked(Op.make("misc.nop"), wait=[LD])] * 3
    Bench(program(board(), [[*ops, HALT]])).run()
    with pytest.raises(VerifyError, match="halt with 1 tokens from LD to MISC"):
        Bench(program(board(), [[*ops[:-1], HALT]])).run()


def _two_matrices() -> tuple[dict[str, int], dict[str, np.ndarray]]:
    tensor = random_tensor(np.random.default_rng(0), 64, 512, 8)
    fmt = format_for(tensor)
    groups = kgroups_for(512, fmt.group)
    matrix = {"rows": 64, "kgroups": groups, "fmt": fmt.word, "first": 0, "start": 0}
    assert matrix_bytes(fmt, 64, groups, 2) > board().prefetch_bytes
    return matrix, {"w": np.stack(pack_matrix(tensor, 2))}


def _linear(matrix: dict[str, int], **more: int) -> Op:
    return Op.make("mv.linear", src=0, src2=0, scale=0, scale2=0, dst=0, dst2=0, add=0, n2=1,
                   emit=0, table=0, **matrix, **more)  # fmt: skip


def test_a_matrix_beyond_the_fifo_holds_up_the_next_matrix_and_nothing_else() -> None:
    """A vector overtakes it; one behind the next matrix, which MV needs first, is a deadlock."""
    matrix, image = _two_matrices()
    stream = Op.make("ld.stream", addr=1, **matrix)
    ready = linked(Op.make("ld.nop"), release=[MV])
    use = linked(_linear(matrix), wait=[LD])
    for ops in ([ready, stream, use], [stream, ready, use],
                [stream, ready, stream, use, _linear(matrix)]):  # fmt: skip
        Bench(program(board(), [[*ops, HALT]], image)).run()
    bench = Bench(program(board(), [[stream, stream, ready, use, _linear(matrix), HALT]], image))
    with pytest.raises(VerifyError, match=r"LD at word 7 \(ld.stream\) waits for FIFO room"):
        bench.run()


def test_a_linear_without_a_matrix_and_a_matrix_nobody_takes() -> None:
    matrix, image = _two_matrices()
    with pytest.raises(VerifyError, match=r"MV at word 0 \(mv.linear\) waits for the weight FIFO"):
        Bench(program(board(), [[_linear(matrix), HALT]], image)).run()
    small = matrix | {"rows": 4}
    stream = Op.make("ld.stream", addr=1, **small)
    with pytest.raises(VerifyError, match="halt with 1 unused matrices"):
        Bench(program(board(), [[stream, HALT]], image)).run()


def test_a_stream_of_writable_memory_is_what_it_was_when_ld_read_it() -> None:
    """A K stream before the store of a token does not see the token, one after it does."""
    from flightllm.spec.kvcache import key_format

    fmt = key_format(16, 8)
    matrix = {"rows": 1, "kgroups": 1, "fmt": fmt.word, "first": 0, "start": 0}
    stream = Op.make("ld.stream", addr=1, **matrix)
    store = Op.make("st.keys", addr=1, hstride=0, heads=1, fmt=fmt.word, pos=0, count=1, codes=0,
                    codes1=0, kscale=0, vscale=1, scale1=0, start=0)  # fmt: skip
    use = Op.make("mv.linear", src=16, src2=0, scale=0, scale2=0, dst=10, dst2=0, add=0, n2=1,
                  emit=11, table=0, **matrix)  # fmt: skip
    for ops, want in (([stream, store, use], [0, 0]), ([store, stream, use], [16, 3])):
        bench = Bench(program(board([1]), [chain(ops)], writable={"k": 1024}))
        bench.a()[:32], bench.f()[:2] = 1, [1, 3]
        bench.run()
        assert bench.f()[10:12].tolist() == want


# ------------------------------------------------------------------------------- any legal order


def _pipeline(cut: int | None = None) -> list[Op]:
    """LD fills one of two buffers while MISC adds up the other and ST keeps each sum.

    `cut` leaves out the n-th pair of wait and release.
    """
    ops: list[tuple[Op, str]] = []
    links: list[tuple[int, int]] = []
    reads: dict[int, int] = {}
    stores: dict[int, int] = {}
    for i in range(8):
        buffer = i % 2
        load = Op.make("ld.vec", addr=1 + i, dst=10 + buffer, n=1, count=1, mstride=0, dstride=0)
        add = _add(20 + buffer, 10 + buffer, 30)
        store = Op.make("st.vec", addr=10 + i, src=20 + buffer, n=1, count=1, mstride=0, sstride=0)
        at = len(ops)
        ops += [(load, "LD"), (add, "MISC"), (store, "ST")]
        links += [(at, at + 1), (at + 1, at + 2)]
        if i >= 2:
            links += [(reads[buffer], at), (stores[buffer], at + 1)]
        reads[buffer], stores[buffer] = at + 1, at + 2
    out = [op for op, _ in ops]
    for number, (one, two) in enumerate(links):
        if number != cut:
            out[one] = linked(out[one], release=[out[two].kind.unit])
            out[two] = linked(out[two], wait=[out[one].kind.unit])
    return [*out, HALT]


def _sums(ops: list[Op], seed: int | None) -> list[int]:
    data, _ = table(np.arange(1, 9, dtype=np.float32)[:, None], 1)
    bench = Bench(program(board([1]), [ops], {"rows": data}, {"out": 8 * 64}), seed=seed)
    bench.f()[30] = 100
    bench.run()
    return np.nan_to_num(bench.bytes("out")[0].view(np.float32)[::16], posinf=0).tolist()


def test_any_legal_order_gives_the_same_bits() -> None:
    want = [101.0 + i for i in range(8)]
    assert all(_sums(_pipeline(), seed) == want for seed in (None, *range(20)))


@pytest.mark.parametrize("cut", range(28))
def test_a_missing_pair_of_tokens_is_seen(cut: int) -> None:
    """Without one link some order gives other bits: nobody waits for the others in vain."""
    want = [101.0 + i for i in range(8)]
    assert any(_sums(_pipeline(cut), seed) != want for seed in (None, *range(60)))


def test_a_dropped_wait_or_release_alone_is_an_error() -> None:
    good = _pipeline()
    for i, op in enumerate(good):
        for units, field in ((op.wait, "wait"), (op.release, "release")):
            for unit in units:
                bad = [*good]
                bad[i] = dataclasses.replace(op, **{field: units - {unit}})
                with pytest.raises(VerifyError, match="halt with|deadlock"):
                    _sums(bad, None)


# ------------------------------------------------------------------------------- several cores


def _gathered(seed: int | None, act: bool) -> list[np.ndarray]:
    flags = ["act"] if act else []
    codes = []
    for core in range(3):
        own = Op.make("sys.gather", *flags, addr=8 + 2 * core, n=2, n1=3, stride=10)
        again = Op.make("sys.gather", *flags, addr=100 + core, n=1, n1=1, stride=0)
        codes.append([own, Op.make("sys.barrier"), again, HALT])
    bench = Bench(program(board([1, 1, 1]), codes), seed=seed)
    for core in range(3):
        buffer = bench.a(core) if act else bench.f(core)
        buffer[:200] = np.arange(200) % 100 + 10 * core
    bench.run()
    return [(bench.a(core) if act else bench.f(core))[:200].copy() for core in range(3)]


@pytest.mark.parametrize("act", [False, True])
def test_gather_copies_every_slice_to_every_core(act: bool) -> None:
    want = [np.arange(200) % 100 + 10 * core for core in range(3)]
    before = [part.copy() for part in want]
    for source in range(3):
        at = [*(8 + 2 * source + 10 * i + j for i in range(3) for j in range(2)), 100 + source]
        for target in range(3):
            want[target][at] = before[source][at]
    for seed in (None, 1, 2):
        assert all(np.array_equal(a, b) for a, b in zip(_gathered(seed, act), want))


def test_cores_that_meet_at_different_places_are_an_error() -> None:
    gather = Op.make("sys.gather", addr=0, n=1, n1=1, stride=0)
    with pytest.raises(VerifyError, match="core 1, word 0, sys.barrier: core 0 is at sys.gather"):
        Bench(program(board([1, 1]), [[gather, HALT], [Op.make("sys.barrier"), HALT]])).run()
    with pytest.raises(VerifyError, match="core 0: SYS at word 0 .* waits for the other cores"):
        Bench(program(board([1, 1]), [[gather, HALT], [HALT]])).run()


# ------------------------------------------------------------------------------- the device


def test_trace_tells_what_each_instruction_did() -> None:
    records = []
    bench = Bench(program(board([1]), [chain([_add(Value(3, 1), 0, 0), _show(Value(4))])],
                          writable={"out": 64}), trace=records.append)  # fmt: skip
    bench.run(POS=1)
    assert [(r.core, r.unit, r.address, r.name) for r in records] == [
        (0, "misc", 0, "misc.add"), (0, "st", 9, "st.vec"),
    ]  # fmt: skip
    assert records[0].operands["dst"] == 4 and list(records[0].writes) == ["F"]
    assert list(records[1].writes) == ["memory"]
    assert records[0].writes["F"] == records[1].writes["memory"]
    first, records[:] = [*records], []
    bench.f()[0] = 1
    bench.run(POS=1)
    assert records[0].writes != first[0].writes and records[0].operands == first[0].operands


def test_counters_and_writable_memory() -> None:
    bench = Bench(program(board([1]), [chain([_add(3, 0, 0), _show(Value(3))])],
                          writable={"out": 64}))  # fmt: skip
    assert not bench.bytes("out").any()
    result = bench.device.run("main", {})
    assert result.cycles is None and result.counters["misc.instructions"] == 1
    bench.device.close()
    with pytest.raises(InputError, match="no program is loaded"):
        bench.run()


def test_a_program_for_another_board_is_refused() -> None:
    made = program(board([1]), [[HALT]])
    with pytest.raises(InputError, match="channels: the program was made for"):
        check_program(board([2]), made)
    from flightllm.sim.functional import FunctionalDevice

    with pytest.raises(InputError, match="channels: the program was made for"):
        FunctionalDevice(board([2])).load(made)


def test_overlapping_segments_are_refused() -> None:
    made = program(board([1]), [[HALT]], writable={"a": 128, "b": 64})
    made.segments[1] = dataclasses.replace(made.segments[1], base=128)
    with pytest.raises(VerifyError, match="segments a and b overlap"):
        Bench(made)
