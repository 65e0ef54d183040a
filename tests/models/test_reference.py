"""The float reference against transformers' own models, and against stories260k's golden values.

transformers writes the checkpoint and our reader reads it, so the two are tested together.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from flightllm.models.checkpoint import Checkpoint, open_checkpoint
from flightllm.models.config import tensor_shapes
from flightllm.models.reference import FloatModel, KVCache, sample
from flightllm.models.tokenizer import load_tokenizer
from flightllm.spec.errors import InputError

TOLERANCE = 1e-5
LENGTH = 40
SMALL = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 500.0,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 10000.0,
}
LEARNED = {"vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
OPT = {
    **LEARNED,
    "hidden_size": 48,
    "ffn_dim": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 48,
}
GPT2 = {**LEARNED, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}

MODELS = {
    "llama-gqa": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "llama-tied": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "llama-biases": lambda: LlamaForCausalLM(
        LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True)
    ),
    "llama-wide-heads": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, head_dim=20)),
    "llama-linear": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=LINEAR)),
    "llama-llama3": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=LLAMA3)),
    "llama-yarn": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=YARN)),
    "llama-yarn-mscale": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SMALL,
            rope_parameters={**YARN, "mscale": 0.7, "mscale_all_dim": 1.3, "truncate": False},
        )
    ),
    "mistral-window": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=7)),
    "mistral-full": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "qwen2-tied": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, tie_word_embeddings=True)),
    "qwen2-window": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=9, max_window_layers=0)
    ),
    "qwen2-yarn": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, rope_parameters=YARN)),
    "opt-relu": lambda: OPTForCausalLM(OPTConfig(**OPT)),
    "opt-gelu-untied": lambda: OPTForCausalLM(
        OPTConfig(**OPT, activation_function="gelu", tie_word_embeddings=False)
    ),
    "opt-plain": lambda: OPTForCausalLM(OPTConfig(**OPT, enable_bias=False)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "gpt2-wide": lambda: GPT2LMHeadModel(
        GPT2Config(**GPT2, n_inner=72, activation_function="relu", tie_word_embeddings=False)
    ),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def randomised(name: str) -> PreTrainedModel:
    """A model of transformers with every weight random, biases and norms too."""
    torch.manual_seed(sum(name.encode()))
    model = MODELS[name]().eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for path, weight in model.named_parameters():
            offset = 1.0 if "norm" in path or ".ln_" in path else 0.0
            if path.endswith("bias"):
                offset = 0.0
            weight.copy_(offset + 0.15 * torch.randn_like(weight))
    return model


def prompt() -> torch.Tensor:
    """Two sequences of token ids."""
    return torch.randint(0, 97, (2, LENGTH), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", MODELS)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    oracle = randomised(name)
    oracle.save_pretrained(tmp_path)
    model = FloatModel.load(open_checkpoint(tmp_path))
    ids = prompt()
    with torch.no_grad():
        expected = oracle(ids).logits
        logits = model.forward(ids)
    assert logits.dtype == torch.float32
    assert logits.shape == expected.shape
    assert float(expected.std()) > 0.1
    assert float((logits - expected).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_cache_changes_nothing(name: str, tmp_path: Path) -> None:
    """A prompt in pieces of 11, 3 and then single tokens gives transformers' logits too."""
    oracle = randomised(name)
    oracle.save_pretrained(tmp_path)
    model = FloatModel.load(open_checkpoint(tmp_path))
    ids, cache, parts, start = prompt(), KVCache(model.config, batch=2), [], 0
    with torch.no_grad():
        expected = oracle(ids).logits
        for length in (11, 3, *[1] * (LENGTH - 14)):
            parts.append(model.forward(ids[:, start : start + length], cache, start))
            start += length
    assert float((torch.cat(parts, dim=1) - expected).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2"])
def test_a_planted_error_is_seen(name: str, tmp_path: Path) -> None:
    """One weight off by a hundredth moves the logits by far more than the tolerance."""
    oracle = randomised(name)
    oracle.save_pretrained(tmp_path)
    model = FloatModel.load(open_checkpoint(tmp_path))
    weights = {key: value.clone() for key, value in model.tensors.items()}
    weights["layers.1.k.weight"][3, 5] += 0.01
    with torch.no_grad():
        gap = FloatModel(model.config, weights).forward(prompt()) - oracle(prompt()).logits
    assert float(gap.abs().max()) > 2 * TOLERANCE


def test_window_hides_old_tokens(tmp_path: Path) -> None:
    """Three layers of a window of 7 reach 18 tokens back and not a token further."""
    randomised("mistral-window").save_pretrained(tmp_path)
    model = FloatModel.load(open_checkpoint(tmp_path))
    assert model.config.window == 7
    ids = prompt()[:1]
    other = ids.clone()
    other[0, 0] = (ids[0, 0] + 1) % 97
    with torch.no_grad():
        same = (model.forward(ids) == model.forward(other)).all(-1)[0]
    assert not same[18]
    assert same[19:].all()


@pytest.mark.parametrize("name", ["llama-biases", "opt-relu"])
def test_gradients_reach_every_tensor(name: str, tmp_path: Path) -> None:
    randomised(name).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    tensors = {key: checkpoint.tensor(key).clone().requires_grad_() for key in checkpoint.names}
    FloatModel(checkpoint.config, tensors).forward(prompt()).square().mean().backward()
    for key, tensor in tensors.items():
        assert tensor.grad is not None and tensor.grad.isfinite().all(), key
        # A key's bias shifts all scores of a query alike, which softmax does not see.
        assert key.endswith("k.bias") or tensor.grad.any(), key


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2"])
def test_observe_sees_the_input_of_every_linear(name: str, tmp_path: Path) -> None:
    randomised(name).save_pretrained(tmp_path)
    model = FloatModel.load(open_checkpoint(tmp_path))
    seen: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        logits = model.forward(prompt(), observe=seen.__setitem__)
    config = model.config
    for key, shape in tensor_shapes(config).items():
        if len(shape) == 2 and key.startswith("layers."):
            assert seen[key.removesuffix(".weight")].shape == (2, LENGTH, shape[1])
    assert seen["layers.2.q_heads"].shape == (2, LENGTH, config.heads, config.head_dim)
    assert seen["layers.2.k_heads"].shape == (2, LENGTH, config.kv_heads, config.head_dim)
    head = model.tensors["embed" if config.tied else "head.weight"]
    assert torch.equal(seen["head"] @ head.T, logits)


def test_refuses_more_than_the_context(tmp_path: Path) -> None:
    randomised("llama-gqa").save_pretrained(tmp_path)
    model = FloatModel.load(open_checkpoint(tmp_path))
    with pytest.raises(InputError, match="65 tokens do not fit the context of 64"):
        model.forward(torch.zeros((1, 65), dtype=torch.int64))
    with pytest.raises(InputError, match="prompt is empty"):
        model.generate([], 3)


def test_generate_stops_and_fills_the_context(tmp_path: Path) -> None:
    randomised("llama-gqa").save_pretrained(tmp_path)
    model = FloatModel.load(open_checkpoint(tmp_path))
    free = model.generate([5, 6, 7], 100)
    # The last token of a full context still has a successor, which is then not read.
    assert len(free) == 64 - 3 + 1
    first = free.index(free[4])
    assert model.generate([5, 6, 7], 100, stop=(free[4],)) == free[: first + 1]
    assert model.generate([5, 6, 7], 0) == []


def test_sampling_is_seeded_and_keeps_to_the_nucleus() -> None:
    logits = torch.log(torch.tensor([0.05, 0.5, 0.15, 0.3]))
    assert sample(logits, 0.0, 1.0, None) == 1

    def draws(temperature: float, top_p: float) -> list[int]:
        generator = torch.Generator().manual_seed(3)
        return [sample(logits, temperature, top_p, generator) for _ in range(2000)]

    assert draws(1.0, 1.0) == draws(1.0, 1.0)
    shares = np.bincount(draws(1.0, 1.0), minlength=4) / 2000
    assert np.abs(shares - [0.05, 0.5, 0.15, 0.3]).max() < 0.04
    assert set(draws(1.0, 0.6)) == {1, 3}
    assert set(draws(1.0, 0.4)) == {1}


@pytest.mark.parametrize("file", ["", "stories260K.bin"])
def test_stories_golden(stories: Path, file: str) -> None:
    golden = np.load(stories / "golden.npz")
    checkpoint: Checkpoint = open_checkpoint(stories / file)
    model = FloatModel.load(checkpoint)
    with torch.no_grad():
        logits = model.forward(torch.from_numpy(golden["prompt_ids"])[None])[0]
    assert float(np.abs(logits.numpy() - golden["prompt_logits"]).max()) <= 1e-4
    ids = golden["prompt_ids"].tolist()
    ids += model.generate(ids, 256 - len(ids))
    assert ids == golden["greedy_ids"].tolist()


def test_stories_perplexity(stories: Path, test_data: Path) -> None:
    """Over separate documents, BOS first, cut at the context: golden.npz's own figure."""
    golden = np.load(stories / "golden.npz")
    model, tokenizer = FloatModel.load(open_checkpoint(stories)), load_tokenizer(stories)
    text = (test_data / "text" / "tinystories_sample.txt").read_text()
    loss, tokens = 0.0, 0
    for document in filter(None, (part.strip() for part in text.split("<|endoftext|>"))):
        ids = torch.tensor([tokenizer.encode(document.replace("\n", " "))[:512]])
        with torch.no_grad():
            logits = model.forward(ids)[0, :-1].double()
        loss += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        tokens += ids.shape[1] - 1
    assert tokens == int(golden["ppl_tokens"])
    assert abs(np.exp(loss / tokens) - float(golden["ppl"])) < 1e-5
