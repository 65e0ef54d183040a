"""Each ATen operator that is translated gives torch's own result, in one exported program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flightllm.models.aten_ops_nn import ATEN, DROPPED, INLINED
from flightllm.models.export_archive import open_archive
from flightllm.models.export_graph import open_export
from flightllm.models.graph_eval import Evaluation
from flightllm.models.op_graph import Graph

aten: Any = torch.ops.aten
WEIGHTS = tuple(torch.linspace(-2, 30, n).sin() for n in (48, 6, 8))
Tensors = tuple[torch.Tensor, ...]


def arithmetic(x: torch.Tensor, y: torch.Tensor, n: torch.Tensor, t: torch.Tensor) -> list[Any]:
    """x, y float [3, 4, 8], x > 0; n int64 [3, 4]; t bool [3, 4, 8]."""
    k = aten.gt.Scalar(y, 0.0)
    outs = [
        aten.add.Tensor(x, y, alpha=2), aten.sub.Tensor(n, 3), aten.rsub.Scalar(y, 1.5),
        aten.rsub.Tensor(x, y), aten.mul.Tensor(n, 0.25), aten.div.Tensor(n, 3),
        aten.maximum(x, y), aten.minimum(x, y), aten.neg(y), aten.exp(y), aten.sqrt(x),
        aten.add.Scalar(x, 1), aten.sub.Scalar(x, 2), aten.mul.Scalar(x, 3), aten.div.Scalar(x, 4),
        aten.sin(y), aten.cos(y), aten.tanh(y), aten.abs(y), aten.erf(y), aten.log(x),
        aten.sigmoid(y), aten.relu(y), aten.reciprocal(x), aten.ceil(y), aten.floor(y),
        aten.pow.Tensor_Scalar(y, 2), aten.pow.Tensor_Tensor(x, y), aten.pow.Scalar(10000.0, x),
        aten.rsqrt(x), aten.square(y), aten.clamp(y, -0.5, 0.5), aten.clamp.Tensor(y, x),
        aten.where.self(t, x, y), aten.where.ScalarOther(t, x, -1.0),
        aten.where.ScalarSelf(t, 7.0, x), aten.where.Scalar(t, 1.0, 0.0),
        aten.masked_fill.Scalar(x, t, -float("inf")), aten.masked_fill.Tensor(x, t, y[0, 0, 0]),
        aten.mean.dim(x, [-1], True), aten.sum.dim_IntList(n, [0]), aten.amax(y, [1], True),
        aten.amin(y, [0, 2]), aten.any.dim(t, -1, True), aten.all.dim(k, 1),
        aten.cumsum(t, 1), aten.cumsum(n, -1), aten.diff(n, 1, -1, n[:, :1]), aten.diff(x),
        aten.logical_not(t), aten.bitwise_not(t), aten.logical_xor(t, k),
        aten.__and__.Tensor(t, k), aten.bitwise_and.Tensor(t, k), aten.logical_and(t, k),
        aten.__or__.Tensor(t, k), aten.bitwise_or.Tensor(t, k), aten.logical_or(t, k),
    ]  # fmt: skip
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        op = getattr(aten, name)
        outs += [op.Tensor(x, y), op.Scalar(n, 2), op.Scalar(x, 0.5)]
    return outs


def shapes(x: torch.Tensor, y: torch.Tensor, n: torch.Tensor, t: torch.Tensor) -> list[Any]:
    """As above; the first axis is open."""
    batch = x.shape[0]
    square = y[0, :, :4]
    return [
        aten.full([batch, 2], 3.5), aten.full_like(x, 2), aten.scalar_tensor(1.5),
        aten.new_full(x, [2, 2], 9), aten.zeros([batch, 1]), aten.zeros_like(n),
        aten.new_zeros(x, [batch]), aten.ones([2]), aten.ones_like(y), aten.new_ones(n, [3]),
        aten.arange(batch), aten.arange.start(1, batch), aten.arange.start_step(0, 9, 2),
        aten.triu(square, 1), aten.tril(square),
        x.to(torch.float64), aten.to.dtype(n, torch.float32), aten.to.other(n, y),
        aten.type_as(n, y), aten._to_copy(x, dtype=torch.int64), aten.clone(x),
        aten.contiguous(x), aten.alias(x), aten.detach(x), aten.lift_fresh_copy(x),
        aten.dropout(x, 0.0, False), aten.to.dtype_layout(x, dtype=torch.float32),
        aten.to.device(x, torch.device("cpu"), torch.float64),
        aten.view(x, [batch, 2, 2, 8]), aten.reshape(x, [batch, -1]), aten._unsafe_view(x, [-1, 8]),
        aten.view_copy(x, [batch, 32]), aten.flatten.using_ints(x, 1),
        aten.unflatten.int(x, 2, [2, 4]), aten.expand(x[:, :1], [batch, 4, -1]),
        aten.expand_copy(y[:1], [5, 4, 8]), aten.expand_as(y[:1], x),
        aten.permute(x, [1, 2, 0]), aten.permute_copy(x, [2, 0, 1]), aten.transpose.int(x, 1, -1),
        aten.t(square), aten.numpy_T(square), aten.unsqueeze(x, -1), aten.unsqueeze(x, 0),
        aten.squeeze.dim(x[:, :1], 1), aten.squeeze.dims(x[:, :1, :1], [1, 2]),
        aten.squeeze(square[:1]), aten.slice.Tensor(x, 2, 1, -1, 2), aten.narrow(x, 1, 1, 2),
        aten.select.int(x, 1, -2), aten.index_select(x, 1, n[0]),
        aten.index.Tensor(x, [None, n[0]]), aten.index.Tensor(x, [n[0, :1], n[:, 1:2]]),
        aten.gather(x, 2, n.unsqueeze(-1)), aten.cat([x, y], -1), aten.concat([n, n]),
        aten.stack([x, y], 1), *aten.split.Tensor(x, 3, 2), *aten.split.sizes(x, [1, 3], 1),
        *aten.split_with_sizes(x, [6, 2], -1), *aten.chunk(x, 3, 2), *aten.unbind.int(x, 1),
        aten.repeat(x, [2, 1, 1, 2]), aten.repeat_interleave.self_int(x, 2, 1),
        aten.arange(batch * 2 + 3), aten.full([batch // 2 + 1, batch % 2 + 2], 1.0),
        aten.arange(batch - 1),
    ]  # fmt: skip


def networks(x: torch.Tensor, y: torch.Tensor, n: torch.Tensor, t: torch.Tensor) -> list[Any]:
    """As above; weights are constants of the program."""
    (w, b, gain), rows = WEIGHTS, x.reshape(-1, 8)
    w = w.reshape(6, 8)
    q = x.reshape(-1, 2, 2, 8)
    k = y.reshape(-1, 2, 2, 8)
    mask = t.reshape(-1, 2, 2, 8)[:, :1, :, :2] | torch.tensor([True, False])
    attention = aten.scaled_dot_product_attention
    return [
        aten.linear(x, w, b), aten.linear(x, w), aten.matmul(x, w.t()), aten.mm(rows, w.t()),
        aten.bmm(x, aten.expand(w.t(), [x.shape[0], 8, 6])), aten.bmm(x, y.transpose(1, 2)),
        aten.addmm(b, rows, w.t()), aten.baddbmm(b, x, w.t().expand(x.shape[0], 8, 6)),
        aten.addmm(b, rows, w.t(), beta=0.5, alpha=2), aten.baddbmm(x @ w.t(), x, w.t().expand(
            x.shape[0], 8, 6), beta=0, alpha=0.25),
        aten.einsum("btd,od->bto", [x, w]), aten.embedding(w, n), aten.softmax.int(y, -1),
        aten._softmax(y, 1, False), aten._safe_softmax(y, -1), aten.silu(y), aten.gelu(y),
        aten.gelu(y, approximate="tanh"), aten.layer_norm(x, [8], gain, gain, 1e-3),
        aten.layer_norm(x, [4, 8]), *aten.native_layer_norm(x, [8], gain, None, 1e-5),
        aten.rms_norm(y, [8], gain, 1e-6), aten.rms_norm(y, [8]),
        aten._fused_rms_norm(y, [8], gain, 1e-5)[0],
        attention(q, k, k), attention(q, k, k, None, 0.0, True), attention(q, k, k, mask),
        attention(q, k, k, mask.float(), scale=0.3),
        attention(q, k[:, :1], k[:, :1], None, 0.0, True, enable_gqa=True),
        aten._scaled_dot_product_flash_attention_for_cpu(q, k, k)[0],
    ]  # fmt: skip


def inputs() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 4, 8, generator=generator) + 0.1
    y = torch.randn(3, 4, 8, generator=generator)
    n = torch.randint(0, 3, (3, 4), generator=generator)
    return x, y, n, torch.rand(3, 4, 8, generator=generator) > 0.5


class _Module(torch.nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, n: torch.Tensor, t: torch.Tensor
    ) -> list[Any]:
        out: list[Any] = self.function(x, y, n, t)
        return out


def saved(function: Any, path: Path) -> tuple[list[torch.Tensor], set[str]]:
    """Save a program; gives torch's results and the operators that the file names."""
    open_axis = {0: torch.export.Dim("batch", min=3, max=64)}
    program = torch.export.export(
        _Module(function), inputs(), dynamic_shapes=((open_axis,) * 4)[:4], strict=False
    )
    torch.export.save(program, path)
    nodes = open_archive(path).program["graph_module"]["graph"]["nodes"]
    return list(function(*inputs())), {n["target"].removeprefix("torch.ops.") for n in nodes}


def differences(graph: Graph, wanted: list[torch.Tensor]) -> list[str]:
    """Outputs that are not torch's, by the operator that makes them."""
    given = dict(zip(graph.inputs, (tensor.numpy() for tensor in inputs())))
    out: list[str] = []
    evaluation = Evaluation(graph, given)
    for name, value in zip(graph.outputs, wanted, strict=True):
        found, expected = evaluation.value(name), value.numpy()
        same = found.dtype == expected.dtype and found.shape == expected.shape
        if not same or not np.allclose(found, expected, rtol=2e-5, atol=1e-6):
            out.append(f"{graph.producers[name].called}: {found.dtype}{list(found.shape)}")
    return out


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, made = tmp_path_factory.mktemp("aten"), {}
    for function in (arithmetic, shapes, networks):
        path = folder / f"{function.__name__}.pt2"
        made[function.__name__] = path, *saved(function, path)
    return made


@pytest.mark.parametrize("name", ["arithmetic", "shapes", "networks"])
def test_results_are_those_of_torch(name: str, programs: dict[str, Any]) -> None:
    path, wanted, _ = programs[name]
    assert differences(open_export(path), wanted) == []


def test_every_operator_is_tried(programs: dict[str, Any]) -> None:
    tried = set.union(*(targets for _, _, targets in programs.values()))
    assert set(ATEN) - tried == set()
    assert tried - set(ATEN) <= {*DROPPED, *INLINED, "_operator.getitem"}


def test_the_comparison_sees_a_wrong_operator(
    programs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ATEN, "aten.silu.default", ATEN["aten.relu.default"])
    path, wanted, _ = programs["networks"]
    assert differences(open_export(path), wanted) == ["aten.silu.default: float32[3, 4, 8]"]
