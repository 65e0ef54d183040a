"""Programs of torch.export, imported: configuration, weights, program; and why not."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from as_is import quantised_as_is, same_bits
from hf_models import hf_model
from torch_export import export_program, rewritten

from flightllm.checking import check
from flightllm.models.checkpoint import open_checkpoint
from flightllm.models.hf import stored_tensors
from flightllm.models.reference import FloatModel
from flightllm.spec.errors import InputError

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-ids": ("llama", {}),
    "llama-ids-core": ("llama", {"decomposed": True}),
    "llama-past-eager-core": ("llama", {"form": "past", "decomposed": True}),
    "llama-fixed": ("llama", {"form": "fixed"}),
    "llama-mask-bfloat16": ("llama", {"form": "mask"}),
    "mistral-mask": ("mistral", {"form": "mask"}),
    "qwen2-past": ("qwen2", {"form": "past"}),
    "qwen2-ids-float16": ("qwen2", {}),
    "opt-mask": ("opt", {"form": "mask"}),
    "opt-past-core": ("opt", {"form": "past", "decomposed": True}),
    "gpt2-ids": ("gpt2", {}),
    "gpt2-fixed-eager": ("gpt2", {"form": "fixed"}),
}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`exported(case)` gives a file and the model that it was made from."""
    folder, made = tmp_path_factory.mktemp("pt2"), {}

    def get(case: str) -> tuple[Path, Any]:
        if case not in made:
            family, options = CASES[case]
            # Two layers only where layers could be mixed up: exporting is what takes long.
            layers = {} if case in ("llama-ids", "gpt2-ids") else {
                "n_layer" if family == "gpt2" else "num_hidden_layers": 1
            }  # fmt: skip
            model = hf_model(family, **layers)
            if "eager" in case:
                model.set_attn_implementation("eager")
            half = case.rpartition("-")[2]
            if half in ("bfloat16", "float16"):
                model = model.to(getattr(torch, half))
            made[case] = export_program(model, folder / f"{case}.pt2", **options), model
        return made[case]

    return get


SLOW = ("llama-past-eager-core", "llama-mask-bfloat16", "opt-past-core", "llama-fixed")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else []) for c in CASES]
)
def test_exported_programs(case: str, exported: Any) -> None:
    """Weights are those of the model, and the float reference gives transformers' logits."""
    path, model = exported(case)
    checkpoint = open_checkpoint(path)
    config, state = checkpoint.config, model.state_dict()
    for name, stored in stored_tensors(config).items():
        wanted = stored.extract(state[stored.name]).float()
        assert torch.equal(checkpoint.tensor(name).float(), wanted), name
    assert config.window == (9 if case.startswith("mistral") else None)
    assert config.tied == model.config.tie_word_embeddings
    ids = torch.tensor([[5, 17, 80, 3, 44, 9, 60, 2, 31, 7, 11, 12]])
    with torch.no_grad():
        logits = model.float()(ids).logits
    found = FloatModel.load(checkpoint).forward(ids)
    torch.testing.assert_close(found, logits, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    "case", ["llama-ids-core", "qwen2-past", "mistral-mask", "opt-mask", "gpt2-ids"]
)
def test_the_program_equals_the_reference(case: str, exported: Any) -> None:
    _, made = quantised_as_is(exported(case)[0], weights="w8g32")
    same_bits(made)


def test_stories(stories: Path, tmp_path: Path) -> None:
    """stories260k through a program: weights and the bits of its logits."""
    from transformers import LlamaForCausalLM

    source = open_checkpoint(stories)
    model = LlamaForCausalLM.from_pretrained(stories).eval()
    path = export_program(model, tmp_path / "stories.pt2")
    checkpoint, made = quantised_as_is(path, weights="w4g32")
    for name in source.names:
        assert torch.equal(checkpoint.tensor(name), source.tensor(name)), name
    same_bits(made)


def test_check_lists_operators(exported: Any) -> None:
    findings = check(exported("llama-ids")[0]).findings
    assert all(finding.ok for finding in findings)
    told = {finding.what: finding.detail for finding in findings}
    assert told["operator aten.linear.default"] == "15 nodes"
    assert told["operator aten.scaled_dot_product_attention.default"] == "2 nodes"
    assert told["model"].startswith("llama, ")


# ------------------------------------------------------------------------------------ why not


@pytest.fixture
def edited(exported: Any, tmp_path: Path) -> Callable[..., Path]:
    """`edited(change)`: an archive whose members `change` has altered, by name without the root."""

    def get(change: Callable[[dict[str, bytes]], None], case: str = "llama-ids") -> Path:
        return rewritten(exported(case)[0], tmp_path / "edited.pt2", change)

    return get


def program(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes]], None]:
    """A change of the program's JSON."""

    def edit(members: dict[str, bytes]) -> None:
        data = json.loads(members["models/model.json"])
        change(data)
        members["models/model.json"] = json.dumps(data).encode()

    return edit


def index(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes]], None]:
    """A change of the index entry of the embedding."""

    def edit(members: dict[str, bytes]) -> None:
        name = "data/weights/model_weights_config.json"
        data = json.loads(members[name])
        change(data["config"]["model.model.embed_tokens.weight"])
        members[name] = json.dumps(data).encode()

    return edit


def refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_checkpoint(path)


def nodes(data: dict[str, Any], target: str) -> list[dict[str, Any]]:
    found = data["graph_module"]["graph"]["nodes"]
    return [node for node in found if node["target"].startswith(f"torch.ops.aten.{target}.")]


def test_an_operator_that_is_not_supported(edited: Any) -> None:
    def change(data: dict[str, Any]) -> None:
        nodes(data, "silu")[0]["target"] = "torch.ops.aten.hardswish.default"

    path = edited(program(change))
    refused(path, r"node 'silu' \(aten.hardswish.default\): the operator is not supported: replace")
    wrong = [finding for finding in check(path).findings if not finding.ok]
    assert [finding.what for finding in wrong] == ["operator aten.hardswish.default"]
    assert wrong[0].detail.startswith("node 'silu' is not supported: replace it")


def test_operators_that_need_something_else(edited: Any) -> None:
    """Each node has its own reason, and what to do."""

    def change(data: dict[str, Any]) -> None:
        nodes(data, "silu")[0]["target"] = "torch.ops.aten.silu_.default"
        nodes(data, "scaled_dot_product_attention")[0]["inputs"].append(
            {"name": "dropout_p", "arg": {"as_float": 0.5}, "kind": 2}
        )

    wrong = [finding for finding in check(edited(program(change))).findings if not finding.ok]
    assert [finding.what for finding in wrong] == [
        "operator aten.scaled_dot_product_attention.default", "operator aten.silu_.default",
    ]  # fmt: skip
    assert "attention with dropout is of training: export in evaluation mode" in wrong[0].detail
    assert "it writes in place: call run_decompositions()" in wrong[1].detail


@pytest.mark.parametrize("name", ["Phi3", "Starcoder2"])
def test_other_names_of_the_same_structure(name: str, tmp_path: Path) -> None:
    """Fused matrices (Phi-3), RoPE with LayerNorm and GELU (StarCoder2): no name is asked for."""
    import transformers

    sizes = {
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    kind, config = (getattr(transformers, f"{name}{part}") for part in ("ForCausalLM", "Config"))
    model = kind(config(**sizes)).eval()
    checkpoint, made = quantised_as_is(export_program(model, tmp_path / "m.pt2"), weights="w8g32")
    ids = torch.tensor([[5, 17, 80, 3, 44, 9, 60]])
    with torch.no_grad():
        logits = model(ids).logits
    torch.testing.assert_close(FloatModel.load(checkpoint).forward(ids), logits, atol=2e-4, rtol=0)
    same_bits(made)


def test_a_changed_formula_is_seen(edited: Any) -> None:
    def gate(data: dict[str, Any]) -> None:
        nodes(data, "silu")[1]["target"] = "torch.ops.aten.tanh.default"

    def scale(data: dict[str, Any]) -> None:
        (argument,) = (
            a for a in nodes(data, "scaled_dot_product_attention")[0]["inputs"]
            if a["name"] == "scale"
        )  # fmt: skip
        argument["arg"] = {"as_float": 0.3}

    refused(edited(program(gate)), r"node 'linear_13' .*no SiLU, ReLU or GELU")
    refused(edited(program(scale)), "no causal attention")


def test_weights_that_are_pickled_or_missing(edited: Any) -> None:
    refused(edited(index(lambda e: e.update(use_pickle=True))), "embed_tokens.weight': is pickled")
    refused(edited(index(lambda e: e.update(path_name="../x"))), "'data/weights/../x' is missing")
    sizes = [{"as_int": 10**9}, {"as_int": 64}]
    wild = index(lambda entry: entry["tensor_meta"].update(sizes=sizes))
    refused(edited(wild), r"\[1000000000, 64\] needs 256000000000 bytes, but 24576 are there")
    negative = index(lambda entry: entry["tensor_meta"].update(strides=[{"as_int": -64}] * 2))
    refused(edited(negative), "is no size")

    def older(members: dict[str, bytes]) -> None:
        del members["data/weights/model_weights_config.json"]

    refused(edited(older), "keeps its weights pickled")


def test_other_archives(edited: Any, tmp_path: Path) -> None:
    def stateful(data: dict[str, Any]) -> None:
        spec = data["graph_module"]["signature"]["output_specs"]
        spec.append({"buffer_mutation": {"arg": {"name": "x"}, "buffer_name": "key_cache_0"}})

    refused(edited(program(stateful)), "writes to its buffer 'key_cache_0', as a static cache")
    refused(edited(program(lambda d: d["schema_version"].update(major=9))), "version 9 of the")
    refused(edited(program(lambda d: d["graph_module"].pop("graph"))), "record is damaged")
    refused(edited(lambda m: m.update({"byteorder": b"big"})), "byte order b'big'")
    refused(edited(lambda m: m.pop("models/model.json") and None), "no archive of torch.export")
    refused(edited(lambda m: m.update({"models/b.json": b"{}"})), "holds 2 programs")
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as file:
        file.writestr("serialized_exported_program.json", "{}")
    refused(tmp_path / "old.pt2", "torch 2.7 or older and keeps its weights pickled")
    with zipfile.ZipFile(tmp_path / "zipped.pt2", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zipped/models/model.json", "{}" + " " * 10**6)
    refused(tmp_path / "zipped.pt2", "is compressed")
    (tmp_path / "no.pt2").write_bytes(b"PK\x03\x04")
    refused(tmp_path / "no.pt2", "is no zip archive")


def test_a_batch_that_is_fixed(edited: Any) -> None:
    def change(data: dict[str, Any]) -> None:
        meta = data["graph_module"]["graph"]["tensor_values"]["input_ids"]
        meta["sizes"][0] = {"as_int": 2}

    refused(edited(program(change)), "is fixed to 2 sequences at a time: export with one")


def test_a_window_that_a_fixed_length_hides(tmp_path: Path) -> None:
    """Five tokens never reach a window of 9: it is not guessed that there is none."""
    path = export_program(hf_model("mistral"), tmp_path / "m.pt2", form="fixed")
    refused(path, "a sliding window of 9 tokens cannot be ruled out: put the model's config.json")
