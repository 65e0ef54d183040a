"""The compiled clip search against one that states every try in torch."""

import pytest
import torch

from flightllm.compiler.clip_kernel import best_scales
from flightllm.compiler.grid import grid_for
from flightllm.compiler.rounding import nearest, search_scales

torch.set_num_threads(1)


def weights(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("counted", [False, True])
def test_the_compiled_search_finds_the_least_error(bits: int, counted: bool) -> None:
    """Held against every scale tried, stated in torch; the number of groups fills no lanes."""
    grid, group = grid_for(bits), 32
    weight, counts = weights(70, group), torch.ones(1, group)
    if counted:
        counts = torch.rand(70, group, generator=torch.Generator().manual_seed(1))
    scales = weight.abs().amax(1, keepdim=True) / grid.high * torch.linspace(1, 0.3, 50)
    found = best_scales(
        weight.numpy(), counts.numpy(), scales.numpy(), grid.low, grid.high, grid.stride
    )

    def error(scale: torch.Tensor) -> torch.Tensor:
        miss = weight[:, None] - nearest(weight[:, None], scale[..., None], grid) * scale[..., None]
        return (miss.square() * counts[:, None]).sum(-1)

    least = error(scales).amin(1)
    torch.testing.assert_close(error(torch.from_numpy(found)[:, None])[:, 0], least)
    worst = scales[:, -1:] * 0.1  # the oracle sees a wrong scale
    assert (error(worst)[:, 0] > 1.01 * least).all()


def test_threads_change_nothing() -> None:
    weight, grid = weights(64, 4096), grid_for(4)
    alone = search_scales(weight, grid, 32)
    torch.set_num_threads(3)
    try:
        assert torch.equal(search_scales(weight, grid, 32), alone)
    finally:
        torch.set_num_threads(1)
