"""Calibration text: sampled with a seed, or a file's."""

from pathlib import Path

import pytest
import torch
from random_checkpoint import random_checkpoint, random_config

from flightllm.compiler.calibrate import calibration_size, float_model, from_file, sample, sampled
from flightllm.models.checkpoint import open_checkpoint
from flightllm.models.config import ModelConfig, RopeConfig
from flightllm.models.hf_writer import save_llama
from flightllm.models.reference import FloatModel
from flightllm.spec.errors import InputError

torch.set_num_threads(1)


def test_samples_follow_the_model() -> None:
    checkpoint = random_checkpoint("llama")
    drawn = sample(float_model(checkpoint), 40, 30, seed=3)
    again = sample(float_model(checkpoint), 40, 30, seed=3)
    other = sample(float_model(checkpoint), 40, 30, seed=4)
    assert (drawn.ids == again.ids).all()
    assert drawn.ids.shape != other.ids.shape or (drawn.ids != other.ids).any()
    assert (drawn.ids[:, 0] == 1).all()
    model = FloatModel.load(checkpoint)
    with torch.no_grad():
        log = torch.log_softmax(model.forward(drawn.ids)[:, :-1], -1)
    kept = drawn.valid[:, 1:]
    found = -log.gather(-1, drawn.ids[:, 1:, None])[..., 0][kept].mean()
    entropy = -(log.exp() * log).sum(-1)[kept].mean()
    assert abs(float(found - entropy)) < 0.25  # at temperature 1 both have the same mean


def test_nothing_counts_behind_the_end() -> None:
    drawn = sample(float_model(random_checkpoint("llama")), 40, 40)
    ends = torch.isin(drawn.ids[:, 1:], torch.tensor([1, 2]))
    assert ends.any()
    expected = ends.cumsum(1) == 0
    assert (drawn.valid[:, 1:] == expected).all()


def test_stops_when_all_texts_have_ended() -> None:
    checkpoint = random_checkpoint("qwen", eos=tuple(range(2, 96)))
    drawn = sample(float_model(checkpoint), 4, 40)
    assert drawn.ids.shape == (4, 1) and drawn.valid.all()


def test_start_token() -> None:
    for changes, first in (({"bos": None}, 2), ({"bos": None, "eos": ()}, None)):
        drawn = sample(float_model(random_checkpoint("llama", **changes)), 8, 5)
        if first is None:
            assert len(set(drawn.ids[:, 0].tolist())) > 1
        else:
            assert (drawn.ids[:, 0] == first).all()


def test_size_follows_the_model() -> None:
    assert calibration_size(random_config("llama")) == (128, 64)
    large = ModelConfig(
        family="llama", vocab=32000, dim=4096, layers=32, heads=32, kv_heads=32, head_dim=128,
        ffn_dim=11008, max_length=4096, rope=RopeConfig(),
    )  # fmt: skip
    assert calibration_size(large) == (16, 256)


def test_file(stories: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(stories)
    path = tmp_path / "text.txt"
    path.write_text("Once upon a time.<|endoftext|>The cat sat.\n" + "A dog ran. " * 60)
    found = from_file(checkpoint, path, 128, 32)
    assert (found.ids[:, 0] == 1).all() and found.ids.shape[1] == 32
    assert (found.valid.sum(1)[:-1] >= 2).all() and found.valid[1].all()
    few = from_file(checkpoint, path, 3, 32)
    assert len(few.ids) == 3 and str(path) in few.source


def test_bad_files(stories: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(stories)
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("  \n")
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="holds no text"):
        from_file(checkpoint, empty, 4, 32)
    with pytest.raises(InputError, match="is not UTF-8"):
        from_file(checkpoint, binary, 4, 32)
    with pytest.raises(InputError, match="cannot be read"):
        from_file(checkpoint, tmp_path / "none", 4, 32)
    with pytest.raises(InputError):  # no tokeniser beside tensors in memory
        from_file(random_checkpoint("llama"), empty, 4, 32)


def test_the_same_files_are_drawn_from_once(model_folder: Path) -> None:
    first = sampled(open_checkpoint(model_folder), 4, 10)
    assert sampled(open_checkpoint(model_folder), 4, 10) is first
    assert sampled(open_checkpoint(model_folder), 4, 10, seed=1) is not first
    assert (sample(float_model(open_checkpoint(model_folder)), 4, 10).ids == first.ids).all()
    (model_folder / "note").write_text("another folder")
    assert sampled(open_checkpoint(model_folder), 4, 10) is not first
    memory = random_checkpoint("llama")
    assert sampled(memory, 4, 10) is not sampled(memory, 4, 10)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    source = random_checkpoint("llama")
    save_llama(tmp_path, source.config, {name: source.tensor(name) for name in source.names})
    return tmp_path
