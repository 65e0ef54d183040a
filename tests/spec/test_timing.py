"""spec.timing: its constants are those of the gateware."""

from dataclasses import replace

import pytest

from flightllm.spec import timing
from flightllm.spec.config import load_config, preset_names
from flightllm.spec.formats import MatrixFormat
from flightllm.spec.kvcache import key_format, value_format
from flightllm.spec.parameters import matrix_parameters

pytest.importorskip("amaranth")


@pytest.mark.parametrize("board", [name for name in preset_names() if name != "formal"])
def test_engine_stages(board):
    from flightllm.hw.chain import cell_latency
    from flightllm.hw.decode.ring import ring_beats
    from flightllm.hw.engine.sequencer import INTEGER_DISTANCE
    from flightllm.hw.engine.size import engine_size
    from flightllm.hw.engine.timing import Stages

    config = load_config(board)
    made = matrix_parameters(config)
    size = engine_size(config)
    stages = Stages(size, cell_latency(made.k_lanes, made.dsp_kind, made.chain_length))
    engine = timing.engine_timing(config)
    assert (engine.result, engine.late) == (stages.result, stages.late)
    assert (engine.distance, engine.integer_distance) == (stages.distance, INTEGER_DISTANCE)
    assert (engine.cells, engine.k_lanes, engine.parts) == (size.cells, size.k_lanes, size.parts)
    assert engine.ring == ring_beats(config.beat_bytes, size.k_lanes)
    assert engine.slice == 1 + engine.stages


def test_st_s_pipeline():
    from flightllm.hw.memory import store_pipe

    assert timing.STORE_BEATS == store_pipe.BEATS
    assert timing.STORE_PIPE == 1 + store_pipe.READ_LATENCY + 1


def test_latencies():
    from flightllm.hw.memory import buffers
    from flightllm.hw.sfu.lanes import LaneMode, Latencies
    from flightllm.hw.sfu.passes import READ_LATENCY

    units = Latencies(timing.ADD, timing.MUL)
    assert units.result[LaneMode.SILU] + READ_LATENCY + 1 + 2 == timing._pass("silu", 0, 8)
    assert units.result[LaneMode.GELU] + READ_LATENCY + 1 + 2 == timing._pass("gelu", 0, 8)
    assert timing.READ_LATENCY == buffers.READ_LATENCY
    turns = Latencies(timing.ADD, timing.MUL, 2)
    for mode in (LaneMode.SILU, LaneMode.RELU, LaneMode.QUANT):
        assert timing._pass(mode.name.lower(), 0, 1) == turns.result[mode] + READ_LATENCY + 1 + 2
    assert timing._pass("rope", 64, 1) == timing._pass("rope", 64, 2, twice=True) + 1


def test_a_format_s_steps_and_beats():
    engine = timing.engine_timing(load_config("u280"))
    dense = timing.matrix_timing(MatrixFormat(4, 128), engine, 2)
    assert (dense.header, dense.chunk) == (1, 33)
    assert dense.slices * engine.k_lanes == 128
    assert timing.matrix_timing(key_format(128, 8), engine, 8).emit
    assert not timing.matrix_timing(value_format(8), engine, 8).scaled


@pytest.mark.parametrize("fmt, slices, share", [
    (MatrixFormat(2, 128), 1, 1), (MatrixFormat(5, 128), 2, 1), (MatrixFormat(4, 64), 1, 2),
    (MatrixFormat(5, 64), 1, 1), (MatrixFormat(8, 32), 1, 2), (MatrixFormat(3, 96), 1, 1),
    (MatrixFormat(4, 128, kept=8), 1, 2), (MatrixFormat(4, 128, kept=8, private=True), 2, 1),
])  # fmt: skip
def test_twin_slices_of_one_vector(fmt, slices, share):
    engine = timing.engine_timing(load_config("u280"))
    made = timing.matrix_timing(fmt, engine, 1)
    assert (made.slices, made.share) == (slices, share)
    assert timing.matrix_timing(fmt, engine, 2).share == 1


def test_split_pairs_take_two_steps_on_dsp48e1():
    eight = MatrixFormat(8, 32)
    board = load_config("pynq-z2")
    engines = [timing.engine_timing(replace(board, dsp_kind=k)) for k in ("dsp48e2", "dsp48e1")]
    packed, split = (timing.matrix_timing(eight, engine, 1) for engine in engines)
    assert split.slices == 2 * packed.slices


def test_rows_and_lanes_make_a_pass():
    flags, one = frozenset(), {"n": 64, "n1": 1}
    eight = timing.misc_cycles("misc.add", flags, one, 8)
    assert timing.misc_cycles("misc.add", flags, {"n": 128, "n1": 1}, 16) == eight
    assert timing.misc_cycles("misc.add", flags, {"n": 64, "n1": 3}, 8) == 3 * (eight - 1) + 1
    assert timing.misc_cycles("misc.add", flags, {"n": 64, "n1": 0}, 8) == 1


def test_misc_reads_f_pass_by_pass():
    heads = {"size": 32, "pad": 32, "heads": 4, "n1": 3}
    rope, plain = frozenset({"rope"}), frozenset[str]()
    runs = timing.misc_reads("misc.headq", rope, heads, 8, True)
    assert runs == timing.misc_reads("misc.headq", rope, heads, 8, False)
    assert [end - first for first, end in runs] == 12 * [2 * 32 // 8]
    assert runs[0][0] == 2 and all(a[1] < b[0] for a, b in zip(runs, runs[1:]))
    assert runs[-1][1] < timing.misc_cycles("misc.headq", rope, heads, 8)
    # Without a rotation nothing is read where ST reads.
    assert timing.misc_reads("misc.headq", plain, heads, 8, True) == []
    bare = timing.misc_reads("misc.headq", plain, heads, 8, False)
    assert [end - first for first, end in bare] == 12 * [32 // 8]


def test_a_norm_s_block_sums_are_read_at_the_engine_s_port():
    norm = frozenset({"norm"})
    operands = {"n": 128, "pad": 128, "n1": 2, "blocks": 8}
    shared = timing.misc_reads("misc.quant", norm, operands, 8, True)
    own = timing.misc_reads("misc.quant", norm, operands, 8, False)
    assert [end - first for first, end in shared] == [16, 16]
    assert [end - first for first, end in own] == [2, 16, 2, 16]
    assert own[1::2] == shared and own[0][0] == 5
    assert timing.misc_reads("misc.topk", frozenset(), {"n": 64, "k": 8}, 8, False) == []
