"""The ladder of passes: each step's stream and what is said of it."""

import math

import pytest
import torch
from random_checkpoint import random_checkpoint

from flightllm.compiler.calibrate import calibration_size, float_model, sample
from flightllm.compiler.fold import fold_ends, fold_layer
from flightllm.compiler.ladder import FLOAT, Ladder, perplexity
from flightllm.compiler.quant_report import pass_reports, pruned_bits
from flightllm.compiler.streams import Streams

torch.set_num_threads(1)


def test_perplexity_counts_tokens_of_the_text_alone() -> None:
    logits = torch.zeros(2, 3, 4)
    logits[0, 0, 2] = math.log(5)  # 5 of 8 for what comes next
    logits[0, 1, 0] = 100.0  # what comes next is not of the text
    ids = torch.tensor([[1, 2, 3], [0, 0, 0]])
    valid = torch.tensor([[True, True, False], [True, False, False]])
    assert perplexity(logits, ids, valid) == pytest.approx(8 / 5)
    assert perplexity(logits, ids, valid & False) is None


@torch.no_grad()
def test_steps() -> None:
    checkpoint = random_checkpoint("llama")
    ends = fold_ends(checkpoint)
    model = float_model(checkpoint)
    text = sample(model, 16, min(24, calibration_size(checkpoint.config)[1]))
    streams = Streams(checkpoint.config, ends, text, 4)
    ladder = Ladder(streams)
    for index in range(2):
        layer = fold_layer(checkpoint, index)
        bad = layer.with_weights({"up": -layer.weights["up"]}, {})
        ladder.step(
            {FLOAT: layer, "vectors": layer, "values": layer, "keys": layer, "round": bad}
        )
    # The cache has 4 bits: V's, then K's come on top of the INT8 vectors' errors.
    last = [ladder.errors[name][1] for name in ("vectors", "values", "keys")]
    assert last[0] < last[1] < last[2]
    assert ladder.errors[FLOAT] == [0.0, 0.0]
    assert all(0 < error < 0.5 for error in ladder.errors["vectors"])
    assert ladder.errors["round"][1] > 2 * ladder.errors["vectors"][1]
    found = ladder.finish(dict.fromkeys(ladder.errors, ends))
    held = streams.held.any(1)
    wanted = perplexity(model.forward(text.ids[held]), text.ids[held], text.valid[held])
    assert found[FLOAT] == pytest.approx(wanted, rel=1e-4)
    assert found["round"] != found["vectors"] != found[FLOAT]


def test_reports_of_passes() -> None:
    made = pass_reports(
        {"prune": "magnitude 8:16", "round": "gptq w4g32"}, {"prune": 800.0, "round": 320.0}, 80,
        {"float": [0.0], "prune": [0.25], "round": [0.5]},
        {"float": 2.0, "prune": 3.0, "round": 4.0},
    )  # fmt: skip
    assert [(p.bits, p.bytes, p.errors, p.before, p.after) for p in made] == [
        (10.0, 100.0, (0.25,), 2.0, 3.0),
        (4.0, 40.0, (0.5,), 3.0, 4.0),
    ]
    assert str(made[0]) == (
        "pass prune (magnitude 8:16): 10.000 bits, 100 bytes, perplexity 2.0000 -> 3.0000,"
        " errors 0.2500"
    )
    plain = pass_reports({"round": "nearest"}, {"round": 8.0}, 2, {}, {})
    assert str(plain[0]) == "pass round (nearest): 4.000 bits, 1 bytes"


@pytest.mark.parametrize(
    ("kept", "private", "bits"),
    [
        (16, False, 4 * 40 * 16),
        (8, False, 4 * 24 * 16 + 2 * 3 * 16),
        (2, True, 4 * 6 * 16 + 4 * 3 * 8),
    ],
)
def test_bits_of_what_is_only_pruned(kept: int, private: bool, bits: int) -> None:
    assert pruned_bits(4, 40, kept, private) == bits
