"""Layers kept on disk are the layers that were made, and a run that was cut short goes on."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from as_is import quantised_as_is
from hf_models import save_hf
from packed_checkpoint import quantise_folder
from random_checkpoint import random_checkpoint
from random_quantized import random_model

from flightllm import api, compilation
from flightllm.compiler.quantise import Quantised, quantise
from flightllm.compiler.scheme import QuantOptions
from flightllm.compiler.store import LayerStore, run_digest
from flightllm.models.checkpoint import open_checkpoint
from flightllm.models.hf_writer import save_llama
from flightllm.models.patterns import DENSE, Pattern
from flightllm.spec.image import load_program

OPTIONS = QuantOptions("w4g32", calibrate="none")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small LLaMA folder."""
    source = random_checkpoint("llama", layers=3)
    path = tmp_path / "model"
    path.mkdir()
    tensors = {name: source.tensor(name) for name in source.names}
    save_llama(path, source.config, tensors)
    return path


def same(a: Quantised, b: Quantised) -> None:
    assert len(a.model.layers) == len(b.model.layers)
    for one, other in zip(a.model.layers, b.model.layers):
        assert one.patterns == other.patterns
        for name in ("attn_norm", "mlp_norm"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        for name in ("q", "k", "v", "o", "gate", "up", "down"):
            left, right = getattr(one, name), getattr(other, name)
            if left is None:
                assert right is None
                continue
            for part in ("levels", "scales", "minima", "zeros", "mask"):
                x, y = getattr(left.weight, part), getattr(right.weight, part)
                assert (x is None) == (y is None)
                np.testing.assert_array_equal(x, y)
            for part in ("bits", "group", "table", "kept", "private"):
                assert getattr(left.weight, part) == getattr(right.weight, part)
            assert (left.bias is None) == (right.bias is None)
            np.testing.assert_array_equal(left.bias, right.bias)
    np.testing.assert_array_equal(a.model.head.weight.levels, b.model.head.weight.levels)
    assert a.report.matrices == b.report.matrices


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", OPTIONS),
        ("opt", QuantOptions("w2g32", calibrate="none")),
        ("qwen", QuantOptions("w4g32", sparsity="8:16", calibrate="none")),
    ],
)
def test_the_store_changes_nothing(family: str, options: QuantOptions, tmp_path: Path) -> None:
    source = random_checkpoint(family)
    store = LayerStore(tmp_path / "work", "0")
    same(quantise(source, options, store=store), quantise(source, options))
    store.remove()
    assert not (tmp_path / "work").exists()


def test_patterns_of_attention_survive(tmp_path: Path) -> None:
    store = LayerStore(tmp_path / "work", "0")
    layer = random_model(1).layers[0]
    for patterns in (None, (Pattern(1, 2), DENSE)):
        store.save(0, replace(layer, patterns=patterns), [], [])
        assert store.load(0).patterns == patterns


def test_codes_and_notes_survive(tmp_path: Path) -> None:
    save_hf("llama", tmp_path / "m")
    quantise_folder(tmp_path / "m", "gptq", act_order=True)
    _, plain = quantised_as_is(tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    options = QuantOptions(calibrate="none", smooth_k=False)
    for _ in range(2):  # made, then taken over
        made = quantise(checkpoint, options, store=LayerStore(tmp_path / "work", "0"))
        same(made, plain)
        assert set(plain.report.notes) <= set(made.report.notes)


def test_a_run_goes_on_where_it_stopped(folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder)
    store = LayerStore(tmp_path / "work", run_digest(checkpoint, OPTIONS))

    def stop(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantise(checkpoint, OPTIONS, stop, store)
    files = sorted((tmp_path / "work").rglob("*.safetensors"))
    assert [file.name for file in files] == ["layer-0000.safetensors", "layer-0001.safetensors"]
    files[1].write_bytes(files[1].read_bytes()[:-7])  # cut short: made again
    for file in files:
        os.utime(file, (0, 0))
    made = quantise(checkpoint, OPTIONS, store=store)
    same(made, quantise(checkpoint, OPTIONS))
    assert [file.stat().st_mtime_ns == 0 for file in files] == [True, False]
    assert any("earlier run" in note for note in made.report.notes)


def test_another_run_has_another_digest(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    first = run_digest(checkpoint, OPTIONS)
    assert run_digest(open_checkpoint(folder), OPTIONS) == first
    assert run_digest(checkpoint, QuantOptions("w3g32", calibrate="none")) != first
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_theta": 20000.0}))
    assert run_digest(open_checkpoint(folder), OPTIONS) != first


def test_programs_are_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written piece by piece from stored layers, or at once from memory."""
    plain = api.compile(folder, weights="w4g32", calibrate="none", out=tmp_path / "plain")
    monkeypatch.setattr(compilation, "LARGE", 1)
    seen: list[tuple[str, int, int]] = []
    stored = api.compile(
        folder, weights="w4g32", calibrate="none", out=tmp_path / "stored",
        progress=lambda *step: seen.append(step),
    )  # fmt: skip
    assert [s.sha256 for s in load_program(tmp_path / "plain").segments] == [
        s.sha256 for s in load_program(tmp_path / "stored").segments
    ]
    assert plain.digest == stored.digest
    assert not list(tmp_path.glob(".stored*"))
    written = [step for step in seen if step[0] == "writing"]
    assert written[-1][1] == written[-1][2] and len(written) > 20
    image = (tmp_path / "stored" / "image.bin").stat().st_size
    assert stored.report["weight_bytes"] == image
