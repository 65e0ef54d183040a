"""Stored codes are taken over exactly."""

import numpy as np

from flightllm.compiler.as_is import can_keep, stored_matrix
from flightllm.models.checkpoint import Codes


def codes(group: int, columns: int = 128) -> Codes:
    rng = np.random.default_rng(0)
    levels = rng.integers(-127, 128, (6, columns)).astype(np.int8)
    scales = rng.uniform(0.5, 2, (6, columns // group)).astype(np.float16).astype(np.float32)
    return Codes(levels, scales, group)


def test_groups_of_every_size() -> None:
    for group, expected in ((32, 32), (64, 64), (96, 32), (128, 128), (192, 64)):
        stored = codes(group, 2 * group)
        assert can_keep(stored)
        made = stored_matrix(stored)
        assert made.group == expected and made.bits == 8
        wanted = stored.levels * np.repeat(stored.scales, group, axis=1)
        np.testing.assert_array_equal(made.dequantised(), wanted)


def test_what_cannot_be_kept() -> None:
    assert not can_keep(None)
    assert not can_keep(codes(8))
    low = codes(32)
    low.levels[0, 0] = -128
    assert not can_keep(low)


def test_rows_move_and_scale() -> None:
    stored, order = codes(64), np.array([5, 4, 3, 2, 1, 0])
    factor = np.array([1, 2, 4, 0.5, 1, 1], np.float32)
    made = stored_matrix(stored, order, factor)
    plain = stored_matrix(stored).dequantised()
    np.testing.assert_array_equal(made.dequantised(), plain[order] * factor[:, None])
