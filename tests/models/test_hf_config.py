"""config.json: real ones are read, lying and unsupported ones refused with a sentence."""

import json
from pathlib import Path

import pytest

from flightllm.models.config import RopeConfig
from flightllm.models.hf_config import config_from_dict, read_config
from flightllm.spec.errors import InputError

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-05,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": [2, 7],
    "rope_theta": 5000.0,
    "rope_scaling": None,
}
QWEN = {
    **LLAMA,
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "use_sliding_window": False,
    "sliding_window": 128,
    "max_window_layers": 4,
}
MISTRAL = {
    **LLAMA,
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "sliding_window": 128,
}
OPT = {
    "model_type": "opt",
    "vocab_size": 50272,
    "hidden_size": 768,
    "ffn_dim": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 2048,
    "word_embed_proj_dim": 768,
    "do_layer_norm_before": True,
    "activation_function": "relu",
    "bos_token_id": 2,
    "eos_token_id": 2,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "n_ctx": 1024,
    "activation_function": "gelu_new",
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


def read(base: dict[str, object], **changes: object):  # noqa: ANN201
    """The configuration of a config.json with some fields changed; ... removes one."""
    data = {name: value for name, value in {**base, **changes}.items() if value is not ...}
    return config_from_dict(data, "config.json", "toy")


def test_llama() -> None:
    config = read(LLAMA)
    assert (config.heads, config.kv_heads, config.head_dim, config.ffn_dim) == (8, 4, 8, 172)
    assert config.rope == RopeConfig(5000.0)
    assert (config.bos, config.eos, config.tied, config.gated) == (1, (2, 7), False, True)
    assert read(LLAMA, num_key_value_heads=...).kv_heads == 8
    assert read(LLAMA, head_dim=20).head_dim == 20


def test_ids_that_cannot_occur_are_left_out() -> None:
    """transformers writes its default ids into configurations with a smaller vocabulary."""
    config = read(GPT2, vocab_size=100, bos_token_id=50256, eos_token_id=[50256, 3, 3])
    assert (config.bos, config.eos) == (None, (3,))


def test_qwen_and_mistral_windows() -> None:
    assert read(QWEN).window is None
    assert read(QWEN, use_sliding_window=True).window is None  # all 4 layers below the first
    assert read(QWEN, use_sliding_window=True, max_window_layers=0).window == 128
    assert read(QWEN, layer_types=["full_attention"] * 4, use_sliding_window=True).window is None
    assert read(MISTRAL).window == 128
    assert read(MISTRAL, sliding_window=None).window is None
    assert read(MISTRAL, sliding_window=4096).window is None  # never hides a token
    assert read(QWEN).qkv_bias and not read(QWEN).o_bias


def test_opt_and_gpt2() -> None:
    opt, gpt2 = read(OPT), read(GPT2)
    assert (opt.activation, opt.tied, opt.norm, opt.qkv_bias) == ("relu", True, "layer", True)
    assert (gpt2.activation, gpt2.ffn_dim, gpt2.learned_positions) == ("gelu", 3072, True)
    assert read(GPT2, activation_function="gelu").activation == "gelu_erf"


def test_rope_scaling_in_both_spellings() -> None:
    old = read(LLAMA, rope_scaling=YARN).rope
    parameters = {**YARN, "type": None, "rope_type": "yarn", "rope_theta": 5000.0}
    new = read(LLAMA, rope_scaling=..., rope_theta=..., rope_parameters=parameters).rope
    assert old == new
    assert old is not None and old.kind == "yarn" and old.original_length == 128
    assert abs(old.attention_factor - 1.1386294) < 1e-6  # 0.1 ln 4 + 1
    given = read(LLAMA, rope_scaling={**YARN, "attention_factor": 1.5}).rope
    assert given is not None and given.attention_factor == 1.5
    assert read(LLAMA, rope_theta=...).rope == RopeConfig(10000.0)


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (LLAMA, {"model_type": "mixtral"}, "model_type 'mixtral' is not supported"),
        (LLAMA, {"model_type": ...}, "field 'model_type' is missing"),
        (LLAMA, {"model_type": 3}, "model_type must be a string, not 3"),
        (LLAMA, {"architectures": ["LlamaModel"]}, "needs .'LlamaForCausalLM'"),
        (LLAMA, {"architectures": ["MistralForCausalLM"]}, "needs .'LlamaForCausalLM'"),
        (LLAMA, {"hidden_size": ...}, "field 'hidden_size' is missing"),
        (LLAMA, {"rms_norm_eps": ...}, "field 'rms_norm_eps' is missing"),
        (LLAMA, {"hidden_size": "64"}, "hidden_size must be a positive integer, not '64'"),
        (LLAMA, {"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, not 0"),
        (LLAMA, {"num_hidden_layers": True}, "num_hidden_layers must be a positive integer"),
        (LLAMA, {"rms_norm_eps": -1e-5}, "rms_norm_eps must be a positive number"),
        (LLAMA, {"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
        (LLAMA, {"num_key_value_heads": 3}, "8 query heads are not a multiple of 3"),
        (LLAMA, {"hidden_size": 60}, "hidden_size 60 is not a multiple of 8 attention heads"),
        (LLAMA, {"head_dim": 7}, "head_dim 7 is odd"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        (LLAMA, {"num_hidden_layers": 10**9}, "layers must be at most 4096"),
        (QWEN, {"use_mrope": True}, "use_mrope = True is not supported"),
        (
            LLAMA,
            {"rope_scaling": YARN, "original_max_position_embeddings": 99},
            "original_max_position_embeddings is 128 here but 99 outside",
        ),
        (LLAMA, {"eos_token_id": "</s>"}, "eos_token_id must be a token id"),
        (LLAMA, {"layer_types": ["full_attention", "sliding_attention"]}, "some layers slide"),
        (LLAMA, {"layer_types": ["sliding_attention"]}, "contradicts sliding_window"),
        (MISTRAL, {"sliding_window": ...}, "field 'sliding_window' is missing"),
        (MISTRAL, {"sliding_window": 0}, "sliding_window must be a positive integer"),
        (MISTRAL, {"num_key_value_heads": ...}, "field 'num_key_value_heads' is missing"),
        (
            QWEN,
            {"use_sliding_window": True, "max_window_layers": 2},
            "max_window_layers 2 of 4 layers is not supported: some layers slide",
        ),
        (OPT, {"do_layer_norm_before": False}, "OPT-350m"),
        (OPT, {"word_embed_proj_dim": 512}, "word_embed_proj_dim = 512 is not supported"),
        (OPT, {"_remove_final_layer_norm": True}, "_remove_final_layer_norm = True"),
        (OPT, {"activation_function": "quick_gelu"}, "'quick_gelu' is not supported"),
        (OPT, {"num_attention_heads": 7}, "hidden_size 768 is not a multiple of 7"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "all layers scale alike"),
        (GPT2, {"add_cross_attention": True}, "there is no encoder"),
        (GPT2, {"n_ctx": 512}, "n_ctx = 512 is not supported: n_positions says 1024"),
    ],
)
def test_refuses(base: dict[str, object], changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=f"^config.json: .*{message}"):
        read(base, **changes)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "dynamic", "factor": 2.0}, "'dynamic' scaling is not supported: its angles"),
        ({"rope_type": "longrope", "factor": 2.0}, "'longrope' scaling is not supported"),
        ({"rope_type": "spiral"}, "'spiral' scaling is unknown"),
        ({"rope_type": "linear"}, "field 'factor' is missing"),
        ({"rope_type": "linear", "factor": 0.5}, "rope.factor: 0.5 is below 1"),
        ({"rope_type": "linear", "type": "yarn", "factor": 2.0}, "contradict each other"),
        ({"rope_type": "linear", "factor": 2.0, "beta_fast": 3}, "'beta_fast' has no meaning"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "turns whole heads"),
        ({"rope_type": "default", "rope_theta": 77.0}, "rope_theta 5000.0 contradicts"),
        ({"rope_type": "llama3", "factor": 8.0}, "field 'low_freq_factor' is missing"),
        ({"full_attention": {"rope_type": "default"}}, "differs between layers"),
        ("linear", "rope_scaling must be an object"),
    ],
)
def test_refuses_rope(scaling: object, message: str) -> None:
    with pytest.raises(InputError, match=f"^config.json: .*{message}"):
        read(LLAMA, rope_scaling=scaling)


def test_refuses_files_that_are_no_object(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{'single': quotes}")
    with pytest.raises(InputError, match="is not JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([LLAMA]))
    with pytest.raises(InputError, match="holds a list, not an object"):
        read_config(tmp_path)
