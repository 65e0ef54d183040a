"""The target makes up for what the quantised stream has lost."""

import torch

from flightllm.compiler.compensation import Prepared, corrected_bias, fit_matrix, target
from flightllm.compiler.grid import grid_for
from flightllm.compiler.prune import Pruning
from flightllm.compiler.streams import Moments

torch.set_num_threads(1)


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A matrix [24, 48], float and quantised inputs [n, 48], and a residual owed [n, 24]."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    h = normal(3000, 48) @ normal(48, 48) * 0.3 + 0.5
    g = h @ (torch.eye(48) + 0.05 * normal(48, 48)) + 0.02 * normal(3000, 48)
    return normal(24, 48), h, g, 0.2 * g @ normal(48, 24) + 0.3


def moments(h: torch.Tensor, g: torch.Tensor, owed: torch.Tensor | None) -> Moments:
    count = len(h)
    return Moments(
        (g.T @ g / count).double(),
        ((h - g).T @ g / count).double(),
        None if owed is None else (owed.T @ g / count).double(),
        g.double().mean(0),
        h.double().mean(0),
    )


def test_target_recovers_the_output() -> None:
    weight, h, g, owed = data()
    for debt in (None, owed):
        wanted = h @ weight.T + (0 if debt is None else debt)
        goal = target(weight, Prepared(moments(h, g, debt)))
        before, after = ((wanted - g @ w.T).norm() for w in (weight, goal))
        assert after < 0.5 * before


def test_same_streams_leave_the_matrix() -> None:
    weight, h, _, _ = data()
    torch.testing.assert_close(target(weight, Prepared(moments(h, h, None))), weight)


def test_fit_beats_fitting_without_a_target() -> None:
    weight, h, g, owed = data()
    grid, wanted = grid_for(4), h @ weight.T + owed
    fitted = fit_matrix(weight, Prepared(moments(h, g, owed)), grid, 32)
    blind = fit_matrix(weight, Prepared(moments(g, g, None)), grid, 32)
    errors = [(wanted - g @ made.weight().T).norm() for made in (fitted, blind)]
    assert errors[0] < 0.7 * errors[1]
    assert fit_matrix(weight, Prepared(moments(h, g, owed)), grid, 32, Pruning(8)).mask is not None


def test_bias_gives_the_mean() -> None:
    weight, h, g, owed = data()
    rounded, bias = weight + 0.1, torch.randn(24, generator=torch.Generator().manual_seed(2))
    made = corrected_bias(bias, weight, rounded, moments(h, g, owed), owed.mean(0))
    wanted = (h @ weight.T + bias + owed).mean(0)
    torch.testing.assert_close((g @ rounded.T + made).mean(0), wanted, atol=1e-4, rtol=1e-4)
