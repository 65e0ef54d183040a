"""llama2.c's files: the same weights as the Hugging Face folder, in every version."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from flightllm.models.checkpoint import Checkpoint, open_checkpoint
from flightllm.models.config import ModelConfig, RopeConfig, tensor_shapes
from flightllm.models.llama2c import read_header
from flightllm.models.rope import rope_tables
from flightllm.spec.errors import InputError

CONFIG = ModelConfig(
    family="llama",
    vocab=40,
    dim=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=4,
    ffn_dim=24,
    max_length=12,
    rope=RopeConfig(),
    bos=1,
    eos=(1, 2),
    name="toy",
)
PARTS = ("q", "k", "v", "o", "gate", "down", "up")
MAGIC = 0x616B3432


def weights() -> dict[str, np.ndarray]:
    """Random tensors under canonical names, with llama2.c's row order of q and k."""
    dice = np.random.default_rng(3)
    shapes = tensor_shapes(CONFIG).items()
    return {name: dice.normal(size=shape).astype(np.float32) for name, shape in shapes}


def paired_to_halves(rows: np.ndarray) -> np.ndarray:
    """Rows 0, 2, 1, 3 of every head of 4: what reading must do, written out."""
    heads = rows.reshape(-1, 4, rows.shape[1])
    return heads[:, [0, 2, 1, 3]].reshape(rows.shape)


def quantised(matrix: np.ndarray, group: int) -> bytes:
    """Version 2's form of a matrix: all levels, then all scales."""
    flat = matrix.reshape(-1, group)
    scales = np.abs(flat).max(1) / 127
    levels = np.round(flat / scales[:, None]).astype(np.int8)
    return levels.tobytes() + scales.astype(np.float32).tobytes()


def write(path: Path, version: int, tied: bool = False, group: int = 8, scale: float = 1.0) -> Path:
    """A file of the weights above; `scale` spoils version 0's tables."""
    data = weights()
    sizes = (CONFIG.dim, CONFIG.ffn_dim, CONFIG.layers, CONFIG.heads, CONFIG.kv_heads)
    vocab = CONFIG.vocab if tied or version else -CONFIG.vocab

    def layers(part: str) -> list[str]:
        return [f"layers.{index}.{part}.weight" for index in range(CONFIG.layers)]

    norms = [*layers("attn_norm"), *layers("mlp_norm")]
    matrices = ["embed", *(name for part in PARTS for name in layers(part))]
    head = [] if tied else ["head.weight"]
    out = struct.pack("<7i", *sizes, vocab, CONFIG.max_length)
    if version == 0:
        first, second = (data[name].tobytes() for name in norms[:2]), matrices[1:9]
        out += data["embed"].tobytes() + b"".join(first)
        out += b"".join(data[name].tobytes() for name in [*second, *norms[2:], *matrices[9:]])
        out += data["final_norm.weight"].tobytes()
        out += b"".join((scale * table).tobytes() for table in rope_tables(CONFIG, 12))
        out += b"".join(data[name].tobytes() for name in head)
    else:
        out = struct.pack("<Ii", MAGIC, version) + out + struct.pack("<Bi", tied, group)
        out = out.ljust(256, b"\0")
        out += b"".join(data[name].tobytes() for name in [*norms, "final_norm.weight"])
        for name in [*matrices, *head]:
            out += data[name].tobytes() if version == 1 else quantised(data[name], group)
    path.write_bytes(out)
    return path


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_every_version(tmp_path: Path, version: int, tied: bool) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "toy.bin", version, tied))
    config = checkpoint.config
    assert config.tied == tied and config.eos == (1, 2) and config.name == "toy"
    assert (config.vocab, config.kv_heads, config.max_length) == (40, 2, 12)
    assert checkpoint.names == tuple(tensor_shapes(config))
    for name in checkpoint.names:
        expected = weights()[name]
        if name.endswith((".q.weight", ".k.weight")):
            expected = paired_to_halves(expected)
        tensor = checkpoint.tensor(name).numpy()
        error = np.abs(expected).max() / 254 * 1.001 if version == 2 else 0.0
        assert tensor.shape == expected.shape and tensor.dtype == np.float32
        assert np.abs(tensor - expected).max() <= error, name


def test_codes(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "toy.bin", 2))
    for name in ("embed", "layers.1.k.weight", "layers.0.down.weight", "head.weight"):
        codes = checkpoint.codes(name)
        assert codes is not None and codes.levels.dtype == np.int8 and codes.group == 8
        spread = np.repeat(codes.scales, codes.group, axis=1)
        assert np.array_equal(codes.levels * spread, checkpoint.tensor(name).numpy())
    assert checkpoint.codes("final_norm.weight") is None
    assert open_checkpoint(write(tmp_path / "v0.bin", 0)).codes("embed") is None


def test_groups_across_rows_have_no_codes(tmp_path: Path) -> None:
    """16 columns in groups of 32: llama2.c counts groups over the whole tensor."""
    checkpoint = open_checkpoint(write(tmp_path / "toy.bin", 2, group=32))
    assert checkpoint.codes("layers.0.o.weight") is None
    error = checkpoint.tensor("layers.0.o.weight").numpy() - weights()["layers.0.o.weight"]
    assert 0 < np.abs(error).max() < 0.02


def test_header(tmp_path: Path) -> None:
    header = read_header(write(tmp_path / "toy.bin", 2))
    assert (header.version, header.group, header.offset) == (2, 8, 256)


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("change", [-1, -700, 5])
def test_wrong_length(tmp_path: Path, version: int, change: int) -> None:
    path = write(tmp_path / "toy.bin", version)
    raw = path.read_bytes()
    path.write_bytes(raw[:change] if change < 0 else raw + b"\0" * change)
    message = "is truncated: tensor '.*' .* ends at byte" if change < 0 else "a model of its header"
    with pytest.raises(InputError, match=message):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, 15, "dim 15 is not a multiple of 4 heads"),
        (0, -16, "dim must be a positive integer, not -16"),
        (4, 23, "has .* bytes, but a model of its header's shape|is truncated"),
        (8, 1 << 30, "layers must be at most 4096, not 1073741824"),
        (12, 0, "is not a multiple of 0 heads"),
        (16, 3, "4 query heads are not a multiple of 3"),
        (20, 40, "has .* bytes, but a model"),  # positive: claims that the head is tied
        (24, 1 << 20, "is truncated: tensor 'cos'"),
    ],
)
def test_a_header_that_lies(tmp_path: Path, offset: int, value: int, message: str) -> None:
    path = write(tmp_path / "toy.bin", 0)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<i", raw, offset, value)
    path.write_bytes(raw)
    with pytest.raises(InputError, match=message):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [(4, 3, "version 3 is not supported"), (37, 0, "group size must be"), (37, 7, "groups of 7")],
)
def test_wrong_version_2(tmp_path: Path, offset: int, value: int, message: str) -> None:
    path = write(tmp_path / "toy.bin", 2)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<i", raw, offset, value)
    path.write_bytes(raw)
    with pytest.raises(InputError, match=message):
        open_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"hello", struct.pack("<I", MAGIC) + bytes(40)])
def test_no_model_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(InputError, match="is no llama2.c model|is truncated"):
        open_checkpoint(tmp_path / "x.bin")


def test_other_angles_are_refused(tmp_path: Path) -> None:
    """A CodeLlama export carries tables of another base, which the header cannot say."""
    with pytest.raises(InputError, match="its RoPE table 'cos' is not that of base 10000"):
        open_checkpoint(write(tmp_path / "toy.bin", 0, scale=0.9))
    assert open_checkpoint(write(tmp_path / "toy.bin", 0, scale=0.0)).has("embed")


def test_stories(stories: Path) -> None:
    """Float32 export: the folder's very bits. Int8 export: within half a step."""
    folder = open_checkpoint(stories)
    plain: Checkpoint = open_checkpoint(stories / "stories260K.bin")
    coarse = open_checkpoint(stories / "stories260K-q8.bin")
    for name in folder.names:
        expected = folder.tensor(name)
        assert torch.equal(plain.tensor(name), expected), name
        error = (coarse.tensor(name) - expected).abs().max()
        assert error <= expected.abs().max() / 254 * 1.001, name
