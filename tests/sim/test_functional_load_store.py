"""LD and ST of the functional simulator against direct numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hand_program import Bench, board, chain, program, spread, table
from hypothesis import given
from hypothesis import strategies as st

from flightllm.spec import kvcache
from flightllm.spec.encoding import Op
from flightllm.spec.errors import VerifyError
from flightllm.spec.formats import block_bytes, chunk_bytes, row_shares, unpack_matrix

pytest.importorskip("numba")

CHANNELS = st.sampled_from([1, 2, 3, 5])


@given(CHANNELS, st.integers(1, 70), st.integers(1, 4), st.booleans(), st.integers(0, 9))
def test_ld_vec(channels: int, n: int, count: int, half: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(2 * count, n)).astype(np.float16 if half else np.float32)
    data, size = table(rows, channels)
    flags = ["half"] if half else []
    ops = [Op.make("ld.vec", *flags, addr=1, dst=10, n=n, count=count, mstride=2 * size // 64,
                   dstride=n + 3)]  # fmt: skip
    bench = Bench(program(board([channels]), [chain(ops)], {"rows": data}))
    bench.run()
    want = np.zeros(count * (n + 3), np.float32).reshape(count, n + 3)
    want[:, :n] = rows[::2]
    assert np.array_equal(bench.f()[10 : 10 + want.size], want.reshape(-1))


@given(CHANNELS, st.integers(1, 40), st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_ld_gather(channels: int, n: int, numbers: list[int]) -> None:
    rows = np.random.default_rng(n).normal(size=(10, n)).astype(np.float16)
    data, size = table(rows, channels)
    ops = [Op.make("ld.gather", "half", addr=1, dst=100, n=n, count=len(numbers),
                   mstride=size // 64, dstride=n, index=3, istride=2)]  # fmt: skip
    bench = Bench(program(board([channels]), [chain(ops)], {"rows": data}))
    bench.f().view(np.int32)[3 : 3 + 2 * len(numbers) : 2] = numbers
    bench.run()
    assert np.array_equal(bench.f()[100 : 100 + n * len(numbers)], rows[numbers].reshape(-1))


@given(CHANNELS, st.integers(1, 70), st.integers(1, 4))
def test_st_vec_writes_what_it_should_and_nothing_else(channels: int, n: int, count: int) -> None:
    ops = [Op.make("st.vec", addr=1, src=5, n=n, count=count, mstride=6, sstride=n + 1)]
    bench = Bench(program(board([channels]), [chain(ops)], writable={"out": 64 * 6 * 5}))
    bits = np.random.default_rng(n).integers(1, 1 << 32, 400, np.uint32)
    bench.f().view(np.uint32)[:400] = bits  # any bits, not-a-numbers among them
    bench.run()
    want = np.zeros((channels, 64 * 6 * 5), np.uint8)
    for i in range(count):
        for c, part in enumerate(spread(bits[5 + i * (n + 1) :][:n], channels)):
            want[c, i * 384 : i * 384 + len(part)] = np.frombuffer(part, np.uint8)
    assert np.array_equal(bench.bytes("out"), want)


def _kv_program(channels: int, size: int, bits: int, heads: int, start: int):
    key, value = kvcache.key_format(size, bits), kvcache.value_format(bits)
    hk = -(-4 // channels) * chunk_bytes(key)
    a, b = row_shares(size, channels)[0]
    hv = 4 * block_bytes(value, b - a)
    config = board([channels])

    def ops(pos: int, count: int, kbase: int, vbase: int) -> list[Op]:
        return chain([
            Op.make("st.keys", addr=kbase, hstride=hk // 64, heads=heads, fmt=key.word, pos=pos,
                    count=count, codes=0, codes1=heads * key.group, kscale=0, vscale=2000,
                    scale1=heads, start=start),
            Op.make("st.values", addr=vbase, hstride=hv // 64, heads=heads, rows=size,
                    fmt=value.word, pos=pos, count=count, codes=50000, codes1=heads * size,
                    codes2=size),
        ])  # fmt: skip

    made = program(config, [[]], writable={"k": heads * hk, "v": heads * hv})
    bases = [made.segment(0, name).base // 64 for name in ("k", "v")]
    return key, value, hk, hv, lambda pos, count: program(
        config, [ops(pos, count, *bases)], writable={"k": heads * hk, "v": heads * hv}
    )


def _unpacked_keys(bench: Bench, key, hk: int, head: int, rows: int, start: int):
    """K of a head through the spec's own decoder."""
    channels, size = bench.program.config.channels[0], chunk_bytes(key)
    region = bench.bytes("k")[:, head * hk : (head + 1) * hk]
    blocks = -(-rows // 32)
    data = [
        np.concatenate([region[c, :0], *(
            region[c, b // channels * size :][:size]
            for b in range(blocks) if (b + start + head) % channels == c
        )])
        for c in range(channels)
    ]  # fmt: skip
    return unpack_matrix(key, data, rows, 1, 0, start + head)


@given(CHANNELS, st.sampled_from([8, 16, 20, 64]), st.sampled_from([4, 8]), st.integers(1, 3),
       st.integers(0, 90), st.integers(1, 38), st.integers(0, 4))  # fmt: skip
def test_kv_stores_lay_out_what_the_formats_decode(
    channels: int, size: int, bits: int, heads: int, pos: int, count: int, start: int
) -> None:
    key, value, hk, hv, make = _kv_program(channels, size, bits, heads, start)
    bench = Bench(make(pos, count))
    rng = np.random.default_rng(pos)
    top = 8 if bits == 4 else 128
    k = rng.integers(1 - top, top, (count, heads, key.group)).astype(np.int8)
    v = rng.integers(1 - top, top, (count, heads, size)).astype(np.int8)
    scales = rng.random((2, count, heads)).astype(np.float16)
    bench.a()[: k.size], bench.a()[50000 : 50000 + v.size] = k.reshape(-1), v.reshape(-1)
    bench.f()[: count * heads] = scales[0].reshape(-1)
    bench.f()[2000 : 2000 + count * heads] = scales[1].reshape(-1)
    bench.run()
    end = pos + count
    for head in range(heads):
        found = _unpacked_keys(bench, key, hk, head, end, start)
        assert np.array_equal(found.levels[pos:], k[:, head])
        assert np.array_equal(found.scales[pos:, 0], scales[0, :, head])
        assert np.array_equal(found.second[pos:, 0], scales[1, :, head])
        assert not found.levels[:pos].any() and not found.scales[:pos].any()
        region = bench.bytes("v")[:, head * hv : (head + 1) * hv]
        blocks = -(-end // 32)
        shares = row_shares(size, channels)
        data = [region[c, : blocks * block_bytes(value, b - a)] for c, (a, b) in enumerate(shares)]
        levels = unpack_matrix(value, data, size, blocks).levels
        assert np.array_equal(levels[:, pos:end], v[:, head].T)
        assert not levels[:, :pos].any() and not levels[:, end:].any()


def test_tokens_share_no_byte() -> None:
    *_, make = _kv_program(2, 16, 4, 1, 0)
    touched = []
    for pos in (2, 3, 4):
        bench = Bench(make(pos, 1))
        bench.a()[:] = 1
        bench.f()[:] = 1.0039  # fp16 0x3c04: no byte of it is 0
        bench.run()
        touched.append({name: bench.bytes(name) != 0 for name in ("k", "v")})
    for name, size in (("k", 8 + 4), ("v", 8)):
        assert all(one[name].sum() == size for one in touched)
        assert not (touched[0][name] & touched[1][name]).any()
        assert not (touched[1][name] & touched[2][name]).any()


@pytest.mark.parametrize(("op", "message"), [
    (Op.make("ld.vec", addr=3, dst=0, n=40, count=1, mstride=0, dstride=0),
     "core 0, word 0, ld.vec: bytes 192 to 272 run over the end 256 of 'rows'"),
    (Op.make("ld.vec", addr=100, dst=0, n=4, count=1, mstride=0, dstride=0), "lie in no segment"),
    (Op.make("ld.vec", addr=0, dst=0, n=4, count=1, mstride=0, dstride=0), "lie in no segment"),
    (Op.make("ld.vec", addr=1, dst=131070, n=4, count=1, mstride=0, dstride=0),
     "F: words 131070 to 131073 are not inside the buffer of 131072"),
    (Op.make("st.vec", addr=1, src=0, n=4, count=1, mstride=0, sstride=0),
     "st.vec: byte 64 lies in read-only segment 'rows'"),
    (Op.make("ld.stream", addr=1, rows=64, kgroups=9, fmt=kvcache.value_format(8).word, first=0,
             start=0), "ld.stream: bytes 64"),
    (Op.make("ld.stream", addr=1, rows=4, kgroups=1, fmt=1, first=0, start=0), "format bits"),
])  # fmt: skip
def test_faults_name_instruction_and_address(op: Op, message: str) -> None:
    data, _ = table(np.ones((3, 16), np.float32), 2)
    bench = Bench(program(board(), [chain([op])], {"rows": data}, {"free": 64}))
    with pytest.raises(VerifyError, match=message.replace("(", r"\(")):
        bench.run()


def test_host_cannot_write_weights() -> None:
    data, _ = table(np.ones((3, 16), np.float32), 2)
    bench = Bench(program(board(), [chain([])], {"rows": data}, {"free": 64}))
    with pytest.raises(VerifyError, match="read-only segment 'rows'"):
        bench.device.write(0, 0, 64, b"1234")
    bench.device.write(0, 1, 320, b"1234")
    assert bench.device.read(0, 1, 320, 8) == b"1234\0\0\0\0"
