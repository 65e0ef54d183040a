"""What is written is read back, by our reader and by transformers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flightllm.models.checkpoint import open_checkpoint
from flightllm.models.config import ModelConfig, RopeConfig, tensor_shapes
from flightllm.models.hf_writer import save_llama
from flightllm.models.reference import FloatModel
from flightllm.spec.errors import InputError

CONFIG = ModelConfig(
    family="llama", vocab=24, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48,
    max_length=64, rope=RopeConfig(theta=5000.0), tied=True, bos=0, eos=(0, 3), name="small",
)  # fmt: skip


def random_tensors(config: ModelConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {n: torch.randn(s, generator=generator) * 0.2 for n, s in tensor_shapes(config).items()}


@pytest.mark.parametrize("tied", [True, False])
def test_reader_gives_back_what_was_written(tmp_path: Path, tied: bool) -> None:
    config = replace(CONFIG, tied=tied)
    tensors = random_tensors(config)
    save_llama(tmp_path, config, tensors)
    checkpoint = open_checkpoint(str(tmp_path))
    assert replace(checkpoint.config, name="small") == config
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.tensor(name), tensor.half())


def test_transformers_computes_the_same(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tensors = random_tensors(CONFIG)
    save_llama(tmp_path, CONFIG, tensors, torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = theirs(ids).logits
    found = FloatModel(CONFIG, tensors).forward(ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    tensors["layers.1.k.weight"] = tensors["layers.1.q.weight"][:16]  # a planted mix-up
    wrong = FloatModel(CONFIG, tensors).forward(ids)
    assert not torch.allclose(wrong, expected, rtol=1e-4, atol=1e-5)


def test_what_llama_cannot_express_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only plain LLaMA models"):
        save_llama(tmp_path, replace(CONFIG, qkv_bias=True), {})
    assert not list(tmp_path.iterdir())
