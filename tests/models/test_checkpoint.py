"""What all checkpoints share: recognising what is opened, and tensors from memory."""

from pathlib import Path

import pytest
import torch

from flightllm.models.checkpoint import Checkpoint, open_checkpoint
from flightllm.models.config import ModelConfig, RopeConfig, tensor_shapes
from flightllm.spec.errors import InputError

CONFIG = ModelConfig(
    family="llama",
    vocab=32,
    dim=16,
    layers=1,
    heads=4,
    kv_heads=2,
    head_dim=4,
    ffn_dim=20,
    max_length=64,
    rope=RopeConfig(),
)


def tensors() -> dict[str, torch.Tensor]:
    """Random tensors of the configuration above."""
    return {name: torch.randn(shape) for name, shape in tensor_shapes(CONFIG).items()}


def test_from_tensors() -> None:
    given = tensors()
    checkpoint = Checkpoint.from_tensors(CONFIG, given, "training")
    assert not checkpoint.shape_only and checkpoint.source == "training"
    assert checkpoint.tensor("layers.0.q.weight") is given["layers.0.q.weight"]
    assert checkpoint.codes("layers.0.q.weight") is None
    assert checkpoint.has("head.weight") and not checkpoint.has("layers.0.q.bias")


def test_from_tensors_checks_shapes() -> None:
    given = tensors()
    given["layers.0.k.weight"] = torch.randn(16, 8)
    message = r"memory: tensor 'layers.0.k.weight' has shape \[16, 8\], expected \[8, 16\]"
    with pytest.raises(InputError, match=message):
        Checkpoint.from_tensors(CONFIG, given)
    del given["layers.0.k.weight"]
    with pytest.raises(InputError, match=r"tensor 'layers.0.k.weight' is missing"):
        Checkpoint.from_tensors(CONFIG, given)


def test_what_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder or file, nor a model of that"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(InputError, match="config.json: cannot be read"):
        open_checkpoint(tmp_path)
    for name, content in (("a.safetensors", b"x" * 99), ("b.bin", b"PK" + b"x" * 99)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: is no llama2.c model"):
            open_checkpoint(tmp_path / name)


def test_a_name_wins_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("gpt2").shape_only
    with pytest.raises(InputError, match="config.json: cannot be read"):
        open_checkpoint("./gpt2")
