"""Hugging Face folders: every form is read alike, and what is wrong is refused in one sentence."""

import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig
from transformers import OPTForCausalLM as OptModel

from flightllm.models.checkpoint import open_checkpoint
from flightllm.models.config import tensor_shapes
from flightllm.models.hf import stored_tensors
from flightllm.spec.errors import InputError

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
QUERY = "model.layers.1.self_attn.q_proj.weight"


def llama(**changes: object) -> LlamaForCausalLM:
    """A small random LLaMA of transformers."""
    torch.manual_seed(11)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good folder, for tests to spoil."""
    llama().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_config(folder: Path, **changes: object) -> None:
    """Rewrite fields of a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Rewrite a folder's safetensors file."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def as_torch_file(folder: Path, legacy: bool = False) -> Path:
    """Turn a folder's weights into a PyTorch file."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_stored_types_are_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    model = llama().to(dtype)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.names == tuple(tensor_shapes(checkpoint.config))
    for name, stored in stored_tensors(checkpoint.config).items():
        tensor = checkpoint.tensor(name)
        assert tensor.dtype == dtype
        assert torch.equal(tensor, model.state_dict()[stored.name])


@pytest.mark.parametrize("form", ["sharded", "torch", "torch-sharded"])
def test_every_form_holds_the_same(form: str, folder: Path, tmp_path: Path) -> None:
    expected = open_checkpoint(folder)
    other = tmp_path / "other"
    if form == "sharded":
        llama().save_pretrained(other, max_shard_size="20KB")
        assert len(list(other.glob("*.safetensors"))) > 2
    else:
        shutil.copytree(folder, other)
        path = as_torch_file(other)
        if form == "torch-sharded":
            tensors = torch.load(path, weights_only=True)
            path.unlink()
            places = {name: f"part-{len(name) % 2}.bin" for name in tensors}
            for file in set(places.values()):
                part = {name: tensors[name] for name in tensors if places[name] == file}
                torch.save(part, other / file)
            index = other / "pytorch_model.bin.index.json"
            index.write_text(json.dumps({"weight_map": places}))
    checkpoint = open_checkpoint(other)
    for name in expected.names:
        assert torch.equal(checkpoint.tensor(name), expected.tensor(name)), name


def test_tied_head_is_the_embedding(tmp_path: Path) -> None:
    llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert "head.weight" not in checkpoint.names and checkpoint.has("head.weight")
    assert torch.equal(checkpoint.tensor("head.weight"), checkpoint.tensor("embed"))


def test_opt_positions_lose_their_offset(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "vocab_size": 60}
    heads = {"num_attention_heads": 4, "num_hidden_layers": 1, "max_position_embeddings": 20}
    model = OptModel(OPTConfig(**sizes, **heads))
    model.save_pretrained(tmp_path)
    table = model.model.decoder.embed_positions.weight
    assert table.shape == (22, 32)
    assert torch.equal(open_checkpoint(tmp_path).tensor("positions"), table[2:])


def test_gpt2_matrices_are_split_and_turned(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=4))
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    fused = model.transformer.h[0].attn.c_attn
    for part, rows in zip("qkv", fused.weight.T.split(32)):
        assert torch.equal(checkpoint.tensor(f"layers.0.{part}.weight"), rows)
    for part, rows in zip("qkv", fused.bias.split(32)):
        assert torch.equal(checkpoint.tensor(f"layers.0.{part}.bias"), rows)
    assert checkpoint.tensor("layers.0.up.weight").shape == (128, 32)


def test_old_gpt2_names_and_buffers(tmp_path: Path) -> None:
    """The hub's gpt2 has no prefix, carries causal masks and a head beside the embedding."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=4))
    model.save_pretrained(tmp_path)

    def age(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
        tensors["lm_head.weight"] = tensors["wte.weight"].clone()

    change_weights(tmp_path, age)
    embed = open_checkpoint(tmp_path).tensor("embed")
    assert torch.equal(embed, model.transformer.wte.weight)


def test_tensors_are_mapped_not_read(folder: Path) -> None:
    """A tensor's memory is the file's, for as long as the tensor lives."""
    checkpoint = open_checkpoint(folder)
    tensor = checkpoint.tensor("layers.1.down.weight")
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        pytest.skip("the system lists no memory maps")

    def ours() -> list[list[int]]:
        lines = [line for line in maps.read_text().splitlines() if str(folder) in line]
        return [[int(part, 16) for part in line.split()[0].split("-")] for line in lines]

    assert any(start <= tensor.data_ptr() < stop for start, stop in ours())
    del tensor
    assert not ours()
    assert checkpoint.source == str(folder) and checkpoint.folder == folder


def test_no_tensor_of_that_name(folder: Path) -> None:
    with pytest.raises(InputError, match="the model has no tensor 'layers.2.q.weight'"):
        open_checkpoint(folder).tensor("layers.2.q.weight")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9999])
def test_truncated_safetensors(folder: Path, share: float) -> None:
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(InputError, match="model.safetensors: is not a whole safetensors file"):
        open_checkpoint(folder)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_torch_file(folder: Path, share: float) -> None:
    path = as_torch_file(folder)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(InputError, match="pytorch_model.bin: "):
        open_checkpoint(folder)


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_corrupt_files_end_in_a_sentence(folder: Path, form: str) -> None:
    """Wherever a header is hit, the outcome is InputError or a readable checkpoint."""
    path = folder / "model.safetensors" if form == "safetensors" else as_torch_file(folder)
    raw, refused = path.read_bytes(), 0
    dice = random.Random(7)
    for _ in range(60):
        spoilt = bytearray(raw)
        spoilt[dice.randrange(2000)] ^= 1 << dice.randrange(8)
        path.write_bytes(spoilt)
        try:
            checkpoint = open_checkpoint(folder)
            for name in checkpoint.names:
                checkpoint.tensor(name)
        except InputError as error:
            assert folder.name in str(error)
            refused += 1
    assert refused > 20


def test_old_torch_format_says_so(folder: Path) -> None:
    as_torch_file(folder, legacy=True)
    with pytest.raises(InputError, match="is not a whole PyTorch weight file"):
        open_checkpoint(folder)


def test_missing_tensor(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.pop(QUERY))
    with pytest.raises(InputError, match=rf"tensor '{QUERY}' is missing, expected \[32, 32\]"):
        open_checkpoint(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.int32])
def test_wrong_type(folder: Path, dtype: torch.dtype) -> None:
    change_weights(folder, lambda tensors: tensors.update({QUERY: tensors[QUERY].to(dtype)}))
    message = rf"tensor '{QUERY}' has type \w+, expected one of float32, float16, bfloat16"
    with pytest.raises(InputError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 61}, r"embed_tokens.weight' has shape \[60, 32\].* makes it \[61, 32\]"),
        ({"intermediate_size": 40}, r"gate_proj.weight' has shape \[48, 32\].*\[40, 32\]"),
        ({"num_key_value_heads": 4}, r"k_proj.weight' has shape \[16, 32\].*\[32, 32\]"),
        ({"head_dim": 16}, r"q_proj.weight' has shape \[32, 32\].*\[64, 32\]"),
        ({"num_hidden_layers": 3}, r"'model.layers.2.input_layernorm.weight' is missing"),
        ({"num_hidden_layers": 1}, r"'model.layers.1.input_layernorm.weight' \[32\] has no place"),
        ({"attention_bias": True}, r"'model.layers.0.self_attn.q_proj.bias' is missing"),
        ({"tie_word_embeddings": False, "mlp_bias": True}, r"gate_proj.bias' is missing"),
    ],
)
def test_a_config_that_lies(folder: Path, changes: dict[str, object], message: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(InputError, match=message):
        open_checkpoint(folder)


def test_unexpected_tensor(folder: Path) -> None:
    name = "model.layers.0.self_attn.q_norm.weight"
    change_weights(folder, lambda tensors: tensors.update({name: torch.ones(8)}))
    with pytest.raises(InputError, match=rf"tensor '{name}' \[8\] has no place in the model"):
        open_checkpoint(folder)


def test_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="holds no weights"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {"a": "../elsewhere.safetensors"}}, "which is no file name"),
        ({"weight_map": {"a": "gone.safetensors"}}, "names the file gone.safetensors"),
        ({"weight_map": {"a": "part.safetensors"}}, "tensor 'a' is missing from part.safetensors"),
    ],
)
def test_wrong_index(folder: Path, index: dict[str, object], message: str) -> None:
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=message):
        open_checkpoint(folder)


class Trap:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.target), "w")


@pytest.mark.parametrize("plain", [True, False])
def test_malicious_pickle_is_not_executed(folder: Path, tmp_path: Path, plain: bool) -> None:
    (folder / "model.safetensors").unlink()
    path, target = folder / "pytorch_model.bin", tmp_path / "executed"
    if plain:
        path.write_bytes(pickle.dumps({"weight": Trap(target)}))
    else:
        torch.save({"weight": Trap(target)}, path)
    with pytest.raises(InputError, match="pytorch_model.bin: "):
        open_checkpoint(folder)
    assert not target.exists()
    if plain:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert target.exists(), "the trap itself must work, or this test shows nothing"


def test_torch_file_of_something_else(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save([torch.ones(2)], folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="holds a list, not tensors by name"):
        open_checkpoint(folder)
    torch.save({"epoch": 3}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="entry 'epoch' is not a tensor"):
        open_checkpoint(folder)
