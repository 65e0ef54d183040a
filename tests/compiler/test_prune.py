"""N:16 masks."""

import pytest
import torch

from flightllm.compiler.prune import choose_mask

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
