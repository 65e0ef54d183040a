"""RoPE's tables against transformers' own, and against the definition."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from flightllm.models.config import RopeConfig
from flightllm.models.rope import rope_tables
from flightllm.models.zoo import shape
from flightllm.spec.errors import InputError

KINDS = {
    "default": RopeConfig(500000.0),
    "linear": RopeConfig(10000.0, "linear", 4.0),
    "llama3": RopeConfig(500000.0, "llama3", 8.0, original_length=8192),
    "yarn": RopeConfig(1000000.0, "yarn", 4.0, 32768, attention_factor=1.1386294361119891),
}
LENGTH = 3000


def oracle(rope: RopeConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' cosines and sines, the half that does not repeat."""
    parameters = {"rope_type": rope.kind, "rope_theta": rope.theta}
    if rope.kind != "default":
        parameters["factor"] = rope.factor
    if rope.original_length is not None:
        parameters["original_max_position_embeddings"] = rope.original_length
    if rope.kind == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(
        hidden_size=1024,
        num_attention_heads=8,
        max_position_embeddings=131072,
        rope_parameters=parameters,
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(LENGTH)[None])
    return cos[0, :, :64], sin[0, :, :64]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers(kind: str) -> None:
    """To 1e-3: one unit in the last place of a frequency is 2e-4 rad at position 3000."""
    config = replace(shape("llama3.1-8b"), rope=KINDS[kind])
    tables = rope_tables(config, LENGTH)
    for table, expected in zip(tables, oracle(KINDS[kind])):
        assert table.shape == (LENGTH, 64) and table.dtype == np.float32
        assert np.abs(table - expected.numpy()).max() < 1e-3
        assert np.abs(table[:40] - expected.numpy()[:40]).max() < 1e-5


def test_kinds_differ() -> None:
    """The comparison would see one kind computed as another."""
    config = shape("llama3.1-8b")
    tables = [rope_tables(replace(config, rope=rope), LENGTH)[0] for rope in KINDS.values()]
    for index, table in enumerate(tables):
        for other in tables[:index]:
            assert np.abs(table - other).max() > 0.1


def test_definition() -> None:
    config = replace(shape("tinyllama-1.1b"), rope=RopeConfig(100.0), head_dim=4)
    cos, sin = rope_tables(config, 3)
    angles = np.outer([0, 1, 2], [1.0, 0.1])
    assert np.allclose(cos, np.cos(angles), atol=1e-7)
    assert np.allclose(sin, np.sin(angles), atol=1e-7)


def test_learned_positions_have_no_tables() -> None:
    with pytest.raises(InputError, match="opt-125m: the model has learned positions"):
        rope_tables(shape("opt-125m"), 4)
