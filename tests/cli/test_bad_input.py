"""A user's broken files: one sentence, exit code 2, nothing half-written."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flightllm.spec.config import load_config


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def foreign_word(folder: Path) -> None:
    """Give the tokeniser a word that the model does not embed."""
    path = folder / "tokenizer.json"
    rules = json.loads(path.read_text())
    rules["model"]["vocab"]["zebra"] = 5000
    path.write_text(json.dumps(rules))


QUERY = "model.layers.0.self_attn.q_proj.weight"

SPOILED_MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated weights": (lambda f: truncate(f / "model.safetensors", 9000), "model.safetensors"),
    "no weights at all": (lambda f: (f / "model.safetensors").unlink(), ""),
    "a header that lies": (
        lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60)), "safetensors",
    ),
    "integers for weights": (
        lambda f: edit_weights(f, lambda t: t.update({QUERY: t[QUERY].to(torch.int32)})), "q_proj",
    ),
    "a tensor is missing": (lambda f: edit_weights(f, lambda t: t.pop(QUERY)), "q_proj"),
    "a config that lies about shapes": (
        lambda f: edit_json(f / "config.json", intermediate_size=64), "",
    ),
    "heads that do not divide": (
        lambda f: edit_json(f / "config.json", num_key_value_heads=3), "3 key/value heads",
    ),
    "an unknown architecture": (
        lambda f: edit_json(f / "config.json", model_type="mamba", architectures=["M"]), "mamba",
    ),
    "a config that is no JSON": (lambda f: truncate(f / "config.json", 20), "config.json"),
    "a tokenizer that is none": (
        lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json",
    ),
    "a tokenizer of another model": (foreign_word, "they do not belong together"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED_MODELS)
def test_spoiled_model_is_refused(refused, own_model: Path, tmp_path: Path, case: str) -> None:
    spoil, part = SPOILED_MODELS[case]
    spoil(own_model)
    before = sorted(os.listdir(tmp_path))
    message = refused("compile", own_model, "-o", tmp_path / "out", "--calibrate", "none")
    assert part in message
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [("no-such-model", "no such folder or file"), ("/dev/null", "")],
)
def test_no_model_at_all(refused, tmp_path: Path, name: str, message: str) -> None:
    assert message in refused("compile", name, "-o", tmp_path / "out")
    assert message in refused("run", name, "--prompt", "x")


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


SPOILED_PROGRAMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped weight bit": (lambda f: flip(f / "image.bin", 5000), "was altered"),
    "a short image": (lambda f: truncate(f / "image.bin", 5000), "the manifest says"),
    "no image": (lambda f: (f / "image.bin").unlink(), "the manifest says"),
    "a flipped instruction bit": (lambda f: flip(f / "program.bin", 9), "digest does not match"),
    "no instructions": (lambda f: (f / "program.bin").unlink(), "digest does not match"),
    "an edited manifest": (
        lambda f: edit_json(f / "manifest.json", config_digest="0" * 64), "was altered",
    ),
    "another toolkit's manifest": (
        lambda f: (f / "manifest.json").write_text('{"program": 1}'), "manifest.json",
    ),
    "a manifest cut short": (lambda f: truncate(f / "manifest.json", 99), "manifest.json"),
    "a newer version": (lambda f: edit_json(f / "manifest.json", version=99), "version 99"),
    "a spoiled tokenizer": (lambda f: truncate(f / "tokenizer.json", 99), "tokenizer.json"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "there is no tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED_PROGRAMS)
def test_spoiled_program_is_refused(refused, own_program: Path, case: str) -> None:
    spoil, part = SPOILED_PROGRAMS[case]
    spoil(own_program)
    assert part in refused("run", own_program, "--prompt", "a small")


def test_program_of_a_shape_cannot_run(cli, refused, tmp_path: Path) -> None:
    folder = tmp_path / "shape"
    assert cli("compile", "tinyllama-1.1b", "--board", "u280", "-o", folder).code == 0
    message = refused("run", folder, "--prompt", "x")
    assert "is a shape without weights" in message


def board_file(tmp_path: Path, **changes: object) -> Path:
    """A copy of board tiny with some fields changed; None leaves a field out."""
    values = {**load_config("tiny").to_dict(), **changes}
    lines, tables = [], []
    for name, value in values.items():
        if name == "memory":
            tables = ["[memory]", *(f"{k} = {json.dumps(v)}" for k, v in value.items())]
        elif name != "slrs" and value is not None:
            lines.append(f"{name} = {json.dumps(value)}")
    path = tmp_path / "own.toml"
    path.write_text("\n".join([*lines, *tables]) + "\n")
    return path


def test_own_board_file_works(cli, model: Path, tmp_path: Path) -> None:
    board = board_file(tmp_path, name="mine", prefill_tile=32)
    options = ("--board", board, "--calibrate", "none", "--prompt", "a small", "--tokens", 2)
    assert cli("run", model, *options).code == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beat_bytes": 24}, "beat_bytes: 24 is impossible"),
        ({"macs_per_channel": -32}, "macs_per_channel: -32 is impossible"),
        ({"channels": []}, "channels: () is impossible"),
        ({"clock_mhz": "fast"}, "clock_mhz"),
        ({"top_k": None}, "field 'top_k' is missing"),
        ({"lanes": 4}, "unknown field 'lanes'"),
        ({"memory": {**load_config("tiny").to_dict()["memory"], "kind": "tape"}}, "memory.kind"),
    ],
)
def test_impossible_board_is_refused(
    refused, model: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    board = board_file(tmp_path, **changes)
    assert message in refused("compile", model, "--board", board, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_board_file_that_is_no_toml(refused, model: Path, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("name = \n")
    message = refused("compile", model, "--board", tmp_path / "own.toml", "-o", tmp_path / "out")
    assert "is not readable TOML" in message


def test_program_of_another_board_digest(refused, program: Path, tmp_path: Path) -> None:
    board = board_file(tmp_path, act_bytes=65536)
    message = refused("run", program, "--board", board, "--prompt", "a small")
    assert "act_bytes: the program was made for 131072, the device has 65536" in message


def test_model_that_does_not_fit(refused, tmp_path: Path) -> None:
    message = refused("compile", "llama2-7b", "--board", "tiny", "-o", tmp_path / "out")
    assert "does not fit board tiny" in message
    assert os.listdir(tmp_path) == []
