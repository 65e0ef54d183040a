"""Block-sparse attention: patterns, their choice, and what they do to a model."""

import numpy as np
import pytest
import torch
from random_checkpoint import random_checkpoint

from flightllm.compiler.block_sparse import (
    BlockMasks,
    candidates,
    choose_masks,
    masked_perplexity,
)
from flightllm.compiler.calibrate import Calibration
from flightllm.models.checkpoint import Checkpoint
from flightllm.models.patterns import DENSE, Pattern
from flightllm.models.reference import FloatModel
from flightllm.spec.errors import InputError

torch.set_num_threads(1)

TOKENS = 150  # five blocks, the last one short


def test_patterns() -> None:
    kept = Pattern(1, 2).keeps(TOKENS)
    assert kept.shape == (TOKENS, TOKENS)
    blocks = np.tril(kept[::32, ::32])  # of the first token of each block
    wanted = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 1, 1, 0], [1, 0, 0, 1, 1]]
    assert blocks.astype(int).tolist() == wanted
    assert Pattern(1, 2).density(TOKENS) == sum(map(sum, wanted)) / 15
    assert DENSE.density(TOKENS) == 1 and DENSE.keeps(TOKENS).all()
    assert all(c == DENSE or c.density(TOKENS) < 1 for c in candidates(TOKENS))


@pytest.fixture(scope="module")
def case() -> tuple[Checkpoint, Calibration]:
    checkpoint = random_checkpoint("llama", max_length=160)
    for layer in range(2):  # attention that is worth keeping
        checkpoint.tensor(f"layers.{layer}.q.weight").mul_(2.0)
    # KV head 1 of layer 0 has query heads 2 and 3; without queries they attend to all alike.
    checkpoint.tensor("layers.0.q.weight")[24:] = 0
    ids = torch.randint(96, (3, TOKENS), generator=torch.Generator().manual_seed(0))
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[2, 100:] = False
    return checkpoint, Calibration(ids, valid, "test")


def test_the_budget_goes_where_attention_is_spread(case: tuple[Checkpoint, Calibration]) -> None:
    last = 1.0
    for density in (0.5, 0.8, 1.0):
        made = choose_masks(*case, density)
        assert made.density <= density + 1e-6
        assert made.lost <= last
        last = made.lost
    assert made.lost == 0 and {p for heads in made.patterns for p in heads} == {DENSE}
    some = choose_masks(*case, 0.7)
    sizes = [[p.density(TOKENS) for p in heads] for heads in some.patterns]
    assert sizes[0][1] == max(max(heads) for heads in sizes)
    assert "density" in str(some) and "layer 1: " in str(some)


def test_impossible_density(case: tuple[Checkpoint, Calibration]) -> None:
    with pytest.raises(InputError, match="density: 0.1 is less than the 0.333"):
        choose_masks(*case, 0.1)


@torch.no_grad()
def test_perplexity(case: tuple[Checkpoint, Calibration]) -> None:
    """Dense masks change nothing; masks act on their own head; the reference agrees."""
    checkpoint, text = case
    exact = masked_perplexity(checkpoint, text, None)
    log = torch.log_softmax(FloatModel.load(checkpoint).forward(text.ids).double(), -1)
    counted = text.valid[:, 1:]
    picked = log[:, :-1].gather(2, text.ids[:, 1:, None])[..., 0][counted]
    assert exact == pytest.approx(float((-picked.mean()).exp()), rel=1e-4)
    dense = BlockMasks(((DENSE, DENSE), (DENSE, DENSE)), 0.0, 1.0, TOKENS)
    assert masked_perplexity(checkpoint, text, dense) == pytest.approx(exact, rel=1e-5)
    found = {
        masked_perplexity(
            checkpoint, text,
            BlockMasks(((DENSE, DENSE), tuple(heads)), 0.0, 1.0, TOKENS),  # type: ignore[arg-type]
        )
        for heads in ((Pattern(0, 1), DENSE), (DENSE, Pattern(0, 1)))
    }  # fmt: skip
    assert len(found) == 2 and all(abs(value - exact) > 1e-4 * exact for value in found)
