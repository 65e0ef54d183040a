"""N:16 masks."""

import pytest
import torch

from flightllm.compiler.prune import Pruning, choose_mask, plain_mask, remove_exactly

torch.set_num_threads(1)


def scores(rows: int, columns: int) -> torch.Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kept", [2, 4, 8])
@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(6, 64), (5, 172), (1, 20)])
def test_counts_and_pairs(kept: int, private: bool, rows: int, columns: int) -> None:
    mask = choose_mask(scores(rows, columns), kept, private)
    assert mask.shape == (rows, columns)
    whole = columns // 16 * 16
    assert (mask[:, :whole].unflatten(1, (-1, 16)).sum(-1) == kept).all()
    assert (mask[:, whole:].sum(1) == min(kept, columns - whole)).all()
    even = rows // 2 * 2
    if not private:
        assert (mask[0:even:2] == mask[1:even:2]).all()
    elif rows > 1 and columns > 32:
        assert (mask[0:even:2] != mask[1:even:2]).any()


def test_keeps_the_best() -> None:
    score = torch.zeros(2, 16)
    score[0, [1, 4]], score[1, [4, 9]] = torch.tensor([5.0, 1.0]), torch.tensor([1.0, 3.0])
    assert choose_mask(score, 2).nonzero()[:, 1].tolist() == [1, 9, 1, 9]
    assert choose_mask(score, 2, private=True).nonzero()[:, 1].tolist() == [1, 4, 4, 9]


def test_a_last_odd_row_chooses_alone() -> None:
    score = scores(3, 32)
    alone = choose_mask(score[2:], 4, private=True)
    assert (choose_mask(score, 4)[2:] == alone).all()


def test_wanda_and_magnitude() -> None:
    """The published score, |W| times the norm of its input, against |W| alone."""
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(2)) * torch.arange(1, 33)
    energy = x.square().mean(0)
    found = plain_mask(weight, Pruning(8, "wanda", private=True), energy)
    assert found is not None
    score = weight.abs() * x.norm(dim=0)
    for row in range(6):
        for first in (0, 16):
            best = score[row, first : first + 16].topk(8).indices.sort().values
            assert found[row, first : first + 16].nonzero()[:, 0].tolist() == best.tolist()
    plain = plain_mask(weight, Pruning(8, "magnitude", private=True), energy)
    assert plain is not None and (plain != found).any()
    assert torch.equal(plain, choose_mask(weight.abs(), 8, private=True))
    assert plain_mask(weight, Pruning(), energy) is None


def correlated(columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(400, columns, generator=generator)
    x = x + 2 * x @ torch.randn(columns, columns, generator=generator) * columns**-0.5
    return x.T @ x / 400


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(6, 48), (5, 40)])
def test_exact_removal_leaves_the_best_weights_of_its_mask(
    private: bool, rows: int, columns: int
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))
    hessian = correlated(columns)
    left, mask = remove_exactly(weight, hessian, Pruning(8, private=private))
    even = rows // 2 * 2
    assert (mask[0:even:2] == mask[1:even:2]).all() != private
    assert (mask[:, :32].unflatten(1, (-1, 16)).sum(-1) == 8).all()
    assert (mask[:, 32:].sum(1) == 8).all() and (left[~mask] == 0).all()
    for row in range(rows):
        kept = mask[row]
        best = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ weight[row])
        torch.testing.assert_close(left[row, kept], best, atol=1e-4, rtol=1e-4)


def test_exact_removal_drops_what_costs_least() -> None:
    """Of one surplus weight, the one without which the outputs change least is dropped."""
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(5))
    hessian = correlated(9)
    _, mask = remove_exactly(weight, hessian, Pruning(8, private=True))
    for row in range(4):
        losses = []
        for out in range(9):
            kept = torch.arange(9) != out
            best = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ weight[row])
            miss = weight[row].clone()
            miss[kept] -= best
            losses.append(float(miss @ hessian @ miss))
        assert mask[row].logical_not().nonzero().item() == min(range(9), key=losses.__getitem__)


def test_exact_removal_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = scores(7, 32), correlated(32)
    whole, _ = remove_exactly(weight, hessian, Pruning(4))
    monkeypatch.setattr("flightllm.compiler.prune.CHUNK", 2048)
    parts, _ = remove_exactly(weight, hessian, Pruning(4))
    torch.testing.assert_close(parts, whole)
