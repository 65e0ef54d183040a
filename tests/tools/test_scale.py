"""The measurement of large models: on two layers of LLaMA2-7B, and what its page says."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import scale
import synthetic_checkpoint

from flightllm.models import zoo
from flightllm.models.checkpoint import open_checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("case", scale.CASES, ids=lambda case: "gguf" if case.gguf else "folder")
def test_two_layers_of_7b(case: scale.Case, tmp_path: Path) -> None:
    """Interrupted and resumed, in the memory that all layers may take, with the size foretold."""
    found = scale.measure(case, replace(zoo.shape(scale.SHAPE), layers=2), tmp_path)
    print(found)
    assert found.image_bytes == found.predicted_bytes
    assert found.peak_bytes <= case.gib * 2**30
    assert found.stopped_after == 1 and found.taken_over


def result(**changes: int) -> scale.Result:
    return replace(scale.Result(10**9, 90.0, 120.0, 3 << 30, 10, 32, True, 1234, 1234), **changes)


def test_page() -> None:
    first, second = scale.CASES
    config = zoo.shape("llama2-7b")
    text = scale.page({first: result(), second: result(predicted_bytes=1)}, config, 2)
    assert "| 1.00 GB | 1.5 | 20 | 2.0 | 3.00 | 6 | 10 of 32 | 1,234 | equal |" in text
    assert "| 10 of 32 | 1,234 | DIFFERENT |" in text
    assert "not measured yet" in scale.page({first: result()}, config, 2)


def test_a_command_that_fails_is_seen() -> None:
    code, _, peak, errors = scale._run(
        [sys.executable, "-c", "import sys; sys.exit('broken')"], lambda: False
    )
    assert code == 1 and peak > 1 << 20 and "broken" in errors


def test_a_command_is_interrupted() -> None:
    endless = "import time\nwhile True: time.sleep(0.1)"
    code, *_ = scale._run([sys.executable, "-c", endless], lambda: True)
    assert code != 0


def test_checkpoints_open(tmp_path: Path) -> None:
    """In shards, of which whole ones are kept, and as GGUF."""
    config = replace(
        zoo.shape("llama2-7b"), dim=256, heads=4, kv_heads=4, head_dim=64, ffn_dim=512, vocab=320,
        layers=2,
    )  # fmt: skip
    synthetic_checkpoint.write_folder(tmp_path / "hf", config)
    shards = sorted((tmp_path / "hf").glob("*.safetensors"))
    assert len(shards) == 5
    before = [shard.read_bytes() for shard in shards]
    shards[1].unlink()
    synthetic_checkpoint.write_folder(tmp_path / "hf", config)
    assert [shard.read_bytes() for shard in shards] == before
    read = open_checkpoint(tmp_path / "hf")
    assert replace(read.config, name="") == replace(config, name="")
    assert 0.9 < float(read.tensor("layers.1.up.weight").float().std()) * 256**0.5 < 1.1
    synthetic_checkpoint.write_gguf(tmp_path / "m.gguf", config)
    read = open_checkpoint(tmp_path / "m.gguf")
    assert read.config.layers == 2 and len(read.code_readers) == 16
    assert 0.5 < float(read.tensor("layers.1.up.weight").float().std()) * 256**0.5 < 2
