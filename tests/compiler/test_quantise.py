"""The whole of quantisation: every family, every option, and the figures it must reach."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_checkpoint import FAMILIES, random_checkpoint

from flightllm.compiler import balance, calibrate, smooth
from flightllm.compiler.quant_report import average_bits, stored_bits
from flightllm.compiler.quantise import Quantised, quantise
from flightllm.compiler.scheme import QuantOptions
from flightllm.models.checkpoint import Checkpoint, open_checkpoint
from flightllm.models.integer import IntegerModel
from flightllm.models.quantized import QuantModel
from flightllm.models.reference import FloatModel
from flightllm.models.tokenizer import load_tokenizer
from flightllm.spec.errors import InputError

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _little_text(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fast tests calibrate on a few short texts, and search briefly."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(smooth, "STEPS", 25)
        monkeypatch.setattr(balance, "STEPS", 20)
        monkeypatch.setattr(calibrate, "calibration_size", lambda config: (32, 48))
    yield


def divergence(checkpoint: Checkpoint, model: QuantModel) -> float:
    """Of the integer model from the float model, nats a token, on text of another seed."""
    text = calibrate.sample(calibrate.float_model(checkpoint), 6, 40, seed=99)
    integer, total, count = IntegerModel(model), 0.0, 0
    with torch.no_grad():
        exact = torch.log_softmax(FloatModel.load(checkpoint).forward(text.ids).double(), -1)
    for row, valid in enumerate(text.valid.sum(1).tolist()):
        logits = torch.from_numpy(integer.forward(text.ids[row, :valid].tolist())).double()
        wanted = exact[row, :valid]
        total += float((wanted.exp() * (wanted - torch.log_softmax(logits, -1))).sum())
        count += valid
    return total / count


def run(checkpoint: Checkpoint, **options: Any) -> Quantised:
    return quantise(checkpoint, QuantOptions(**{"weights": "w8g32", **options}))


@pytest.mark.parametrize("name", FAMILIES)
def test_families_at_8_bits(name: str) -> None:
    """Float and integer model agree; what differs is rounding alone."""
    checkpoint = random_checkpoint(name)
    plain = run(checkpoint, calibrate="none")
    made = run(checkpoint)
    assert divergence(checkpoint, plain.model) < 0.02
    assert divergence(checkpoint, made.model) < 0.012
    assert made.report.divergence is not None and made.report.divergence < 0.02
    assert len(made.report.residual_errors) == 2 and not plain.report.residual_errors
    assert made.model.max_length == 64 and made.model.window == checkpoint.config.window


def test_passes_are_reported() -> None:
    checkpoint = random_checkpoint("llama")
    made = run(checkpoint, weights="w4g32", sparsity="8:16", masks="rows")
    passes = {p.name: p for p in made.report.passes}
    assert list(passes) == ["vectors", "scale", "smooth k", "prune", "round"]
    assert passes["scale"].method == "balance"
    assert passes["prune"].method == "sparsegpt 8:16, masks by rows"
    assert all(len(p.errors) == 2 and p.before and p.after for p in passes.values())
    assert passes["vectors"].bits == 16 > passes["prune"].bits > passes["round"].bits
    assert passes["round"].bits == pytest.approx(made.report.average_weight_bits)
    assert passes["round"].errors == pytest.approx(made.report.residual_errors, rel=1e-3)
    assert "pass prune (sparsegpt 8:16, masks by rows)" in str(made.report)
    plain = run(checkpoint, sparsity="8:16", calibrate="none").report.passes
    assert [(p.name, p.before) for p in plain] == [("prune", None), ("round", None)]


@pytest.mark.parametrize(
    "options",
    [
        {"rounding": "nearest"},
        {"scaling": "awq"},
        {"scaling": "smoothquant", "kv": 4},
        {"scaling": "none"},
        {"pruning": "wanda", "sparsity": "8:16"},
        {"pruning": "magnitude", "sparsity": "4:16", "rounding": "nearest"},
    ],
)
def test_methods_reach_the_model(options: dict[str, Any]) -> None:
    """Each is another model than the default's, and runs."""
    checkpoint = random_checkpoint("llama")
    base = {name: value for name, value in options.items() if name in ("sparsity", "kv")}
    first = run(checkpoint, weights="w4g32", **base)
    made = run(checkpoint, weights="w4g32", **options)
    assert (made.model.layers[1].up.weight.levels != first.model.layers[1].up.weight.levels).any()
    assert ("scale" in {p.name for p in made.report.passes}) == (options.get("scaling") != "none")
    assert np.isfinite(IntegerModel(made.model).forward([1, 5, 7])).all()


def test_calibration_helps() -> None:
    checkpoint = random_checkpoint("llama")
    plain, made = (run(checkpoint, weights="w4g32", calibrate=c) for c in ("none", "auto"))
    assert divergence(checkpoint, made.model) < 0.8 * divergence(checkpoint, plain.model)


@pytest.mark.parametrize("text", ["none", "auto"])
@pytest.mark.parametrize(
    "options",
    [
        {"weights": "w2g128", "kv": 4},
        {"weights": "w3g64", "head_bits": 4},
        {"sparsity": "8:16"},
        {"weights": "w2g32", "sparsity": "4:16", "masks": "rows"},
        {"sparsity": "2:16", "smooth_k": False, "max_length": 30},
    ],
)
def test_options_reach_the_model(options: dict[str, Any], text: str) -> None:
    made = run(random_checkpoint("llama"), calibrate=text, **options)
    chosen = QuantOptions(**{"weights": "w8g32", **options})
    scheme = chosen.scheme()
    assert scheme is not None
    for layer in made.model.layers:
        for part in (layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down):
            assert part is not None
            assert part.weight.bits == scheme.bits
            assert part.weight.kept == chosen.kept
            assert part.weight.private == (chosen.masks == "rows")
            assert (part.weight.table is not None) == (scheme.bits == 2)
            assert part.weight.group == (64 if scheme.group > 32 and part is layer.down else 32)
    head = made.model.head.weight
    assert head.bits == chosen.head_bits and head.kept == 16
    assert (made.model.key_bits, made.model.value_bits) == chosen.kv_bits
    assert made.model.max_length == (chosen.max_length or 64)
    assert np.isfinite(IntegerModel(made.model).forward([1, 5, 7])).all()
    assert made.report.code_bits == scheme.bits
    assert f"w{scheme.bits:g}g" in str(made.report) and len(made.report.matrices) == 15


@pytest.mark.parametrize("text", ["none", "auto"])
def test_mixed_widths(text: str) -> None:
    made = run(random_checkpoint("opt"), weights="w3.5g32", calibrate=text)
    assert 3.2 < made.report.code_bits <= 3.5
    assert len({m.bits for m in made.report.matrices[:-1]}) > 1
    assert average_bits(made.model) == (made.report.code_bits, made.report.average_weight_bits)


def test_stored_bits() -> None:
    made = run(random_checkpoint("llama"), weights="w4g32", sparsity="8:16", calibrate="none")
    weight = made.model.layers[0].q.weight  # 48 x 48: 24 kept a row, 2 scales, 3 masks a pair
    assert stored_bits(weight) == 48 * (24 * 4 + 2 * 16) + 24 * 3 * 16


def test_same_result_every_time() -> None:
    checkpoint = random_checkpoint("llama")
    first, second = (run(checkpoint, weights="w4g32").model for _ in range(2))
    for a, b in zip(first.layers, second.layers):
        np.testing.assert_array_equal(a.down.weight.levels, b.down.weight.levels)
        np.testing.assert_array_equal(a.k.weight.scales, b.k.weight.scales)


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    quantise(random_checkpoint("llama"), QuantOptions(), lambda *step: told.append(step))
    assert told[0][0] == "sample calibration text"
    assert told[-1] == ("quantise layers", 3, 3)


def test_shapes_have_no_weights() -> None:
    config = random_checkpoint("llama").config
    with pytest.raises(InputError, match="shape without weights"):
        run(Checkpoint(config, {}, "llama2-7b"))


def test_a_checkpoints_own_codes(stories: Path) -> None:
    """Groups of 8 cannot be held: they are rounded again, and the report says so."""
    checkpoint = open_checkpoint(stories / "stories260K-q8.bin")
    made = quantise(checkpoint, QuantOptions(calibrate="none"))
    assert made.report.scheme == "as-is"
    assert any("w8g32" in note for note in made.report.notes)
    assert made.report.code_bits == 8


def documents(stories: Path, test_data: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(stories)
    text = (test_data / "text" / "tinystories_sample.txt").read_text()
    parts = (part.strip().replace("\n", " ") for part in text.split("<|endoftext|>"))
    return [tokenizer.encode(part)[:512] for part in parts if part]


def figures(model: QuantModel, stories: Path, test_data: Path) -> tuple[float, float]:
    """Perplexity against the float model's, and teacher-forced agreement with its greedy text."""
    golden = np.load(stories / "golden.npz")
    integer, loss, count = IntegerModel(model), 0.0, 0
    for ids in documents(stories, test_data):
        log = torch.log_softmax(torch.from_numpy(integer.forward(ids[:-1])).double(), -1)
        loss -= float(log.gather(1, torch.tensor(ids[1:])[:, None]).sum())
        count += len(ids) - 1
    assert count == int(golden["ppl_tokens"])
    prompt, greedy = golden["prompt_ids"].tolist(), golden["greedy_ids"].tolist()
    logits = integer.forward((prompt + greedy)[:-1])[len(prompt) - 1 :]
    agreement = float((logits.argmax(-1) == np.array(greedy)).mean())
    return float(np.exp(loss / count) / golden["ppl"]), agreement


def test_stories_without_calibration(stories: Path, test_data: Path) -> None:
    ratio, agreement = figures(
        quantise(open_checkpoint(stories), QuantOptions("w8g32", calibrate="none")).model,
        stories,
        test_data,
    )
    assert 0.995 < ratio < 1.01 and agreement > 0.95


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "worst", "agreement"), [("w8g32", 1.005, 0.97), ("w4g32", 1.08, 0.0)]
)
def test_stories_bars(
    stories: Path, test_data: Path, weights: str, worst: float, agreement: float
) -> None:
    """Calibrated on text sampled from the model, never on the text it is judged by."""
    made = quantise(open_checkpoint(stories), QuantOptions(weights))
    ratio, found = figures(made.model, stories, test_data)
    assert ratio <= worst and found >= agreement
