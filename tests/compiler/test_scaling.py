"""Scaling channels: the published formulas, and layers that keep their function."""

import pytest
import torch
from random_checkpoint import random_checkpoint

from flightllm.compiler.calibrate import Calibration
from flightllm.compiler.fold import fold_ends, fold_layer
from flightllm.compiler.scaling import (
    awq_factor,
    head_factor,
    scale_layer,
    smoothquant_factor,
)
from flightllm.compiler.streams import Streams

torch.set_num_threads(1)


def case() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Inputs [80, 32] with two large channels, and two readers."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 32, generator=generator)
    x[:, [3, 20]] *= torch.tensor([30.0, 8.0])
    return x, [torch.randn(rows, 32, generator=generator) for rows in (12, 20)]


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Plain rounding of rows in one group of 32, by the largest weight."""
    high = 2 ** (bits - 1) - 1
    scale = (weight.abs().amax(1, keepdim=True) / high).half().float()
    return (weight / scale).round().clamp(-high - 1, high) * scale


def test_smoothquant_is_the_published_formula() -> None:
    x, weights = case()
    for strength in (0.5, 0.8):
        wanted = [
            float(x[:, j].abs().max()) ** strength
            / max(float(w[:, j].abs().max()) for w in weights) ** (1 - strength)
            for j in range(32)
        ]
        found = smoothquant_factor(x, weights, strength)
        torch.testing.assert_close(found, torch.tensor(wanted))


def test_awq_is_the_best_exponent() -> None:
    x, weights = case()
    losses, factors = [], []
    for step in range(20):
        s = x.abs().mean(0) ** (step / 20)
        s = s / torch.sqrt(s.max() * s.min())
        factors.append(s)
        losses.append(
            sum(float(((x / s) @ rounded(w * s, 3).T - x @ w.T).square().sum()) for w in weights)
        )
    best = min(range(20), key=losses.__getitem__)
    assert best > 0  # or the case would show nothing
    torch.testing.assert_close(awq_factor(x, weights, [3, 3], 32), factors[best])
    assert losses[best] < 0.8 * losses[0]


def test_silent_channels_are_no_trouble() -> None:
    x, weights = case()
    x[:, 5] = 0
    weights = [w.index_fill(1, torch.tensor([6]), 0.0) for w in weights]
    for factor in (awq_factor(x, weights, [4, 4], 32), smoothquant_factor(x, weights)):
        assert torch.isfinite(factor).all() and (factor > 0).all()


@pytest.mark.parametrize("name", ["llama", "mha", "opt", "gpt2"])
@pytest.mark.parametrize("method", ["balance", "awq", "smoothquant", "none"])
@torch.no_grad()
def test_the_layer_stays(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flightllm.compiler.balance.STEPS", 5)
    changes = {"kv_heads": 4} if name == "mha" else {}
    checkpoint = random_checkpoint("llama" if name == "mha" else name, **changes)
    ids = torch.randint(96, (2, 16), generator=torch.Generator().manual_seed(1))
    text = Calibration(ids, torch.ones_like(ids, dtype=torch.bool), "test")
    streams = Streams(checkpoint.config, fold_ends(checkpoint), text, 8)
    layer = fold_layer(checkpoint, 0)
    inputs = {
        n: v.flatten(0, 1) for n, v in streams.inputs(layer, streams.x, streams.exact).items()
    }
    widths = dict.fromkeys(layer.weights, 4)
    made = scale_layer(method, layer, inputs, checkpoint.config, widths, 32)
    assert torch.equal(made.mlp_norm, layer.mlp_norm) == (method == "none")
    scaled = {n for n in layer.weights if not torch.equal(made.weights[n], layer.weights[n])}
    assert ("q" in scaled) == (method in ("awq", "smoothquant"))
    if method == "awq":
        assert ("o" in scaled) == (name != "llama")  # grouped heads share V
        assert ("down" in scaled) == (name != "gpt2")  # GELU passes no factor
    before, after = (streams.run(part, streams.x, streams.exact) for part in (layer, made))
    torch.testing.assert_close(after, before, atol=2e-4, rtol=2e-4)


def test_head_factors() -> None:
    x, (weight, _) = case()
    assert torch.equal(head_factor("none", x, weight, 8, 32, None), torch.ones(32))
    found = head_factor("smoothquant", x, weight, 8, 32, None)
    torch.testing.assert_close(found, smoothquant_factor(x, [weight]))
    found = head_factor("awq", x, weight, 4, 32, None)
    torch.testing.assert_close(found, awq_factor(x, [weight], [4], 32))
    assert head_factor("balance", x, weight, 8, 32, None)[3] > 2
