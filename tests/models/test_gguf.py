"""GGUF files written by the gguf package, imported: weights, configuration, tokeniser, program."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from as_is import quantised_as_is, same_bits
from gguf_files import QUANTISED, quantised_bytes, write_gguf
from random_checkpoint import random_checkpoint

from flightllm.compiler.fold import pair_order
from flightllm.models.checkpoint import Checkpoint, open_checkpoint
from flightllm.models.config import RopeConfig, tensor_shapes
from flightllm.models.gguf_codes import KEPT
from flightllm.models.reference import FloatModel
from flightllm.models.rope import inverse_frequencies
from flightllm.models.tokenizer import load_tokenizer
from flightllm.spec.errors import InputError

SIZES = {"dim": 256, "ffn_dim": 512, "heads": 4, "head_dim": 64, "layers": 1}
EXACT = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL")
FACTS = (
    "dim", "layers", "heads", "kv_heads", "head_dim", "ffn_dim", "vocab", "tied", "max_length",
    "rope", "qkv_bias", "norm", "activation", "bos", "eos",
)  # fmt: skip
ROUNDED = ("Q4_K", "Q5_K", "IQ4_XS")


def checkpoint(family: str, **changes: Any) -> Checkpoint:
    """A random model whose widths are multiples of 256, as K types need."""
    return random_checkpoint(family, **{**SIZES, **changes})


@pytest.mark.parametrize("kind", KEPT)
def test_blocks_are_those_of_the_gguf_package(kind: str) -> None:
    """Every bit pattern of a block means what the package says, to the bit."""
    number = gguf.GGMLQuantizationType[kind]
    size = gguf.GGML_QUANT_SIZES[number][1]
    raw = np.random.default_rng(3).integers(0, 256, (7, 4, size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        wanted = gguf.quants.dequantize(raw.reshape(7, -1), number)
        found = KEPT[kind](raw).weights()
    assert np.array_equal(found.view(np.uint32), wanted.view(np.uint32)) or np.array_equal(
        found, wanted, equal_nan=True
    )


@pytest.mark.parametrize("family", ["llama", "qwen", "gpt2"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_float_files(family: str, kind: str, tmp_path: Path) -> None:
    source = checkpoint(family)
    written = write_gguf(tmp_path / "m.gguf", source, kind)
    read = open_checkpoint(tmp_path / "m.gguf")
    for field in FACTS:
        assert getattr(read.config, field) == getattr(source.config, field), field
    for name in tensor_shapes(source.config):
        assert np.array_equal(read.tensor(name).float().numpy(), written[name]), name
    assert not read.code_readers


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_files(kind: str, tmp_path: Path) -> None:
    """Weights equal what the package dequantises; the program equals the reference."""
    written = write_gguf(tmp_path / "m.gguf", checkpoint("llama"), kind)
    read, made = quantised_as_is(tmp_path / "m.gguf")
    for name in tensor_shapes(read.config):
        assert np.array_equal(read.tensor(name).float().numpy(), written[name]), name
    notes = " ".join(made.report.notes)
    assert ("rounded to fp16" in notes) == (kind in ROUNDED)
    assert ("groups of 16 columns" in notes) == (kind == "Q6_K")
    same_bits(made)


@pytest.mark.parametrize("kind", EXACT)
def test_as_is_is_exact(kind: str, tmp_path: Path) -> None:
    written = write_gguf(tmp_path / "m.gguf", checkpoint("llama"), kind)
    _, made = quantised_as_is(tmp_path / "m.gguf")
    layer = made.model.layers[0]
    orders = {"q": pair_order(4, 64).numpy(), "k": pair_order(2, 64).numpy()}
    for part in ("q", "k", "v", "o", "gate", "up", "down"):
        weights = written[f"layers.0.{part}.weight"]
        found = getattr(layer, part).weight.dequantised()
        assert np.array_equal(found, weights[orders[part]] if part in orders else weights), part
    assert np.array_equal(made.model.head.weight.dequantised(), written["head.weight"])


@pytest.mark.parametrize("kind", ROUNDED)
def test_what_is_rounded_stays_close(kind: str, tmp_path: Path) -> None:
    written = write_gguf(tmp_path / "m.gguf", checkpoint("llama"), kind)
    _, made = quantised_as_is(tmp_path / "m.gguf")
    found = made.model.layers[0].down.weight
    wanted = written["layers.0.down.weight"]
    assert found.bits == (5 if kind == "Q5_K" else 4)
    assert np.linalg.norm(found.dequantised() - wanted) < 2**-11 * np.linalg.norm(wanted)


def test_mixed_files(tmp_path: Path) -> None:
    """llama.cpp's Q4_K_M: most matrices Q4_K, some Q6_K, norms F32."""
    kinds = {"attn_v": "Q6_K", "ffn_down": "Q6_K", "d.output": "Q6_K", "token_embd": "F16"}
    write_gguf(tmp_path / "m.gguf", checkpoint("qwen", layers=2, tied=False), "Q4_K", kinds)
    _, made = quantised_as_is(tmp_path / "m.gguf")
    layer = made.model.layers[1]
    assert (layer.q.weight.bits, layer.v.weight.bits) == (4, 8)
    notes = " ".join(made.report.notes)
    assert "layers.0.v and 3 more became w8g32: groups of 16 columns" in notes
    same_bits(made)


def test_mistral_window_and_rope_factors(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, 32, dtype=np.float32)
    source = checkpoint("mistral")
    write_gguf(tmp_path / "m.gguf", source, "F32", window=9, rope_factors=factors)
    read = open_checkpoint(tmp_path / "m.gguf").config
    assert read.window == 9 and read.rope is not None and read.rope.kind == "explicit"
    wanted = inverse_frequencies(RopeConfig(), 64) / factors
    assert np.array_equal(inverse_frequencies(read.rope, 64), wanted)


def test_the_oracle_sees_unturned_rows(tmp_path: Path) -> None:
    """Rows of wq left in ggml's order give another model: the comparison above can fail."""
    source = checkpoint("llama")
    write_gguf(tmp_path / "m.gguf", source, "F32", architecture="qwen2")
    wrong = open_checkpoint(tmp_path / "m.gguf").tensor("layers.0.q.weight")
    assert not np.array_equal(wrong.numpy(), source.tensor("layers.0.q.weight").numpy())


def test_stories(stories: Path, tmp_path: Path) -> None:
    """stories260k through a GGUF file: configuration, tokeniser, logits."""
    source = open_checkpoint(stories)
    write_gguf(tmp_path / "m.gguf", source, "F32", tokenizer=stories)
    read = open_checkpoint(tmp_path / "m.gguf")
    text = "Once upon a time, a dog named Max saw 3 birds!\n\nHe was h\u00e4ppy."
    home = read.tokenizer_home()
    assert home is not None
    ours, theirs = load_tokenizer(home), load_tokenizer(stories)
    ids = theirs.encode(text)
    assert ours.encode(text) == ids and ours.decode(ids) == theirs.decode(ids)
    assert (ours.bos, ours.eos) == (theirs.bos, theirs.eos)
    import torch

    batch = torch.tensor([ids])
    found, wanted = (FloatModel.load(c).forward(batch) for c in (read, source))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "IQ4_NL"])
def test_stories_as_is(stories: Path, tmp_path: Path, kind: str) -> None:
    source = open_checkpoint(stories)
    written = write_gguf(tmp_path / "m.gguf", source, kind)
    _, made = quantised_as_is(tmp_path / "m.gguf")
    found = made.model.layers[3].v.weight.dequantised()
    assert np.array_equal(found, written["layers.3.v.weight"])
    same_bits(made)


# ------------------------------------------------------------------------------------ damage


@pytest.fixture
def raw(tmp_path: Path) -> bytearray:
    """A small good file's bytes, to be spoilt."""
    write_gguf(tmp_path / "good.gguf", random_checkpoint("llama"), "F32")
    return bytearray((tmp_path / "good.gguf").read_bytes())


def refused(folder: Path, data: bytes, message: str) -> None:
    path = folder / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        open_checkpoint(path)


def test_damage(raw: bytearray, tmp_path: Path) -> None:
    refused(tmp_path, raw[:3000], "is truncated or damaged|lies at bytes")
    refused(tmp_path, raw[:-64], "lies at bytes .* but the file has")
    refused(tmp_path, raw[:4] + struct.pack("<I", 1) + raw[8:], "has GGUF version 1")
    refused(tmp_path, raw[:8] + struct.pack("<Q", 10**9) + raw[16:], "1000000000 tensors cannot")
    refused(tmp_path, raw[:16] + struct.pack("<Q", 2**63) + raw[24:], "fields cannot lie")


def test_wrong_contents(tmp_path: Path) -> None:
    source = random_checkpoint("llama")
    path = tmp_path / "m.gguf"
    write_gguf(path, source, "F32", architecture="falcon")
    with pytest.raises(InputError, match="general.architecture 'falcon' is not supported"):
        open_checkpoint(path)
    write_gguf(path, source, "F32", fields={"llama.expert_count": 8})
    with pytest.raises(InputError, match="mixtures of experts"):
        open_checkpoint(path)
    write_gguf(path, source, "F32", drop="blk.1.ffn_up.weight")
    with pytest.raises(InputError, match=r"'blk.1.ffn_up.weight' is missing, expected \[88, 48\]"):
        open_checkpoint(path)
    write_gguf(path, source, "F32", fields={"llama.rope.dimension_count": 6})
    with pytest.raises(InputError, match="rope.dimension_count 6 is not the head's 12"):
        open_checkpoint(path)


def test_quantised_bytes_fill_every_level() -> None:
    """The test's own blocks use the whole range of codes, so that no bit goes unread."""
    for kind in ("Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"):
        weights, data = quantised_bytes(np.random.default_rng(0), kind, (4, 512))
        assert np.isfinite(weights).all() and data.nbytes
        assert len(np.unique(np.round(weights[0, :32], 6))) > 6
