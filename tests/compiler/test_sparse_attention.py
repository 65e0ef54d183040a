"""Block-sparse attention: the compiled program gives the torch reference's bits at any length."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from driver import Driver
from random_quantized import VARIANTS, random_model, with_patterns

from flightllm.compiler.build import build_program, build_shape_program
from flightllm.compiler.builder import reg
from flightllm.compiler.ir import Loop
from flightllm.compiler.scheme import QuantOptions
from flightllm.compiler.sparse_attention import SparseAttentionBuilder
from flightllm.models import zoo
from flightllm.models.integer import IntegerCache, IntegerModel
from flightllm.models.patterns import DENSE, Pattern
from flightllm.models.quantized import QuantModel
from flightllm.sim.functional import FunctionalDevice
from flightllm.spec.config import HwConfig, load_config
from flightllm.spec.device import memory_sha256
from flightllm.spec.encoding import Value
from flightllm.spec.errors import InputError

LENGTH = 200
PATTERNS = (Pattern(1, 1), Pattern(0, 2), DENSE, Pattern(2, 1), Pattern(1, 2), Pattern(0, 1))
IDS = np.random.default_rng(1).integers(0, 96, LENGTH).tolist()
HEADS = {
    "mha": {"kv_heads": 4},
    "gqa": {"kv_heads": 2},
    "mqa-kv4": {"kv_heads": 1, "kv_bits": 4},
    "odd-heads": {**VARIANTS["narrow-heads"]},
    "learned-positions": {**VARIANTS["opt"]},
}


def sparse_model(patterns=PATTERNS, **variant) -> QuantModel:
    """A random model whose KV heads take the patterns in turn."""
    return with_patterns(random_model(3, max_length=LENGTH, **variant), patterns)


def started(model: QuantModel, board: str | HwConfig, **options) -> Driver:
    config = load_config(board) if isinstance(board, str) else board
    return Driver(FunctionalDevice(config, **options), build_program(model, config, "random"))


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.array_equal(a.view(np.uint32), b.view(np.uint32)))


@pytest.mark.parametrize(("name", "board"), [
    ("mha", "tiny"), ("gqa", "tiny"), ("mqa-kv4", "tiny-2core"), ("odd-heads", "tiny-2core"),
    ("learned-positions", "tiny-2core"),
])  # fmt: skip
def test_prefill_and_decode_equal_the_reference(name: str, board: str) -> None:
    model = sparse_model(**HEADS[name])
    driver, reference, cache = started(model, board), IntegerModel(model), IntegerCache(model)
    dense = IntegerModel(sparse_model((DENSE,), **HEADS[name]))
    found, wanted = driver.prefill(IDS[:190]), reference.forward(IDS[:190], cache)
    assert same(found, wanted)
    full = dense.forward(IDS[:190])
    assert same(found[:32], full[:32]) and not same(found[128:], full[128:])
    for token in IDS[190:]:
        assert same(driver.decode(token), reference.forward([token], cache, decode=True)[0])


@pytest.mark.parametrize("name", ["mha", "gqa"])
def test_a_prompt_may_be_cut_anywhere(name: str) -> None:
    model = sparse_model(**HEADS[name])
    wanted = IntegerModel(model).forward(IDS[:133])
    driver, digests = started(model, "tiny"), set()
    for parts in ((1, 30, 1, 1, 99, 1), (31, 34, 1, 65, 2), (64, 3, 66)):
        driver = started(model, "tiny")
        edges = np.cumsum([0, *parts])
        found = [driver.prefill(IDS[a:b]) for a, b in zip(edges, edges[1:])]
        assert same(np.concatenate(found), wanted)
        segment = driver.program.segment(0, "kv")
        digests.add(driver.device.read(0, 0, segment.base, segment.size))
    assert len(digests) == 1


@pytest.mark.parametrize("length", [1, 31, 32, 33, 63, 64, 65, 96, 97, 127, 128, 129])
def test_lengths_around_the_borders_of_blocks(length: int) -> None:
    model = sparse_model(**HEADS["gqa"])
    found = started(model, "tiny-2core").prefill(IDS[:length])
    assert same(found, IntegerModel(model).forward(IDS[:length]))


@pytest.mark.parametrize(("prefill", "attention"), [(32, 8), (64, 64), (48, 16), (4, 1)])
def test_no_tile_changes_a_bit(prefill: int, attention: int) -> None:
    """Among them: halves of a tile, attention tiles above a block, and a single query at a time."""
    config = dataclasses.replace(
        load_config("tiny"), prefill_tile=prefill, attention_tile=attention,
        float_words=400_000, act_bytes=400_000,
    )  # fmt: skip
    model = sparse_model(**HEADS["gqa"])
    driver = started(model, config, seed=prefill)
    found = np.concatenate([driver.prefill(IDS[:137]), driver.prefill(IDS[137:150])])
    assert same(found, IntegerModel(model).forward(IDS[:150]))


def test_dense_patterns_are_the_dense_program() -> None:
    model, config = random_model(3), load_config("tiny")
    programs = [
        build_program(m, config, "random") for m in (model, sparse_model((DENSE,)))
    ]  # fmt: skip
    dense = build_program(random_model(3, max_length=LENGTH), config, "random")
    assert np.array_equal(programs[1].cores[0].words, dense.cores[0].words)
    assert np.array_equal(programs[1].cores[0].params, dense.cores[0].params)
    # Up to as many blocks as every head keeps, the bits are those of dense attention.
    everything = started(sparse_model((Pattern(1, 1), Pattern(0, 2))), "tiny").prefill(IDS[:64])
    assert same(everything, IntegerModel(random_model(3, max_length=LENGTH)).forward(IDS[:64]))


def test_executors_agree() -> None:
    pytest.importorskip("numba")
    from flightllm.sim.cycle import CycleDevice

    model = sparse_model(**HEADS["gqa"])
    dense = random_model(3, max_length=LENGTH, **HEADS["gqa"])
    config, times, results = load_config("tiny"), [], []
    for made, device in (
        (model, FunctionalDevice(config)), (model, CycleDevice(config)),
        (dense, CycleDevice(config)),
    ):  # fmt: skip
        driver = Driver(device, build_program(made, config, "random"))
        logits = driver.prefill(IDS).tobytes()
        results.append((logits, memory_sha256(device, driver.program)))
        times.append(driver.results[-1].cycles)
    assert results[0] == results[1] != results[2]
    assert times[1] < times[2]


@pytest.mark.parametrize(
    ("name", "board"), [("llama2-7b", "u280"), ("llama3-8b", "u280"), ("opt-6.7b", "vhk158")]
)
def test_programs_of_seven_billion_weights_fit(name: str, board: str) -> None:
    options = QuantOptions("w4g128", attention_density=0.3)
    program = build_shape_program(zoo.shape(name), options, load_config(board))
    assert program.instruction_bytes <= 65536
    sizes = program.report["instruction_bytes_by_lengths"]
    assert sizes["adaptive"] < sizes["bucketed"] < sizes["unrolled"]


def test_a_window_goes_without_patterns() -> None:
    with pytest.raises(InputError, match="window: block-sparse attention goes without one, not 9"):
        build_program(sparse_model(window=9), load_config("tiny"), "random")


# ------------------------------------------------------------------ planted errors


def wrong() -> bool:
    model = sparse_model(**HEADS["gqa"])
    found = started(model, "tiny").prefill(IDS[:130])
    return not same(found, IntegerModel(model).forward(IDS[:130]))


@pytest.mark.parametrize("register", ["first", "base"])
def test_a_wrong_run_is_noticed(monkeypatch: pytest.MonkeyPatch, register: str) -> None:
    """The last run begins a block early; the softmax takes it to lie a block late."""
    place = {"first": "_runs", "base": "softmax"}[register]
    exact = getattr(SparseAttentionBuilder, place)

    def planted(self, *args) -> None:
        if register == "first":
            exact(self, *args)
            self.scalar("sub", "first", reg("first"), reg("two"))
        else:
            self.scalar("add", "base", reg("base"), 32)
            exact(self, *args)

    assert not wrong()
    monkeypatch.setattr(SparseAttentionBuilder, place, planted)
    assert wrong()


def test_a_tile_across_blocks_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from flightllm.compiler import sparse_attention

    monkeypatch.setattr(sparse_attention, "BLOCK", 64)
    assert wrong()


@pytest.mark.parametrize("other", [Pattern(1, 2), Pattern(2, 1), DENSE])
def test_a_wrong_pattern_is_noticed(other: Pattern) -> None:
    model = sparse_model((Pattern(1, 1),))
    found = started(sparse_model((other,)), "tiny").prefill(IDS[:130])
    assert not same(found, IntegerModel(model).forward(IDS[:130]))


def test_a_missing_run_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the first run's values."""
    exact = SparseAttentionBuilder.value_steps

    def planted(self, at, apart="", head=None) -> None:
        exact(self, at, apart, head)
        if not self.decode:
            loop = next(step for step in reversed(self.out) if isinstance(step, Loop))
            self.out[self.out.index(loop)] = dataclasses.replace(loop, count=Value(0))

    monkeypatch.setattr(SparseAttentionBuilder, "value_steps", planted)
    assert wrong()
