"""The evaluator passes onnx.backend.test's single-operator tests of every operator it has."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from flightllm.models.graph_eval import run_node
from flightllm.models.onnx_file import _node
from flightllm.models.onnx_ops_nn import ALL, MICROSOFT

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROOT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "node"
OTHER_TYPES = ("test_identity_opt", "test_identity_sequence")
"""Tests of values that are no tensors, which no decoder has."""


def cases() -> dict[str, list[tuple[Path, onnx.ModelProto]]]:
    """The tests of one node each, by operator."""
    found: dict[str, list[tuple[Path, onnx.ModelProto]]] = {name: [] for name in ALL}
    for folder in sorted(ROOT.iterdir()):
        if "_expanded" in folder.name or folder.name in OTHER_TYPES:
            continue
        model = onnx.load(folder / "model.onnx")
        node = model.graph.node[0]
        if len(model.graph.node) == 1 and node.domain == "" and node.op_type in ALL:
            found[node.op_type].append((folder, model))
    return found


def load(folder: Path, kind: str, index: int) -> np.ndarray:
    raw = (folder / "test_data_set_0" / f"{kind}_{index}.pb").read_bytes()
    return numpy_helper.to_array(onnx.TensorProto.FromString(raw))


def close(found: Any, wanted: np.ndarray) -> None:
    made = np.asarray(found)
    assert made.dtype == wanted.dtype and made.shape == wanted.shape
    if wanted.dtype.kind not in "fV":
        np.testing.assert_array_equal(made, wanted)
        return
    loose = 1e-6 if wanted.dtype.itemsize > 2 else 1e-3
    np.testing.assert_allclose(
        made.astype(np.float64), wanted.astype(np.float64), rtol=1e-3, atol=loose
    )


def run(folder: Path, model: onnx.ModelProto) -> None:
    node = _node(0, model.graph.node[0], folder)
    names = [value.name for value in model.graph.input]
    values = {name: load(folder, "input", i) for i, name in enumerate(names)}
    outputs = run_node(node, [values[name] if name else None for name in node.inputs])
    shown = [result for name, result in zip(node.outputs, outputs) if name]
    assert len(shown) == sum(map(bool, node.outputs))
    for index, result in enumerate(shown):
        close(result, load(folder, "output", index))


def listed() -> set[str]:
    """The operators that docs/support.md says are tested here."""
    page = (DOCS / "support.md").read_text(encoding="utf-8")
    text = page.partition("holds this list against what passed:")[2].strip().partition("\n\n")[0]
    return set(re.findall(r"`(\w+)`", text))


def test_every_operator_passes_all_its_tests() -> None:
    failed: list[str] = []
    passed: Counter[str] = Counter()
    for name, tests in cases().items():
        for folder, model in tests:
            try:
                run(folder, model)
                passed[name] += 1
            except Exception as error:
                failed.append(f"{folder.name}: {error}"[:200])
    assert not failed, "\n".join(failed)
    assert sum(passed.values()) >= 690
    assert listed() == set(passed)
    # The others are onnxruntime's, one of them in ONNX's own domain: test_onnx_contributed.py.
    assert set(ALL) - set(passed) == {"SimplifiedLayerNormalization", *MICROSOFT}


def test_the_comparison_sees_a_wrong_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALL, "Sin", ALL["Cos"])
    folder, model = cases()["Sin"][0]
    with pytest.raises(AssertionError):
        run(folder, model)
