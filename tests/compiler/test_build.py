"""The back end: text of each stage, splits, lengths, sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from driver import Driver
from random_quantized import random_model

from flightllm.compiler.build import build_program, build_shape_program
from flightllm.compiler.emit import unrolled_words
from flightllm.compiler.fuse import fuse, verify_fused
from flightllm.compiler.graph import Graph, Node, build_graph, verify_graph
from flightllm.compiler.ir import Loop
from flightllm.compiler.scheme import QuantOptions
from flightllm.compiler.shape import shape_of
from flightllm.compiler.tile import tile
from flightllm.models import zoo
from flightllm.models.integer import IntegerCache, IntegerModel
from flightllm.sim.functional import FunctionalDevice
from flightllm.spec.config import load_config
from flightllm.spec.device import memory_sha256
from flightllm.spec.encoding import Value
from flightllm.spec.errors import InputError, VerifyError


def test_fused_graph_leaves_only_unit_operations() -> None:
    graph = build_graph(shape_of(random_model(1, biases=True, activation="relu", rope=False), "m"))
    with pytest.raises(VerifyError, match="norm is left after fusion"):
        verify_fused(graph)
    fused = verify_fused(verify_graph(fuse(graph)))
    assert [n.op for n in fused.body].count("linear_add") == 2
    assert len(list(fused.nodes())) < len(list(graph.nodes()))


def test_verifier_names_the_node() -> None:
    node = Node("y", "linear", ("x",), ("T", 8), "f32", "q")
    with pytest.raises(VerifyError, match="%y uses %x before it is made"):
        verify_graph(Graph("g", 1, (node,), (), ()))
    bad = Node("x", "embed", ("ids",), ("T", 8), "f32")
    with pytest.raises(VerifyError, match="input of linear is not i8"):
        verify_graph(Graph("g", 1, (bad, node), (), ()))


def test_dump_has_every_stage(tmp_path: Path) -> None:
    build_program(random_model(1), load_config("tiny-2core"), "m", dump=tmp_path)
    names = sorted(p.stem for p in tmp_path.iterdir())
    assert names == [
        "1-graph", "2-quantise", "3-fuse", "4-tile", "5-allocate", "6-schedule-core0",
        "6-schedule-core1", "7-emit-core0", "7-emit-core1",
    ]  # fmt: skip


@pytest.mark.parametrize("board", ["tiny", "tiny-2core", "u280"])
def test_tiles_cover_the_model_once(board: str) -> None:
    shape = shape_of(random_model(1, heads=6, kv_heads=3, ffn_dim=100, dim=80), "m")
    parts = tile(shape, load_config(board))
    for name in ("q", "k", "o", "up", "down", "head"):
        rows = [part.rows(shape, name) for part in parts]
        assert rows[0].start == 0 and rows[-1].stop == shape.rows(name)
        assert all(a.stop == b.start for a, b in zip(rows, rows[1:]))


def test_one_program_serves_every_length() -> None:
    """Prompts of 1 to the maximum on one program; the cache's bits do not depend on the cut."""
    model, config = random_model(4, max_length=48), load_config("tiny")
    program = build_program(model, config, "m")
    ids = np.random.default_rng(0).integers(0, model.vocab, 48).tolist()
    expected = IntegerModel(model).forward(ids, IntegerCache(model))
    device = FunctionalDevice(config)
    for length in range(1, 49):
        logits = Driver(device, program).prefill(ids[:length])
        assert np.array_equal(logits, expected[:length])
    whole = memory_sha256(device, program)
    driver = Driver(device, program)
    for token in ids:
        last = driver.decode(token)
    assert np.array_equal(last, expected[-1])
    kv = program.segment(0, "kv")
    after = [device.read(0, c, kv.base, kv.size) for c in range(2)]
    driver = Driver(device, program)
    driver.prefill(ids)
    assert after == [device.read(0, c, kv.base, kv.size) for c in range(2)]
    assert memory_sha256(device, program) == whole


def test_greedy_steps_on_the_device() -> None:
    model, config = random_model(5), load_config("tiny-2core")
    driver = Driver(FunctionalDevice(config), build_program(model, config, "m"))
    driver.prefill([3, 1, 4])
    first = driver.top(0)
    driver.decode(first, steps=8)
    ids = [first, *(driver.top(step) for step in range(8))]
    assert ids == IntegerModel(model).greedy([3, 1, 4], 9)


@pytest.mark.parametrize(
    "name, length",
    [("llama2-7b", 4096), ("opt-6.7b", 2048), ("llama3-8b", 4096), ("qwen2.5-7b", 4096),
     ("mistral-7b", 4096)],
)  # fmt: skip
def test_seven_billion_weights_need_few_instructions(name: str, length: int) -> None:
    options = QuantOptions(weights="w4g128")
    program = build_shape_program(zoo.shape(name), options, load_config("u280"))
    assert program.instruction_bytes <= 65536
    assert program.model.max_length >= length
    sizes = program.report["instruction_bytes_by_lengths"]
    assert sizes["adaptive"] < sizes["bucketed"] < sizes["unrolled"]


def test_a_loop_of_unknown_count_is_not_sized_as_nothing() -> None:
    body = (Loop("inner", Value(2), ()), Loop("tiles", Value(0, 7), ()))
    assert unrolled_words(body, {"tiles": 3}) == 0
    with pytest.raises(VerifyError, match="loop tiles: how often it runs is not told"):
        unrolled_words(body, {})


def test_twice_the_layers_add_only_parameters() -> None:
    config = load_config("tiny")
    small = build_program(random_model(1, layers=2), config, "m").cores[0]
    large = build_program(random_model(1, layers=4), config, "m").cores[0]
    assert len(small.words) == len(large.words)
    assert len(large.params) - 2 == 2 * (len(small.params) - 2)


def test_what_does_not_fit_is_said() -> None:
    options, config = QuantOptions(weights="w4g128"), load_config("tiny")
    with pytest.raises(InputError, match="does not fit board tiny"):
        build_shape_program(zoo.shape("llama2-7b"), options, config)
    with pytest.raises(InputError, match="--max-length: 0"):
        build_program(random_model(1), config, "m", max_length=0)
