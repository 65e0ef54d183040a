"""Block-sparse attention: patterns, their choice, and what they do to a model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from driver import Driver
from random_checkpoint import random_checkpoint, random_config

from flightllm.compiler import block_sparse
from flightllm.compiler.block_patterns import candidates, rule_patterns
from flightllm.compiler.block_sparse import (
    BlockMasks,
    MaskedAttention,
    choose_masks,
    masked_perplexity,
)
from flightllm.compiler.build import build_program
from flightllm.compiler.calibrate import Calibration
from flightllm.compiler.quantise import Quantised, quantise
from flightllm.compiler.scheme import QuantOptions
from flightllm.models.checkpoint import Checkpoint
from flightllm.models.integer import IntegerModel
from flightllm.models.patterns import DENSE, Pattern
from flightllm.models.reference import FloatModel
from flightllm.sim.functional import FunctionalDevice
from flightllm.spec.config import load_config
from flightllm.spec.errors import InputError

torch.set_num_threads(1)

TOKENS = 150  # five blocks, the last one short


def test_patterns() -> None:
    kept = Pattern(1, 2).keeps(TOKENS)
    assert kept.shape == (TOKENS, TOKENS)
    blocks = np.tril(kept[::32, ::32])  # of the first token of each block
    wanted = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 1, 1, 0], [1, 0, 0, 1, 1]]
    assert blocks.astype(int).tolist() == wanted
    assert Pattern(1, 2).density(TOKENS) == sum(map(sum, wanted)) / 15
    assert DENSE.density(TOKENS) == 1 and DENSE.keeps(TOKENS).all()
    assert all(c == DENSE or c.density(TOKENS) < 1 for c in candidates(TOKENS))


@pytest.fixture(scope="module")
def case() -> tuple[Checkpoint, Calibration]:
    checkpoint = random_checkpoint("llama", max_length=160)
    for layer in range(2):  # attention that is worth keeping
        checkpoint.tensor(f"layers.{layer}.q.weight").mul_(2.0)
    # KV head 1 of layer 0 has query heads 2 and 3; without queries they attend to all alike.
    checkpoint.tensor("layers.0.q.weight")[24:] = 0
    ids = torch.randint(96, (3, TOKENS), generator=torch.Generator().manual_seed(0))
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[2, 100:] = False
    return checkpoint, Calibration(ids, valid, "test")


def test_the_budget_goes_where_attention_is_spread(case: tuple[Checkpoint, Calibration]) -> None:
    last = 1.0
    for density in (0.5, 0.8, 1.0):
        made = choose_masks(*case, density)
        assert made.density <= density + 1e-6
        assert made.lost <= last
        last = made.lost
    assert made.lost == 0 and {p for heads in made.patterns for p in heads} == {DENSE}
    some = choose_masks(*case, 0.7)
    sizes = [[p.density(TOKENS) for p in heads] for heads in some.patterns]
    assert sizes[0][1] == max(max(heads) for heads in sizes)
    assert "density" in str(some) and "layer 1: " in str(some)


def test_impossible_density(case: tuple[Checkpoint, Calibration]) -> None:
    with pytest.raises(InputError, match="density: 0.1 is less than the 0.333"):
        choose_masks(*case, 0.1)


@torch.no_grad()
def test_perplexity(case: tuple[Checkpoint, Calibration]) -> None:
    """Dense masks change nothing; masks act on their own head; the reference agrees."""
    checkpoint, text = case
    exact = masked_perplexity(checkpoint, text, None)
    log = torch.log_softmax(FloatModel.load(checkpoint).forward(text.ids).double(), -1)
    counted = text.valid[:, 1:]
    picked = log[:, :-1].gather(2, text.ids[:, 1:, None])[..., 0][counted]
    assert exact == pytest.approx(float((-picked.mean()).exp()), rel=1e-4)
    dense = BlockMasks(((DENSE, DENSE), (DENSE, DENSE)), 0.0, 1.0, TOKENS)
    assert masked_perplexity(checkpoint, text, dense) == pytest.approx(exact, rel=1e-5)
    found = {
        masked_perplexity(
            checkpoint, text,
            BlockMasks(((DENSE, DENSE), tuple(heads)), 0.0, 1.0, TOKENS),  # type: ignore[arg-type]
        )
        for heads in ((Pattern(0, 1), DENSE), (DENSE, Pattern(0, 1)))
    }  # fmt: skip
    assert len(found) == 2 and all(abs(value - exact) > 1e-4 * exact for value in found)


# ------------------------------------------------------------------ the pass

HALF = QuantOptions(
    "w8g32", rounding="nearest", scaling="none", smooth_k=False, attention_density=0.5
)

@pytest.fixture(scope="module")
def made(case: tuple[Checkpoint, Calibration]) -> Quantised:
    """The model with half of its attention's blocks."""
    return quantise(case[0], HALF)


def test_the_pass_reports_what_it_keeps_and_costs(
    case: tuple[Checkpoint, Calibration], made: Quantised
) -> None:
    found = made.report.passes[-1]
    masks = MaskedAttention(case[0], HALF, lambda *_: None).masks
    assert found.name == "attention" and f"{masks.density:.1%} of causal blocks" in found.method
    assert masks.density <= 0.5 and tuple(x.patterns for x in made.model.layers) == masks.patterns
    assert found.before is not None and found.after is not None and found.before != found.after
    assert len(found.errors) == 2 and all(error > 0 for error in found.errors)
    assert (found.bits, found.bytes) == (made.report.passes[-2].bits, made.report.passes[-2].bytes)
    assert str(masks).splitlines()[-1].strip() in str(made.report)


def test_the_program_gives_the_reference_s_bits(made: Quantised) -> None:
    config = load_config("tiny")
    driver = Driver(FunctionalDevice(config), build_program(made.model, config, "made"))
    ids = torch.randint(96, (TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()
    wanted = IntegerModel(made.model).forward(ids)
    assert driver.prefill(ids).tobytes() == wanted.tobytes()
    layers = tuple(replace(layer, patterns=None) for layer in made.model.layers)
    dense = IntegerModel(replace(made.model, layers=layers)).forward(ids)
    assert dense.tobytes() != wanted.tobytes()


def test_the_report_sees_the_patterns_of_the_model(
    case: tuple[Checkpoint, Calibration], made: Quantised
) -> None:
    """Without patterns nothing is lost."""
    run = MaskedAttention(case[0], HALF, lambda *_: None)
    size, last = made.report.passes[-2], []
    for patterns in (None, (Pattern(0, 1),) * 2):
        layers = tuple(replace(layer, patterns=patterns) for layer in made.model.layers)
        last.append(run.report(replace(made.model, layers=layers), size))
    assert last[0].before == last[0].after == last[1].before != last[1].after
    assert last[0].errors[-1] < last[1].errors[-1]


def test_patterns_without_calibration() -> None:
    config = random_config("llama", max_length=2048, layers=3)
    assert rule_patterns(config, 1) == ()
    patterns = rule_patterns(config, 0.3)
    assert len(patterns) == 3 and len({p for heads in patterns for p in heads}) == 1
    best = patterns[0][0]
    assert best.density(1024) <= 0.3 < Pattern(best.first, best.last + 1).density(1024) + 0.05
    with pytest.raises(InputError, match="density: 0.01 is less than the 0.061"):
        rule_patterns(config, 0.01)


@pytest.mark.parametrize("how", ["quantise", "rule"])
def test_a_window_goes_without(how: str) -> None:
    message = "attention density: mistral has a sliding window of 9 tokens"
    with pytest.raises(InputError, match=message):
        if how == "rule":
            rule_patterns(random_config("mistral"), 0.5)
        else:
            quantise(random_checkpoint("mistral"), QuantOptions(attention_density=0.5))


def test_held_out_text_is_not_fitted(
    case: tuple[Checkpoint, Calibration], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = []
    exact = choose_masks
    monkeypatch.setattr(
        block_sparse, "choose_masks", lambda *a: fitted.append(a[1]) or exact(*a)
    )  # fmt: skip
    run = MaskedAttention(case[0], HALF, lambda *_: None)
    rows = {tuple(row) for row in fitted[0].ids.tolist()}
    assert len(rows) == 14 and rows.isdisjoint({tuple(row) for row in run.held.ids.tolist()})
