"""Recovery: closer to the float model, in the same format, interrupted or not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from random_checkpoint import random_checkpoint

from flightllm.compiler import balance, calibrate, recover, smooth
from flightllm.compiler.block import straight
from flightllm.compiler.calibrate import Calibration
from flightllm.compiler.quantise import quantise
from flightllm.compiler.recover import Recipe, Recovery
from flightllm.compiler.scheme import QuantOptions
from flightllm.models.checkpoint import Checkpoint
from flightllm.models.integer import IntegerModel
from flightllm.models.quantized import QuantModel
from flightllm.models.reference import FloatModel
from flightllm.spec.errors import InputError

torch.set_num_threads(1)

OPTIONS = QuantOptions("w3g32", sparsity="8:16", calibrate="none")
SHORT = Recipe(steps=6, tokens=96, every=2)


@pytest.fixture(scope="module")
def case() -> tuple[Checkpoint, QuantModel, Calibration]:
    """A checkpoint, what was made of it, and text."""
    checkpoint = random_checkpoint("llama")
    made = quantise(checkpoint, OPTIONS).model
    return checkpoint, made, calibrate.sample(calibrate.float_model(checkpoint), 32, 24)


def start(case: tuple[Checkpoint, QuantModel, Calibration], recipe: Recipe = SHORT) -> Recovery:
    checkpoint, model, text = case
    return Recovery(FloatModel.load(checkpoint), model, text, recipe)


def train(run: Recovery) -> QuantModel:
    while run.step < run.recipe.steps:
        run.advance()
        if run.step % run.recipe.every == 0:
            run.look()
    return run.finish()


def test_gradients_pass_straight() -> None:
    x = torch.tensor([0.3, 1.7], requires_grad=True)
    made = straight(x * 2, torch.tensor([1.0, 3.0]))
    assert made.tolist() == [1.0, 3.0]
    made.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [2.0, 2.0]
    plain = torch.tensor([0.3])
    assert straight(plain, torch.tensor([0.0])).item() == 0.0


def test_format_is_kept_and_the_model_is_better(
    case: tuple[Checkpoint, QuantModel, Calibration],
) -> None:
    checkpoint, before, text = case
    quick = Recipe(steps=40, tokens=192, rate=0.06, fine_rate=0.01, warmup=5, every=10)
    run = start(case, quick)
    made = train(run)
    assert run.best < 0.85 * run.first
    changed = 0
    for old, new in zip(before.layers, made.layers):
        for name in ("q", "k", "v", "o", "gate", "up", "down"):
            a, b = getattr(old, name).weight, getattr(new, name).weight
            assert (b.bits, b.group, b.table, b.kept) == (a.bits, a.group, a.table, a.kept)
            np.testing.assert_array_equal(b.mask, a.mask)
            assert b.levels.min() >= -4 and b.levels.max() <= 3
            assert (b.levels[~b.mask] == 0).all()
            changed += int((a.levels != b.levels).sum())
    assert changed > 100
    # What the student measures is what the integer model does.
    with torch.no_grad():
        exact = torch.log_softmax(FloatModel.load(checkpoint).forward(text.ids).double(), -1)
    losses = []
    for model in (before, made):
        integer, total, count = IntegerModel(model), 0.0, 0
        for row in run.held.tolist():
            valid = int(text.valid[row].sum())
            found = torch.from_numpy(integer.forward(text.ids[row, :valid].tolist())).double()
            wanted = exact[row, :valid]
            miss = wanted - torch.log_softmax(found, -1)
            total += float((wanted.exp() * miss).sum())
            count += valid
        losses.append(total / count)
    assert losses == pytest.approx([run.first, run.best], rel=0.05)


def test_an_interrupted_run_ends_the_same(
    case: tuple[Checkpoint, QuantModel, Calibration], tmp_path: Path
) -> None:
    whole = train(start(case))
    first, path = start(case), tmp_path / "state"
    for _ in range(2):
        first.advance()
    first.look()
    first.save(path)
    assert list(tmp_path.iterdir()) == [path]
    second = start(case)
    second.restore(path)
    assert second.step == 2
    resumed = train(second)
    for a, b in zip(whole.layers, resumed.layers):
        np.testing.assert_array_equal(a.down.weight.levels, b.down.weight.levels)
        np.testing.assert_array_equal(a.q.weight.scales, b.q.weight.scales)
        np.testing.assert_array_equal(a.attn_norm, b.attn_norm)


def test_states_of_other_runs_are_refused(
    case: tuple[Checkpoint, QuantModel, Calibration], tmp_path: Path
) -> None:
    path = tmp_path / "state"
    start(case).save(path)
    with pytest.raises(InputError, match="another model, text or number of steps"):
        start(case, replace(SHORT, steps=7)).restore(path)
    path.write_bytes(b"no state")
    with pytest.raises(InputError, match="is not the state of a recovery"):
        start(case).restore(path)


def test_what_training_spoils_is_left_alone(
    case: tuple[Checkpoint, QuantModel, Calibration],
) -> None:
    run = start(case, replace(SHORT, rate=5.0, fine_rate=1.0))
    made = train(run)
    assert run.best == run.first
    for a, b in zip(case[1].layers, made.layers):
        np.testing.assert_array_equal(a.up.weight.levels, b.up.weight.levels)


def test_codes_that_were_not_rounded_here_are_refused(
    case: tuple[Checkpoint, QuantModel, Calibration],
) -> None:
    model = case[1]
    head = model.head.weight
    for changes, sentence in (
        ({"minima": np.zeros_like(head.scales)}, "head has zero points"),
        ({"bits": 4, "table": tuple(range(16))}, "head has a code table"),
    ):
        other = replace(model.head, weight=replace(head, **changes))  # type: ignore[arg-type]
        with pytest.raises(InputError, match=sentence):
            recover.check_trainable(replace(model, head=other))


@pytest.mark.parametrize("name", ["opt", "mistral"])
def test_quantise_recovers(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Biases, positions and learned norms train too; the report gains a pass."""
    monkeypatch.setattr(smooth, "STEPS", 5)
    monkeypatch.setattr(balance, "STEPS", 5)
    monkeypatch.setattr(calibrate, "calibration_size", lambda config: (8, 20))
    monkeypatch.setattr(recover, "TEXTS", 24)
    told = list[str]()
    state = tmp_path / "state"
    options = QuantOptions(
        "w2g32", recover="auto", recover_steps=8, recover_state=state, max_length=16
    )
    made = quantise(random_checkpoint(name), options, lambda what, *_: told.append(what))
    last = made.report.passes[-1]
    assert last.name == "recover" and last.method == "8 steps on sampled text"
    assert len(last.errors) == 2 and last.before is not None and last.after is not None
    assert last.bits == made.report.passes[-2].bits
    assert "recover" in told and state.is_file()
    assert np.isfinite(IntegerModel(made.model).forward([1, 5, 7])).all()


def test_large_models_are_refused(
    case: tuple[Checkpoint, QuantModel, Calibration], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recover, "LARGEST", 10)
    with pytest.raises(InputError, match="more than the 10 that train"):
        recover.recover(case[0], case[1], OPTIONS, lambda *step: None)
