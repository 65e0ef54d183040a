"""Grids and clip search."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flightllm.compiler.grid import grid_for
from flightllm.compiler.rounding import nearest, search_scales, spread

torch.set_num_threads(1)


def weights(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_grids() -> None:
    assert (grid_for(8).low, grid_for(8).high) == (-127, 127)
    assert (grid_for(4).low, grid_for(4).high, grid_for(4).table) == (-8, 7, None)
    assert grid_for(2).table == (-3, -1, 1, 3)


@given(st.sampled_from([2, 3, 4, 5, 6, 7, 8]), st.integers(0, 1000))
def test_nearest_is_nearest(bits: int, seed: int) -> None:
    grid, ratio = grid_for(bits), 300 * weights(1, 50, seed)[0]
    allowed = torch.arange(grid.low, grid.high + 1, grid.stride, dtype=torch.float32)
    best = (ratio[:, None] - allowed).abs().amin(1)
    level = nearest(ratio, torch.tensor(1.0), grid)
    assert torch.isin(level, allowed).all()
    torch.testing.assert_close((ratio - level).abs(), best)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize(("columns", "group"), [(64, 32), (172, 64), (20, 32)])
def test_search_beats_the_whole_range(bits: int, columns: int, group: int) -> None:
    weight, grid = weights(12, columns), grid_for(bits)
    scales = search_scales(weight, grid, group)
    assert scales.shape == (12, -(-columns // group))
    assert (scales == scales.half().float()).all() and (scales > 0).all()

    def error(by_group: torch.Tensor) -> torch.Tensor:
        wide = spread(by_group, group, columns)
        return (weight - nearest(weight, wide, grid) * wide).square().sum(1)

    padded = torch.nn.functional.pad(weight, (0, -columns % group)).unflatten(1, (-1, group))
    whole = (padded.abs().amax(-1) / grid.high).half().float()
    assert (error(scales) <= error(whole) + 1e-6).all()
    if bits < 6:
        assert error(scales).sum() < 0.95 * error(whole).sum()


def test_importance_and_mask_count() -> None:
    """An outlier that does not count is clipped away."""
    weight = weights(4, 32)
    weight[:, 5] = 30.0
    plain = search_scales(weight, grid_for(4), 32)
    importance = torch.ones(32)
    importance[5] = 0
    assert (search_scales(weight, grid_for(4), 32, importance) < plain / 2).all()
    mask = torch.ones(4, 32, dtype=torch.bool)
    mask[:, 5] = False
    assert (search_scales(weight, grid_for(4), 32, mask=mask) < plain / 2).all()


def test_all_zero_group() -> None:
    scales = search_scales(torch.zeros(2, 64), grid_for(4), 32)
    assert torch.isfinite(scales).all() and (scales > 0).all()
