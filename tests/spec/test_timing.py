"""spec.timing: its constants are those of the gateware."""

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


def test_latencies():
    from flightllm.hw.memory import buffers
    from flightllm.hw.sfu.lanes import LaneMode, Latencies
    from flightllm.hw.sfu.passes import READ_LATENCY

    units = Latencies(timing.ADD, timing.MUL)
    assert units.result[LaneMode.SILU] + READ_LATENCY + 1 + 2 == timing._pass("silu", 0, 8)
    assert units.result[LaneMode.GELU] + READ_LATENCY + 1 + 2 == timing._pass("gelu", 0, 8)
    assert timing.READ_LATENCY == buffers.READ_LATENCY


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
    packed = timing.matrix_timing(eight, timing.engine_timing(load_config("tiny")), 1)
    split = timing.matrix_timing(eight, timing.engine_timing(load_config("pynq-z2")), 1)
    assert split.slices == 2 * packed.slices


def test_rows_and_lanes_make_a_pass():
    flags, one = frozenset(), {"n": 64, "n1": 1}
    eight = timing.misc_cycles("misc.add", flags, one, 8)
    assert timing.misc_cycles("misc.add", flags, {"n": 128, "n1": 1}, 16) == eight
    assert timing.misc_cycles("misc.add", flags, {"n": 64, "n1": 3}, 8) == 3 * (eight - 1) + 1
    assert timing.misc_cycles("misc.add", flags, {"n": 64, "n1": 0}, 8) == 1
