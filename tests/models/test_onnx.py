"""ONNX files of torch's exporters, imported: configuration, weights, program; and why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from as_is import quantised_as_is, same_bits
from hf_models import hf_model
from onnx import TensorProto, helper, numpy_helper, version_converter
from onnx_export import export_onnx

from flightllm.models.checkpoint import open_checkpoint
from flightllm.models.hf import stored_tensors
from flightllm.models.reference import FloatModel
from flightllm.spec.errors import InputError

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-17": ("llama", {"opset": 17}),
    "llama-past-16": ("llama", {"opset": 16, "past": True}),
    "mistral-14": ("mistral", {"opset": 14}),
    "qwen2-past-17": ("qwen2", {"opset": 17, "past": True}),
    "opt-15": ("opt", {"opset": 15}),
    "gpt2-14": ("gpt2", {"opset": 14}),
    "llama-eager-13": ("llama", {"opset": 13}),
    "qwen2-18": ("qwen2", {"opset": 18}),
    "opt-past-19": ("opt", {"opset": 19, "past": True}),
    "gpt2-past-20": ("gpt2", {"opset": 20, "past": True}),
    "mistral-past-21": ("mistral", {"opset": 20, "past": True, "raised": 21}),
    "llama-22": ("llama", {"opset": 20, "raised": 22}),
    "qwen2-past-23": ("qwen2", {"opset": 20, "past": True, "raised": 23}),
    "gpt2-dynamo-23": ("gpt2", {"opset": 23, "dynamo": True}),
    "llama-dynamo-18": ("llama", {"opset": 18, "dynamo": True}),
    "llama-past-dynamo-23": ("llama", {"opset": 23, "dynamo": True, "past": True}),
    "opt-dynamo-19": ("opt", {"opset": 19, "dynamo": True}),
    "qwen2-past-dynamo-21": ("qwen2", {"opset": 21, "dynamo": True, "past": True}),
    "mistral-dynamo-22": ("mistral", {"opset": 22, "dynamo": True}),
}
SLOW = [case for case in CASES if "dynamo" in case][1:]
"""That exporter takes seconds for each."""


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`exported(case)` gives a file and the model that it was made from."""
    folder, made = tmp_path_factory.mktemp("onnx"), {}

    def get(case: str) -> tuple[Path, Any]:
        if case not in made:
            family, options = CASES[case][0], dict(CASES[case][1])
            model = hf_model(family)
            if "eager" in case:
                model.set_attn_implementation("eager")
            raised = options.pop("raised", None)
            path = export_onnx(model, folder / f"{case}.onnx", **options)
            if raised:
                onnx.save(version_converter.convert_version(onnx.load(path), raised), path)
            made[case] = path, model
        return made[case]

    return get


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else []) for c in CASES]
)
def test_exported_models(case: str, exported: Any) -> None:
    """Weights are those of the model, and the float reference gives transformers' logits."""
    path, model = exported(case)
    versions = {entry.domain: entry.version for entry in onnx.load(path).opset_import}
    assert versions[""] == int(case.rpartition("-")[2])
    checkpoint = open_checkpoint(path)
    config, state = checkpoint.config, model.state_dict()
    for name, stored in stored_tensors(config).items():
        if name == "positions":  # the graph looks up from position 0 on
            assert torch.equal(
                checkpoint.tensor(name)[:32], stored.extract(state[stored.name])[:32]
            )
            continue
        assert torch.equal(checkpoint.tensor(name), stored.extract(state[stored.name])), name
    assert config.window == (9 if case.startswith("mistral") else None)
    assert config.tied == model.config.tie_word_embeddings
    ids = torch.tensor([[5, 17, 80, 3, 44, 9, 60, 2, 31, 7, 11, 12]])
    with torch.no_grad():
        wanted = model(ids).logits
    torch.testing.assert_close(FloatModel.load(checkpoint).forward(ids), wanted, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    "case", ["llama-past-16", "mistral-14", "qwen2-past-23", "opt-past-19", "gpt2-dynamo-23"]
)
def test_the_program_equals_the_reference(case: str, exported: Any) -> None:
    _, made = quantised_as_is(exported(case)[0], weights="w8g32")
    same_bits(made)


def test_stories(stories: Path, tmp_path: Path) -> None:
    """stories260k through a graph: weights and the bits of its logits."""
    from transformers import LlamaForCausalLM

    source = open_checkpoint(stories)
    model = LlamaForCausalLM.from_pretrained(stories).eval()
    path = export_onnx(model, tmp_path / "stories.onnx", past=True, opset=20)
    checkpoint, made = quantised_as_is(path, weights="w4g32")
    for name in source.names:
        assert torch.equal(checkpoint.tensor(name), source.tensor(name)), name
    same_bits(made)


def _edited(path: Path, out: Path, change: Any) -> Path:
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, out)
    return out


def _matrices(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The products by a constant matrix: initializer name to node."""
    names = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    return {n.input[1]: n for n in graph.node if n.op_type == "MatMul" and n.input[1] in names}


def _quantise(graph: onnx.GraphProto, kind: str) -> dict[str, np.ndarray]:
    """QDQ or MatMulNBits in place of every product; gives what each stands for then, [in, out]."""
    tensors = {t.name: t for t in graph.initializer}
    out: dict[str, np.ndarray] = {}
    for name, node in _matrices(graph).items():
        weight = numpy_helper.to_array(tensors[name]).copy()  # [in, out]
        graph.initializer.remove(tensors[name])
        columns, rows = weight.shape
        if kind == "qdq":
            scale = (np.abs(weight).max(0) / 127).astype(np.float32)
            codes = np.rint(weight / scale).astype(np.int8)
            graph.initializer.append(numpy_helper.from_array(codes, f"{name}.codes"))
            graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
            made = helper.make_node(
                "DequantizeLinear", [f"{name}.codes", f"{name}.scale"], [name], axis=1
            )
            graph.node.insert(0, made)
            out[name] = codes.astype(np.float32) * scale
            continue
        blocks = weight.T.reshape(rows, columns // 32, 32)
        low, high = blocks.min(-1), blocks.max(-1)
        scale = (np.maximum(high - low, 1e-3) / 15).astype(np.float16).astype(np.float32)
        zero = np.rint(-low / scale).clip(0, 15)
        codes = (np.rint(blocks / scale[..., None]) + zero[..., None]).clip(0, 15).astype(np.uint8)
        zeros = zero.astype(np.uint8)
        if zeros.shape[1] % 2:
            zeros = np.pad(zeros, ((0, 0), (0, 1)))
        parts = {
            "B": codes[..., 0::2] | (codes[..., 1::2] << 4), "scales": scale.reshape(-1),
            "zero": (zeros[:, 0::2] | (zeros[:, 1::2] << 4)).reshape(-1),
        }  # fmt: skip
        for part, value in parts.items():
            graph.initializer.append(numpy_helper.from_array(value, f"{name}.{part}"))
        node.op_type, node.domain = "MatMulNBits", "com.microsoft"
        del node.input[1:]
        node.input.extend(f"{name}.{part}" for part in parts)
        facts = {"K": columns, "N": rows, "bits": 4, "block_size": 32}
        node.attribute.extend(helper.make_attribute(key, value) for key, value in facts.items())
        level = codes.astype(np.float32) - zero[..., None].astype(np.float32)
        out[name] = (level * scale[..., None]).reshape(rows, columns).T
    return out


@pytest.mark.parametrize("kind", ["qdq", "n-bits"])
def test_quantised_graphs_are_kept_as_they_are(kind: str, exported: Any, tmp_path: Path) -> None:
    written: dict[str, np.ndarray] = {}
    path = _edited(
        exported("llama-17")[0], tmp_path / "q.onnx",
        lambda graph: written.update(_quantise(graph, kind)),
    )  # fmt: skip
    checkpoint, made = quantised_as_is(path)
    down = checkpoint.tensor("layers.1.down.weight").numpy()
    assert any(np.array_equal(down, value.T) for value in written.values())
    tensor = made.model.layers[1].down.weight
    assert tensor.bits == (8 if kind == "qdq" else 4)
    if kind == "n-bits":
        assert np.array_equal(tensor.dequantised(), down)
        assert not any("rounded" in note for note in made.report.notes)
    same_bits(made)


# ------------------------------------------------------------------------------------ why not


def refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_checkpoint(path)


def test_an_operator_that_is_not_supported(exported: Any, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        next(n for n in graph.node if n.op_type == "Sigmoid").op_type = "HardSwish"

    path = _edited(exported("llama-17")[0], tmp_path / "a.onnx", change)
    refused(path, r"node '.*' \(HardSwish\): the operator is not supported: replace it")


def test_a_changed_formula_is_seen(exported: Any, tmp_path: Path) -> None:
    """Sine for cosine, tanh for the gate, another scale: the numbers do not fit any more."""

    def gate(graph: onnx.GraphProto) -> None:
        next(n for n in graph.node if n.op_type == "Sigmoid").op_type = "Tanh"

    def angle(graph: onnx.GraphProto) -> None:
        next(n for n in graph.node if n.op_type == "Cos").op_type = "Sin"

    source = exported("llama-17")[0]
    refused(_edited(source, tmp_path / "a.onnx", gate), "no SiLU, ReLU or GELU")
    refused(_edited(source, tmp_path / "b.onnx", angle), "no causal attention")


def test_a_circle_and_missing_values(exported: Any, tmp_path: Path) -> None:
    def circle(graph: onnx.GraphProto) -> None:
        first = next(n for n in graph.node if n.op_type == "Add")
        last = [n for n in graph.node if n.op_type == "Add"][-1]
        first.input[0] = last.output[0]

    def hole(graph: onnx.GraphProto) -> None:
        next(n for n in graph.node if n.op_type == "Mul").input[0] = "nothing"

    source = exported("llama-17")[0]
    refused(_edited(source, tmp_path / "a.onnx", circle), "the graph runs in a circle")
    refused(_edited(source, tmp_path / "b.onnx", hole), "reads 'nothing', which nothing makes")


def test_external_data_stays_in_its_folder(exported: Any, tmp_path: Path) -> None:
    def outside(graph: onnx.GraphProto) -> None:
        tensor = next(t for t in graph.initializer if len(t.dims) == 2)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "../../etc/passwd"

    model = onnx.load(exported("llama-17")[0])
    outside(model.graph)
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    refused(tmp_path / "a.onnx", "lies outside the model's folder")


def test_a_version_that_is_too_old(exported: Any, tmp_path: Path) -> None:
    model = onnx.load(exported("llama-eager-13")[0])
    model.opset_import[0].version = 11
    onnx.save(model, tmp_path / "a.onnx")
    refused(tmp_path / "a.onnx", "has opset 11, and 13 is the oldest that is read: export anew")


def test_not_onnx(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\xff" * 100)
    refused(tmp_path / "a.onnx", "is no ONNX file, or damaged")
    (tmp_path / "b.onnx").write_bytes(b"")
    refused(tmp_path / "b.onnx", "it has no nodes")
