"""Sensitivities: narrower widths cost more, and a matrix that matters costs most."""

import numpy as np
import torch
from random_checkpoint import random_checkpoint

from flightllm.compiler.calibrate import float_model, sample
from flightllm.compiler.fold import fold_ends, fold_layer
from flightllm.compiler.sensitivity import affordable, by_divergence, by_output_error
from flightllm.compiler.streams import Streams
from flightllm.models.config import ModelConfig, RopeConfig

torch.set_num_threads(1)


@torch.no_grad()
def test_losses() -> None:
    checkpoint = random_checkpoint("llama")
    # Nothing comes of the first layer's MLP: its width is of no account.
    checkpoint.tensor("layers.0.down.weight").mul_(1e-4)
    ends, layers = fold_ends(checkpoint), [fold_layer(checkpoint, i) for i in range(2)]
    streams = Streams(checkpoint.config, ends, sample(float_model(checkpoint), 8, 40), 8)
    measured = by_divergence(layers, ends, streams, (2, 4, 8), 32)
    assert measured.shape == (14, 3)
    assert (np.diff(measured.sum(0)) < 0).all()
    names = list(layers[0].weights)
    assert measured[names.index("up"), 0] < 0.01 * measured[7 + names.index("up"), 0]
    for text in (streams, None):
        stand_in = by_output_error(iter(layers), text, (2, 4, 8), 32)
        assert stand_in.shape == (14, 3)
        assert (np.diff(stand_in, axis=1) < 0).all()


def test_what_is_affordable() -> None:
    assert affordable(random_checkpoint("llama").config, 2048, 4)
    large = ModelConfig(
        family="llama", vocab=32000, dim=2048, layers=22, heads=32, kv_heads=4, head_dim=64,
        ffn_dim=5632, max_length=2048, rope=RopeConfig(),
    )  # fmt: skip
    assert not affordable(large, 2048, 4)
