"""Operators of onnxruntime's own: the importer's evaluation against onnxruntime, random inputs.

onnx.backend.test has no test of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from flightllm.models.graph_eval import Evaluation
from flightllm.models.graph_weights import Weights
from flightllm.models.onnx_file import open_onnx
from flightllm.models.onnx_ops_nn import MICROSOFT
from flightllm.spec.errors import InputError

Array = np.ndarray[Any, Any]
Case = tuple[str, list[Array | None], dict[str, Any], int]
"""Operator, inputs (None where one is left out), attributes, number of outputs."""


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed + sum(shape)).normal(size=shape).astype(np.float32)


def angles(positions: int, half: int) -> tuple[Array, Array]:
    turn = np.arange(positions)[:, None] * 10000.0 ** (-np.arange(half) / half)
    return np.cos(turn).astype(np.float32), np.sin(turn).astype(np.float32)


def ints(*values: int, kind: Any = np.int32) -> Array:
    return np.array(values, kind)


def attention(*, past: int = 0, tokens: int = 5, packed: bool = False, **flags: Any) -> Case:
    """Grouped queries: 4 heads on 2, 16 numbers each, a batch of 2."""
    q, k, v = (normal(2, tokens, n, seed=i) for i, n in enumerate((64, 32, 32)))
    parts: list[Array | None] = [q, k, v]
    if packed:
        parts = [np.concatenate([q, k, v], axis=-1), None, None]
    cache: list[Array | None] = [normal(2, 2, past, 16, seed=3), normal(2, 2, past, 16, seed=4)]
    lengths = [np.full(2, past + tokens - 1, np.int32), np.array(past + tokens, np.int32)]
    turned: list[Array | None] = []
    if flags.get("do_rotary"):
        turned = list(angles(64, 8))
    heads = {"num_heads": 4, "kv_num_heads": 2}
    return "GroupQueryAttention", [*parts, *cache, *lengths, *turned], {**heads, **flags}, 3


CASES: dict[str, Case] = {
    "fast-gelu": ("FastGelu", [normal(3, 8)], {}, 1),
    "fast-gelu-bias": ("FastGelu", [normal(3, 8), normal(8)], {}, 1),
    "bias-gelu": ("BiasGelu", [normal(3, 8), normal(8)], {}, 1),
    "gelu": ("Gelu", [normal(3, 8)], {}, 1),
    "quick-gelu": ("QuickGelu", [normal(3, 8)], {"alpha": 1.5}, 1),
    "rotary": ("RotaryEmbedding", [normal(2, 5, 32), ints(3, kind=np.int64), *angles(16, 4)],
               {"num_heads": 4}, 1),
    "rotary-places": (
        "RotaryEmbedding",
        [normal(2, 3, 32), np.array([[0, 1, 2], [7, 8, 9]]), *angles(16, 4)],
        {"interleaved": 1}, 1,
    ),
    "rotary-heads": ("RotaryEmbedding",
                     [normal(2, 4, 5, 8), ints(0, kind=np.int64), *angles(16, 4)], {}, 1),
    "skip-norm": ("SkipLayerNormalization",
                  [normal(2, 3, 8), normal(2, 3, 8, seed=1), normal(8), normal(8, seed=1),
                   normal(8, seed=2)], {"epsilon": 1e-3}, 4),
    "skip-norm-plain": ("SkipLayerNormalization",
                        [normal(2, 3, 8), normal(2, 3, 8, seed=1), normal(8)], {}, 4),
    "skip-rms": ("SkipSimplifiedLayerNormalization",
                 [normal(2, 3, 8), normal(2, 3, 8, seed=1), normal(8), normal(8, seed=1)],
                 {"epsilon": 1e-3}, 4),
    "skip-rms-plain": ("SkipSimplifiedLayerNormalization",
                       [normal(2, 3, 8), normal(2, 3, 8, seed=1), normal(8)], {}, 4),
    "rms": ("ai.onnx:SimplifiedLayerNormalization", [normal(2, 3, 8), normal(8)],
            {"epsilon": 1e-3}, 1),
    "grouped": attention(),
    "grouped-past": attention(past=6, tokens=1),
    "grouped-rotary": attention(do_rotary=1),
    "grouped-rotary-past": attention(past=6, tokens=1, do_rotary=1, rotary_interleaved=1),
    "grouped-window": attention(tokens=7, local_window_size=3),
    "grouped-packed": attention(packed=True, do_rotary=1, scale=0.5),
    "grouped-capped": attention(softcap=2.0),
}  # fmt: skip


def written(case: Case, path: Path) -> dict[str, Array]:
    """Write a graph of one operator; gives its inputs."""
    op, values, attributes, outputs = case
    domain, _, name = op.rpartition(":")
    names = ["" if value is None else f"in.{i}" for i, value in enumerate(values)]
    node = helper.make_node(
        name, names, [f"out.{i}" for i in range(outputs)],
        domain="" if domain else "com.microsoft", **attributes,
    )  # fmt: skip
    given = {n: value for n, value in zip(names, values) if value is not None}
    kind = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        [node], "one",
        [helper.make_tensor_value_info(n, kind(v.dtype), v.shape) for n, v in given.items()],
        [helper.make_empty_tensor_value_info(n) for n in node.output],
    )  # fmt: skip
    save(graph, path)
    return given


def save(graph: onnx.GraphProto, path: Path) -> None:
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=9), path)


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def same(found: Any, wanted: Array) -> bool:
    return found.shape == wanted.shape and np.allclose(found, wanted, rtol=1e-4, atol=2e-5)


def outputs_differ(path: Path, given: dict[str, Array]) -> list[str]:
    graph = open_onnx(path)
    names = [name for name in graph.outputs if name.startswith("out")]
    out: list[str] = []
    for name, wanted in zip(names, session(path).run(names, given)):
        if wanted.size and not same(Evaluation(graph, given).value(name), wanted):
            out.append(name)
    return out


@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_onnxruntime(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    given = written(case, tmp_path / "one.onnx")
    if case[0].startswith("Skip"):  # mean and inverse deviation are outputs of training alone
        trimmed(tmp_path / "one.onnx", {1, 2})
    assert outputs_differ(tmp_path / "one.onnx", given) == []


def trimmed(path: Path, dropped: set[int]) -> None:
    """Leave out some outputs."""
    model = onnx.load(path)
    node = model.graph.node[0]
    for place in dropped:
        node.output[place] = ""
    kept = [value for value in model.graph.output if value.name in node.output]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, path)


def test_every_operator_is_tried() -> None:
    tried = {case[0].replace("ai.onnx:", "") for case in CASES.values()}
    assert {f"com.microsoft:{name}" for name in tried} >= set(MICROSOFT)


def test_the_comparison_sees_a_wrong_operator(tmp_path: Path, monkeypatch: Any) -> None:
    from flightllm.models.onnx_ops_nn import ALL

    given = written(CASES["gelu"], tmp_path / "one.onnx")
    monkeypatch.setitem(ALL, "com.microsoft:Gelu", ALL["com.microsoft:QuickGelu"])
    assert outputs_differ(tmp_path / "one.onnx", given) == ["out.0"]


# ------------------------------------------------------------------------------------ MatMulNBits


def n_bits(
    path: Path, *, bits: int = 4, block: int = 32, columns: int = 80, zeros: str = "none",
    order: bool = False, bias: bool = False,
) -> tuple[Array, Array]:  # fmt: skip
    """Write a graph of one product; gives its input and the codes' columns by block."""
    rng, rows, blocks = np.random.default_rng(1), 24, -(-columns // block)
    parts: dict[str, Array] = {
        "codes": rng.integers(0, 256, (rows, blocks, block * bits // 8), np.uint8),
        "scales": rng.uniform(0.5, 1.5, (rows, blocks)).astype(np.float32),
    }
    if zeros == "packed":
        parts["zeros"] = rng.integers(0, 256, (rows, -(-blocks * bits // 8)), np.uint8)
    elif zeros == "float":
        parts["zeros"] = rng.uniform(0, (1 << bits) - 1, (rows, blocks)).astype(np.float32)
    places = np.arange(blocks * block) // block
    if order:
        places = rng.permutation(places)
        parts["g_idx"] = places.astype(np.int32)
    if bias:
        parts["bias"] = normal(rows)
    names = [
        name if name in parts else "" for name in ("codes", "scales", "zeros", "g_idx", "bias")
    ]
    node = helper.make_node(
        "MatMulNBits", ["x", *names], ["y"], domain="com.microsoft", K=columns, N=rows, bits=bits,
        block_size=block,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, rows])],
        [numpy_helper.from_array(value, name) for name, value in parts.items()],
    )  # fmt: skip
    save(graph, path)
    return normal(5, columns), places[:columns]


N_BITS: dict[str, dict[str, Any]] = {
    "symmetric": {},
    "zeros": {"zeros": "packed"},
    "float-zeros": {"zeros": "float"},
    "bias": {"zeros": "packed", "bias": True},
    "8-bits": {"bits": 8, "zeros": "packed"},
    "8-bits-symmetric": {"bits": 8},
    "2-bits": {"bits": 2, "zeros": "packed", "columns": 128},
    "large-blocks": {"block": 128, "columns": 256, "zeros": "packed"},
    "act-order": {"zeros": "float", "order": True},
    "act-order-symmetric": {"order": True, "columns": 96},
}


@pytest.mark.parametrize("name", N_BITS)
def test_codes_are_those_of_onnxruntime(name: str, tmp_path: Path) -> None:
    path = tmp_path / "one.onnx"
    x, places = n_bits(path, **N_BITS[name])
    graph = open_onnx(path)
    linear = next(iter(Weights(graph).linears.values()))
    found = x @ linear.weight().T
    if linear.bias is not None:
        found = found + graph.constants[linear.bias].load()
    (wanted,) = session(path).run(None, {"x": x})
    scale = np.abs(wanted).max()
    assert np.allclose(found / scale, wanted / scale, atol=1e-5)
    assert linear.codes is not None
    codes: Callable[[], Any] = linear.codes
    assert (codes().places is not None) == ("order" in N_BITS[name])
    if "order" in N_BITS[name]:
        assert np.array_equal(codes().places, places)


def test_zero_points_with_act_order(tmp_path: Path) -> None:
    """As documented; onnxruntime 1.32 leaves packed zero points out of account beside g_idx."""
    path = tmp_path / "one.onnx"
    _, places = n_bits(path, zeros="packed", order=True)
    graph = open_onnx(path)
    parts = {name: constant.load() for name, constant in graph.constants.items()}
    bits = [
        np.stack([parts[n] & 15, parts[n] >> 4], -1).reshape(24, -1) for n in ("codes", "zeros")
    ]
    levels, zeros = (part.astype(np.float32) for part in bits)
    wanted = (levels[:, :80] - zeros[:, places]) * parts["scales"][:, places]
    linear = next(iter(Weights(graph).linears.values()))
    assert np.array_equal(linear.weight(), wanted)


def test_act_order_that_names_no_block(tmp_path: Path) -> None:
    path = tmp_path / "one.onnx"
    n_bits(path, order=True)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "g_idx":
            tensor.CopyFrom(numpy_helper.from_array(np.full(96, 3, np.int32), "g_idx"))
    onnx.save(model, path)
    linear = next(iter(Weights(open_onnx(path)).linears.values()))
    with pytest.raises(InputError, match="g_idx 'g_idx' names none of 3 blocks"):
        linear.weight()
