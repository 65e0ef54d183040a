"""Host access to a device: spread rows, the digest of its memory, and programs it refuses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flightllm.spec.config import HwConfig, load_config
from flightllm.spec.device import (
    Device,
    RunResult,
    check_program,
    memory_sha256,
    read_row,
    write_row,
)
from flightllm.spec.errors import InputError
from flightllm.spec.formats import row_shares
from flightllm.spec.image import CoreCode, ModelFacts, Program, Segment
from flightllm.spec.isa import Register

SIZE = 4096
GUARD = 0xA5


class FakeDevice:
    """A device that is only memory, filled with guard bytes."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        self.name = "fake"
        self.config = replace(load_config("tiny"), channels=channels, slrs=())
        self.memory = [[bytearray([GUARD] * SIZE) for _ in range(n)] for n in channels]

    def load(self, program: Program) -> None:
        check_program(self.config, program)

    def write(self, core: int, channel: int, address: int, data: bytes) -> None:
        assert 0 <= address <= SIZE - len(data)
        self.memory[core][channel][address : address + len(data)] = data

    def read(self, core: int, channel: int, address: int, size: int) -> bytes:
        assert 0 <= address <= SIZE - size
        return bytes(self.memory[core][channel][address : address + size])

    def run(self, entry: str, registers: Mapping[Register, int]) -> RunResult:
        return RunResult()

    def close(self) -> None:
        pass


def toy_program(config: HwConfig) -> Program:
    """Segments out of address order, as nothing promises one."""
    facts = ModelFacts("toy", 8, 32, None, (), 1, 16, 1, 1, 16, 1, ((0, 8),))
    segments = [
        segment
        for core in range(config.cores)
        for segment in (
            Segment("topk", core, 512, 128, True, 64),
            Segment("weights", core, 0, 128, False),
            Segment("kv", core, 128, 256, True),
        )
    ]
    empty = np.zeros(0, np.uint32)
    image = {(0, "weights"): lambda: np.zeros((config.channels[0], 128), np.uint8)}
    return Program(config, facts, [CoreCode(empty, empty, {})], segments, image)


device: Device = FakeDevice((1,))
"""Held by the type checker against the protocol."""


@given(
    st.lists(st.integers(1, 11), min_size=1, max_size=3), st.integers(1, 120),
    st.integers(0, 3), st.sampled_from([np.float32, np.int32]), st.data(),
)  # fmt: skip
def test_a_row_reads_back_and_touches_nothing_else(
    channels: list[int], count: int, row: int, dtype: type[np.generic], data: st.DataObject
) -> None:
    core = data.draw(st.integers(0, len(channels) - 1))
    fake = FakeDevice(tuple(channels))
    segment = Segment("logits", core, 192, 4 * 512, True, 512)
    values = (np.arange(count) - 7).astype(dtype)
    write_row(fake, segment, row, values)
    got = read_row(fake, segment, row, count, dtype)
    assert got.dtype == dtype and np.array_equal(got, values)
    # The same by the definition of a spread vector, guard bytes around it.
    for other, memories in enumerate(fake.memory):
        for channel, memory in enumerate(memories):
            want = bytearray([GUARD] * SIZE)
            if other == core:
                start, stop = row_shares(count, channels[core])[channel]
                at = 192 + 512 * row
                want[at : at + 4 * (stop - start)] = values[start:stop].tobytes()
            assert memory == want


def test_rows_that_do_not_fit_are_refused() -> None:
    fake = FakeDevice((2,))
    segment = Segment("tokens", 0, 64, 128, True, 64)
    values = np.zeros(32, np.int32)
    write_row(fake, segment, 1, values)
    for row, count in ((2, 32), (-1, 32), (0, 33)):
        with pytest.raises(ValueError, match=f"tokens: row {row} of"):
            write_row(fake, segment, row, np.zeros(count, np.int32))
        with pytest.raises(ValueError, match=f"tokens: row {row} of"):
            read_row(fake, segment, row, count)
    with pytest.raises(ValueError, match="tokens: elements of 8 bytes, expected 4"):
        write_row(fake, segment, 0, np.zeros(4, np.int64))


def test_memory_digest_is_by_core_channel_and_address() -> None:
    fake = FakeDevice((2, 1))
    program = toy_program(fake.config)
    rng = np.random.default_rng(0)
    total = hashlib.sha256()
    for memories in fake.memory:
        for memory in memories:
            memory[:] = rng.bytes(SIZE)
            total.update(memory[128:384] + memory[512:640])
    assert memory_sha256(fake, program) == total.hexdigest()


@pytest.mark.parametrize(("core", "channel"), [(0, 0), (0, 1), (1, 0)])
def test_one_flipped_byte_of_the_cache_changes_the_digest(core: int, channel: int) -> None:
    fake = FakeDevice((2, 1))
    program = toy_program(fake.config)
    before = memory_sha256(fake, program)
    for at, written in ((128, True), (383, True), (639, True), (0, False), (127, False),
                        (384, False), (511, False), (640, False)):  # fmt: skip
        fake.memory[core][channel][at] ^= 1
        assert (memory_sha256(fake, program) != before) == written
        fake.memory[core][channel][at] ^= 1
    assert memory_sha256(fake, program) == before


def test_bytes_that_change_places_change_the_digest() -> None:
    fake = FakeDevice((2, 1))
    program = toy_program(fake.config)
    fake.memory[0][0][128] = 1
    first = memory_sha256(fake, program)
    fake.memory[0][0][128], fake.memory[0][1][128] = GUARD, 1
    assert memory_sha256(fake, program) != first


def test_a_program_for_other_hardware_is_refused() -> None:
    fake = FakeDevice((1,))
    fake.load(toy_program(fake.config))
    other = replace(fake.config, beat_bytes=32)
    with pytest.raises(InputError, match="program and device differ in beat_bytes: .* 32.* 16"):
        fake.load(toy_program(other))
    shape = replace(toy_program(fake.config), image={})
    with pytest.raises(InputError, match="toy is a shape without weights"):
        fake.load(shape)
