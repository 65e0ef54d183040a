"""ONNX files that onnxruntime's own tools quantised or optimised, imported: weights and bits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from as_is import quantised_as_is, same_bits
from hf_models import hf_model
from onnx_export import export_onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.transformers import optimizer

from flightllm.models.checkpoint import Checkpoint, open_checkpoint
from flightllm.models.reference import FloatModel

IDS = np.array([[5, 17, 80, 3, 44, 9, 60, 2, 31, 7, 11, 12]])
PARTS = ("q", "k", "v", "o", "gate", "up", "down")
N_BITS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama-4": ("llama", {}, {"is_symmetric": True}),
    "llama-4-zeros-past": ("llama", {"past": True}, {"is_symmetric": False}),
    "llama-2-zeros": ("llama", {}, {"bits": 2, "is_symmetric": False}),
    "llama-8": ("llama", {}, {"bits": 8, "is_symmetric": True}),
    "llama-4-blocks-64": ("llama", {}, {"block_size": 64, "is_symmetric": False}),
    "llama-4-qdq": ("llama", {"opset": 20}, {"quant_format": QuantFormat.QDQ}),
    "qwen2-4-zeros": ("qwen2", {}, {"is_symmetric": False}),
    "mistral-4": ("mistral", {}, {"is_symmetric": True}),
    "opt-4-zeros-past": ("opt", {"past": True}, {"is_symmetric": False}),
    "gpt2-4": ("gpt2", {}, {"is_symmetric": True}),
}
"""Family, how it is exported, how onnxruntime's MatMulNBitsQuantizer is told to quantise it."""


def n_bits(source: Path, out: Path, **options: Any) -> Path:
    """A file whose constant products are MatMulNBits (or DequantizeLinear of INT4)."""
    logging.disable(logging.ERROR)
    try:
        chosen = {"bits": 4, "block_size": 32, "is_symmetric": False, **options}
        made = MatMulNBitsQuantizer(onnx.load(source), accuracy_level=None, **chosen)
        made.process()
    finally:
        logging.disable(logging.NOTSET)
    onnx.save(made.model.model, out)
    return out


def logits(path: Path) -> np.ndarray[Any, Any]:
    """What onnxruntime computes of a file."""
    how = onnxruntime.SessionOptions()  # optimised, activations would become INT8
    how.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), how, providers=["CPUExecutionProvider"])
    given: dict[str, Any] = {}
    for value in session.get_inputs():
        if value.name == "input_ids":
            given[value.name] = IDS
        elif value.name == "position_ids":
            given[value.name] = np.arange(IDS.size)[None]
        elif value.name == "attention_mask":
            given[value.name] = np.ones_like(IDS)
        else:
            heads, size = value.shape[1], value.shape[3]
            given[value.name] = np.zeros((1, heads, 0, size), np.float32)
    made: np.ndarray[Any, Any] = session.run(["logits"], given)[0]
    return made


def agrees(checkpoint: Checkpoint, path: Path, atol: float = 5e-4) -> None:
    """The float reference of the imported weights computes what onnxruntime does of the file."""
    found = FloatModel.load(checkpoint).forward(torch.from_numpy(IDS)).numpy()
    np.testing.assert_allclose(found, logits(path), atol=atol, rtol=0)


@pytest.mark.parametrize("case", N_BITS)
def test_matrices_in_n_bits(case: str, tmp_path: Path) -> None:
    family, exported, options = N_BITS[case]
    source = export_onnx(hf_model(family), tmp_path / "f.onnx", **exported)
    path = n_bits(source, tmp_path / "q.onnx", **options)
    checkpoint, made = quantised_as_is(path)
    agrees(checkpoint, path)
    notes = " ".join(made.report.notes)
    assert ("levels are -128" in notes) == (case == "llama-8")
    assert "kept the codes; scales rounded to fp16" in notes or case == "llama-8"
    layer = made.model.layers[0]
    # GPT-2's products are Gemm, which that quantiser leaves in float; the head is none.
    tensor = made.model.head.weight if family == "gpt2" else layer.q.weight
    assert tensor.bits == options.get("bits", 4)
    assert (tensor.zeros is None) == bool(options.get("is_symmetric"))
    same_bits(made)


def halved(path: Path, out: Path) -> Path:
    """Scales as fp16 holds them, so that nothing needs to be rounded."""
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            (tensor,) = (t for t in model.graph.initializer if t.name == node.input[2])
            values = onnx.numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, out)
    return out


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_as_is_is_exact(family: str, symmetric: bool, tmp_path: Path) -> None:
    from flightllm.compiler.fold import pair_order

    source = export_onnx(hf_model(family), tmp_path / "f.onnx")
    path = n_bits(source, tmp_path / "q.onnx", is_symmetric=symmetric)
    checkpoint, made = quantised_as_is(halved(path, tmp_path / "h.onnx"))
    order = {"q": pair_order(4, 16).numpy(), "k": pair_order(2, 16).numpy()}
    for index, layer in enumerate(made.model.layers):
        for part in PARTS:
            weights = checkpoint.tensor(f"layers.{index}.{part}.weight").numpy()
            weights = weights[order[part]] if part in order else weights
            assert np.array_equal(getattr(layer, part).weight.dequantised(), weights), part
    assert not any("rounded" in note for note in made.report.notes)
    same_bits(made)


class _Samples(CalibrationDataReader):
    """Two prompts, for the ranges of activations (which the device measures anew)."""

    def __init__(self) -> None:
        self.left = [IDS[:, :8], IDS[:, 4:]]

    def get_next(self) -> Any:
        if not self.left:
            return None
        return {"input_ids": (ids := self.left.pop()), "attention_mask": np.ones_like(ids)}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_quantised_and_dequantised(family: str, per_channel: bool, tmp_path: Path) -> None:
    """Weights in INT8 with QuantizeLinear and DequantizeLinear around every product."""
    source = export_onnx(hf_model(family), tmp_path / "f.onnx")
    logging.disable(logging.WARNING)
    try:
        quantize_static(
            str(source), str(tmp_path / "q.onnx"), _Samples(), quant_format=QuantFormat.QDQ,
            per_channel=per_channel, weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
        )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)
    before = open_checkpoint(source)
    checkpoint, made = quantised_as_is(tmp_path / "q.onnx")
    for part in ("q", "up", "down"):
        name = f"layers.1.{part}.weight"
        codes = checkpoint.codes(name)
        assert codes is not None and codes.bits == 8
        found, wanted = checkpoint.tensor(name).numpy(), before.tensor(name).numpy()
        assert np.array_equal(found, codes.weights())
        assert (np.abs(found - wanted) <= 0.502 * codes.spread(codes.scales)).all()
    assert made.model.layers[1].q.weight.bits == 8
    same_bits(made)


@pytest.mark.parametrize("family", ["llama", "qwen2", "opt", "gpt2"])
def test_optimised_graphs(family: str, tmp_path: Path) -> None:
    """onnxruntime's optimiser fuses norms, activations and biases: the weights are the same."""
    source = export_onnx(hf_model(family), tmp_path / "f.onnx")
    made = optimizer.optimize_model(
        str(source), model_type="gpt2" if family == "gpt2" else "bert", num_heads=4,
        hidden_size=64, opt_level=0, only_onnxruntime=False,
    )  # fmt: skip
    made.save_model_to_file(str(tmp_path / "o.onnx"))
    fused = {node.op_type for node in made.model.graph.node}
    assert fused & {"SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
                    "LayerNormalization"}  # fmt: skip
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "o.onnx")
    for name in before.names:
        assert torch.equal(after.tensor(name), before.tensor(name)), name
    agrees(after, tmp_path / "o.onnx")


def pruned(graph: onnx.GraphProto) -> None:
    """Leave out the nodes that no output needs."""
    made = {name: node for node in graph.node for name in node.output}
    kept, todo = set[str](), [value.name for value in graph.output]
    while todo:
        name = todo.pop()
        if name in made and name not in kept:
            todo += made[name].input
        kept.add(name)
    nodes = [node for node in graph.node if kept & set(node.output)]
    del graph.node[:]
    graph.node.extend(nodes)


def grouped(path: Path, out: Path) -> Path:
    """A llama's graph with GroupQueryAttention that also turns, as onnxruntime-genai builds it."""
    model = onnx.load(path)
    graph = model.graph
    turn = np.arange(64)[:, None] * 10000.0 ** (-np.arange(8) / 8)
    for name, table in (("cos_cache", np.cos(turn)), ("sin_cache", np.sin(turn))):
        graph.initializer.append(onnx.numpy_helper.from_array(table.astype(np.float32), name))
    for name, value in (("one", np.array([1])), ("last", np.array(1, np.int32))):
        graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    node, whole = onnx.helper.make_node, {"to": onnx.TensorProto.INT32}
    graph.node.extend([
        node("ReduceSum", ["attention_mask", "one"], ["seen"], keepdims=0),
        node("Cast", ["seen"], ["seen32"], **whole),
        node("Sub", ["seen32", "last"], ["seqlens"]),
        node("Shape", ["attention_mask"], ["extents"]),
        node("Cast", ["extents"], ["extents32"], **whole),
        node("Gather", ["extents32", "last"], ["total"], axis=0),
    ])  # fmt: skip
    for index in range(2):
        names = {part: f"layers.{index}/self_attn/{part}_proj/MatMul" for part in "qkvo"}
        found = {part: next(n for n in graph.node if name in n.name)
                 for part, name in names.items()}  # fmt: skip
        products = [found[part].output[0] for part in "qkv"]
        past = [onnx.helper.make_tensor_value_info(
            f"past_key_values.{index}.{part}", onnx.TensorProto.FLOAT, ["batch", 2, "past", 16]
        ) for part in ("key", "value")]  # fmt: skip
        graph.input.extend(past)
        graph.node.append(node(
            "GroupQueryAttention",
            [*products, past[0].name, past[1].name, "seqlens", "total", "cos_cache",
             "sin_cache"], [f"attended.{index}", f"key.{index}", f"value.{index}"],
            domain="com.microsoft", num_heads=4, kv_num_heads=2, do_rotary=1,
        ))  # fmt: skip
        found["o"].input[0] = f"attended.{index}"
    pruned(graph)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, out)
    return out


@pytest.mark.parametrize("symmetric", [True, False])
def test_grouped_query_attention(symmetric: bool, tmp_path: Path) -> None:
    source = export_onnx(hf_model("llama"), tmp_path / "f.onnx")
    path = grouped(n_bits(source, tmp_path / "q.onnx", is_symmetric=symmetric), tmp_path / "g.onnx")
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert {"GroupQueryAttention", "MatMulNBits"} <= operators and "Softmax" not in operators
    checkpoint, made = quantised_as_is(path)
    agrees(checkpoint, path, 3e-3)  # its kernel rounds in an order of its own
    same_bits(made)
