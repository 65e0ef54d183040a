"""Stored codes are taken over exactly, or it is said what is not."""

import dataclasses

import numpy as np
import pytest
import torch

from flightllm.compiler.as_is import AsIsReport, keep, obstacle
from flightllm.compiler.smooth import Smoothing
from flightllm.models.codes import Codes
from flightllm.spec.formats import format_for, pack_matrix, unpack_matrix


def codes(group: int, columns: int = 128, bits: int = 8, **parts: object) -> Codes:
    rng = np.random.default_rng(0)
    half = 127 if bits == 8 else 1 << (bits - 1)
    levels = rng.integers(-half, half, (6, columns)).astype(np.int8)
    groups = -(-columns // group)
    scales = rng.uniform(0.5, 2, (6, groups)).astype(np.float16).astype(np.float32)
    return Codes(levels, scales, group, bits, **parts)  # type: ignore[arg-type]


def test_groups_of_every_size() -> None:
    for group, expected in ((32, 32), (64, 64), (96, 32), (128, 128), (192, 64)):
        stored = codes(group, 2 * group)
        assert obstacle(stored) is None
        made = keep(stored)
        assert made.tensor.group == expected and made.tensor.bits == 8
        assert made.rounded == () and made.error == 0
        np.testing.assert_array_equal(made.tensor.dequantised(), stored.weights())


def test_one_scale_a_row_suits_any_width() -> None:
    stored = codes(90, 90)
    assert obstacle(stored) is None
    made = keep(stored).tensor
    assert made.group == 64 and made.scales.shape == (6, 2)
    np.testing.assert_array_equal(made.dequantised(), stored.weights())


@pytest.mark.parametrize("bits", [4, 5])
def test_minima_that_fp16_holds(bits: int) -> None:
    stored = codes(32, bits=bits)
    levels = (stored.levels + np.int8(1 << (bits - 1))).astype(np.int8)
    minima = (-stored.scales).astype(np.float16).astype(np.float32)
    affine = dataclasses.replace(stored, levels=levels, minima=minima)
    made = keep(affine)
    assert made.rounded == () and made.tensor.bits == (4 if bits == 4 else 6)
    np.testing.assert_array_equal(made.tensor.dequantised(), affine.weights())


@pytest.mark.parametrize("bits", [4, 5])
def test_minima_that_fp16_does_not_hold(bits: int) -> None:
    """Levels stay, moved to the middle; the weights change by a rounding of fp16."""
    stored = codes(32, bits=bits)
    levels = (stored.levels + np.int8(1 << (bits - 1))).astype(np.int8)
    scales = (stored.scales * np.float32(1.0003)).astype(np.float32)
    affine = dataclasses.replace(stored, levels=levels, scales=scales, minima=-7 * scales)
    made = keep(affine)
    assert made.rounded == ("scales rounded to fp16", "minima rounded to fp16")
    assert made.tensor.bits == bits and 0 < made.error < 2**-11
    np.testing.assert_array_equal(made.tensor.levels, stored.levels)
    np.testing.assert_allclose(made.tensor.dequantised(), affine.weights(), atol=2**-5)


@pytest.mark.parametrize("zero", [8, 5])
def test_zero_points_and_tables_survive_storage(zero: int) -> None:
    levels = (np.arange(6 * 128) % 16).reshape(6, 128).astype(np.int8) - np.int8(zero)
    plain = dataclasses.replace(codes(32, bits=4), levels=levels)
    zeros = np.full(plain.scales.shape, zero, np.int16)
    table = tuple(range(-zero, 16 - zero))
    for stored in (
        dataclasses.replace(plain, zeros=zeros),
        dataclasses.replace(plain, table=table),
    ):
        made = keep(stored).tensor
        assert (made.zeros is None) == (zero == 8 or stored.table is not None)
        data = pack_matrix(made, 2)
        back = unpack_matrix(format_for(made), data, 6, 4, table=made.table)
        np.testing.assert_array_equal(back.levels, levels)


def test_what_cannot_be_kept() -> None:
    assert "groups of 8 columns" in str(obstacle(codes(8)))
    low = codes(32)
    low.levels[:, :2] = -128
    assert "are -128" in str(obstacle(low))
    huge = codes(32)
    huge.scales[0, 0] = 1e5
    assert "beyond what fp16 holds" in str(obstacle(huge))
    apart = codes(32, places=np.arange(128, dtype=np.int64) % 4)
    assert "act-order" in str(obstacle(apart))
    wide = codes(32)
    wide = dataclasses.replace(wide, levels=2 * wide.levels.astype(np.int16))
    assert "beyond the array's" in str(obstacle(wide))


def test_a_single_low_level_is_clamped() -> None:
    low = codes(32, columns=2048)
    low.levels[0, 0] = -128
    assert obstacle(low) is None
    made = keep(low)
    assert made.tensor.levels[0, 0] == -127 and made.rounded == ("1 levels of -128 became -127",)
    assert made.error > 0


def test_rows_move_and_scale() -> None:
    stored, order = codes(64), np.array([5, 4, 3, 2, 1, 0])
    factor = np.array([1, 2, 4, 0.5, 1, 1], np.float32)
    made = keep(stored, order, factor)
    plain = keep(stored).tensor.dequantised()
    np.testing.assert_array_equal(made.tensor.dequantised(), plain[order] * factor[:, None])
    assert made.rounded == ()


def test_smoothing_by_powers_of_two() -> None:
    smooth = Smoothing(torch.zeros(1, 3), torch.tensor([[0.3, 1.3, 5.9]])).by_powers_of_two()
    assert smooth.factor.tolist() == [[0.25, 1.0, 8.0]]


def test_notes_name_a_few_matrices() -> None:
    report = AsIsReport()
    for index in range(5):
        report.refused(f"layers.{index}.q", "it is odd")
    assert report.notes("w8g32") == ["as-is: layers.0.q and 4 more became w8g32: it is odd"]
