"""The training loop learns, resumes exactly, keeps the best weights and refuses a foreign run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flightllm.models.config import ModelConfig, RopeConfig
from flightllm.models.lessons import Lessons
from flightllm.models.training import Recipe, Training
from flightllm.spec.errors import InputError

CONFIG = ModelConfig(
    family="llama", vocab=16, dim=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn_dim=32,
    max_length=64, rope=RopeConfig(), tied=True, bos=0, eos=(0,), name="small",
)  # fmt: skip
RECIPE = Recipe(steps=8, tokens=256, length=32, finish=2, warmup=2)


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    torch.set_num_threads(1)
    documents = [[1 + (start + 2 * i) % 15 for i in range(60)] for start in range(10)]
    return Lessons(documents, CONFIG.vocab, 0, seed=0, order=3)


def advanced(run: Training, steps: int) -> Training:
    for _ in range(steps):
        run.advance()
    return run


def same(one: Training, other: Training) -> bool:
    return all(torch.equal(one.average[name], other.average[name]) for name in one.average)


def test_loss_falls(lessons: Lessons) -> None:
    run = Training(CONFIG, replace(RECIPE, steps=20, dropout=0.0, blank=0.0), lessons)
    first = advanced(run, 1).loss
    assert advanced(run, 19).loss < 0.8 * first


def test_resumed_run_equals_one_that_was_not_interrupted(lessons: Lessons, tmp_path: Path) -> None:
    whole = advanced(Training(CONFIG, RECIPE, lessons), 8)
    half = advanced(Training(CONFIG, RECIPE, lessons), 5)
    half.save(tmp_path / "state.pt")
    resumed = Training(CONFIG, RECIPE, lessons)
    resumed.restore(tmp_path / "state.pt")
    assert resumed.step == 5
    assert same(advanced(resumed, 3), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    resumed.tensors["embed"].data[0, 0] += 1e-3
    assert not same(advanced(resumed, 1), whole)  # the comparison sees a small change


def test_seed_decides(lessons: Lessons) -> None:
    one, other = (Training(CONFIG, replace(RECIPE, seed=seed), lessons) for seed in (1, 2))
    assert not same(advanced(one, 1), advanced(other, 1))


def test_restore_refuses_another_recipe(lessons: Lessons, tmp_path: Path) -> None:
    advanced(Training(CONFIG, RECIPE, lessons), 1).save(tmp_path / "state.pt")
    with pytest.raises(InputError, match="is of a run with the recipe"):
        Training(CONFIG, replace(RECIPE, rate=0.5), lessons).restore(tmp_path / "state.pt")


def test_judge_keeps_the_last_that_is_near_the_lowest(lessons: Lessons) -> None:
    run = Training(CONFIG, replace(RECIPE, tolerance=0.1), lessons)
    for bits, kept in ((2.0, 1), (2.1, 2), (2.3, 2), (1.9, 4), (2.08, 5), (2.1, 5)):
        before = run.kept
        assert advanced(run, 1).judge(lambda tensors, bits=bits: bits) == bits
        assert run.kept_step == kept
        assert (run.kept is before) == (kept != run.step)
    assert (run.kept_bits, run.lowest_bits) == (2.08, 1.9)
    assert not torch.equal(run.kept["embed"], run.average["embed"])
