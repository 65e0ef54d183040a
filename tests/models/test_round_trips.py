"""The whole table of formats, families and quantisations: written elsewhere, imported, executed.

Each cell is a file that an independent library (or, for GPTQ, AWQ and compressed-tensors, the
tests' own packer after the formats' documents) wrote from stories260k or a random small model.
Imported, it has the same weights, and the compiled program gives the torch reference's bits. A few
cells are fast; `-m slow` runs the others. ONNX and torch.export have their tables in test_onnx.py,
test_onnx_quantised.py and test_torch_export.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from as_is import quantised_as_is, same_bits
from gguf_files import write_gguf
from hf_models import save_hf
from packed_checkpoint import quantise_folder
from random_checkpoint import random_checkpoint

from flightllm.compiler.fold import pair_order
from flightllm.compiler.quantise import Quantised
from flightllm.models.checkpoint import Checkpoint, open_checkpoint
from flightllm.models.config import tensor_shapes
from flightllm.models.hf import stored_tensors

FAMILIES = ("stories", "llama", "mistral", "qwen2", "opt", "gpt2")
CENTRED = ("o", "down")
"""Matrices that OPT's and GPT-2's LayerNorm changes: their codes cannot stay."""


def cells(kinds: Any, families: Any, fast: set[tuple[str, str]]) -> list[Any]:
    """One parameter a cell, slow unless it is among `fast`."""
    return [
        pytest.param(family, kind, id=f"{family}-{kind}",
                     marks=[] if (family, kind) in fast else [pytest.mark.slow])
        for family in families for kind in kinds
    ]  # fmt: skip


def kept_exactly(checkpoint: Checkpoint, made: Quantised) -> None:
    """The program's matrices stand for the checkpoint's weights, to the bit."""
    config = checkpoint.config
    orders = {}
    if config.rope is not None:
        orders = {"q": pair_order(config.heads, config.head_dim).numpy(),
                  "k": pair_order(config.kv_heads, config.head_dim).numpy()}  # fmt: skip
    for index, layer in enumerate(made.model.layers):
        for part in ("q", "k", "v", "o", "gate", "up", "down"):
            name = f"layers.{index}.{part}.weight"
            if (part == "gate" and not config.gated) or (
                config.norm == "layer" and part in CENTRED
            ):
                continue
            weights = checkpoint.tensor(name).numpy()
            weights = weights[orders[part]] if part in orders else weights
            found = getattr(layer, part).weight.dequantised()
            assert np.array_equal(found, weights), (index, part)


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """`folder(family)`: a transformers folder of its own."""

    def get(family: str) -> Path:
        if family == "stories":
            stories: Path = request.getfixturevalue("stories")
            shutil.copytree(stories, tmp_path / family)
        else:
            save_hf(family, tmp_path / family)
        return tmp_path / family

    return get


# ------------------------------------------------------------------------------------ safetensors


TYPES = ("float32", "float16", "bfloat16")


@pytest.mark.parametrize(
    ("family", "kind"), cells(TYPES, FAMILIES, {("stories", "float32"), ("opt", "float16")})
)
def test_safetensors(family: str, kind: str, folder: Any, tmp_path: Path) -> None:
    """Folders that transformers saves, in every type."""
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, kind)
    model = AutoModelForCausalLM.from_pretrained(folder(family), dtype=dtype)
    model.save_pretrained(tmp_path / "typed")
    checkpoint, made = quantised_as_is(tmp_path / "typed", weights="w8g32")
    state = model.state_dict()
    for name, stored in stored_tensors(checkpoint.config).items():
        found = checkpoint.tensor(name)
        assert found.dtype == dtype and torch.equal(found, stored.extract(state[stored.name])), name
    same_bits(made)


# ------------------------------------------------------------------------------------ packed


PACKED: dict[str, dict[str, Any]] = {
    "gptq-4": {"method": "gptq"},
    "gptq-4-symmetric": {"method": "gptq", "symmetric": True},
    "gptq-3": {"method": "gptq", "bits": 3},
    "gptq-2": {"method": "gptq", "bits": 2},
    "gptq-8": {"method": "gptq", "bits": 8, "symmetric": True},
    "gptq-act-order": {"method": "gptq", "act_order": True},
    "awq": {"method": "awq"},
    "awq-gemv": {"method": "awq", "version": "gemv"},
    "packed-4": {"method": "compressed-tensors"},
    "packed-8": {"method": "compressed-tensors", "bits": 8, "symmetric": True},
    "packed-act-order": {"method": "compressed-tensors", "act_order": True},
    "int-quantized": {"method": "compressed-tensors", "bits": 8, "symmetric": True, "group": -1,
                      "version": "int-quantized"},
}  # fmt: skip
FAST = {("stories", "gptq-4"), ("stories", "packed-4"), ("qwen2", "gptq-act-order"),
        ("opt", "packed-8"), ("gpt2", "awq"), ("mistral", "gptq-3")}  # fmt: skip


@pytest.mark.parametrize(("family", "kind"), cells(PACKED, FAMILIES, FAST))
def test_packed_folders(family: str, kind: str, folder: Any) -> None:
    options, path = dict(PACKED[kind]), folder(family)
    if family == "stories" and kind == "awq":  # 172 rows are not packed by eights
        layers = range(open_checkpoint(path).config.layers)
        wide = [f"model.layers.{i}.mlp.{part}_proj" for i in layers for part in ("gate", "up")]
        options["skip"] = ("lm_head", *wide)
    written = quantise_folder(path, **options)
    checkpoint, made = quantised_as_is(path)
    seen = 0
    for name, stored in stored_tensors(checkpoint.config).items():
        weights = written.weights.get(stored.name.removesuffix(".weight"))
        if weights is not None and stored.name.endswith(".weight"):
            rows = slice(stored.start, stored.stop)
            assert np.array_equal(checkpoint.tensor(name).numpy(), weights[rows]), name
            seen += 1
    assert seen >= 4 * checkpoint.config.layers
    notes = " ".join(made.report.notes)
    assert ("columns of a group lie apart" in notes) == ("act-order" in kind)
    if "act-order" not in kind and (family, kind) != ("stories", "awq"):
        kept_exactly(checkpoint, made)
    same_bits(made)


# ------------------------------------------------------------------------------------ GGUF


GGUF = ("F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL")
EXACT = {"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL"}
SIZES = {"dim": 256, "ffn_dim": 512, "heads": 4, "head_dim": 64, "layers": 1}
"""Multiples of 256, as K types need."""
GGUF_FAST = {("stories", "Q8_0"), ("qwen", "Q4_K"), ("gpt2", "Q4_0"), ("mistral", "Q6_K")}


@pytest.mark.parametrize(
    ("family", "kind"), cells(GGUF, ("stories", "llama", "mistral", "qwen", "gpt2"), GGUF_FAST)
)
def test_gguf(family: str, kind: str, request: Any, tmp_path: Path) -> None:
    """Files of the gguf package; stories260k's rows of 64 stay F16 in K types, as in llama.cpp."""
    if family == "stories":
        source = open_checkpoint(request.getfixturevalue("stories"))
    else:
        source = random_checkpoint(family, **SIZES)
    window = 9 if family == "mistral" else None
    written = write_gguf(tmp_path / "m.gguf", source, kind, window=window)
    checkpoint, made = quantised_as_is(tmp_path / "m.gguf", **_scheme(family, kind))
    for name in tensor_shapes(checkpoint.config):
        assert np.array_equal(checkpoint.tensor(name).float().numpy(), written[name]), name
    if kind in EXACT and family != "stories":
        kept_exactly(checkpoint, made)
    same_bits(made)


def _scheme(family: str, kind: str) -> dict[str, Any]:
    """Float files need one: K types leave stories260k in F16."""
    return {"weights": "w8g32"} if kind == "F16" or (family, kind[-2:]) == ("stories", "_K") else {}


# ------------------------------------------------------------------------------------ llama2.c


@pytest.mark.parametrize("name", ["stories260K.bin", "stories260K-q8.bin"])
def test_llama2c(name: str, stories: Path) -> None:
    """llama2.c's own export of stories260k: the Hugging Face folder's weights, or codes of them."""
    checkpoint, made = quantised_as_is(stories / name, weights=None if "q8" in name else "w8g32")
    source = open_checkpoint(stories)
    for part in source.names:
        found, wanted = checkpoint.tensor(part).float(), source.tensor(part).float()
        if "q8" in name and found.dim() == 2:
            assert (found - wanted).abs().max() < 0.01 * wanted.abs().max(), part
        else:
            assert torch.equal(found, wanted), part
    notes = " ".join(made.report.notes)  # 172 columns leave llama2.c groups of 8
    assert ("groups of 8 columns" in notes) == ("q8" in name)
    same_bits(made)


def test_the_comparison_sees_other_weights(folder: Any, tmp_path: Path) -> None:
    path = folder("llama")
    quantise_folder(path, "gptq")
    _, made = quantised_as_is(path)
    save_hf("llama", tmp_path / "other", seed=1)
    quantise_folder(tmp_path / "other", "gptq")
    with pytest.raises(AssertionError):
        kept_exactly(open_checkpoint(tmp_path / "other"), made)
