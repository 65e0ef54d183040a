"""Configurations: what is impossible is refused, and which tensors follow."""

from dataclasses import replace

import pytest

from flightllm.models.config import ModelConfig, RopeConfig, tensor_shapes
from flightllm.spec.errors import InputError

LLAMA = ModelConfig(
    family="llama",
    vocab=32,
    dim=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=6,
    ffn_dim=20,
    max_length=64,
    rope=RopeConfig(),
    name="toy",
)
GPT2 = replace(
    LLAMA,
    family="gpt2",
    kv_heads=4,
    head_dim=4,
    norm="layer",
    activation="gelu",
    gated=False,
    rope=None,
    learned_positions=True,
    tied=True,
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "mamba"}, "family 'mamba' is not one of llama, opt, gpt2"),
        ({"norm": "batch"}, "norm 'batch' is not one of rms, layer"),
        ({"activation": "tanh"}, "activation 'tanh' is not one of"),
        ({"dim": 0}, "dim must be a positive integer, not 0"),
        ({"layers": -1}, "layers must be a positive integer, not -1"),
        ({"layers": 10**9}, "layers must be at most 4096, not 1000000000"),
        ({"vocab": 2**31}, "vocab must be at most 2147483647, not 2147483648"),
        ({"kv_heads": 3}, "4 query heads are not a multiple of 3 key/value heads"),
        ({"head_dim": 5}, "head_dim 5 is odd"),
        ({"rope": None}, "either RoPE or learned positions"),
        ({"learned_positions": True}, "either RoPE or learned positions"),
        ({"window": 0}, "window must be a positive number of tokens, not 0"),
        ({"norm_eps": 0.0}, "norm_eps 0.0 does not lie between 0 and 1"),
        ({"bos": 32}, "bos 32 is not a token id below 32"),
        ({"eos": (1, -1)}, "eos -1 is not a token id below 32"),
    ],
)
def test_refuses_the_impossible(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=f"toy: .*{message}"):
        replace(LLAMA, **change)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "dynamic"}, "'dynamic' scaling is not one of"),
        ({"theta": 1.0}, "rope.theta: 1.0 is not above 1"),
        ({"kind": "linear", "factor": 0.5}, "rope.factor: 0.5 is below 1"),
        ({"kind": "yarn", "factor": 4.0}, "rope.original_length: None"),
        (
            {"kind": "llama3", "original_length": 8, "low_freq_factor": 4.0},
            "rope.low_freq_factor: 4.0 does not lie between 0 and high_freq_factor, 4.0",
        ),
    ],
)
def test_refuses_impossible_rope(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RopeConfig(**arguments)


def test_tensors_of_a_llama_layer() -> None:
    shapes = tensor_shapes(LLAMA)
    layer = {name: shape for name, shape in shapes.items() if name.startswith("layers.1.")}
    assert list(layer.items()) == [
        ("layers.1.attn_norm.weight", (16,)),
        ("layers.1.q.weight", (24, 16)),
        ("layers.1.k.weight", (12, 16)),
        ("layers.1.v.weight", (12, 16)),
        ("layers.1.o.weight", (16, 24)),
        ("layers.1.mlp_norm.weight", (16,)),
        ("layers.1.gate.weight", (20, 16)),
        ("layers.1.up.weight", (20, 16)),
        ("layers.1.down.weight", (16, 20)),
    ]
    rest = [name for name in shapes if not name.startswith("layers.")]
    assert rest == ["embed", "final_norm.weight", "head.weight"]


def test_tensors_of_a_gpt2_layer() -> None:
    shapes = tensor_shapes(GPT2)
    layer = [name for name in shapes if name.startswith("layers.0.")]
    parts = ("attn_norm", "q", "k", "v", "o", "mlp_norm", "up", "down")
    assert layer == [f"layers.0.{part}.{kind}" for part in parts for kind in ("weight", "bias")]
    assert shapes["positions"] == (64, 16)
    assert shapes["layers.0.up.bias"] == (20,)
    assert "head.weight" not in shapes and "final_norm.bias" in shapes


def test_biases_follow_their_flags() -> None:
    qwen = tensor_shapes(replace(LLAMA, qkv_bias=True))
    assert {name for name in qwen if name.startswith("layers.0") and name.endswith("bias")} == {
        f"layers.0.{part}.bias" for part in "qkv"
    }
    assert qwen["layers.0.k.bias"] == (12,)
