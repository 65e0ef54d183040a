"""Balancing linears' inputs: exact in float, better in INT8."""

import pytest
import torch
from random_checkpoint import random_checkpoint

from flightllm.compiler.balance import Reader, balance_layer, best_factors, input_loss
from flightllm.compiler.block import fake_quant
from flightllm.compiler.calibrate import Calibration
from flightllm.compiler.fold import fold_ends, fold_layer
from flightllm.compiler.streams import Streams

torch.set_num_threads(1)


def outlier_case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 48, generator=generator) for n in (400, 30))
    x[:, 7] *= 20
    weight[:, 7] *= 0.1
    return x, weight


def test_an_outlier_is_shrunk() -> None:
    x, weight = outlier_case()
    reader = Reader.of(weight, 8, 32)
    factor = best_factors(x, [reader])
    assert factor[7] > 2 * factor.median()
    torch.testing.assert_close(factor.log().mean(), torch.tensor(0.0), atol=1e-5, rtol=0)

    def error(f: torch.Tensor) -> float:
        return float(((fake_quant(x / f) * f - x) @ weight.T).square().sum())

    assert error(factor) < 0.3 * error(torch.ones(48))
    # The loss predicts what is measured.
    predicted = float(input_loss(x, [Reader(reader.cost, 0.0, 32)], factor))
    assert 0.7 < predicted / error(factor) < 1.4


def test_channels_can_share_a_factor() -> None:
    x, weight = outlier_case()
    spread = torch.arange(48) % 24
    factor = best_factors(x, [Reader.of(weight, 8, 32)], spread)
    torch.testing.assert_close(factor[:24], factor[24:])


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2"])
@torch.no_grad()
def test_the_layer_stays(name: str) -> None:
    checkpoint = random_checkpoint(name)
    ids = torch.randint(96, (2, 20), generator=torch.Generator().manual_seed(1))
    text = Calibration(ids, torch.ones_like(ids, dtype=torch.bool), "test")
    streams = Streams(checkpoint.config, fold_ends(checkpoint), text, 8)
    layer = fold_layer(checkpoint, 0)
    inputs = {
        n: v.flatten(0, 1) for n, v in streams.inputs(layer, streams.x, streams.exact).items()
    }
    widths = dict.fromkeys(layer.weights, 4)
    made = balance_layer(layer, inputs, checkpoint.config, widths, 32)
    assert not torch.allclose(made.mlp_norm, layer.mlp_norm)
    same = name == "gpt2"  # GELU passes no factor from up to down
    assert torch.allclose(made.weights["down"], layer.weights["down"]) == same
    before, after = (streams.run(part, streams.x, streams.exact) for part in (layer, made))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
