"""What `check` says of operators and codes: by family, by format, with reasons and remedies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf_files import write_gguf
from hf_models import save_hf
from packed_checkpoint import quantise_folder
from random_checkpoint import random_checkpoint

from flightllm.checking import check
from flightllm.compiler.as_is import obstacle, obstacle_of_kind
from flightllm.models.checkpoint import open_checkpoint


def told(model: Path, **options: Any) -> dict[str, list[str]]:
    """Details by what they are about; everything must be all right."""
    out: dict[str, list[str]] = {}
    for finding in check(model, **options).findings:
        assert finding.ok
        out.setdefault(finding.what, []).append(finding.detail)
    return out


FAMILIES = {
    "llama": ("RMSNorm", "15 nodes", "2 nodes: 16 numbers a head", "SiLU",
              "2 nodes, times a second matrix"),
    "qwen2": ("RMSNorm", "15 nodes: biases of query, key, value", "2 nodes: 16 numbers a head",
              "SiLU", "2 nodes, times a second matrix"),
    "opt": ("LayerNorm", "13 nodes: biases of query, key, value, output, MLP", None, "ReLU",
            "2 nodes"),
    "gpt2": ("LayerNorm", "13 nodes: biases of query, key, value, output, MLP", None, "GELU",
             "2 nodes, in its tanh form"),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_operators_of_a_family(family: str, tmp_path: Path) -> None:
    save_hf(family, tmp_path)
    found = told(tmp_path)
    norm, linear, rope, activation, form = FAMILIES[family]
    assert found[f"operator {norm}"][0].startswith("5 nodes: epsilon 1e-0")
    assert found["operator Linear"] == [linear]
    assert found.get("operator RoPE") == (None if rope is None else [rope])
    assert found[f"operator {activation}"] == [form]
    assert ("operator Positions" in found) == (rope is None)


def test_a_window(tmp_path: Path) -> None:
    save_hf("mistral", tmp_path)
    assert told(tmp_path)["operator Attention"] == [
        "2 nodes: 4 query heads on 2 of key and value, a window of 9 tokens"
    ]


PACKED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "gptq": ({"method": "gptq"}, ["14 of 14 quantised matrices stay as they are"]),
    "act-order": ({"method": "gptq", "act_order": True}, [
        "0 of 14 quantised matrices stay as they are",
        "layers.0.q, layers.0.k, layers.0.v and 11 more become w8g32: the columns of a group lie"
        " apart (act-order with groups); quantise without act-order (desc_act) to keep the width",
    ]),
    "8-bit": ({"method": "gptq", "bits": 8}, [
        "0 of 14 quantised matrices stay as they are",
        "layers.0.q, layers.0.k, layers.0.v and 11 more become w8g32: some levels are beyond the"
        " array's -127 to 127; quantise 8 bits symmetrically to keep the codes",
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", PACKED)
def test_codes_of_packed_folders(name: str, tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    options, wanted = PACKED[name]
    quantise_folder(tmp_path, **options)
    assert told(tmp_path)["codes"] == wanted
    assert "codes" not in told(tmp_path, weights="w4g32")


def test_codes_of_norms_that_change(tmp_path: Path) -> None:
    save_hf("opt", tmp_path)
    quantise_folder(tmp_path, "awq")
    assert told(tmp_path)["codes"][1].startswith(
        "layers.0.o, layers.0.down, layers.1.o and 1 more become w8g32: its rows are centred"
    )


def test_codes_of_a_mixed_gguf_file(tmp_path: Path) -> None:
    source = random_checkpoint("llama", dim=256, ffn_dim=512, heads=4, head_dim=64, layers=1)
    write_gguf(tmp_path / "m.gguf", source, "Q4_K", {"attn_v": "Q6_K"})
    assert told(tmp_path / "m.gguf")["codes"] == [
        "7 of 8 quantised matrices stay as they are",
        "layers.0.v becomes w8g32: groups of 16 columns are no multiple of 32; quantise with groups"
        " of 32, 64 or 128 columns to keep the width",
    ]


@pytest.mark.parametrize("act_order", [False, True])
def test_reasons_before_and_after_reading_are_one(act_order: bool, tmp_path: Path) -> None:
    """What is said of a kind of codes is what is found when they are read."""
    save_hf("llama", tmp_path)
    quantise_folder(tmp_path, "gptq", act_order=act_order)
    checkpoint = open_checkpoint(tmp_path)
    for name in checkpoint.code_readers:
        kind, codes = checkpoint.code_kind(name), checkpoint.codes(name)
        assert kind is not None and codes is not None
        assert obstacle_of_kind(kind) == obstacle(codes)
