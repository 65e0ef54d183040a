"""Compensated rounding: better outputs than plain rounding, same formats, any shape."""

import pytest
import torch

from flightllm.compiler.gptq import (
    Rounded,
    compensate,
    factorise,
    polish,
    round_plain,
    row_errors,
)
from flightllm.compiler.grid import Grid, grid_for
from flightllm.compiler.prune import Pruning, plain_mask

torch.set_num_threads(1)


def case(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix, and the Hessian of inputs that are correlated and of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * columns**-0.5
    inputs = torch.randn(2000, columns, generator=generator)
    inputs = (inputs + 2 * inputs @ mixing) * (0.2 + torch.rand(columns, generator=generator))
    return torch.randn(rows, columns, generator=generator), inputs.T @ inputs / 2000


def check_form(made: Rounded, grid: Grid, kept: int) -> None:
    allowed = torch.tensor([*range(grid.low, grid.high + 1, grid.stride), 0], dtype=torch.float32)
    assert torch.isin(made.levels, allowed).all()
    assert (made.scales == made.scales.half().float()).all() and (made.scales > 0).all()
    assert (made.mask is None) == (kept == 16)
    if made.mask is not None:
        assert (made.levels[~made.mask] == 0).all()
        if grid.table:
            assert (made.levels[made.mask] != 0).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kept", [16, 8, 4])
@pytest.mark.parametrize(("columns", "group"), [(64, 32), (172, 64), (300, 128)])
def test_beats_plain_rounding(bits: int, kept: int, columns: int, group: int) -> None:
    weight, hessian = case(9, columns)
    grid, factor = grid_for(bits), factorise(hessian)
    pruning = Pruning(kept)
    mask = plain_mask(weight, pruning, hessian.diagonal())
    plain = round_plain(weight, grid, group, mask, hessian.diagonal())
    made = compensate(weight, factor, grid, group, pruning)
    better = polish(weight, made, factor.hessian, grid)
    for rounded in (plain, made, better):
        check_form(rounded, grid, kept)
    losses = [row_errors(weight, r, factor.hessian) for r in (plain, made, better)]
    # Few kept weights leave little to compensate with.
    assert losses[1].sum() < (0.96 if kept == 4 else 0.9) * losses[0].sum()
    assert (losses[2] <= losses[1]).all() and losses[2].sum() < losses[1].sum()


def test_uncorrelated_inputs_change_nothing() -> None:
    """With a diagonal Hessian there is nothing to compensate with."""
    weight, _ = case(5, 96)
    factor, grid = factorise(torch.eye(96)), grid_for(4)
    made, plain = compensate(weight, factor, grid, 32), round_plain(weight, grid, 32)
    torch.testing.assert_close(made.levels, plain.levels)
    torch.testing.assert_close(made.scales, plain.scales)


def test_a_planted_error_is_seen() -> None:
    """Compensation that pushes the wrong way loses to plain rounding."""
    weight, hessian = case(9, 64)
    factor, grid = factorise(hessian), grid_for(4)
    upper = factor.upper
    flipped = 2 * torch.diag(upper.diagonal()) - upper
    wrong = compensate(weight, type(factor)(factor.hessian, flipped, None), grid, 32)
    plain = round_plain(weight, grid, 32)
    error = row_errors(weight, wrong, factor.hessian).sum()
    assert error > row_errors(weight, plain, factor.hessian).sum()


def test_reordered_columns() -> None:
    weight, hessian = case(9, 172)
    grid, factor = grid_for(4), factorise(hessian, reorder=True)
    made = compensate(weight, factor, grid, 32)
    check_form(made, grid, 16)
    plain = round_plain(weight, grid, 32, importance=hessian.diagonal())
    loss = row_errors(weight, made, factor.hessian).sum()
    assert loss < 0.9 * row_errors(weight, plain, factor.hessian).sum()
    with pytest.raises(ValueError, match="own order"):
        compensate(weight, factor, grid, 32, Pruning(8))


def test_singular_hessians() -> None:
    """Dead inputs, fewer tokens than columns, and no tokens at all."""
    weight, hessian = case(4, 64)
    dead = hessian.clone()
    dead[:, 10] = dead[10] = 0
    few = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    for matrix in (dead, few.T @ few, torch.zeros(64, 64)):
        made = compensate(weight, factorise(matrix), grid_for(4), 32)
        assert torch.isfinite(made.weight()).all()


def test_pairs_share_their_mask() -> None:
    weight, hessian = case(7, 96)
    shared = compensate(weight, factorise(hessian), grid_for(4), 32, Pruning(8)).mask
    alone = Pruning(8, private=True)
    private = compensate(weight, factorise(hessian), grid_for(4), 32, alone).mask
    assert shared is not None and private is not None
    assert (shared[0:6:2] == shared[1:6:2]).all()
    assert (private[0:6:2] != private[1:6:2]).any()
