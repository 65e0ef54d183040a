"""What is told of a compilation beforehand is what comes out; as-is, `support/as_is.py` asks it of
every format that is imported."""

from dataclasses import replace
from pathlib import Path

import pytest
from gguf_files import write_gguf
from hf_models import save_hf
from packed_checkpoint import quantise_folder
from random_checkpoint import random_checkpoint

from flightllm.compiler.quantise import quantise
from flightllm.compiler.scheme import QuantOptions
from flightllm.compiler.shape import shape_of
from flightllm.compiler.shape_before import shape_before
from flightllm.models.checkpoint import Checkpoint, open_checkpoint
from flightllm.models.codes import CodeKind


def same(checkpoint: Checkpoint, **options: object) -> bool:
    chosen = QuantOptions(calibrate="none", **options)
    told = shape_before(checkpoint, chosen)
    return told == shape_of(quantise(checkpoint, chosen).model, told.name)


@pytest.mark.parametrize("family", ["llama", "opt", "qwen", "gpt2"])
def test_schemes(family: str) -> None:
    checkpoint = random_checkpoint(family)
    assert same(checkpoint, weights="w4g64", sparsity="8:16", masks="rows")
    assert same(checkpoint, weights="w2g32", head_bits=6, kv=4)


def test_options_that_stop_codes_from_staying(tmp_path: Path) -> None:
    save_hf("opt", tmp_path)
    quantise_folder(tmp_path, "gptq")
    checkpoint = open_checkpoint(tmp_path)
    assert same(checkpoint, weights="as-is") and same(checkpoint, sparsity="4:16")


def test_nothing_is_read_of_a_gguf_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", random_checkpoint("llama", dim=256, head_dim=64), "Q4_K")
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert same(checkpoint)

    def read() -> None:
        raise AssertionError("read")

    blind = replace(checkpoint, code_readers=dict.fromkeys(checkpoint.code_readers, read))
    assert shape_before(blind, QuantOptions()) == shape_before(checkpoint, QuantOptions())


def test_the_comparison_sees_a_wrong_kind(tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    quantise_folder(tmp_path, "gptq", symmetric=True)
    checkpoint = open_checkpoint(tmp_path)
    assert same(checkpoint)
    wrong = CodeKind(4, 32, zeros=True)
    kinds = {**checkpoint.code_kinds, "layers.1.up.weight": lambda: wrong}
    assert not same(replace(checkpoint, code_kinds=kinds))
