"""Curvature predicts what an error of an output costs."""

import pytest
import torch
from random_checkpoint import random_checkpoint

from flightllm.compiler.block import linear
from flightllm.compiler.calibrate import float_model, sample
from flightllm.compiler.fisher import affordable, output_curvature
from flightllm.compiler.fold import fold_ends, fold_layer
from flightllm.compiler.streams import Streams, divergence
from flightllm.models.config import ModelConfig, RopeConfig

torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_predicts_the_divergence(name: str) -> None:
    checkpoint = random_checkpoint(name, tied=False, eos=())
    ends = fold_ends(checkpoint)
    layers = [fold_layer(checkpoint, i) for i in range(2)]
    text = sample(float_model(checkpoint), 32, 40)
    streams = Streams(checkpoint.config, ends, text, 8)
    curvature, head = output_curvature(layers, ends, streams, 0)
    assert head.shape == (96,)

    def logits(chosen: list) -> torch.Tensor:  # type: ignore[type-arg]
        x = streams.x
        for layer in chosen:
            x = streams.run(layer, x, streams.exact)
        return linear(streams.exact.norm(x, ends.final_norm), ends.head, ends.head_bias)[text.valid]

    generator = torch.Generator().manual_seed(1)
    for matrix in ("o", "down", "up"):
        rows = layers[0].weights[matrix].shape[0]
        noise = 0.02 * torch.randn(*text.ids.shape, rows, generator=generator)
        bias = noise + layers[0].biases.get(matrix, 0)
        spoiled = [layers[0].with_weights({}, {matrix: bias}), layers[1]]
        measured = divergence(logits(layers), logits(spoiled))[0]
        predicted = float(curvature[0][matrix].sum()) * 0.02**2 / 2
        assert 0.5 < measured / predicted < 2


def test_only_small_models() -> None:
    assert affordable(random_checkpoint("llama").config, 2048)
    large = ModelConfig(
        family="llama", vocab=32000, dim=2048, layers=22, heads=32, kv_heads=4, head_dim=64,
        ffn_dim=5632, max_length=2048, rope=RopeConfig(),
    )  # fmt: skip
    assert not affordable(large, 2048)
