"""Folding changes no logit, and a fold that is left out is seen."""

import pytest
import torch
from random_checkpoint import FAMILIES, random_checkpoint

from flightllm.compiler import fold
from flightllm.compiler.block import Block, linear
from flightllm.compiler.calibrate import Calibration
from flightllm.compiler.fold import fold_ends, fold_layer, pair_order
from flightllm.compiler.scheme import QuantOptions
from flightllm.compiler.shape_only import check_supported, shape_only
from flightllm.compiler.streams import Streams
from flightllm.models.checkpoint import Checkpoint
from flightllm.models.reference import FloatModel
from flightllm.spec.errors import InputError

torch.set_num_threads(1)


def tokens(checkpoint: Checkpoint) -> torch.Tensor:
    return torch.randint(
        checkpoint.config.vocab, (2, 20), generator=torch.Generator().manual_seed(1)
    )


@torch.no_grad()
def folded_logits(checkpoint: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    ends = fold_ends(checkpoint)
    text = Calibration(ids, torch.ones_like(ids, dtype=torch.bool), "test")
    streams = Streams(checkpoint.config, ends, text, 8)
    x, block = streams.x, streams.exact
    for index in range(checkpoint.config.layers):
        x = streams.run(fold_layer(checkpoint, index), x, block)
        if checkpoint.config.norm == "layer":  # what makes LayerNorm an RMSNorm
            torch.testing.assert_close(x.mean(-1), torch.zeros(x.shape[:2]), atol=1e-5, rtol=0)
    return linear(block.norm(x, ends.final_norm), ends.head, ends.head_bias)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_stay(name: str) -> None:
    checkpoint = random_checkpoint(name)
    ids = tokens(checkpoint)
    with torch.no_grad():
        expected = FloatModel.load(checkpoint).forward(ids)
    torch.testing.assert_close(folded_logits(checkpoint, ids), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "part"), [("opt", "_add_bias"), ("llama", "pair_order")])
def test_a_fold_left_out_is_seen(monkeypatch: pytest.MonkeyPatch, name: str, part: str) -> None:
    checkpoint = random_checkpoint(name)
    ids = tokens(checkpoint)
    with torch.no_grad():
        expected = FloatModel.load(checkpoint).forward(ids)
    nothing = {"_add_bias": lambda *_: None, "pair_order": lambda h, d: torch.arange(h * d)}
    monkeypatch.setattr(fold, part, nothing[part])
    assert (folded_logits(checkpoint, ids) - expected).abs().max() > 0.01


def test_pair_order() -> None:
    assert pair_order(2, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_ends_keep_the_head_whole() -> None:
    """A tied head reads; only the embedding, which writes, is centred."""
    checkpoint = random_checkpoint("opt")
    ends = fold_ends(checkpoint)
    torch.testing.assert_close(ends.head, checkpoint.tensor("embed"))
    assert ends.embed.mean(1).abs().max() < 1e-6 < checkpoint.tensor("embed").mean(1).abs().max()


def test_not_finite() -> None:
    checkpoint = random_checkpoint("llama")
    checkpoint.tensor("layers.1.up.weight")[3, 4] = float("nan")
    with pytest.raises(InputError, match=r"layers\.1\.up\.weight.*NaN or infinity"):
        fold_layer(checkpoint, 1)


def test_unsupported_activation() -> None:
    config = random_checkpoint("llama", activation="relu").config
    with pytest.raises(InputError, match="'relu' with a gate"):
        check_supported(config)
    with pytest.raises(InputError, match="'relu' with a gate"):  # a shape without weights too
        shape_only(config, QuantOptions())


def test_quantised_block_is_close() -> None:
    """The quantised stream stays near the float one, and is not the same."""
    checkpoint = random_checkpoint("llama")
    ids = tokens(checkpoint)
    text = Calibration(ids, torch.ones_like(ids, dtype=torch.bool), "test")
    streams = Streams(checkpoint.config, fold_ends(checkpoint), text, 8)
    layer = fold_layer(checkpoint, 0)
    exact, rounded = (
        streams.run(layer, streams.x, block) for block in (streams.exact, streams.rounded)
    )
    error = float((exact - rounded).norm() / exact.norm())
    assert 1e-4 < error < 0.03
    coarse = Block.of(checkpoint.config, 20, 4, True)
    assert float((streams.run(layer, streams.x, coarse) - exact).norm() / exact.norm()) > error
