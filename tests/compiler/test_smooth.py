"""K smoothing: exact in float, better in INT8."""

import pytest
import torch
from random_checkpoint import random_checkpoint

from flightllm.compiler.block import Block, fake_quant
from flightllm.compiler.fold import FoldedLayer, fold_layer
from flightllm.compiler.smooth import (
    Smoothing,
    apply_smoothing,
    row_factors,
    smoothing_from_heads,
    smoothing_from_weights,
    weight_noise,
)

torch.set_num_threads(1)


def heads(layer: FoldedLayer, block: Block, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    q, k = (
        block.heads(x @ layer.weights[name].T + layer.biases.get(name, 0), True)
        for name in ("q", "k")
    )
    return q, k


def scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(-1, -2)


def case(name: str = "qwen") -> tuple[FoldedLayer, Block, torch.Tensor]:
    """A layer with one large channel in K, as real models have, and its inputs."""
    checkpoint = random_checkpoint(name)
    layer = fold_layer(checkpoint, 0)
    if "k" in layer.biases:
        layer.biases["k"][-1] += 12.0
    x = torch.randn(3, 24, 48, generator=torch.Generator().manual_seed(5))
    return layer, Block.of(checkpoint.config, 24, 8, True), x


@pytest.mark.parametrize("name", ["qwen", "llama", "opt"])
def test_scores_stay(name: str) -> None:
    layer, block, x = case(name)
    before = scores(*heads(layer, block, x))
    generator = torch.Generator().manual_seed(1)
    shape = (block.config.kv_heads, 6)
    smoothing = Smoothing(
        torch.randn(shape, generator=generator), torch.rand(shape, generator=generator) + 0.5
    )
    after = scores(*heads(apply_smoothing(layer, smoothing), block, x))
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-4)
    wrong = Smoothing(smoothing.angle, smoothing.factor.flip(0) + 0.5)
    spoiled = apply_smoothing(layer, smoothing).with_weights(
        {"q": apply_smoothing(layer, wrong).weights["q"]}, {}
    )
    assert (scores(*heads(spoiled, block, x)) - before).abs().max() > 0.1


@pytest.mark.parametrize("noisy", [False, True])
def test_quantised_scores_get_better(noisy: bool) -> None:
    layer, block, x = case()
    noise = None
    if noisy:
        noise = tuple(
            weight_noise(layer.weights[name], torch.ones(48), block.config, 8, 32)
            for name in ("k", "q")
        )
    exact = scores(*heads(layer, block, x))

    def error(smoothed: FoldedLayer) -> float:
        q, k = heads(smoothed, block, x)
        return float((scores(fake_quant(q), fake_quant(k)) - exact).norm())

    found = smoothing_from_heads(*heads(layer, block, x), block, noise)
    scaled = smoothing_from_heads(*heads(layer, block, x), block, noise, turn=False)
    assert (scaled.angle == 0).all()
    assert error(apply_smoothing(layer, found)) < 0.8 * error(layer)
    assert error(apply_smoothing(layer, scaled)) < 1.02 * error(layer)


def test_coarse_weights_hold_turns_back() -> None:
    """Two bits a weight: the expected loss with the noise counted is lower than without."""
    layer, block, x = case()
    q, k = heads(layer, block, x)
    noise = tuple(
        weight_noise(layer.weights[name], torch.ones(48), block.config, 2, 32)
        for name in ("k", "q")
    )
    free, held = (smoothing_from_heads(q, k, block, n) for n in (None, noise))
    assert not torch.allclose(free.angle, held.angle, atol=1e-2)


def test_without_turns_rows_are_scaled() -> None:
    layer, block, _ = case("llama")
    smoothing = smoothing_from_weights(layer, block.config)
    made = apply_smoothing(layer, smoothing)
    for name, factor in row_factors(smoothing, block.config.heads).items():
        torch.testing.assert_close(made.weights[name], layer.weights[name] * factor[:, None])
    torch.testing.assert_close(smoothing.factor.log().mean(1), torch.zeros(2), atol=1e-5, rtol=0)
