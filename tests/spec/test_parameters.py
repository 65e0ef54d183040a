"""spec.parameters: the matrix path of every preset."""

import pytest

from flightllm.spec.config import load_config, preset_names
from flightllm.spec.parameters import matrix_parameters


@pytest.mark.parametrize("board", preset_names())
def test_products_of_a_cycle_are_the_configuration_s(board):
    config = load_config(board)
    made = matrix_parameters(config)
    assert 2 * made.k_lanes * made.cells == config.macs_per_channel
    assert made.k_lanes in (16, 32, 64) and made.k_lanes <= 2 * config.beat_bytes
    assert made.window_bytes == 2 * made.k_lanes


@pytest.mark.parametrize("board, lanes, cells", [("tiny", 32, 2), ("u280", 64, 3)])
def test_lanes_are_as_many_as_divide(board, lanes, cells):
    made = matrix_parameters(load_config(board))
    assert (made.k_lanes, made.cells) == (lanes, cells)


def test_twins_where_a_beat_of_narrow_codes_holds_more_than_a_slice():
    twin = {name for name in preset_names() if matrix_parameters(load_config(name)).twin}
    assert twin == {"flightllm-u280", "u280", "v80", "vck190"}


def test_only_dsp48e1_splits_full_pairs():
    split = {name for name in preset_names() if not matrix_parameters(load_config(name)).full_pairs}
    assert split == {"pynq-z2"}
