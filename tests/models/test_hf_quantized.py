"""GPTQ, AWQ and compressed-tensors folders, written by a packer of the tests' own, read exactly."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from as_is import quantised_as_is, same_bits
from hf_models import save_hf
from packed_checkpoint import quantise_folder
from safetensors.torch import load_file, save_file

from flightllm.compiler.fold import pair_order
from flightllm.models.checkpoint import open_checkpoint
from flightllm.models.hf import stored_tensors
from flightllm.spec.errors import InputError

LAYOUTS: dict[str, dict[str, Any]] = {
    "gptq-4": {"method": "gptq"},
    "gptq-4-symmetric": {"method": "gptq", "symmetric": True, "group": 64},
    "gptq-v2": {"method": "gptq", "version": "gptq_v2"},
    "gptq-3": {"method": "gptq", "bits": 3},
    "gptq-2": {"method": "gptq", "bits": 2},
    "gptq-8": {"method": "gptq", "bits": 8},
    "gptq-8-symmetric": {"method": "gptq", "bits": 8, "symmetric": True},
    "gptq-rows": {"method": "gptq", "group": -1},
    "gptq-act-order": {"method": "gptq", "act_order": True},
    "gptq-head": {"method": "gptq", "skip": ()},
    "awq": {"method": "awq"},
    "awq-gemv": {"method": "awq", "version": "gemv"},
    "packed": {"method": "compressed-tensors"},
    "packed-symmetric-bf16": {
        "method": "compressed-tensors", "symmetric": True, "scale_type": torch.bfloat16,
    },
    "packed-8": {"method": "compressed-tensors", "bits": 8, "symmetric": True},
    "packed-act-order": {"method": "compressed-tensors", "act_order": True},
    "int8-channels": {
        "method": "compressed-tensors", "bits": 8, "symmetric": True, "group": -1,
        "version": "int-quantized",
    },
}  # fmt: skip
EXACT = [name for name in LAYOUTS if "act-order" not in name and name != "gptq-8"]
"""Layouts whose codes, scales and zero points the decode unit holds as they are."""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_those_written(layout: str, tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    written = quantise_folder(tmp_path, **LAYOUTS[layout])
    checkpoint = open_checkpoint(tmp_path)
    places = stored_tensors(checkpoint.config)
    modules = {stored.name.removesuffix(".weight"): name for name, stored in places.items()}
    assert written.weights
    for module, weights in written.weights.items():
        name = modules[module]
        assert np.array_equal(checkpoint.tensor(name).numpy(), weights), name
        codes = checkpoint.codes(name)
        assert codes is not None and np.array_equal(codes.weights(), weights), name


@pytest.mark.parametrize("family", ["qwen2", "opt", "gpt2"])
def test_other_families(family: str, tmp_path: Path) -> None:
    """Biases, tied heads, and GPT-2's fused and transposed matrices."""
    save_hf(family, tmp_path)
    written = quantise_folder(tmp_path, "gptq")
    checkpoint = open_checkpoint(tmp_path)
    seen = 0
    for name, stored in stored_tensors(checkpoint.config).items():
        weights = written.weights.get(stored.name.removesuffix(".weight"))
        if weights is not None and stored.name.endswith(".weight"):
            rows = slice(stored.start, stored.stop)
            assert np.array_equal(checkpoint.tensor(name).numpy(), weights[rows]), name
            seen += 1
    assert seen == 2 * (7 if family == "qwen2" else 6)


@pytest.mark.parametrize("layout", EXACT)
def test_as_is_is_exact(layout: str, tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    quantise_folder(tmp_path, **LAYOUTS[layout])
    checkpoint, made = quantised_as_is(tmp_path)
    order = {
        "q": pair_order(4, 16).numpy(), "k": pair_order(2, 16).numpy()
    }  # fmt: skip
    for index, layer in enumerate(made.model.layers):
        for part in ("q", "k", "v", "o", "gate", "up", "down"):
            weights = checkpoint.tensor(f"layers.{index}.{part}.weight").numpy()
            weights = weights[order[part]] if part in order else weights
            tensor = getattr(layer, part).weight
            assert np.array_equal(tensor.dequantised(), weights), (index, part)
            assert tensor.bits == LAYOUTS[layout].get("bits", 4)
    assert not any("rounded" in note for note in made.report.notes)
    same_bits(made)


def test_symmetric_codes_need_no_zero_points(tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    quantise_folder(tmp_path, "gptq", symmetric=True)
    _, made = quantised_as_is(tmp_path)
    assert made.model.layers[0].q.weight.zeros is None
    assert made.model.layers[0].q.weight.levels.min() >= -8


@pytest.mark.parametrize("layout", ["gptq-act-order", "packed-act-order", "gptq-8"])
def test_what_the_unit_cannot_hold_is_said(layout: str, tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    quantise_folder(tmp_path, **LAYOUTS[layout])
    checkpoint, made = quantised_as_is(tmp_path)
    reason = "beyond the array's" if layout == "gptq-8" else "columns of a group lie apart"
    assert any("became w8g32" in note and reason in note for note in made.report.notes)
    down = made.model.layers[0].down.weight
    exact = checkpoint.tensor("layers.0.down.weight").numpy()
    assert np.linalg.norm(down.dequantised() - exact) < 0.02 * np.linalg.norm(exact)
    same_bits(made)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "opt", "gpt2"])
def test_programs_of_other_families(family: str, tmp_path: Path) -> None:
    save_hf(family, tmp_path)
    quantise_folder(tmp_path, "awq")
    _, made = quantised_as_is(tmp_path)
    assert made.model.layers[0].q.weight.bits == 4
    centred = [note for note in made.report.notes if "rows are centred" in note]
    assert bool(centred) == (family in ("opt", "gpt2"))
    same_bits(made)


def test_k_smoothing_changes_only_exponents(tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    quantise_folder(tmp_path, "awq")
    _, plain = quantised_as_is(tmp_path)
    _, smooth = quantised_as_is(tmp_path, smooth_k=True)
    for part in ("q", "k"):
        before, after = (getattr(m.model.layers[0], part).weight for m in (plain, smooth))
        assert np.array_equal(before.levels, after.levels)
        ratio = after.scales.astype(np.float64) / before.scales.astype(np.float64)
        assert set(np.unique(np.log2(ratio) % 1)) == {0.0}


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    data = json.loads(path.read_text())
    data["quantization_config"] |= changes
    path.write_text(json.dumps(data))


def _refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_checkpoint(folder)


def test_refusals(tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    quantise_folder(tmp_path, "gptq")
    _config(tmp_path, checkpoint_format="marlin")
    _refused(tmp_path, "checkpoint_format 'marlin' is not supported")
    _config(tmp_path, checkpoint_format="gptq", bits=5)
    _refused(tmp_path, "5 bits in layout gptq")
    _config(tmp_path, bits=8)
    _refused(tmp_path, r"qweight' has shape \[8, 64\], expected \[16, 64\]")
    _config(tmp_path, bits=4, quant_method="bitsandbytes")
    _refused(tmp_path, "quant_method 'bitsandbytes' is not supported")
    _config(tmp_path, quant_method="gptq", group_size=0)
    _refused(tmp_path, "group_size 0 is no number of columns")


def test_a_missing_part_and_a_wild_group(tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    quantise_folder(tmp_path, "gptq")
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.g_idx"
    wild = {**tensors, name: tensors[name] + 7}
    save_file(wild, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="g_idx names a group that is not among 2"):
        open_checkpoint(tmp_path).tensor("layers.1.q.weight")
    scales = "model.layers.1.self_attn.q_proj.scales"
    save_file({k: v for k, v in tensors.items() if k != scales}, tmp_path / "model.safetensors")
    _refused(tmp_path, r"q_proj.scales' is missing")


def test_the_oracle_sees_a_wrong_zero_point(tmp_path: Path) -> None:
    """A v1 file read as v2 differs by one scale everywhere: the comparison above can fail."""
    save_hf("llama", tmp_path)
    written = quantise_folder(tmp_path, "gptq")
    _config(tmp_path, checkpoint_format="gptq_v2")
    read = open_checkpoint(tmp_path).tensor("layers.0.q.weight").numpy()
    assert not np.array_equal(read, written.weights["model.layers.0.self_attn.q_proj"])
